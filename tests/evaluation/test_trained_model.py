"""Trained networks are used without building a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from interlude_fast.cli.main import main
from interlude_fast.config import load
from interlude_fast.data import pipelines
from interlude_fast.data.pipelines import build_pipeline
from interlude_fast.data.sampler import Sampler
from interlude_fast.errors import DataError
from interlude_fast.evaluation.evaluate import evaluate_run
from interlude_fast.evaluation.trained_model import TrainedModel
from interlude_fast.experiment.import_checkpoint import import_checkpoint
from interlude_fast.experiment.result import read_result
from interlude_fast.experiment.run import train_run
from interlude_fast.training import setup, state
from interlude_fast.training.setup import load_data
from tests.helpers import SMALL, image_names, small_config, write_images


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that only training needs raises."""

    def built(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a part of training was built")

    for owner, name in (
        *((torch.optim.Optimizer, "__init__"), (state.TrainState, "__init__"), (Sampler, "__init__")),
        *((setup, "build_pipeline"), (pipelines, "build_store"), (setup, "build_stepper"), (setup, "prepare")),
    ):
        monkeypatch.setattr(owner, name, built)


def test_eval_predict_and_import_build_no_training(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = train_run(small_config(data={"split": {"validation": 60}}), tmp_path / "run")
    write_images(tmp_path, ["a.png"], (16, 16), "L")
    raw = TrainedModel.load("run", "raw", "cpu").network.state_dict()
    torch.save({"model": {f"module.{k}": v for k, v in raw.items()}, "ema_model": raw}, tmp_path / "theirs.pth")
    request.getfixturevalue("no_training")
    with pytest.raises(AssertionError, match="part of training"):
        build_pipeline("resident", *load_data(small_config()), None, None, seed=0, device=torch.device("cpu"))  # type: ignore[arg-type]
    assert evaluate_run(tmp_path / "run").scores == trained.scores
    for arguments in (["eval", "run"], ["predict", "run", "a.png"]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
    model = {"model": {**SMALL["model"]}, "train": {"device": "cpu"}}
    made = import_checkpoint(tmp_path / "theirs.pth", [{"data": SMALL["data"]}, model], tmp_path / "imported")
    assert evaluate_run(made.directory).scores["test"]["raw"] == trained.scores["test"]["raw"]


def test_prediction_leaves_the_network_as_it_is(tmp_path: Path) -> None:
    train_run(small_config(method={"name": "interlude", "fusion_at_eval": True}), tmp_path / "run")
    model = TrainedModel.load(tmp_path / "run", "raw", "cpu")
    assert model.network.fusion.at_eval
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 1), dtype=np.uint8)
    together = model.predict(images).probabilities
    assert model.network.fusion.at_eval
    alone = np.concatenate([model.predict(images[i : i + 1]).probabilities for i in range(6)])
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_evaluate_takes_folders_and_held_out_images(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", image_names(("cat", "dog"), 8))
    write_images(tmp_path / "more", image_names(("dog",), 3))
    data = {"dataset": "folder", "root": tmp_path / "photos", "cache": tmp_path / "cache", "size": 12}
    small = {"model": SMALL["model"], "train": {**SMALL["train"], "device": "cpu"}, "data": data}
    train_run(load(None, [small, {"data": {"labels": 4, "split": {"test": 4}}}]), tmp_path / "run")
    model = TrainedModel.load(tmp_path / "run", device="cpu")
    assert model.evaluate(tmp_path / "more").n == 3
    sets = model.held_out(*load_data(model.config, split_file=tmp_path / "run" / "split.json"))
    assert [*sets] == ["test"]
    assert model.evaluate(sets["test"]) == read_result(tmp_path / "run").scores["test"]["ema"]
    with pytest.raises(DataError, match="classes are matched by name"):
        model.evaluate(tmp_path)


def test_nothing_to_evaluate_is_said(tmp_path: Path) -> None:
    """A plain folder has neither test nor validation images."""
    write_images(tmp_path / "photos", image_names(("cat", "dog"), 4))
    given = [
        "--data-root",
        str(tmp_path / "photos"),
        "--set",
        f"data.cache={tmp_path}/cache",
        "--dataset",
        "folder",
    ]
    given += [
        "--model",
        "wideresnet",
        "--set",
        "model.depth=10",
        "--set",
        "model.width=1",
        "--set",
        "train.batch=2",
        "--device",
        "cpu",
    ]
    given += ["--set", "train.mu=2", "--set", "data.size=12"]
    run = ["--run-dir", str(tmp_path / "run")]
    trained = CliRunner().invoke(main, ["train", *given, *run, "--budget", "4s"])
    assert trained.exit_code == 0, trained.output
    assert "nothing was evaluated" in trained.output
    evaluated = CliRunner().invoke(main, ["eval", str(tmp_path / "run")])
    assert evaluated.exit_code == 2
    assert "there is nothing to evaluate" in evaluated.stderr
    measured = CliRunner().invoke(main, ["bench", *given, "--seconds", "0.2", "--no-reference"])
    assert measured.exit_code == 0, measured.output


def test_results_of_earlier_versions_are_read(tmp_path: Path) -> None:
    new = train_run(small_config(data={"split": {"validation": 60}}), tmp_path / "run")
    written = read_result(tmp_path / "run")
    assert written.scores == new.scores
    names = {("test", "raw"): "raw", ("test", "ema"): "ema"}
    names |= {("validation", "raw"): "raw_validation", ("validation", "ema"): "ema_validation"}
    import json

    file = tmp_path / "run" / "result.json"
    values = json.loads(file.read_text())
    report = values.pop("scores")
    basic = {
        name: {k: v for k, v in report[part][net].items() if k not in ("intervals", "recall", "confusion")}
        for (part, net), name in names.items()
    }
    file.write_text(json.dumps({**basic, **values, "report": report}))
    assert read_result(tmp_path / "run") == written
    file.write_text(json.dumps({**basic, **values}))
    assert read_result(tmp_path / "run").scores["validation"]["ema"].error == basic["ema_validation"]["error"]
