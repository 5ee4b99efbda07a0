"""State dictionaries of other people's released code, under our names: what `model.weights` and checkpoints take.

Wide residual networks are InterLUDE's, TorchSSL's, USB's (`wrn` and `wrn_var`) and Mixup-LR's; vision transformers
USB's; conv_large and shake_shake SemiMeta's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from interlude_fast.errors import CheckpointError

Source = Literal["interlude", "torchssl", "usb", "mixup_lr", "semimeta"]

NORM = r"weight|bias|running_mean|running_var|num_batches_tracked"
WIDERESNET = (
    (r"(conv1\.(weight|bias))", r"\1"),
    (r"(block[1-4]\.layer\.\d+\.(conv1|conv2|convShortcut)\.(weight|bias))", r"\1"),
    (rf"(block[1-4]\.layer\.\d+\.bn[12]\.({NORM}))", r"\1"),
    (rf"(bn1\.({NORM}))", r"\1"),
)
LINEAR_FC = ((r"(fc\.(weight|bias))", r"\1"),)
LINEAR_CLASSIFIER = ((r"classifier\.(weight|bias)", r"fc.\1"),)
VIT = (
    (r"(cls_token|pos_embed|(patch_embed\.proj|norm|head)\.(weight|bias))", r"net.\1"),
    (r"(blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias))", r"net.\1"),
)
CONV_LARGE = (
    (rf"(block[1-9]\.(0\.weight|1\.({NORM})))", r"\1"),
    (r"classifier\.0\.(weight|bias)", r"fc.\1"),
)
SHAKE_SHAKE = (
    (r"(conv1\.weight)", r"\1"),
    (rf"(layer[1-3]\.\d+\.(conv_[ab][12]\.weight|bn_[ab][12]\.({NORM})))", r"\1"),
    (rf"(layer1\.0\.downsample\.(0\.weight|1\.({NORM})))", r"\1"),
    (rf"(layer[23]\.0\.downsample\.(conv\.(weight|bias)|bn\.({NORM})))", r"\1"),
)

# (a name of theirs as a regular expression, ours) for each network that a source has released.
RULES: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {
    ("interlude", "wideresnet"): WIDERESNET + LINEAR_FC,
    ("torchssl", "wideresnet"): WIDERESNET + LINEAR_FC,
    ("mixup_lr", "wideresnet"): WIDERESNET + LINEAR_FC,
    ("usb", "wideresnet"): WIDERESNET + LINEAR_CLASSIFIER,
    ("usb", "vit"): VIT,
    ("semimeta", "conv_large"): CONV_LARGE,
    ("semimeta", "shake_shake"): SHAKE_SHAKE + LINEAR_FC,
}


def our_name(key: str, source: Source, network: str) -> str:
    """Our name of the parameter or buffer that `source` calls `key`, with or without DataParallel's `module.`.

    Raises:
        CheckpointError: the source has released no such network, or it holds no such name.
    """
    rules = RULES.get((source, network))
    if rules is None:
        known = ", ".join(f"{n} of {s}" for s, n in RULES)
        raise CheckpointError(f"no names of a {network} of {source} are known; known: {known}")
    for theirs, ours in rules:
        match = re.fullmatch(theirs, key.removeprefix("module."))
        if match:
            return match.expand(ours)
    raise CheckpointError(f"'{key}' is no parameter of {source}'s {network}")


def from_released(state: Mapping[str, Tensor], source: Source, network: str) -> dict[str, Tensor]:
    """A released state dictionary with its tensors under our names.

    Args:
        network: a name of `models.MODELS`.

    Raises:
        CheckpointError: as our_name.
    """
    return {our_name(key, source, network): value for key, value in state.items()}
