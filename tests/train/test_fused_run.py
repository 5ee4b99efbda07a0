"""A fused run beside a plain one, step by step: same seed, 30 steps, every loss, then the weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from interlude_fast import ops
from interlude_fast.methods import METHODS
from interlude_fast.train.loop import prepare
from interlude_fast.train.state import TrainState
from interlude_fast.train.step import train_step
from tests.helpers import small_config

STEPS = 30
CALM = {"lr": 0.003}  # at the preset's 0.1 rounding grows a thousandfold in 30 steps


def run_steps(method: str, options: dict, dtype: torch.dtype) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    config = small_config(
        method={"name": method, **options}, train={"steps": STEPS, "batch": 4, "mu": 3}, optim=CALM
    )
    run = prepare(config)
    state = TrainState(run.state.model.to(dtype), run.state.method, config.optim, STEPS)
    losses = []
    for step in range(STEPS):
        batch = run.pipeline.batch(step)
        batch = dataclasses.replace(batch, images=batch.images.to(dtype))
        result = train_step(state, batch)
        losses.append([float(result.total.detach()), *(float(v) for v in result.metrics.values())])
    return losses, state.state_dict()


CASES = pytest.mark.parametrize(
    ("method", "options"),
    [
        ("interlude", {"tau": 0.5}),
        ("interlude", {"tau": 0.5, "delta": "per_class", "layout": "separate", "class_weights": [*range(1, 11)]}),
        (
            "interlude",
            {"distribution_alignment": True, "tau": [0.3, 0.5] * 5, "warmup_u": 0.5, "alpha_range": [0, 0.3]},
        ),
        *((name, {}) for name in METHODS if name != "interlude"),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(v) or "defaults",
)
needs_kernels = pytest.mark.skipif(
    not ops.status().loaded, reason=f"no compiled extension: {ops.status().why_not}"
)


@needs_kernels
@CASES
def test_fused_and_plain_runs_agree_in_float64(method: str, options: dict) -> None:
    losses, weights = run_steps(method, options, torch.float64)
    with ops.use_reference():
        plain_losses, plain_weights = run_steps(method, options, torch.float64)
    torch.testing.assert_close(losses, plain_losses, rtol=1e-9, atol=1e-9)
    assert weights.keys() == plain_weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, plain_weights[name], rtol=1e-9, atol=1e-9, msg=name)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in b)


@needs_kernels
@CASES
def test_fused_runs_drift_no_further_than_plain_ones_in_float32(method: str, options: dict) -> None:
    """Rounding grows over 30 steps, and by how much is the run's own: plain float32 is the measure."""
    losses, weights = run_steps(method, options, torch.float32)
    with ops.use_reference():
        plain_losses, plain_weights = run_steps(method, options, torch.float32)
        true_losses, true_weights = run_steps(method, options, torch.float64)
    fused_off, plain_off = (torch.tensor(x) - torch.tensor(true_losses) for x in (losses, plain_losses))
    assert fused_off.abs().max() <= 10 * plain_off.abs().max() + 1e-5
    assert distance(weights, true_weights) <= 10 * distance(plain_weights, true_weights) + 1e-5
