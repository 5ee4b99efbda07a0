"""A network that is cut computes what it computed; only its tail learns; norms are folded without a change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from interlude_fast.errors import ConfigError
from interlude_fast.models import EmbeddingFusion, Network, NetworkOptions, Shape, build_model, divide
from interlude_fast.models.norms import FoldedNorm, plain_state_dict
from interlude_fast.models.prototypes import PrototypeNetwork

SIDE = 32
NETWORKS = ["wideresnet", "conv_large", "shake_shake", "vit", "efficientnet_lite0"]
NETWORKS += ["timm:resnet18", "timm:convnext_atto", "timm:densenet121", "timm:vit_small_patch16_dinov3"]


def network(name: str, fusion: float = 0.0, classes: int = 5) -> Network:
    """With running statistics that are not those of a fresh network."""
    timm = name.startswith("timm:")
    options = {"pretrained": False} if timm or name.startswith("efficient") else {}
    built = build_model(name, options, Shape(classes, 3, SIDE), EmbeddingFusion(fusion))
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.1, 0.1),
            ):
                value.uniform_(low, high)
    return built


def divided(built: Network, **options: object) -> Network:
    return divide(copy.deepcopy(built), NetworkOptions(**options), Shape(5, 3, SIDE))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, SIDE, SIDE)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("norm", ["train", "frozen", "folded"])
def test_the_whole_is_front_and_tail(name: str, norm: str, images: Tensor) -> None:
    plain = network(name).eval()
    cut = divided(plain, cut="auto", norm=norm).eval()
    expected = plain(images)
    torch.testing.assert_close(cut(images), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert cut.cut is not None
    assert cut.cut.activations(cut, images).shape == (4, *cut.cut.shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_only_the_tail_learns(name: str, images: Tensor) -> None:
    cut = divided(network(name), cut="auto", norm="folded").train()
    before = copy.deepcopy(cut.state_dict())
    optimizer = torch.optim.SGD([p for p in cut.parameters() if p.requires_grad], 0.1)
    cut(images).square().sum().backward()
    optimizer.step()
    assert cut.cut is not None
    changed = {n for n, v in cut.state_dict().items() if v.is_floating_point() and not torch.equal(v, before[n])}
    assert changed
    assert not [name for name in changed if cut.cut.holds(name)]
    trained = {n for n, p in cut.named_parameters() if p.requires_grad}
    assert {n for n, p in cut.named_parameters() if p.grad is not None} <= trained


@pytest.mark.parametrize("name", NETWORKS)
def test_every_place_and_its_number(name: str, images: Tensor) -> None:
    plain = network(name).eval()
    places = divided(plain, cut=0).cut.places  # type: ignore[union-attr]
    assert len(places) >= 2
    for number in (0, len(places) - 1, len(places)):
        cut = divided(plain, cut=number).eval()
        assert cut.cut is not None
        assert cut.cut.number == number
        by_name = divided(plain, cut=cut.cut.place)
        assert by_name.cut is not None
        assert (by_name.cut.place, by_name.cut.shape) == (cut.cut.place, cut.cut.shape)
        torch.testing.assert_close(cut(images), plain(images), rtol=1e-4, atol=1e-4)
    assert cut.cut.place == "classifier"
    trained = [n for n, p in cut.named_parameters() if p.requires_grad]
    assert trained
    assert all(n.startswith(f"{cut.classifier}.") for n in trained)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "timm:densenet121"])
@pytest.mark.parametrize("number", [0, "auto", "classifier"])
def test_fusion_moves_to_the_cut_where_it_lay_before_it(name: str, number: int | str, images: Tensor) -> None:
    cut = divided(network(name, fusion=0.3), cut=number, norm="folded")
    calls: list[int] = []
    cut.fusion.register_forward_hook(lambda module, given, out: calls.append(len(given[0])))
    assert cut.cut is not None
    activations = cut.cut.activations(cut, images)
    calls.clear()  # a hook in the front asks, and is answered with what it gave
    cut.kept = True
    cut.train()
    torch.manual_seed(0)
    fused = cut(activations)
    assert calls == [4]
    cut.fusion.alpha = 0.0
    torch.manual_seed(0)
    assert not torch.allclose(fused, cut(activations), rtol=1e-3, atol=1e-5)


def test_the_front_never_fuses(images: Tensor) -> None:
    """The stage whose input is fused lies in the front; the network trains."""
    plain, fusing = network("efficientnet_lite0"), network("efficientnet_lite0", fusion=0.4)
    fusing.load_state_dict(plain.state_dict())
    cuts = [divided(built, cut="classifier", norm="folded").train() for built in (plain, fusing)]
    one, other = (cut.cut.activations(cut, images) for cut in cuts)  # type: ignore[union-attr]
    assert torch.equal(one, other)


def test_a_copy_is_cut_too_and_reads_its_own_parameters(images: Tensor) -> None:
    cut = divided(network("wideresnet"), cut="auto", norm="frozen").eval()
    other = copy.deepcopy(cut)
    with torch.no_grad():
        other.fc.weight.zero_()
        other.fc.bias.zero_()
    assert torch.equal(other(images), torch.zeros(4, 5))
    assert cut(images).abs().sum() > 0


def test_the_tail_follows_the_mode(images: Tensor) -> None:
    """Dropout that a network writes as a function, with its mode as a number of Python."""
    cut = divided(network("conv_large"), cut="block3", norm="folded")
    cut.train()
    assert not torch.equal(cut(images), cut(images))
    cut.eval()
    assert torch.equal(cut(images), cut(images))


def test_norms_hold_still_in_train_mode(images: Tensor) -> None:
    trains, frozen = (divided(network("timm:resnet18"), norm=norm).train() for norm in ("train", "frozen"))
    for cut, moves in ((trains, True), (frozen, False)):
        before = copy.deepcopy(cut.state_dict())
        cut(images)
        assert torch.equal(before["net.bn1.running_mean"], cut.state_dict()["net.bn1.running_mean"]) is not moves
    assert not any(m.training for m in frozen.modules() if isinstance(m, nn.BatchNorm2d))
    frozen.eval()
    frozen.train()
    assert not any(m.training for m in frozen.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(
    "name", ["conv_large", "shake_shake", "wideresnet", "efficientnet_lite0", "timm:densenet121"]
)
def test_folded_weights_are_written_as_the_plain_network_s(name: str, images: Tensor) -> None:
    plain = network(name).eval()
    cut = divided(plain, cut="auto", norm="folded").train()
    optimizer = torch.optim.SGD([p for p in cut.parameters() if p.requires_grad], 1e-3)
    cut(images).square().mean().backward()
    optimizer.step()
    written = plain_state_dict(cut)
    assert {n: v.shape for n, v in written.items()} == {n: v.shape for n, v in plain.state_dict().items()}
    again = copy.deepcopy(plain)
    again.load_state_dict(written)
    torch.testing.assert_close(again(images), cut.eval()(images), rtol=1e-4, atol=1e-4)
    assert any(isinstance(m, FoldedNorm) for m in cut.modules())


def test_of_a_network_around_another(images: Tensor) -> None:
    inner = divided(network("efficientnet_lite0"), cut="auto", norm="folded")
    around = PrototypeNetwork(inner, 5, 0.1).eval()
    assert around.trunk is inner
    plain = PrototypeNetwork(network("efficientnet_lite0"), 5, 0.1).eval()
    plain.load_state_dict(plain_state_dict(around))
    torch.testing.assert_close(plain(images), around(images), rtol=1e-4, atol=1e-4)
    inner.kept = True
    torch.testing.assert_close(around(inner.cut.activations(inner, images)), plain(images), rtol=1e-4, atol=1e-4)  # type: ignore[union-attr]


class _Twice(Network):
    """Its convolution is read by its norm, and by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion, self.embedding_size = EmbeddingFusion(), 4
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def embed(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3)) + self.conv(x).mean((2, 3))

    def classify(self, embedding: Tensor) -> Tensor:
        return self.fc(embedding)


def test_a_convolution_that_is_read_twice_keeps_its_norm(images: Tensor) -> None:
    plain = _Twice()
    nn.init.uniform_(plain.norm.running_var, 0.2, 0.5)
    folded = divided(plain, norm="folded").eval()
    torch.testing.assert_close(folded(images), plain.eval()(images))
    assert isinstance(folded.norm, nn.BatchNorm2d)
    assert "more than one way" in folded.remarks[0]


class _Decides(_Twice):
    def embed(self, x: Tensor) -> Tensor:
        return super().embed(x if x.sum() > 0 else -x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cut": 99}, "leaves nothing to train; this network can be cut before 0 block1"),
        ({"cut": "block9"}, "cannot be cut before 'block9'"),
        ({"cut": "fc"}, "cannot be cut before 'fc'"),
    ],
)
def test_bad_places(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        divided(network("wideresnet"), **options)


def test_a_network_that_cannot_be_traced() -> None:
    with pytest.raises(ConfigError, match="this network cannot be cut"):
        divided(_Decides(), cut="auto")
    assert "cannot be traced" in divided(_Decides(), norm="folded").remarks[0]
