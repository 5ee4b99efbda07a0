"""What every network keeps to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from interlude_fast.errors import ConfigError
from interlude_fast.models import NETWORKS as REGISTERED
from interlude_fast.models import EmbeddingFusion, Network, Shape, build_model

# Name, options, whether it takes odd sides. Small ones: what is tested here depends on no width.
NETWORKS: list[tuple[str, dict[str, Any], bool]] = [
    ("wideresnet", {"depth": 10, "width": 1}, True),
    ("wideresnet", {"depth": 10, "width": 1, "form": "torchssl", "stages": 4, "first_stride": 2}, True),
    ("conv_large", {}, True),
    ("shake_shake", {}, True),
    ("efficientnet_lite0", {"pretrained": False}, True),
    ("efficientnet_lite1", {"pretrained": False}, True),
    ("efficientnet_lite2", {"pretrained": False}, True),
    ("vit", {"size": "tiny", "patch": 8}, False),
    ("timm:resnet10t", {}, True),
    ("timm:vit_tiny_patch16_224", {}, False),
]
IDS = [f"{name}-{i}" for i, (name, _, _) in enumerate(NETWORKS)]
every_network = pytest.mark.parametrize(("name", "options", "odd"), NETWORKS, ids=IDS)
pytestmark = pytest.mark.usefixtures("one_thread")


def build(name: str, options: dict[str, Any], alpha: float = 0.0, channels: int = 3, side: int = 32) -> Network:
    if name == "vit" or name.startswith(("timm:", "efficientnet")):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    return build_model(name, options, Shape(5, channels, side), EmbeddingFusion(alpha))


def seeded(network: Network, x: Tensor) -> Tensor:
    """Logits with dropout, stochastic depth and gates drawn alike in every call."""
    torch.manual_seed(1)
    return network(x)


def test_every_network_of_the_table_is_tested() -> None:
    assert REGISTERED.keys() <= {name for name, _, _ in NETWORKS}


@every_network
def test_shapes(name: str, options: dict[str, Any], odd: bool) -> None:
    for channels, side in ((3, 32), (1, 21 if odd else 16 * 3)):
        net = build(name, options, channels=channels, side=side).eval()
        x = torch.randn(2, channels, side, side)
        with torch.no_grad():
            embedding = net.embed(x)
            assert embedding.shape == (2, net.embedding_size)
            assert net.classify(embedding).shape == (2, 5)
            assert torch.equal(net.classify(embedding), net(x))


@every_network
def test_fusion_is_applied_while_training_and_only_then(name: str, options: dict[str, Any], odd: bool) -> None:
    net, without = build(name, options, 0.3), build(name, options)
    without.load_state_dict(net.state_dict())
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), without.eval()(x))
        assert not torch.allclose(seeded(net.train(), x), seeded(without.train(), x))
        # At evaluation rows do not depend on one another, so that a change tells what fusion brings in.
        net.eval().fusion.at_eval = True
        before = net(x)
        for i in (1, 2):
            other = x.clone()
            other[i] += 1
            changed = (net(other) - before).abs().amax(1) > 1e-7
            assert changed.tolist() == [row in (i - 1, i) for row in range(4)]


@pytest.mark.parametrize(
    ("name", "place", "channels"), [("conv_large", "block7", 256), ("shake_shake", "layer3", 64)]
)
def test_places_of_fusion(name: str, place: str, channels: int) -> None:
    net = build(name, {}, 0.3).train()
    seen: list[Tensor] = []
    net.fusion.register_forward_hook(lambda m, i, o: seen.extend((i[0], o)))
    net.get_submodule(place).register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    net(torch.randn(3, 3, 32, 32))
    before, after, entered = seen
    assert after is entered
    assert before.shape[1] == channels
    torch.testing.assert_close(after, 0.7 * before + 0.3 * before.roll(-1, 0))


@every_network
def test_a_copy_fuses_by_its_own_switch(name: str, options: dict[str, Any], odd: bool) -> None:
    net = build(name, options, 0.3)
    averaged = copy.deepcopy(net).eval()
    net.train()
    net.fusion.at_eval = True
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(averaged(x)[:1], averaged(x[:1]), rtol=1e-4, atol=1e-5)


@every_network
def test_gradients_reach_every_parameter_that_is_read(name: str, options: dict[str, Any], odd: bool) -> None:
    net = build(name, options, 0.1).train()
    seeded(net, torch.randn(4, 3, 32, 32)).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    unread = {n for n, p in net.named_parameters() if p.grad is None}
    strided = {f"block{s}.layer.0.bn1.{kind}" for s in (2, 3, 4) for kind in ("weight", "bias")}
    assert unread <= (strided if name == "wideresnet" else set())


@every_network
def test_layers_hold_every_parameter_once_and_the_classifier_last(
    name: str, options: dict[str, Any], odd: bool
) -> None:
    net = build(name, options)
    names = [n for n, _ in net.named_parameters()]
    for n in names:
        assert sum(n.startswith(prefixes) for prefixes in net.layers()) == 1, n
    heads = [n for n in names if n.startswith(f"{net.classifier}.")]
    assert len(heads) == 2
    assert all(n.startswith(net.layers()[-1]) for n in heads)
    assert net.without_decay() <= set(names)


@pytest.mark.parametrize(("name", "options", "odd"), [NETWORKS[2], NETWORKS[4]], ids=["conv_large", "vit"])
def test_compiles_without_graph_breaks(name: str, options: dict[str, Any], odd: bool) -> None:
    net = build(name, options, 0.1).train()
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    torch.manual_seed(1)
    result = compiled(x)
    torch.testing.assert_close(result, seeded(net, x), rtol=1e-4, atol=1e-4)
    result.sum().backward()


PUBLISHED = [
    ("conv_large", {}, 10, 32, 3_121_802),
    ("conv_large", {}, 100, 32, 3_133_412),
    ("shake_shake", {"width": 96}, 10, 32, 26_193_466),
    ("shake_shake", {"width": 96}, 100, 32, 26_228_116),
    ("shake_shake", {"width": 32}, 10, 32, 2_923_322),
    ("shake_shake", {"width": 32}, 100, 32, 2_934_932),
    ("wideresnet", {"form": "mixup_lr"}, 10, 32, 1_467_610),
    ("wideresnet", {"form": "torchssl"}, 10, 32, 1_469_642),
    ("wideresnet", {"form": "torchssl"}, 100, 32, 1_481_252),
    ("wideresnet", {"form": "torchssl", "width": 8}, 100, 32, 23_409_092),
    ("wideresnet", {"form": "torchssl", "stages": 4, "first_stride": 2}, 10, 96, 5_933_770),
    ("wideresnet", {"form": "usb"}, 10, 32, 1_467_626),
    ("wideresnet", {"form": "usb"}, 100, 32, 1_479_236),
    ("wideresnet", {"form": "usb", "width": 8}, 100, 32, 23_401_028),
    ("wideresnet", {"form": "usb", "depth": 37, "stages": 4, "first_stride": 2}, 10, 96, 5_929_450),
    ("vit", {"size": "small"}, 10, 32, 21_402_250),
    ("vit", {"size": "small"}, 100, 32, 21_436_900),
    ("vit", {"size": "tiny"}, 10, 32, 5_392_714),
    ("vit", {"size": "tiny"}, 100, 32, 5_410_084),
    ("vit", {"size": "base"}, 10, 96, 85_683_466),
]


@pytest.mark.parametrize(("name", "options", "classes", "side", "parameters"), PUBLISHED, ids=str)
def test_parameter_counts_of_the_published_networks(
    name: str, options: dict[str, Any], classes: int, side: int, parameters: int
) -> None:
    if name == "vit":
        pytest.importorskip("timm")
    with torch.device("meta"):
        net = build_model(name, options, Shape(classes, 3, side), EmbeddingFusion())
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_unknown_names_and_options() -> None:
    for name, options, message in (
        ("wideresnett", {}, "unknown network 'wideresnett'; did you mean 'wideresnet'"),
        ("resnet", {}, "unknown network 'resnet'"),
        ("vit", {"sise": "tiny"}, r"unknown key 'model\.sise'; did you mean 'size'"),
        ("shake_shake", {"width": 64}, r"model\.width = 64"),
        ("wideresnet", {"form": "tf"}, r"model\.form = 'tf'"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_model(name, options, Shape(5), EmbeddingFusion())


def test_conv_large_refuses_images_that_its_poolings_leave_nothing_of() -> None:
    with pytest.raises(ConfigError, match="at least 12 px, these have 11"):
        build("conv_large", {}, side=11)
    assert build("conv_large", {}, side=12)(torch.randn(2, 3, 12, 12)).shape == (2, 5)


def test_conv_large_drops_whole_channels_of_an_image() -> None:
    net = build("conv_large", {}).train()
    seen: list[Tensor] = []
    net.block4.register_forward_pre_hook(lambda m, i: seen.append(i[0]))  # type: ignore[operator,union-attr]
    seeded(net, torch.randn(8, 3, 32, 32))
    dropped = (seen[0] == 0).flatten(2).all(2)
    assert 0.45 < dropped.float().mean() < 0.55
    assert not torch.equal(dropped[0], dropped[1])
