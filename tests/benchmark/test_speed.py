"""What bench makes of what it measures."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from interlude_fast.benchmark import baseline as recipe
from interlude_fast.benchmark import timing
from interlude_fast.benchmark.speed import Bench, evaluation_seconds, show_seconds, take_step
from interlude_fast.training.setup import prepare
from tests.helpers import small_config

CPU = torch.device("cpu")


def made(**more: object) -> Bench:
    config = small_config(train={"steps": 7200, "eval_every": 1000, "checkpoint_every": 7200})
    ours = timing.Timing(steps=20, seconds=10.0, first_seconds=1.0, views=24, peak_bytes=2**30, waited=2.5)
    values = {"gpu_idle": None, "evaluation_seconds": 450.0, "checkpoint_seconds": 0.0, "reference": "why"}
    chosen = {"device": "cpu", "precision": "fp32", "step": "eager", "pipeline": "resident"}
    return Bench(config, chosen, ours, **{**values, **more})  # type: ignore[arg-type]


def test_hours_count_the_steps_evaluations_and_checkpoints() -> None:
    found = made(checkpoint_seconds=900.0)
    assert (found.evaluations, found.checkpoints) == (8, 2)
    assert found.ours.hours(7200) == 1.0
    assert found.hours == pytest.approx(1 + 1 + 0.5)
    assert (found.ours.views_per_second, found.ours.data_wait) == (48.0, 0.25)


def test_a_budget_is_what_the_run_takes() -> None:
    found = made()
    found.config.train.budget = 1800.0
    assert (found.steps, found.hours) == (3600, 0.5)
    assert "with the budget of 30.0 min: 30.0 min" in found.lines()


def test_a_reference_that_ran_gives_a_ratio_and_one_that_did_not_says_why() -> None:
    slow = timing.Timing(steps=5, seconds=10.0, first_seconds=1.0, views=24, peak_bytes=2**30)
    values = made(reference=slow).as_dict()["reference"]
    assert (values["times_slower"], values["training_hours"], values["data_wait"]) == (4.0, 4.0, None)
    assert made().as_dict()["reference"]["not measured"] == "why"
    assert made().lines()[-1] == "reference not measured: why"
    assert made(reference=slow).verdict().startswith("4.00 times the steps/s of the reference")


@pytest.mark.parametrize(
    ("spans", "length"),
    [([], 0), ([(0, 1), (2, 3)], 2), ([(0, 5), (1, 2), (4, 6)], 6), ([(3, 4), (0, 1), (0, 1)], 2)],
)
def test_overlaps_count_once(spans: list[tuple[float, float]], length: float) -> None:
    assert timing.union(spans) == length


def test_steps_are_timed_after_a_warm_up() -> None:
    calls: list[float] = []

    def step() -> float:
        calls.append(time.perf_counter())
        time.sleep(0.001)
        return 0.0005

    found = timing.time_steps(step, 8, CPU, 0.05)
    assert found.steps == len(calls) - timing.WARM_UP
    assert 0.05 <= found.seconds < 5
    assert found.waited == pytest.approx(0.0005 * found.steps)


@pytest.mark.skipif(not timing.reset_peak_memory(CPU), reason="the system does not count a peak anew")
def test_the_peak_of_a_side_is_not_that_of_another_before_it() -> None:
    size = 200 * 2**20
    large = timing.time_steps(lambda: np.ones(size, np.uint8).sum(), 8, CPU, 0.01)
    small = timing.time_steps(lambda: None, 8, CPU, 0.01)
    assert large.peak_bytes is not None
    assert small.peak_bytes is not None
    assert 0.8 * size < large.peak_bytes - small.peak_bytes < 1.5 * size
    code = "import torch; from interlude_fast.benchmark.timing import peak_memory\n"
    code += "print(peak_memory(torch.device('cpu')))"
    held = np.ones(2 * size, np.uint8)  # what the system counts of a process begins with its parent's
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < timing.peak_memory(CPU) - len(held) / 2, done.stderr


def test_a_peak_that_cannot_be_counted_anew_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "peak memory, without workers: 1.00 GiB" in made().lines()
    monkeypatch.setattr(timing, "PROC", tmp_path / "none")
    found = timing.time_steps(lambda: None, 8, CPU, 0.01)
    assert found.peak_bytes is None
    assert timing.peak_memory(CPU) > 2**20
    assert "peak memory, without workers: not measured" in replace(made(), ours=found).lines()


def test_time_reference_of_other_networks_and_of_a_process_that_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(model={"name": "vit"})
    assert "wide residual networks only, not vit" in recipe.time_reference(config, CPU, 0.1)

    def dying(module: str, threads: int) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"], stdin=pipe, stdout=pipe)

    monkeypatch.setattr(recipe, "start_process", dying)
    assert "exit code 3" in recipe.time_reference((small_config()), CPU, 0.1)


def test_a_run_shorter_than_its_measurement_begins_anew() -> None:
    run = prepare(small_config(train={"steps": 2}))
    for _ in range(5):
        take_step(run)
    assert run.state.step == 1


def test_evaluations_that_take_long_are_judged_by_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepare(small_config())
    assert evaluation_seconds(run, 60.0) > 0
    monkeypatch.setattr(run, "evaluation_seconds", lambda: 1e6)
    assert evaluation_seconds(run, 60.0) == 1e6


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1234, "0.123 s"), (119, "119 s"), (120, "2.0 min"), (7200, "2.0 h")]
)
def test_seconds_in_words(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text
