"""Weight files that a network starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from interlude_fast.api import predict
from interlude_fast.errors import ConfigError
from interlude_fast.evaluation.evaluate import evaluate_run
from interlude_fast.experiment.run import train_run
from interlude_fast.models import EmbeddingFusion, Network, Shape, build_model
from interlude_fast.models.prototypes import PrototypeNetwork
from interlude_fast.models.weights import load_tensors
from interlude_fast.training.setup import prepare
from tests.helpers import SMALL, small_config, write_images

WRN = {"depth": 10, "width": 1}
VIT = {"size": "tiny", "patch": 8}


def network(
    name: str = "wideresnet",
    options: dict[str, Any] = WRN,
    classes: int = 5,
    side: int = 32,
    seed: int = 0,
    **more: Any,
) -> Network:
    torch.manual_seed(seed)
    return build_model(name, {**options, **more}, Shape(classes, 3, side), EmbeddingFusion())


def saved(path: Path, state: dict[str, Tensor]) -> Path:
    save_file({n: v.contiguous() for n, v in state.items()}, path)
    return path


def test_a_file_replaces_every_weight_and_statistic(tmp_path: Path) -> None:
    there = network(seed=1)
    there.bn1.running_mean.fill_(0.5)  # type: ignore[union-attr,operator]
    file = saved(tmp_path / "w.safetensors", there.double().state_dict())
    here = network(weights=file)
    for name, value in here.state_dict().items():
        torch.testing.assert_close(value, there.state_dict()[name].to(value.dtype))
    assert here.fc.weight.dtype == torch.float32  # type: ignore[union-attr]


def test_a_safetensors_file_may_begin_as_a_pickle_does(tmp_path: Path) -> None:
    """Its first bytes are the length of its header."""
    there = network(seed=1)
    for padding in range(0, 1 << 16, 8):
        save_file(there.state_dict(), tmp_path / "w", {"padding": "x" * padding})
        if (tmp_path / "w").read_bytes()[:1] == b"\x80":
            break
    else:
        pytest.fail("no such file was made")
    here = network(weights=tmp_path / "w")
    assert torch.equal(here.conv1.weight, there.conv1.weight)  # type: ignore[union-attr]


def test_a_classifier_of_other_k_or_none_is_left_fresh(tmp_path: Path) -> None:
    fresh, there = network(), network(classes=7, seed=1)
    files = [saved(tmp_path / "k7.safetensors", there.state_dict())]
    headless = {n: v for n, v in there.state_dict().items() if not n.startswith("fc.")}
    files.append(saved(tmp_path / "headless.safetensors", headless))
    for file in files:
        here = network(weights=file)
        assert torch.equal(here.fc.weight, fresh.fc.weight)  # type: ignore[union-attr]
        assert torch.equal(here.conv1.weight, there.conv1.weight)  # type: ignore[union-attr]


def test_position_embeddings_of_another_grid_are_resized(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    there = network("vit", VIT, side=64, seed=1)
    with torch.no_grad():
        there.net.pos_embed.normal_()
    file = saved(tmp_path / "vit.safetensors", there.state_dict())
    here = network("vit", VIT, weights=file)
    old, new = (n.net.pos_embed.detach() for n in (there, here))
    assert new.shape == (1, 17, 192)
    assert torch.equal(new[:, :1], old[:, :1])
    grid = old[:, 1:].reshape(1, 8, 8, 192).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(grid, size=(4, 4), mode="bicubic", align_corners=False)
    torch.testing.assert_close(new[:, 1:], resized.permute(0, 2, 3, 1).reshape(1, 16, 192))
    odd = saved(tmp_path / "odd", {**there.state_dict(), "net.pos_embed": torch.zeros(1, 12, 192)})
    with pytest.raises(ConfigError, match=r"net\.pos_embed is \[1, 12, 192\]"):
        network("vit", VIT, weights=odd)


def test_names_of_timm_are_taken_as_they_are(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    released = timm.create_model("resnet10t", num_classes=1000).state_dict()
    file = saved(tmp_path / "timm.safetensors", released)
    here = network("timm:resnet10t", {}, weights=file)
    assert torch.equal(here.net.layer1[0].conv1.weight, released["layer1.0.conv1.weight"])


def test_files_that_do_not_fit_name_the_first_key(tmp_path: Path) -> None:
    state = network().state_dict()
    without = {n: v for n, v in state.items() if n != "conv1.weight"}
    (tmp_path / "text").write_text("not tensors")
    cases = {
        "lacks conv1.weight of this network; set model.name": saved(tmp_path / "a", without),
        r"holds block9\.x, which this network has not; set": saved(
            tmp_path / "b", {**state, "block9.x": torch.zeros(3)}
        ),
        r"conv1\.weight is \[16, 1, 3, 3\] in .* and \[16, 3, 3, 3\] in this": saved(
            tmp_path / "c", {**state, "conv1.weight": torch.zeros(16, 1, 3, 3)}
        ),
        "is cut short or not a safetensors file": tmp_path / "text",
        "model.weights: .*missing does not exist": tmp_path / "missing",
    }
    for message, file in cases.items():
        with pytest.raises(ConfigError, match=message) as caught:
            network(weights=file)
        assert "\n" not in str(caught.value)


def torch_saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def usb_names(net: Network) -> dict[str, Tensor]:
    return {n.replace("fc.", "classifier."): v for n, v in net.state_dict().items()}


def test_released_checkpoints_give_their_averaged_network_or_the_only_one(tmp_path: Path) -> None:
    raw, ema = (network(form="usb", seed=s) for s in (1, 2))
    both = torch_saved(tmp_path / "a", {"model": usb_names(raw), "ema_model": usb_names(ema), "it": 3})
    one = torch_saved(tmp_path / "b", {"model": {f"module.{n}": v for n, v in usb_names(raw).items()}})
    for file, there in ((both, ema), (one, raw)):
        here = network(form="usb", weights=file)
        assert all(torch.equal(v, there.state_dict()[n]) for n, v in here.state_dict().items())
    fresh, here = (network(form="usb", classes=9, **more) for more in ({}, {"weights": one}))
    assert torch.equal(here.fc.weight, fresh.fc.weight)  # type: ignore[union-attr]
    assert torch.equal(here.conv1.weight, raw.conv1.weight)  # type: ignore[union-attr]
    with pytest.raises(
        ConfigError, match=r"set model\.name .*: wideresnet, form usb, depth 10, width 1, stages 3"
    ):
        network(form="usb", width=2, weights=one)


@pytest.mark.parametrize("head", ["own", "none", "usb", "mae"])
def test_vit_takes_files_of_usb_timm_and_masked_autoencoders(tmp_path: Path, head: str) -> None:
    pytest.importorskip("timm")
    fresh, there = network("vit", VIT), network("vit", VIT, classes=7, seed=1)
    names = {n.removeprefix("net."): v for n, v in there.state_dict().items()}
    if head != "own":
        names = {n: v for n, v in names.items() if not n.startswith("head.")}
    if head == "usb":
        names |= {f"{n}.weight": torch.zeros(3, 192) for n in ("fc", "mlp.0", "head.0", "classifier")}
    if head == "mae":
        names |= {"mask_token": torch.zeros(1, 1, 64), "decoder_embed.weight": torch.zeros(64, 192)}
    files = [torch_saved(tmp_path / "w.pth", {"model": names}), saved(tmp_path / "w.safetensors", names)]
    for file in files:
        here = network("vit", VIT, weights=file)
        assert torch.equal(here.net.head.weight, fresh.net.head.weight)
        assert torch.equal(here.net.blocks[3].mlp.fc1.weight, there.net.blocks[3].mlp.fc1.weight)
    with pytest.raises(ConfigError, match=r"holds net\.extra, which this network has not"):
        network("vit", VIT, weights=torch_saved(tmp_path / "x.pth", {"model": {**names, "extra": torch.zeros(1)}}))


def test_a_backbone_starts_from_that_of_prototypes(tmp_path: Path) -> None:
    there = PrototypeNetwork(network(seed=1), 5, temperature=0.2)
    file = saved(tmp_path / "ema.safetensors", there.state_dict())
    fresh, here = network(), network(weights=file)
    assert torch.equal(here.fc.weight, fresh.fc.weight)  # type: ignore[union-attr]
    for name, value in there.backbone.state_dict().items():
        assert torch.equal(here.state_dict()[name], value)


def test_weights_that_are_not_finite_or_no_weights_are_refused(tmp_path: Path) -> None:
    state = network().state_dict()
    state["conv1.weight"][0, 0, 0, 0] = torch.inf
    (tmp_path / "cut").write_bytes(b"PK\x03\x04cut short")
    cases = {
        r"model.weights: .*nan: conv1\.weight holds NaN or infinite": saved(tmp_path / "nan", state),
        "model.weights: .*nan.pth: conv1": torch_saved(tmp_path / "nan.pth", {"model": state}),
        "model.weights: .*cut is not a checkpoint of torch.save, or damaged": tmp_path / "cut",
        "model.weights: .*none.pth holds no weights": torch_saved(tmp_path / "none.pth", {"epoch": 1}),
    }
    for message, file in cases.items():
        with pytest.raises(ConfigError, match=message) as caught:
            network(weights=file)
        assert "\n" not in str(caught.value)


def test_counters_of_old_files_may_be_missing(tmp_path: Path) -> None:
    there = network(seed=1)
    state = {n: v for n, v in there.state_dict().items() if not n.endswith("num_batches_tracked")}
    here = network(weights=saved(tmp_path / "old", state))
    assert torch.equal(here.conv1.weight, there.conv1.weight)  # type: ignore[union-attr]


def test_a_run_starts_from_the_weights_of_another_and_then_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = train_run(small_config(), Path("first")).directory
    weights = first / "weights" / "ema.safetensors"
    config = small_config(model={**SMALL["model"], "weights": str(weights)}, train={"steps": 6})
    assert prepare(config).config.model.options.weights == tmp_path / weights
    run = prepare(config)
    for name, value in load_tensors(weights)[0].items():
        assert torch.equal(run.state.model.state_dict()[name], value)
        assert torch.equal(run.state.ema.model.state_dict()[name], value)
    second = train_run(config, Path("second")).directory
    assert str(tmp_path / weights) in (second / "config.yaml").read_text()
    # A finished run is whole without the file that it started from.
    weights.unlink()
    evaluate_run(second)
    train_run(config, second, resume=True)
    write_images(tmp_path, ["one.png"], (8, 8), "L")
    assert len(predict(second, [tmp_path / "one.png"], device="cpu").paths) == 1
    with pytest.raises(ConfigError, match=r"ema\.safetensors does not exist"):
        prepare(config)
