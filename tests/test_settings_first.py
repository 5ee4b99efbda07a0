"""Settings are judged before data are read: nothing is opened for a run that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import interlude_fast as il
from interlude_fast.cli.main import main
from interlude_fast.config import load
from interlude_fast.data import decode, files
from interlude_fast.errors import InterludeError
from interlude_fast.experiment.run import train_run
from interlude_fast.models import EmbeddingFusion, Shape, build_model
from interlude_fast.settings_files import parse_assignment
from interlude_fast.training.checkpoint import save_tensors
from interlude_fast.training.setup import prepare
from tests.helpers import image_names, write_images

# Rules that need nothing but the settings.
ALONE = [
    ("method.tau=1.5", r"method\.tau must be a number in \[0, 1\]"),
    ("method.tau=[0.9,2]", r"method\.tau must be a number in \[0, 1\]"),
    ("method.alpha_range=[0.3,0.2]", r"method\.alpha_range must be"),
    ("method.alpha=0.1 method.alpha_range=[0.1,0.2]", "exclude each other"),
    ("method.alpha=0 method.fusion_at_eval=true", r"method\.fusion_at_eval"),
    ("method.warmup_dc=0.1 method.lambda_dc=0", r"method\.warmup_dc"),
    ("method.class_weights=[1,-1]", r"method\.class_weights"),
    ("method.name=freematch method.lowest=0.9 method.highest=0.5", "is above highest"),
    ("method.name=semimeta method.ramp=50000", r"method\.ramp = 50000"),
    ("data.split.imbalance=10", r"data\.split\.imbalance = 10 wants data\.split\.kind = long_tailed"),
    ("data.split.kind=long_tailed", r"long_tailed wants data\.labels"),
    ("data.split.kind=proportional data.split.counts=[2,2]", "both say how many labels"),
    ("data.split.unlabeled_largest=3", "unlabeled_imbalance beside it"),
    ("data.split.validation=1.5", "neither a share below 1 nor a whole number"),
    ("data.split.file=/nowhere/split.json", "No such file"),
    ("data.split.file=/nowhere/split.json data.labels=4", r"drop data\.labels"),
    ("data.mean=[0.5,0.5]", r"data\.mean = \[0\.5, 0\.5\]"),
    ("data.mean=[0.5] data.std=[0.1,0.1,0.1]", "of different channels"),
    ("data.mean=[0.5] data.channels=3", r"data\.channels = 3"),
    ("data.extra=true", r"data\.extra = True means nothing to the dataset 'folder'"),
    ("data.pipeline=pillow", "unknown pipeline 'pillow'"),
    ("data.interpolation=cubic", r"data\.interpolation = .cubic.: input should be"),
    ("model.pretrained=true", r"unknown key .model\.pretrained."),
    ("optim.schedule=steps", r"wants optim\.milestones"),
    ("optim.milestones=[3]", r"optim\.milestones are read by"),
    ("optim.warmup=40000", "never reaches optim.lr"),
    ("optim.name=adam optim.momentum=0.5", r"momentum = 0\.5 means nothing"),
    ("optim.name=adam optim.nesterov=false", "nesterov = False means nothing"),
    ("optim.name=adam optim.shrink=0.1 train.precision=fp16", "has no fp16"),
    ("augment.form=usb augment.m=5", "m = 5 means nothing"),
    ("method.name=supervised train.mu=1024", r"train\.mu = 1024 means nothing to supervised"),
    ("method.name=supervised augment.n=3", r"augment\.n = 3 means nothing to supervised"),
    ("method.name=fixmatch model.fusion_stage=2", r"model\.fusion_stage = 2 means nothing where fixmatch"),
    ("model.depth=11", r"model\.depth = 11"),
    ("model.fusion_stage=4", "the network has 3 stages"),
    ("model.name=timm:resnet1", "unknown timm network"),
    ("model.weights=/nowhere/w.safetensors", r"model\.weights: /nowhere/w\.safetensors does not exist"),
    ("train.precision=tf32", "precision tf32"),
    ("train.capture=true", r"train\.capture"),
    ("method.name=vat train.compile=true", r"train\.compile"),
    ("train.device=cuda:9", "device 'cuda:9'"),
    ("data.pipeline=dali method.name=mixmatch", "pipeline dali makes one weak"),
    ("train.stepz=3", "unknown key"),
]
# Rules that need the classes, of which there are three with four images each.
WITH_CLASSES = [
    ("method.tau=[0.9,0.9]", r"method\.tau must be 3 numbers"),
    ("method.class_weights=[1,1]", r"method\.class_weights must be 3 numbers"),
    ("method.name=supervised method.class_weights=[1,1,1,1]", r"method\.class_weights must be 3 numbers"),
    ("data.split.counts=[2,2]", "2 numbers for 3 classes"),
    ("data.labels=2", "2 labels for 3 classes"),
    ("data.labels=4", "do not divide over 3 classes"),
    ("data.labels=300", "only 12 training images"),
    ("data.split.test=0.01", "is 0 of 12 images"),
    ("data.split.fold=1", "fold"),
    ("data.split.unknown_classes=[elk]", "no class 'elk'"),
    ("data.split.unknown_classes=[cat,dog]", "leaves 1 of 3 classes"),
    ("train.mu=13", "mu = 13, but there are only 12 unlabeled images"),
]
# Rules that need the images' shape, known from the settings here, else from the files' headers.
WITH_SHAPE = [
    ("data.mean=[0.5]", r"data\.mean = \[0\.5\]"),
    ("model.name=conv_large data.size=8", "conv_large wants images of at least"),
    ("model.name=vit model.patch=5", r"model\.patch = 5"),
    ("model.name=timm:resnet18 model.fusion_module=layer9", r"model\.fusion_module"),
    ("train.batch=1 method.name=supervised", "one image at a time"),
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos", image_names(("cat", "dog", "emu"), 4))
    return tmp_path / "photos"


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that raise when they are opened."""

    def opened(*arguments: Any, **more: Any) -> None:
        raise AssertionError("an image was opened")

    for name in ("open_regular", "inspect_stream", "read_stream", "prepare"):
        monkeypatch.setattr(decode, name, opened)
    monkeypatch.setattr(files, "survey", opened)


