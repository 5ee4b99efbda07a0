"""Checkpoints as the released programs write them, with their keys, become runs that eval and predict take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from interlude_fast.cli import main
from interlude_fast.errors import CheckpointError
from interlude_fast.evaluation.evaluate import evaluate_run
from interlude_fast.experiment.import_checkpoint import import_checkpoint
from interlude_fast.experiment.run import resume_config, train_run
from interlude_fast.models import EmbeddingFusion, Shape, build_model
from interlude_fast.models.foreign import foreign_networks
from interlude_fast.models.released import identify
from interlude_fast.models.weights import load_tensors
from tests.helpers import small_config

DATA = [{"data": {"dataset": "digits", "labels": 20}, "train": {"device": "cpu"}}]


def network(classes: int = 10, **options) -> nn.Module:
    sizes = {"depth": 10, "width": 1, "first_stride": 2}  # the stride of the digits' preset
    made = build_model("wideresnet", sizes | options, Shape(classes, 1, 16), EmbeddingFusion())
    with torch.no_grad():
        for value in made.state_dict().values():
            if value.is_floating_point():
                value.add_(0.05 * torch.randn_like(value).abs())
    return made


def usb_names(net: nn.Module) -> dict[str, torch.Tensor]:
    return {k.replace("fc.", "classifier."): v for k, v in net.state_dict().items()}


def released_file(program: str, path: Path, raw: nn.Module, ema: nn.Module) -> None:
    """As the program's own save function lays it out."""
    sgd = torch.optim.SGD(raw.parameters(), 0.03, momentum=0.9)
    if program == "interlude":
        content = {"epoch": 3, "state_dict": raw.state_dict(), "ema_state_dict": ema.state_dict(), "best_acc": 0.9}
        content |= {
            "optimizer": sgd.state_dict(),
            "scheduler": torch.optim.lr_scheduler.ConstantLR(sgd).state_dict(),
        }
    elif program == "torchssl":
        parallel = {f"module.{k}": v for k, v in raw.state_dict().items()}
        content = {"model": parallel, "ema_model": ema.state_dict(), "optimizer": sgd.state_dict(), "it": 10}
    else:
        content = {"model": usb_names(raw), "ema_model": usb_names(ema), "it": 10, "epoch": 1, "best_it": 5}
    torch.save(content, path)


@pytest.mark.parametrize("program", ["interlude", "torchssl", "usb"])
def test_a_released_checkpoint_becomes_a_run(program: str, tmp_path: Path) -> None:
    raw, ema = (network(form=program) for _ in range(2))
    released_file(program, tmp_path / "theirs.pth", raw, ema)
    made = import_checkpoint(tmp_path / "theirs.pth", DATA, tmp_path / "run")
    assert made.networks == ("raw", "ema")
    assert made.released.options == {"form": program, "depth": 10, "width": 1, "stages": 3}
    for name, theirs in (("raw", raw), ("ema", ema)):
        ours = load_tensors(tmp_path / "run" / "weights" / f"{name}.safetensors")[0]
        assert ours.keys() == theirs.state_dict().keys()
        assert all(torch.equal(v, ours[k]) for k, v in theirs.state_dict().items())
    scores = evaluate_run(tmp_path / "run").scores["test"]
    assert scores["ema"].n == scores["raw"].n == 360
    assert len(json.loads((tmp_path / "run" / "imported.json").read_text())["sha256"]) == 64


def test_the_imported_network_computes_what_theirs_does(tmp_path: Path) -> None:
    theirs = network(form="usb").eval()
    torch.save({"model": usb_names(theirs)}, tmp_path / "theirs.pth")
    import_checkpoint(tmp_path / "theirs.pth", DATA, tmp_path / "run")
    ours = network(form="usb").eval()
    ours.load_state_dict(load_tensors(tmp_path / "run" / "weights" / "ema.safetensors")[0])
    x = torch.randn(3, 1, 16, 16)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "options", "rename"),
    [
        ("conv_large", {}, ("fc.", "classifier.0.")),
        ("shake_shake", {"width": 32}, ("", "")),
        ("vit", {"size": "tiny"}, ("net.", "")),
    ],
)
def test_other_networks_are_known_by_their_names(name: str, options: dict, rename: tuple, tmp_path: Path) -> None:
    if name == "vit":
        pytest.importorskip("timm")
    net = build_model(name, options, Shape(7, 3, 32), EmbeddingFusion())
    found = identify({k.replace(*rename): v for k, v in net.state_dict().items()})
    assert (found.network, found.classes) == (name, 7)
    assert options.items() <= found.options.items()


