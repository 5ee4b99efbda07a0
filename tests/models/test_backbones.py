"""The networks against the released codes' own, at weights that a rule fills in (tests/golden/backbones.npz)."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from interlude_fast.errors import CheckpointError
from interlude_fast.models import EmbeddingFusion, Network, Shape, build_model
from interlude_fast.models.released import from_released, our_name

GOLDEN = Path(__file__).parent.parent / "golden" / "backbones.npz"
FOUR_STAGES = {"stages": 4, "first_stride": 2}
# Key of the file -> who released it, our name of the network, its options.
NETWORKS = {
    "convlarge_c10": ("semimeta", "conv_large", {"dropout": 0}),
    "shakeshake26_2x32d_c10": ("semimeta", "shake_shake", {"width": 32}),
    "shakeshake26_2x96d_c10": ("semimeta", "shake_shake", {"width": 96}),
    "torchssl_wrn28_2_c10": ("torchssl", "wideresnet", {"form": "torchssl"}),
    "torchssl_wrnvar_c10": ("torchssl", "wideresnet", {"form": "torchssl", **FOUR_STAGES}),
    "usb_wrn28_2_c10": ("usb", "wideresnet", {"form": "usb"}),
    "usb_wrn_var_37_2_c10": ("usb", "wideresnet", {"form": "usb", "depth": 37, **FOUR_STAGES}),
    "mixuplr_wrn28_2_c10": ("mixup_lr", "wideresnet", {"form": "mixup_lr"}),
    "usb_vit_tiny_patch2_32_c100": ("usb", "vit", {"size": "tiny"}),
    "usb_vit_small_patch2_32_c100": ("usb", "vit", {"size": "small"}),
}
CONTENT = dict(np.load(GOLDEN))


def filled(key: str) -> dict[str, Tensor]:
    """The released network's parameters and buffers, under its own names, as the file's rule says."""
    state = {}
    names, shapes = CONTENT[f"{key}_param_names"], CONTENT[f"{key}_param_shapes"]
    for k, (name, text) in enumerate(zip(names, shapes, strict=True)):
        shape = ast.literal_eval(str(text))
        values = np.random.default_rng(10000 + k).standard_normal(shape)
        if name in ("pos_embed", "cls_token"):
            values = 0.1 * values
        elif len(shape) > 1:
            values = values / np.sqrt(np.prod(shape[1:]))
        else:
            values = (1 if name.endswith("weight") else 0) + 0.1 * values
        state[str(name)] = torch.from_numpy(values)
    for k, name in enumerate(CONTENT[f"{key}_buffer_names"]):
        size = len(state[f"{str(name).rpartition('.')[0]}.weight"])
        generator = np.random.default_rng(20000 + k)
        if name.endswith("running_mean"):
            state[str(name)] = torch.from_numpy(0.1 * generator.standard_normal(size))
        elif name.endswith("running_var"):
            state[str(name)] = torch.from_numpy(1 + 0.5 * generator.random(size))
        else:
            state[str(name)] = torch.tensor(0)
    return state


def network(key: str) -> Network:
    _, name, options = NETWORKS[key]
    classes = int(key.rpartition("_c")[2])
    shape = Shape(classes, side=int(CONTENT[f"{key}_hw"]))
    return build_model(name, options, shape, EmbeddingFusion()).double()


def close(ours: Tensor, theirs: np.ndarray) -> None:
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-9, atol=1e-9)


def test_every_recorded_network_is_here() -> None:
    recorded = {name.removesuffix("_logits_eval") for name in CONTENT if name.endswith("_logits_eval")}
    assert recorded == NETWORKS.keys()


@pytest.mark.parametrize("key", NETWORKS)
def test_logits_are_those_of_the_released_network(key: str, one_thread: None) -> None:
    if "vit" in key:
        pytest.importorskip("timm")
    source, name, _ = NETWORKS[key]
    net = network(key)
    net.load_state_dict(from_released(filled(key), source, name))  # type: ignore[arg-type]
    assert sum(p.numel() for p in net.parameters()) == int(CONTENT[f"{key}_num_params"])
    side = int(CONTENT[f"{key}_hw"])
    x = torch.from_numpy(np.random.default_rng(7).standard_normal((4, 3, side, side)))
    with torch.no_grad():
        close(net.eval()(x), CONTENT[f"{key}_logits_eval"])
        if f"{key}_logits_train" in CONTENT:
            close(net.train()(x), CONTENT[f"{key}_logits_train"])


def test_names_that_no_released_network_has() -> None:
    assert our_name("module.classifier.weight", "usb", "wideresnet") == "fc.weight"
    for key, source, name in (
        ("fc.weight", "usb", "wideresnet"),
        ("block5.layer.0.bn1.weight", "torchssl", "wideresnet"),
        ("blocks.0.attn.qkv.running_mean", "usb", "vit"),
        ("conv1.weight.extra", "interlude", "wideresnet"),
        ("classifier.weight", "semimeta", "conv_large"),
    ):
        with pytest.raises(CheckpointError, match=f"'{key}' is no parameter of {source}'s {name}"):
            from_released({key: torch.zeros(1)}, source, name)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no names of a vit of torchssl are known; known: wideresnet of"):
        our_name("head.weight", "torchssl", "vit")
