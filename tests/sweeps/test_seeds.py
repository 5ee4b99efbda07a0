"""`train --seeds`: what is trained, resumed and left alone, the table, and what fails."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from click.testing import CliRunner

from interlude_fast.cli.main import main
from interlude_fast.data.decode import cores
from interlude_fast.errors import CheckpointError, ConfigError, RunError
from interlude_fast.experiment.run import train_run
from interlude_fast.sweeps import jobs
from interlude_fast.sweeps.seeds import Seeds, seed_configs, train_seeds
from interlude_fast.sweeps.worker import with_share
from interlude_fast.training.state import TrainState
from tests.helpers import SMALL, before_steps, flags, small_config
from tests.training.test_runs import assert_same_run

QUICK = {**SMALL, "train": {**SMALL["train"], "steps": 4, "device": "cpu"}}
pytestmark = pytest.mark.usefixtures("one_thread")


def call(out: Path, *seeds: int, over: dict[str, Any] | None = None, **rest: Any) -> Seeds:
    return train_seeds(seed_configs(list(seeds), [QUICK, over or {}]), out, processes=1, **rest)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders of the runs that were trained in this process, "resumed" behind those that went on."""
    names: list[str] = []

    def counting(config, directory, *, resume, console):
        names.append(directory.name + (" resumed" if resume else ""))
        return train_run(config, directory, resume=resume, console=console)

    monkeypatch.setattr(jobs, "train_run", counting)
    return names


def test_what_is_there_is_not_trained_again(tmp_path: Path, trained: list[str]) -> None:
    call(tmp_path, 0, 1)
    found = call(tmp_path, 0, 1, 3)
    assert trained == ["seed0", "seed1", "seed3"]
    assert list(found.errors("last", "ema")) == [0, 1, 3]
    with pytest.raises(CheckpointError, match=r"seed0 holds a run with train.mu = 2, but 3"):
        call(tmp_path, 0, over={"train": {"mu": 3}})


def test_figures_are_those_of_the_runs(tmp_path: Path) -> None:
    split = {"split": {"validation": 0.5}}
    found = call(tmp_path, 0, 2, over={"data": split, "train": {"eval_every": 2}})
    figures = json.loads((tmp_path / "seeds.json").read_text())
    assert (
        call(tmp_path, 0, 2, over={"data": split, "train": {"eval_every": 2}}).as_dict().items()
        >= {key: found.as_dict()[key] for key in ("last", "best_on_validation", "seconds")}.items()
    )
    for kind in ("last", "best_on_validation"):
        for network in ("ema", "raw"):
            results = [json.loads((tmp_path / f"seed{s}" / "result.json").read_text()) for s in (0, 2)]
            errors = [result[kind][network]["test"]["error"] for result in results]
            row = figures[kind][network]
            assert list(row["errors"].values()) == errors
            assert (row["n"], row["mean"], row["std"]) == (2, mean(errors), stdev(errors))


def test_an_interrupted_seed_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    call(whole, 0, 1)

    def interrupt(state: TrainState) -> None:
        if state.step == 2 and state.seed == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        before_steps(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            call(broken, 0, 1)
    trained.clear()
    configs = seed_configs([0, 1], [], resume=broken)  # the folder knows the configuration
    train_seeds(configs, broken, processes=1)
    assert trained == ["seed1 resumed"]
    assert_same_run(whole / "seed1", broken / "seed1")


def test_a_seed_that_fails_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = jobs.train_run

    def failing(config, *args, **kwargs):
        if config.seed == 1:
            raise ConfigError("no luck")
        return real(config, *args, **kwargs)

    monkeypatch.setattr(jobs, "train_run", failing)
    found = call(tmp_path, 0, 1, 2)
    assert list(found.errors("last", "raw")) == [0, 2]
    rows = {str(cell): n for n, cell in enumerate(found.table().columns[0].cells)}
    assert list(found.table().columns[1].cells)[rows["1"]] == "failed"
    assert "mean ± std, n = 2" in rows
    with pytest.raises(RunError, match=r"1 of 3 runs failed: seed1; seed1: no luck; the same command tries"):
        found.raise_failures()


def test_the_command_does_several_at_a_time(tmp_path: Path) -> None:
    words = [*flags(QUICK), "--set", "data.workers=5", "--seeds", "0,1", "--jobs", "2", "--run-dir", str(tmp_path)]
    result = CliRunner().invoke(main, ["train", *words])
    assert result.exit_code == 0, result.output
    assert "mean ± std, n = 2" in result.output
    for seed in (0, 1):
        folder = tmp_path / f"seed{seed}"
        assert jobs.RunDirectory(folder).config().data.workers == 2
    train_run(small_config(train={"steps": 4}), tmp_path / "alone")
    assert_same_run(tmp_path / "alone", tmp_path / "seed0")


@pytest.mark.parametrize(("asked", "count", "share"), [(8, 3, 2), (1, 4, 1), (0, 4, 0)])
def test_workers_are_shared(asked: int, count: int, share: int) -> None:
    assert with_share(small_config(data={"workers": asked}), count).data.workers == share
    assert with_share(small_config(), count).data.workers == max(1, cores() // count)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--seeds", "0-1", "--seed", "3"], "seeds are given by --seeds"),
        (["--seeds", "0,0"], "a seed is named twice"),
        (["--seeds", "0-1", "--resume"], "--resume wants the folder of the runs"),
        (["--seeds", "0-1", "--resume", "--run-dir", "nowhere"], "nowhere holds no runs to go on with"),
        (["--jobs", "2"], "--jobs says how many runs"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], line: str) -> None:
    result = CliRunner().invoke(main, ["train", *words])
    assert result.exit_code == 2
    assert line in result.output
    assert "Traceback" not in result.output


def test_a_runs_own_folder_is_not_one_of_several(tmp_path: Path) -> None:
    train_run(small_config(train={"steps": 1}), tmp_path / "run")
    with pytest.raises(CheckpointError, match="is the folder of one run"):
        call(tmp_path / "run", 0)