def test_depth_width_and_stages_are_read_off_the_shapes() -> None:
    net = network(depth=28, width=2, stages=4)
    assert identify(net.state_dict()).options == {"form": "interlude", "depth": 28, "width": 2, "stages": 4}


def test_the_command_line(tmp_path: Path) -> None:
    torch.save({"model": usb_names(network(form="usb"))}, tmp_path / "theirs.pth")
    arguments = ["import", str(tmp_path / "theirs.pth"), "--dataset", "digits", "--labels", "20"]
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "wideresnet (form usb, depth 10, width 1, stages 3), 10 classes: raw weights" in done.output
    assert "stands for the raw and the EMA one" in done.output
    again = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "run")])
    assert again.exit_code == 2
    assert "is never overwritten" in again.output


def test_what_does_not_fit_gets_one_line(tmp_path: Path) -> None:
    file = tmp_path / "theirs.pth"
    for content, message in (
        ({"model": network(12).state_dict()}, "tells 12 classes apart, but digits has 10"),
        ({"model": nn.Linear(3, 4).state_dict()}, "no classifier of a known network"),
        ({"model": {"fc.weight": torch.zeros(3, 4)}}, "no network that is known"),
        ({"model": {**network().state_dict(), "extra.weight": torch.zeros(1)}}, "'extra.weight' is no parameter"),
        ({"model": network().state_dict() | {"fc.weight": torch.zeros(10, 7)}}, "do not fit the network"),
        (
            {"model": network().state_dict() | {"fc.bias": torch.full((10,), torch.nan)}},
            "fc.bias holds NaN or inf",
        ),
    ):
        torch.save(content, file)
        with pytest.raises(CheckpointError, match=message) as caught:
            import_checkpoint(file, DATA, tmp_path / "run")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "run").exists()
    with pytest.raises(CheckpointError, match="does not exist"):
        foreign_networks(tmp_path / "nothing.pth")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("patch_embed.proj.weight", (192, 3)),
        ("layer1.0.conv_a1.weight", ()),
        ("block1.layer.0.conv1.weight", ()),
        ("block1.layer.0.conv1.weight", (0, 16, 3, 3)),
    ],
)
def test_tensors_of_odd_shapes_are_no_network(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match=r"a network's has 4 dimensions") as caught:
        identify({"fc.weight": torch.zeros(3, 4), name: torch.zeros(shape)})
    assert "\n" not in str(caught.value)


def test_an_imported_run_cannot_be_resumed_but_started_from(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    torch.save({"model": network().state_dict()}, tmp_path / "theirs.pth")
    import_checkpoint(tmp_path / "theirs.pth", DATA, directory)
    command = ["train", "--run-dir", str(directory)]
    resumed = CliRunner().invoke(main, [*command, "--resume"])
    again = CliRunner().invoke(main, [*command, "--dataset", "digits"])
    assert resumed.exit_code == again.exit_code == 2
    weights = directory / "weights" / "ema.safetensors"
    assert f"model.weights={weights}" in resumed.output.replace("\n", "")
    assert "is never overwritten" in again.output
    assert "--resume" not in again.output
    with pytest.raises(CheckpointError, match="weights only"):
        resume_config(directory, None, [])
    options = {"name": "wideresnet", "depth": 10, "width": 1, "first_stride": 2, "weights": str(weights)}
    train_run(small_config(model=options, train={"steps": 1}), tmp_path / "next")