def asked(text: str, photos: Path) -> list[dict[str, Any]]:
    base = {"data": {"dataset": "folder", "root": str(photos), "cache": str(photos.parent / "cache")}}
    plain = {"model": {"name": "wideresnet"}, "method": {"name": "interlude"}, "train": {"device": "cpu"}}
    return [base, plain, *map(parse_assignment, text.split())]


def refuse(text: str, message: str, photos: Path) -> None:
    run = photos.parent / "run"
    with pytest.raises(InterludeError, match=message) as caught:
        train_run(load(None, asked(text, photos)), run)
    assert "\n" not in str(caught.value)
    assert not run.exists()
    assert not (photos.parent / "cache").exists()


@pytest.mark.parametrize(("text", "message"), ALONE)
@pytest.mark.usefixtures("sealed")
def test_what_needs_no_data(text: str, message: str, photos: Path) -> None:
    if "timm" in text:
        pytest.importorskip("timm")
    if "dali" in text:
        pytest.importorskip("nvidia.dali")
    refuse(text, message, photos)


@pytest.mark.parametrize(("text", "message"), WITH_CLASSES)
@pytest.mark.usefixtures("sealed")
def test_what_needs_the_classes(text: str, message: str, photos: Path) -> None:
    refuse(text, message, photos)


@pytest.mark.parametrize(("text", "message"), WITH_SHAPE)
@pytest.mark.usefixtures("sealed")
def test_what_needs_a_shape_that_is_set(text: str, message: str, photos: Path) -> None:
    if "timm" in text or "vit" in text:
        pytest.importorskip("timm")
    refuse(f"data.size=16 data.channels=3 {text}", message, photos)


