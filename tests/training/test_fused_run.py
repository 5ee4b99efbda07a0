"""A fused run beside a plain one, step by step: same seed, 30 steps, every loss, then the weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from interlude_fast import ops
from interlude_fast.methods import METHODS
from interlude_fast.training.setup import prepare
from interlude_fast.training.state import TrainState
from interlude_fast.training.step import train_step
from tests.helpers import small_config

STEPS = 30
CALM = {"lr": 0.003}  # at the preset's 0.1 rounding grows a thousandfold in 30 steps


def run_steps(
    method: str, options: dict, dtype: torch.dtype, nudge: int | None = None
) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    """nudge: seed of a change of the initial weights by a few units in the last place."""
    config = small_config(
        method={"name": method, **options}, train={"steps": STEPS, "batch": 4, "mu": 3}, optim=CALM
    )
    run = prepare(config)
    if nudge is not None:
        noise = torch.Generator().manual_seed(nudge)
        for p in run.state.model.parameters():
            p.data *= 1 + 2.0**-22 * torch.randn(p.shape, generator=noise)
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
        *((name, {}) for name in METHODS if name not in ("interlude", "probe")),
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
@pytest.mark.parametrize("method", ["interlude", "interlude_plus", "flexmatch", "semisupcon", "mixup_lr"])
def test_fused_runs_drift_no_further_than_plain_ones_in_float32(method: str) -> None:
    """Rounding grows over 30 steps, by how much is a matter of luck (a row at a threshold, an activation at its
    kink): plain float32, also from weights that are a few units in the last place off, is the measure."""
    losses, weights = run_steps(method, {}, torch.float32)
    with ops.use_reference():
        plain = [run_steps(method, {}, torch.float32, nudge) for nudge in (None, 0, 1)]
        true_losses, true_weights = run_steps(method, {}, torch.float64)
    fused_off, *plain_off = (
        (torch.tensor(x) - torch.tensor(true_losses)).abs().max() for x in (losses, *(run[0] for run in plain))
    )
    assert fused_off <= 10 * max(plain_off) + 1e-5
    assert distance(weights, true_weights) <= 10 * max(distance(w, true_weights) for _, w in plain) + 1e-5
