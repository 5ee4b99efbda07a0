"""Eager, compiled and captured steps are one step; which of them is chosen, and what happens where one fails."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from interlude_fast.data.batch import Batch
from interlude_fast.errors import ConfigError
from interlude_fast.methods import METHODS, Losses
from interlude_fast.options import TrainConfig
from interlude_fast.training.captured import StaticStep
from interlude_fast.training.compiled import compiled_losses
from interlude_fast.training.run import Run
from interlude_fast.training.setup import prepare
from interlude_fast.training.state import TrainState
from interlude_fast.training.step import EagerStep, train_step
from interlude_fast.training.ways import Choice, Step, Stepper, Way, choose
from tests.helpers import TRAINED, small_config
from tests.training.test_fused_run import distance

CALM = {"lr": 0.003}  # at the preset's 0.1 rounding grows a thousandfold in 30 steps


def made(method: str = "interlude", **over: Any) -> Run:
    return prepare(small_config(method={"name": method}, optim=CALM, **over))


def losses_of(step: Callable[[], Losses], steps: int) -> torch.Tensor:
    rows = []
    for _ in range(steps):
        losses = step()
        rows.append(torch.stack([losses.total.detach(), *losses.metrics.values()]).float())
    return torch.stack(rows)


def assert_same_state(a: Run, b: Run) -> None:
    mine, theirs = a.state.state_dict(), b.state.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert (a.state.step, a.state.position) == (b.state.step, b.state.position)


@pytest.mark.parametrize("method", TRAINED)
def test_a_step_on_fixed_memory_is_the_eager_one_to_the_bit(method: str) -> None:
    """What a CUDA graph records: the step number, the rate and the seed come from memory alone."""
    steps = 30 if method == "interlude" else 4
    a, b = made(method), made(method)
    eager = losses_of(EagerStep(a.state, a.pipeline, a.precision), steps)
    static = losses_of(StaticStep(b.state, b.pipeline, b.precision), steps)
    assert torch.equal(eager, static)
    assert_same_state(a, b)


def test_batches_that_come_from_outside_are_copied_to_where_they_are_read() -> None:
    a, b = made(), made(data={"pipeline": "host"})
    eager = losses_of(EagerStep(a.state, a.pipeline, a.precision), 5)
    static = StaticStep(b.state, b.pipeline, b.precision)
    assert torch.equal(eager[:2], losses_of(static, 2))
    place = static.batch.images.data_ptr()
    assert torch.equal(eager[2:], losses_of(static, 3))
    assert static.batch.images.data_ptr() == place
    b.pipeline.close()


@pytest.mark.parametrize("method", [name for name in TRAINED if not METHODS[name].cannot_compile])
def test_the_forward_of_a_method_is_one_graph(method: str) -> None:
    """fullgraph: a break raises. Without a code generator the numbers are the eager ones."""
    a, b = made(method), made(method)
    eager = losses_of(EagerStep(a.state, a.pipeline, a.precision), 2)
    traced = losses_of(EagerStep(b.state, b.pipeline, b.precision, compiled_losses(b.state, "aot_eager")), 2)
    torch.testing.assert_close(traced, eager, rtol=1e-5, atol=1e-6)


def test_a_cuda_toolkit_without_a_gpu_is_nothing_to_warn_of(tmp_path: Path) -> None:
    code = """
