"""Runs that are led by wall time."""

from __future__ import annotations

import random
import time

import pytest

from interlude_fast.config import load
from interlude_fast.errors import ConfigError
from interlude_fast.experiment.run import train_run
from interlude_fast.experiment.run_directory import RunDirectory
from interlude_fast.options import TrainConfig
from interlude_fast.training.pace import Budget
from tests.helpers import before_steps, small_config
from tests.training.test_runs import Stop as Died
from tests.training.test_runs import stop_after


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    "duration",
    [
        lambda step: 0.01,
        lambda step: random.Random(step).uniform(0.005, 0.02),
        lambda step: 5.0 if step == 0 else 0.01,  # it compiled
        lambda step: 0.01 if step < 1000 else 0.05,  # somebody else came
        lambda step: 0.05 if step < 300 else 0.01,
    ],
    ids=["steady", "noisy", "slow start", "slower", "faster"],
)
def test_schedule_and_time_end_together(duration) -> None:
    clock = Clock()
    budget = Budget(seconds=60, began=clock.now, reserved=5, clock=clock)
    position, end, step, path = 0.0, 2.0**20, 0, []
    while position < end:
        clock.now += duration(step)
        position = budget.advance(position, end)
        path.append((budget.elapsed, position / end))
        step += 1
        if step % 500 == 0:
            clock.now += 0.5
            budget.paused(0.5, evaluating=True)
    assert 60 - 5 - 0.2 <= budget.elapsed <= 60 - 5 + 0.06
    assert path[-2][1] > 0.98  # no jump to the end, but for an evaluation shortly before
    shares = [share for _, share in path]
    assert shares == sorted(shares)


def test_a_slow_first_step_does_not_use_up_the_schedule() -> None:
    clock = Clock()
    budget = Budget(seconds=60, began=clock.now, clock=clock)
    clock.now += 30
    assert budget.advance(0.0, 1000.0) == 0
    clock.now += 0.01
    assert budget.advance(0.0, 1000.0) < 1


def test_no_time_at_all() -> None:
    clock = Clock()
    budget = Budget(seconds=1, began=clock.now, reserved=5, clock=clock)
    assert budget.advance(0.0, 1000.0) == 1000


def test_evaluations_get_a_small_share() -> None:
    clock = Clock()
    budget = Budget(seconds=100, began=clock.now, clock=clock)
    clock.now += 30
    assert not budget.affords(2)
    clock.now += 10
    assert budget.affords(2)
    budget.paused(2, evaluating=True)
    assert not budget.affords(2)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1h30m", 5400), ("1.5h", 5400), (20, 20)]
)
def test_durations(text: object, seconds: float) -> None:
    assert TrainConfig(budget=text).budget == seconds


@pytest.mark.parametrize("text", ["soon", "", "5x", "m", "1.2.3m", "0", "-5m", "10 m"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.budget"):
        load(None, [{"train": {"budget": text}}])


BUDGET = 6.0


def budget_config(**train: object):
    return small_config(train={"steps": 10**6, "budget": BUDGET, "eval_every": 10**5, **train})


def test_a_run_ends_on_time_with_its_schedule(tmp_path) -> None:
    began = time.monotonic()
    result = train_run(budget_config(), tmp_path / "run")
    assert time.monotonic() - began < BUDGET + 3  # a busy machine may be late, not by much
    rows = RunDirectory(tmp_path / "run").read_metrics()
    shares = [row["schedule"] for row in rows if "schedule" in row]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert result.scores["test"]["ema"].n == 360
    metadata = (tmp_path / "run" / "checkpoints" / "last").read_bytes()[:2000].decode(errors="replace")
    assert '"position":"1000000.0"' in metadata


def test_a_budget_that_is_too_short_says_so(tmp_path) -> None:
    train_run(budget_config(budget=0.5), tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "a budget of 0 s was enough for 1 steps only" in log
    assert "the EMA network averages over about" in log


@pytest.mark.parametrize(
    ("optim", "remarked"),
    [
        ({"ema_decay": 0.9}, True),  # 1 / (1 - 0.9) = 10 steps
        ({"ema_decay": 0.75}, False),
        ({"ema_decay": 0.0}, False),
        ({"ema_decay": 0.9, "ema_warmup": True}, False),
    ],
)
def test_a_run_too_short_for_its_average_says_so(tmp_path, optim: dict, remarked: bool) -> None:
    train_run(small_config(optim=optim, train={"steps": 4}), tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    line = "averages over about 10 steps and this run had 4: it still holds its initial weights; train with --set"
    assert (line in log) == remarked
    assert ("the EMA network averages" in log) == remarked


def test_steps_before_a_resume_count_for_the_average(tmp_path, monkeypatch) -> None:
    config = small_config(optim={"ema_decay": 0.8}, train={"steps": 8})
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Died):
            train_run(config, tmp_path / "run")
    train_run(config, tmp_path / "run", resume=True)
    assert "the EMA network averages" not in (tmp_path / "run" / "log.txt").read_text()


def test_a_resumed_run_has_the_time_that_was_left(tmp_path, monkeypatch) -> None:
    class Stop(Exception): ...

    began = time.monotonic()

    def stop(state) -> None:
        if state.step >= 7:
            raise Stop

    with monkeypatch.context() as patch:
        before_steps(patch, stop)
        with pytest.raises(Stop):
            train_run(budget_config(), tmp_path / "run")
    first = time.monotonic() - began
    began = time.monotonic()
    train_run(budget_config(), tmp_path / "run", resume=True)
    again = time.monotonic() - began
    assert again < BUDGET + 3
    assert first < BUDGET
    steps = [row["step"] for row in RunDirectory(tmp_path / "run").read_metrics() if "loss" in row]
    assert steps == sorted(set(steps))
