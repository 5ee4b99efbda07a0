from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from interlude_fast.models import EmbeddingFusion, Shape
from interlude_fast.models.wideresnet import WideResNet, WideResNetOptions


def network(alpha: float = 0.0, classes: int = 10, channels: int = 3, **options: Any) -> WideResNet:
    torch.manual_seed(0)
    return WideResNet(WideResNetOptions(**options), Shape(classes, channels), EmbeddingFusion(alpha))


@pytest.mark.parametrize(
    ("options", "classes", "parameters"),
    [
        # Counts of the published networks without convolution biases: WRN-28-2 and the four-stage WRN-37-2.
        ({"depth": 28, "width": 2}, 10, 1_467_610),
        ({"depth": 28, "width": 2, "stages": 4, "first_stride": 2}, 10, 5_929_434),
    ],
)
def test_parameter_counts_of_published_networks(options: dict, classes: int, parameters: int) -> None:
    assert sum(p.numel() for p in network(classes=classes, **options).parameters()) == parameters


def test_four_stages_take_both_ways_of_counting_depth() -> None:
    released, literature = (network(stages=4, depth=d, width=1) for d in (28, 37))
    assert list(released.state_dict()) == list(literature.state_dict())


@pytest.mark.parametrize(("depth", "stages"), [(11, 3), (37, 3), (12, 4)])
def test_depths_that_no_network_has(depth: int, stages: int) -> None:
    with pytest.raises(ValueError, match=f"model.depth = {depth}"):
        network(depth=depth, stages=stages)


def test_fusion_stage_beyond_the_last() -> None:
    with pytest.raises(ValueError, match="fusion_stage = 4"):
        network(depth=10, fusion_stage=4)


@pytest.mark.parametrize("stages", [3, 4])
def test_fusion_sits_at_the_input_of_the_last_stage(stages: int) -> None:
    net = network(0.3, depth=10, width=1, stages=stages).train()
    seen: dict[str, torch.Tensor] = {}
    net.fusion.register_forward_hook(lambda m, i, o: seen.update(before=i[0], after=o))
    net.get_submodule(f"block{stages}").register_forward_pre_hook(lambda m, i: seen.update(entered=i[0]))
    net(torch.randn(4, 3, 32, 32))
    assert torch.equal(seen["after"], seen["entered"])
    x = seen["before"]
    torch.testing.assert_close(seen["after"], 0.7 * x + 0.3 * x.roll(-1, 0))


def test_a_prediction_depends_on_its_image_alone_unless_asked() -> None:
    net = network(0.3, depth=10, width=1).eval()
    x = torch.randn(6, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[2:3], net(x[2:3]))
        net.fusion.at_eval = True
        assert not torch.allclose(net(x)[2:3], net(x[2:3]))


def test_nothing_is_computed_that_nobody_reads() -> None:
    net = network(depth=16, width=2).train()
    ran: list[str] = []
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda m, i, o, name=name: ran.append(name))
    net(torch.randn(2, 3, 16, 16)).sum().backward()
    unread = {"block2.layer.0.bn1", "block3.layer.0.bn1"}
    norms = {n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert set(ran) == norms - unread
    assert {n.rsplit(".", 1)[0] for n in net.unread_buffers()} == unread
    without = {n for n, p in net.named_parameters() if p.grad is None}
    assert without == {f"{n}.{kind}" for n in unread for kind in ("weight", "bias")}


@pytest.mark.parametrize("width", [1, 2])
def test_first_stride_halves_every_stage(width: int) -> None:
    net = network(depth=10, width=width, stages=4, first_stride=2)
    sides: list[int] = []
    for s in range(1, 5):
        net.get_submodule(f"block{s}").register_forward_hook(lambda m, i, o: sides.append(o.shape[-1]))
    assert net(torch.randn(2, 3, 96, 96)).shape == (2, 10)
    assert sides == [48, 24, 12, 6]


def test_the_tmed2_network_takes_its_images() -> None:
    net = network(classes=4, channels=1, depth=28, width=2, stages=4)
    assert net(torch.randn(2, 1, 28, 28)).shape == (2, 4)
    assert [len(net.get_submodule(f"block{s}.layer")) for s in range(1, 5)] == [4, 4, 4, 4]
    assert net.embedding_size == 256


@pytest.mark.parametrize(
    ("form", "biases", "eps"),
    [
        ("interlude", set(), {1e-5}),
        ("mixup_lr", set(), {1e-5}),
        ("usb", {"conv1"}, {1e-5, 1e-3}),
        ("torchssl", {"conv1", "blocks"}, {1e-3}),
    ],
)
def test_forms_differ_in_biases_and_eps(form: str, biases: set[str], eps: set[float]) -> None:
    net, default = network(form=form, depth=10, width=1), network(depth=10, width=1)
    found = {
        "conv1" if name == "conv1" else "blocks"
        for name, m in net.named_modules()
        if isinstance(m, nn.Conv2d) and m.bias is not None
    }
    assert found == biases
    assert {m.eps for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == eps
    assert net.bn1.eps == max(eps)
    ours = network(form=form, depth=10, width=1, bn_eps=0.02)
    assert {m.eps for m in ours.modules() if isinstance(m, nn.BatchNorm2d)} == {0.02}
    assert {n for n in net.state_dict() if "conv" not in n} == {n for n in default.state_dict() if "conv" not in n}


def test_initial_weights_have_the_published_spread() -> None:
    net = network(depth=28, width=4)
    conv = net.block3.layer[1].conv1.weight
    assert float(conv.detach().std()) == pytest.approx((2 / (9 * conv.shape[0])) ** 0.5, rel=0.05)
    assert not net.fc.bias.any()


def test_compiles_without_graph_breaks() -> None:
    net = network(0.1, depth=10, width=1)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 16, 16).to(memory_format=torch.channels_last)
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-4)
