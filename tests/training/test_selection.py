"""Last, best on validation and best on test: who is chosen by what, and that a stop changes nothing of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from interlude_fast.config import ExperimentConfig
from interlude_fast.errors import CheckpointError
from interlude_fast.experiment.run import train_run
from interlude_fast.experiment.run_directory import RunDirectory
from interlude_fast.metrics import Scores
from interlude_fast.training import setup
from interlude_fast.training.checkpoint import load_tensors
from interlude_fast.training.selection import BY_TEST, BY_VALIDATION, Selection
from interlude_fast.training.setup import prepare
from tests.helpers import small_config
from tests.training.test_runs import Stop, assert_same_run, stop_after, weights

FINAL = ("raw", "ema", BY_VALIDATION)


def scores(accuracy: float, balanced: float = 0.5) -> Scores:
    return Scores(error=1 - accuracy, accuracy=accuracy, balanced_accuracy=balanced, n=10)


def numbered(step: int) -> dict[str, nn.Module]:
    """Networks whose one weight says after which step they are."""
    networks = {"raw": nn.Linear(1, 1, bias=False), "ema": nn.Linear(1, 1, bias=False)}
    for sign, network in zip((-1, 1), networks.values(), strict=True):
        nn.init.constant_(network.weight, sign * step)
    return networks


def selected(by: str = "accuracy", network: str = "ema") -> Selection:
    """Three evaluations, whose best ones differ by network, by score and by the images that choose."""
    selection = Selection(by, network)
    rows = [  # (test, balanced test, validation, balanced validation) of ema; raw is at its best first
        (0.5, 0.1, 0.6, 0.3),
        (0.4, 0.2, 0.8, 0.2),
        (0.9, 0.3, 0.8, 0.4),
    ]
    for step, (test, balanced, validation, balanced_validation) in enumerate(rows, 1):
        selection.add(
            step,
            {
                "test": {"raw": scores(0.3 - step / 100), "ema": scores(test, balanced)},
                "validation": {
                    "raw": scores(0.2 - step / 100),
                    "ema": scores(validation, balanced_validation),
                },
            },
            numbered(step),
        )
    return selection


@pytest.mark.parametrize(
    ("by", "network", "step", "weight"),
    [
        ("accuracy", "ema", 2, 2.0),  # the earlier of two equals
        ("balanced_accuracy", "ema", 3, 3.0),
        ("accuracy", "raw", 2, -1.0),
    ],
)
def test_validation_selects(by: str, network: str, step: int, weight: float) -> None:
    selection = selected(by, network)
    assert selection.best[BY_VALIDATION]["ema"].step == step
    assert selection.best[BY_VALIDATION]["raw"].step == 1
    assert selection.weights["weight"].item() == weight
    if by == "accuracy":  # the test figure is that of the selected step, not the best
        assert selection.best[BY_VALIDATION]["ema"].scores["test"] == scores(0.4, 0.2)


def test_the_test_set_is_named_and_selects_no_weights() -> None:
    assert selected().best[BY_TEST]["ema"].step == 3
    blind = Selection()
    for step, accuracy in ((1, 0.5), (2, 0.9)):
        blind.add(step, {"test": {"ema": scores(accuracy)}}, numbered(step))
    assert blind.best[BY_TEST]["ema"].step == 2
    assert blind.best[BY_VALIDATION] == {}
    assert blind.weights == blind.tensors() == {}


def test_a_selection_comes_back_and_goes_on() -> None:
    before, after = selected(), Selection()
    after.restore(before.text(), {**before.tensors(), "model/weight": torch.zeros(1)})
    assert after.best == before.best
    assert torch.equal(after.weights["weight"], before.weights["weight"])
    after.add(4, {"test": {"ema": scores(1.0)}, "validation": {"ema": scores(0.8)}}, numbered(4))
    assert (after.best[BY_VALIDATION]["ema"].step, after.best[BY_TEST]["ema"].step) == (2, 4)


@pytest.mark.parametrize("text", ["", "[]", '{"best_on_validation": {}}', '{"best_on_validation": 3}'])
def test_a_damaged_selection_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match="selection is damaged"):
        Selection().restore(text, {})
    with pytest.raises(CheckpointError, match="do not fit"):
        Selection().restore(selected().text(), {})


def with_validation(**train: Any) -> ExperimentConfig:
    settings = {"eval_every": 2, "checkpoint_every": 3, "select_by": "balanced_accuracy", **train}
    return small_config(data={"split": {"validation": 100}}, train=settings)


def by_row(path: Path, name: str) -> dict[int, float]:
    return {r["step"]: r[name] for r in RunDirectory(path).read_metrics() if name in r}


def test_a_run_reports_all_three(tmp_path: Path) -> None:
    result = train_run(with_validation(), tmp_path / "run")
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    for network in ("raw", "ema"):
        for kind, part in ((BY_VALIDATION, "validation"), (BY_TEST, "test")):
            rows = by_row(tmp_path / "run", f"{part}/{network}/balanced_accuracy")
            best = max(rows, key=lambda step: (rows[step], -step))
            found = result.evaluations[kind][network]
            assert found.step == written[kind][network]["step"] == best
            for other in ("test", "validation"):  # both figures are those of the same evaluation
                figure = by_row(tmp_path / "run", f"{other}/{network}/error")[best]
                assert written[kind][network][other]["error"] == figure
        assert result.evaluations["last"][network].step == 8
        last = result.evaluations["last"][network].scores["test"]
        assert written["last"][network]["test"] == last.as_dict()
        assert written["scores"]["test"][network] == result.scores["test"][network].as_dict()
        assert last.as_dict().items() <= written["scores"]["test"][network].items()
    assert "not a fair figure" in written["selection"][BY_TEST]
    assert written["selection"]["by"] == "balanced_accuracy"
    report = written["scores"]
    assert set(report["test"]) == set(report["validation"]) == set(FINAL)
    assert report["validation"][BY_VALIDATION]["n"] == 100
    chosen = written[BY_VALIDATION]["ema"]
    for part in ("test", "validation"):  # the kept weights are those of the selected step
        assert {k: report[part][BY_VALIDATION][k] for k in chosen[part]} == chosen[part]
    assert len(report["test"]["ema"]["confusion"]) == 10
    low, high = (report["test"]["ema"]["intervals"]["error"][end] for end in ("low", "high"))
    assert low < written["scores"]["test"]["ema"]["error"] < high


def test_without_validation_images_nothing_is_selected(tmp_path: Path) -> None:
    result = train_run(small_config(), tmp_path / "run")
    assert result.evaluations[BY_VALIDATION] == {}
    assert set(result.evaluations[BY_TEST]) == {"raw", "ema"}
    assert not RunDirectory(tmp_path / "run").weights(BY_VALIDATION).exists()


def selection_of(path: Path) -> tuple[Any, dict[str, torch.Tensor], dict[str, str]]:
    found = json.loads((path / "result.json").read_text())
    tensors, about = load_tensors(RunDirectory(path).weights(BY_VALIDATION))
    return {k: found[k] for k in ("last", BY_VALIDATION, BY_TEST, "scores", "selection")}, tensors, about


# Evaluated after 1, 2, ... and kept after 3, 6: a stop after step 4 or 5 has evaluations that are done again.
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 7])
def test_resume_keeps_the_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    config = with_validation(eval_every=1)
    train_run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(Stop):
            train_run(config, tmp_path / "stopped")
    train_run(config, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    (a, tensors, about), (b, again, about_again) = (selection_of(tmp_path / n) for n in ("whole", "stopped"))
    assert a == b
    assert about == about_again
    assert tensors.keys() == again.keys()
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)


def test_steps_that_are_done_again_and_not_evaluated_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, config = setup.Run.evaluate, with_validation(eval_every=1)

    def best_at_5(run: setup.Run) -> dict[str, dict[str, Scores]]:
        found = real(run)
        now = scores(1.0 if run.state.step == 5 else 0.1 * run.state.step, 0.5)
        return {part: dict.fromkeys(networks, now) for part, networks in found.items()}

    monkeypatch.setattr(setup.Run, "evaluate", best_at_5)
    accurate = config.model_copy(update={"train": config.train.model_copy(update={"select_by": "accuracy"})})
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stop):
            train_run(accurate, tmp_path / "run")  # it saw step 5, its last checkpoint did not
    rare = accurate.model_copy(update={"train": accurate.train.model_copy(update={"eval_every": 4})})
    result = train_run(rare, tmp_path / "run", resume=True)
    assert result.evaluations[BY_VALIDATION]["ema"].step == 8
    assert set(by_row(tmp_path / "run", "test/ema/error")) == {1, 2, 3, 4, 8}


def test_a_run_that_died_before_its_result_gets_it(tmp_path: Path) -> None:
    train_run(with_validation(), tmp_path / "run")
    before, kept = selection_of(tmp_path / "run"), weights(tmp_path / "run")
    for name in ("result.json", "weights/best_on_validation.safetensors"):
        (tmp_path / "run" / name).unlink()
    train_run(with_validation(), tmp_path / "run", resume=True)
    after = selection_of(tmp_path / "run")
    assert before[0] == after[0]
    assert all(torch.equal(before[1][name], after[1][name]) for name in before[1])
    assert all(torch.equal(v, kept[k]) for k, v in weights(tmp_path / "run").items())


def test_selection_does_not_change_training(tmp_path: Path) -> None:
    for name, network in (("a", "ema"), ("b", "raw")):
        train_run(with_validation(select_network=network), tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    with pytest.raises(CheckpointError, match="select_network = ema, but raw is asked for"):
        train_run(with_validation(select_network="raw"), tmp_path / "a", resume=True)


def test_the_report_reads_images_that_stay_on_the_host(tmp_path: Path) -> None:
    config = small_config(data={"pipeline": "host", "split": {"validation": 100}})
    result = train_run(config, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "result.json").read_text())["scores"]
    assert report["test"]["ema"]["error"] == result.scores["test"]["ema"].error
    assert prepare(config).selection.weights == {}
