"""State dictionaries of other people's released code, under our names: what `model.weights` and checkpoints take.

Wide residual networks are InterLUDE's, TorchSSL's, USB's (`wrn` and `wrn_var`) and Mixup-LR's; vision transformers
USB's; conv_large and shake_shake SemiMeta's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from interlude_fast.errors import CheckpointError

Source = Literal["interlude", "torchssl", "usb", "mixup_lr", "semimeta"]
Shapes = dict[str, tuple[int, ...]]

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

HEADS = ("fc.weight", "classifier.weight", "classifier.0.weight", "head.weight")


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


class Released(NamedTuple):
    """What a released state dictionary is of: its program, our network and options that fit it, and K."""

    source: Source
    network: str
    options: dict[str, Any]
    classes: int


def identify(state: Mapping[str, Tensor]) -> Released:
    """By the names and shapes in it. What weights do not tell, such as a first stride, is not among the options.

    Raises:
        CheckpointError: it is none of those above.
    """
    shapes: Shapes = {key.removeprefix("module."): tuple(value.shape) for key, value in state.items()}
    classes = next((shapes[k][0] for k in HEADS if len(shapes.get(k, ())) == 2), 0)
    if not classes:
        raise CheckpointError(f"no classifier of a known network ({', '.join(HEADS)}) is among the weights")
    if "patch_embed.proj.weight" in shapes:
        width, _, patch, _ = _shape(shapes, "patch_embed.proj.weight", 4)
        size = {192: "tiny", 384: "small", 768: "base"}.get(width)
        if size is None:
            raise CheckpointError(f"a vision transformer of width {width} is none of USB's (192, 384, 768)")
        return Released("usb", "vit", {"size": size, "patch": patch}, classes)
    if "block1.0.weight" in shapes:
        return Released("semimeta", "conv_large", {}, classes)
    if "layer1.0.conv_a1.weight" in shapes:
        return Released(
            "semimeta", "shake_shake", {"width": _shape(shapes, "layer1.0.conv_a1.weight", 4)[0]}, classes
        )
    if "block1.layer.0.conv1.weight" in shapes:
        return _wideresnet(shapes, classes)
    raise CheckpointError("the weights are of no network that is known here (docs/networks.md)")


def _shape(shapes: Shapes, key: str, rank: int) -> tuple[int, ...]:
    if len(shapes[key]) != rank or 0 in shapes[key]:
        raise CheckpointError(f"{key} is {list(shapes[key])}: a network's has {rank} dimensions, none of them 0")
    return shapes[key]


def _wideresnet(shapes: Shapes, classes: int) -> Released:
    stages = sum(f"block{s}.layer.0.conv1.weight" in shapes for s in range(1, 5))
    blocks = sum(re.fullmatch(r"block1\.layer\.\d+\.conv1\.weight", key) is not None for key in shapes)
    source: Source = "usb" if "classifier.weight" in shapes else "interlude"
    if "block1.layer.0.conv1.bias" in shapes:
        source = "torchssl"
    width = _shape(shapes, "block1.layer.0.conv1.weight", 4)[0] // 16
    return Released(
        source, "wideresnet", {"form": source, "depth": 6 * blocks + 4, "width": width, "stages": stages}, classes
    )