from tests.training.test_ways import compiled_losses, made
compiled_losses(made().state)
from torch.utils import cpp_extension
assert cpp_extension.CUDA_HOME is not None or not cpp_extension.torch.version.cuda
cpp_extension.logger.warning("another %s", "warning")
"""
    env = {**os.environ, "CUDA_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.endswith("another warning\n")


def test_compiled_runs_drift_no_further_than_eager_ones() -> None:
    """30 steps; plain float32 against float64 is the measure."""
    runs = [made(train={"steps": 30}) for _ in range(3)]
    runs[2].state.model.double()
    exact = TrainState(runs[2].state.model, runs[2].state.method, runs[2].config.optim, 30)
    eager = losses_of(EagerStep(runs[0].state, runs[0].pipeline, "fp32"), 30)
    compiled = losses_of(EagerStep(runs[1].state, runs[1].pipeline, "fp32", compiled_losses(runs[1].state)), 30)
    true = losses_of(lambda: train_step(exact, in_double(runs[2].pipeline.batch(exact.step))), 30)
    assert (compiled - true).abs().max() <= 10 * (eager - true).abs().max() + 1e-5
    off, measure = (distance(run.state.state_dict(), exact.state_dict()) for run in (runs[1], runs[0]))
    assert off <= 20 * measure + 1e-4


def in_double(batch: Batch) -> Batch:
    return dataclasses.replace(batch, images=batch.images.double())


class Failing:
    waited = 0.0

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self) -> Any:
        EagerStep(self.run.state, self.run.pipeline, "fp32")()  # it fails at the very end
        raise RuntimeError("operation not permitted\nwhen stream is capturing")


@pytest.mark.parametrize("optim", [CALM, {"name": "adam", "lr": 0.001}], ids=["sgd", "adam"])
def test_a_way_that_fails_leaves_no_trace_and_one_line(optim: dict) -> None:
    a, b = (prepare(small_config(optim=optim)) for _ in range(2))
    ways = (Way(True, True), Way(False, True), Way(True, False), Way(False, False))

    def build(way: Way) -> Step:
        return EagerStep(b.state, b.pipeline, "fp32") if way == Way(False, False) else Failing(b)

    stepper, lines = Stepper(b.state, Choice(ways, "the default"), build), []
    stepper.tell = lines.append
    losses = losses_of(stepper, 3)
    assert torch.equal(losses, losses_of(EagerStep(a.state, a.pipeline, "fp32"), 3))
    assert_same_state(a, b)
    assert stepper.choice == "eager (compiled failed)"
    assert lines == [
        f"{way} steps do not work here (operation not permitted when stream is capturing); going on {then}"
        for way, then in (("compiled and captured", "compiled"), ("compiled", "eager"))
    ]


def test_where_the_compiler_fails_steps_are_still_captured() -> None:
    run = made()
    ways = (Way(True, True), Way(False, True), Way(True, False), Way(False, False))

    class Uncompiled(Failing):
        def __call__(self) -> Any:
            raise BackendCompilerFailed("inductor", RuntimeError("no C compiler"), None)

    def build(way: Way) -> Step:
        return Uncompiled(run) if way.compiled else EagerStep(run.state, run.pipeline, "fp32")

    stepper, lines = Stepper(run.state, Choice(ways, "the default"), build), []
    stepper.tell = lines.append
    stepper()
    assert stepper.choice == "captured (compiled and captured failed)"
    assert len(lines) == 1
    assert lines[0].endswith("going on captured")


def test_exhausted_memory_is_not_tried_in_other_ways() -> None:
    run = made()

    class Exhausted(Failing):
        def __call__(self) -> Any:
            raise torch.OutOfMemoryError("out of memory")

    stepper = Stepper(run.state, Choice((Way(False, True), Way(False, False)), ""), lambda way: Exhausted(run))
    with pytest.raises(torch.OutOfMemoryError):
        stepper()


def test_an_error_of_the_last_way_is_raised() -> None:
    run = made()
    stepper = Stepper(run.state, Choice((Way(False, False),), ""), lambda way: Failing(run))
    with pytest.raises(RuntimeError, match="not permitted"):
        stepper()


@pytest.mark.parametrize(
    ("settings", "device", "first"),
    [
        ({}, "cpu", "compiled"),
        ({"steps": 5000}, "cpu", "eager"),
        ({"budget": "20m"}, "cpu", "compiled"),
        ({"compile": False}, "cpu", "eager"),
        ({"compile": True}, "cpu", "compiled"),
        ({"capture": False, "compile": False}, "cuda", "eager"),
        ({"compile": False}, "cuda", "captured"),
        ({"compile": True}, "cuda", "compiled and captured"),
        ({"steps": 100}, "cuda", "captured"),
        ({"budget": "1m"}, "cuda", "captured"),
    ],
)
def test_the_way_that_is_chosen(settings: dict, device: str, first: str) -> None:
    choice = choose(TrainConfig(**settings), device)
    assert str(choice.ways[0]) == first
    assert choice.ways[-1] == Way(False, False)
    assert choice.why


@pytest.mark.parametrize(
    ("settings", "cannot", "alone", "line"),
    [
        ({"capture": True}, "", True, "train.capture: a CUDA graph wants a GPU"),
        ({"compile": True}, "its forward is odd", True, "train.compile: its forward is odd; use --no-compile"),
    ],
)
def test_ways_that_there_are_not_are_refused(settings: dict, cannot: str, alone: bool, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        choose(TrainConfig(**settings), "cpu", cannot, alone)


def test_ranks_are_not_captured() -> None:
    assert not any(way.captured for way in choose(TrainConfig(), "cuda", alone=False).ways)
    with pytest.raises(ConfigError, match="several processes"):
        choose(TrainConfig(capture=True), "cuda", alone=False)