@pytest.mark.parametrize(("text", "message"), WITH_SHAPE[:2])
def test_what_needs_a_shape_of_the_files(
    text: str, message: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers are read for it, and nothing is decoded."""

    def decoded(*arguments: Any, **more: Any) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(files, "prepared_images", decoded)
    with pytest.raises(InterludeError, match=message):
        prepare(load(None, asked(text, photos)))


@pytest.mark.usefixtures("sealed")
def test_weights_of_another_network(photos: Path) -> None:
    save_tensors(photos.parent / "other.safetensors", {"a": torch.zeros(2)}, {})
    refuse(f"data.size=16 data.channels=3 model.weights={photos.parent}/other.safetensors", "lacks", photos)


def test_the_fixture_works(photos: Path, sealed: None) -> None:
    with pytest.raises(AssertionError, match="an image was opened"):
        prepare(load(None, asked("data.labels=3", photos)))


@pytest.mark.usefixtures("sealed")
def test_the_command_line_ends_with_one_line(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    given = ["train", "--dataset", "folder", "--data-root", "photos", "--set", "method.tau=1.5"]
    given += ["--method", "interlude"]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 2
    assert "method.tau must be a number in [0, 1]" in result.stderr
    assert not (photos.parent / "runs").exists()


MANY = [
    ("data.split.test=0.3", {"data.labels": [6, 7]}, "7 labels do not divide"),
    ("data.split.test=0.3", {"train.mu": [2, 1000]}, "mu = 1000, but there are only"),
    ("data.split.test=0.3 method.name=interlude", {"method.tau": [[0.9, 0.8]]}, "must be 3 numbers"),
    ("data.labels=6", {"train.mu": [2]}, "has no test images"),
]


@pytest.mark.parametrize(("text", "grid", "message"), MANY)
@pytest.mark.usefixtures("sealed")
def test_many_runs_are_judged_before_any(text: str, grid: dict, message: str, photos: Path) -> None:
    given: dict[str, Any] = {"dataset": "folder", "data_root": photos, "device": "cpu", "quiet": True}
    given["set"] = [*text.split(), f"data.cache={photos.parent}/cache"]
    with pytest.raises(InterludeError, match=message):
        il.sweep(grid, out=photos.parent / "grid", **given)
    assert not (photos.parent / "cache").exists()


@pytest.mark.usefixtures("sealed")
def test_comparisons_and_imports_too(photos: Path) -> None:
    given: dict[str, Any] = {"dataset": "folder", "data_root": photos, "device": "cpu", "quiet": True}
    with pytest.raises(InterludeError, match="no test images to compare on"):
        il.compare(["interlude", "fixmatch"], set=[f"data.cache={photos.parent}/cache"], **given)
    network = build_model("wideresnet", {"depth": 10, "width": 1}, Shape(10), EmbeddingFusion())
    torch.save({"model": network.state_dict()}, photos.parent / "theirs.pth")
    with pytest.raises(InterludeError, match="tells 10 classes apart, but folder has 3"):
        il.import_checkpoint(photos.parent / "theirs.pth", photos.parent / "imported", **given)


def test_settings_are_typed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the command line to the loss nothing is validated a second time."""
    from interlude_fast import methods
    from tests.helpers import flags

    typed: list[dict[str, Any]] = []
    original = methods.validate

    def counted(cls: type, values: dict[str, Any], where: str = "") -> Any:
        typed.append(values)
        return original(cls, values, where)

    monkeypatch.setattr(methods, "validate", counted)
    more = ["--set", "method.tau=0.8", "--device", "cpu", "--run-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(main, ["train", *flags(), *more])
    assert result.exit_code == 0, result.output
    assert [values["tau"] for values in typed] == [0.8]
