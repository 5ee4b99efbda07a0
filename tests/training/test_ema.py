"""The moving average whose decay warms up: against a loop, in every way to run a step, resumed, under fp16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from interlude_fast.experiment.run import train_run
from interlude_fast.training.captured import StaticStep
from interlude_fast.training.run import Run
from interlude_fast.training.setup import prepare
from interlude_fast.training.step import EagerStep
from tests.helpers import small_config
from tests.training.test_runs import Stop, assert_same_run, stop_after
from tests.training.test_ways import assert_same_state, losses_of

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.003},
    "sgd without momentum": {"lr": 0.003, "momentum": 0.0},
    "sgd that shrinks": {"lr": 0.003, "shrink": 0.5},
    "adam": {"name": "adam", "lr": 0.001},
    "adam that shrinks": {"name": "adam", "lr": 0.002, "shrink": 0.5},
    "adamw": {"name": "adamw", "lr": 0.001},
}
each_optimizer = pytest.mark.parametrize("optim", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def made(optim: dict[str, Any], decay: float = 0.999, **train: Any) -> Run:
    method = {"name": "supervised"}
    optim = {**optim, "ema_decay": decay, "ema_warmup": True}
    return prepare(small_config(method=method, optim=optim, train={"steps": 30, **train}))


def copies(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@each_optimizer
def test_the_average_is_that_of_a_loop(optim: dict[str, Any]) -> None:
    """The decay of step 0 is 0.1, and from step 8 on, where (1 + k) / (10 + k) = 0.5, the configured one."""
    run = made(optim, decay=0.5)
    step, kept = EagerStep(run.state, run.pipeline, "fp32"), 1 - run.state.optim.lr * run.state.optim.shrink
    shadow = [p.double() for p in copies(run.state.model)]
    for k in range(12):
        step()
        decay = min(0.5, (1 + k) / (10 + k))
        shadow = [
            decay * s + (1 - decay) * p.double() / kept
            for s, p in zip(shadow, copies(run.state.model), strict=True)
        ]
        averages = [p.double() for p in copies(run.state.ema.model)]
        torch.testing.assert_close(averages, shadow, rtol=1e-5, atol=1e-7)


def test_the_first_update_takes_a_tenth_of_the_initial_weights() -> None:
    run = made({"lr": 0.003})
    before = copies(run.state.model)
    EagerStep(run.state, run.pipeline, "fp32")()
    expected = [0.1 * old + 0.9 * new for old, new in zip(before, copies(run.state.model), strict=True)]
    torch.testing.assert_close(copies(run.state.ema.model), expected, rtol=1e-6, atol=1e-8)


@each_optimizer
def test_weights_are_those_of_a_run_without_warmup_to_the_bit(optim: dict[str, Any]) -> None:
    a, b = made(optim), prepare(small_config(method={"name": "supervised"}, optim=optim, train={"steps": 30}))
    for run in (a, b):
        losses_of(EagerStep(run.state, run.pipeline, "fp32"), 5)
    assert all(torch.equal(p, q) for p, q in zip(copies(a.state.model), copies(b.state.model), strict=True))
    assert not torch.equal(a.state.ema.model.fc.weight, b.state.ema.model.fc.weight)


@each_optimizer
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_on_fixed_memory_is_the_eager_one_to_the_bit(optim: dict[str, Any], precision: str) -> None:
    if precision == "fp16" and optim.get("name", "sgd") != "sgd" and optim.get("shrink"):
        pytest.skip("refused")
    a, b = (made(optim, precision=precision) for _ in range(2))
    eager = losses_of(EagerStep(a.state, a.pipeline, a.precision), 12)
    static = losses_of(StaticStep(b.state, b.pipeline, b.precision), 12)
    assert torch.equal(eager, static)
    assert_same_state(a, b)


def test_the_body_of_a_step_holds_no_decay() -> None:
    """What a CUDA graph records runs without Python: the decay of a step is what lies in memory."""
    a, b = made({"lr": 0.003}), made({"lr": 0.003})
    steps = [StaticStep(run.state, run.pipeline, run.precision) for run in (a, b)]
    for run, step in zip((a, b), steps, strict=True):
        run.state.model.train()
        step.load()
    b.state.step = 1000  # which only `load` may read
    for step in steps:
        step.body()
    averages = copies(a.state.ema.model), copies(b.state.ema.model)
    assert all(torch.equal(p, q) for p, q in zip(*averages, strict=True))


@each_optimizer
def test_resume_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optim: dict[str, Any]) -> None:
    config = small_config(optim={**optim, "ema_warmup": True}, train={"checkpoint_every": 4})
    train_run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stop):
            train_run(config, tmp_path / "stopped")
    train_run(config, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("optim", [{"lr": 0.003}, {"lr": 0.003, "shrink": 0.5}, {"name": "adam", "lr": 0.001}])
def test_an_overflow_under_fp16_moves_no_average(optim: dict[str, Any], warmup: bool) -> None:
    config = small_config(train={"precision": "fp16"}, optim={**optim, "ema_decay": 0.5, "ema_warmup": warmup})
    run = prepare(config)
    step = EagerStep(run.state, run.pipeline, "fp16")
    run.state.scaler._scale.fill_(2.0**10)
    step()
    before = copies(run.state.model), copies(run.state.ema.model)
    assert not torch.equal(before[0][0], before[1][0])
    run.state.scaler._scale.fill_(2.0**60)
    step()
    after = copies(run.state.model), copies(run.state.ema.model)
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(old, new, strict=True))


def test_a_short_run_has_an_average_worth_its_name(tmp_path: Path) -> None:
    """60 steps at a decay of 0.999 leave 94 % of the initial weights in the average."""
    supervised, optim, train = {"name": "supervised"}, {"lr": 0.05, "ema_decay": 0.999}, {"steps": 60, "batch": 16}
    errors = []
    for warmup in (False, True):
        config = small_config(method=supervised, optim={**optim, "ema_warmup": warmup}, train=train)
        errors.append(1 - train_run(config, tmp_path / str(warmup)).scores["test"]["ema"].accuracy)
    assert errors[1] < errors[0] - 0.2
