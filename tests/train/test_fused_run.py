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


def run_steps(method: str, options: dict, dtype: torch.dtype) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    config = small_config(method={"name": method, **options}, train={"steps": STEPS, "batch": 4, "mu": 3})
    run = prepare(config)
    state = TrainState(run.state.model.to(dtype), run.state.method, config.optim)
    losses = []
    for step in range(STEPS):
        batch = run.pipeline.batch(step)
        batch = dataclasses.replace(batch, images=batch.images.to(dtype))
        result = train_step(state, batch, lr=config.optim.lr, total_steps=STEPS)
        losses.append([float(result.total.detach()), *(float(v) for v in result.metrics.values())])
    return losses, state.state_dict()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("interlude", {"tau": 0.5}),
        ("interlude", {"tau": 0.5, "delta": "per_class", "layout": "separate", "class_weights": [*range(1, 11)]}),
        *((name, {}) for name in METHODS if name != "interlude"),
    ],
    ids=lambda v: v if isinstance(v, str) else "-".join(v) or "defaults",
)
@pytest.mark.parametrize(
    ("dtype", "budget"), [(torch.float64, 1e-9), (torch.float32, 1e-2)], ids=["float64", "float32"]
)
def test_fused_and_plain_runs_agree(method: str, options: dict, dtype: torch.dtype, budget: float) -> None:
    if not ops.status().loaded:
        pytest.skip(f"no compiled extension: {ops.status().why_not}")
    losses, weights = run_steps(method, options, dtype)
    with ops.use_reference():
        plain_losses, plain_weights = run_steps(method, options, dtype)
    torch.testing.assert_close(losses, plain_losses, rtol=budget, atol=budget)
    assert weights.keys() == plain_weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, plain_weights[name], rtol=budget, atol=budget, msg=name)
