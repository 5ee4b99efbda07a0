"""Runs of two and four processes (gloo, on this machine) beside those of one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from interlude_fast.train.distributed import shared_steps
from interlude_fast.train.loop import prepare
from interlude_fast.train.state import TrainState
from interlude_fast.train.step import train_step
from tests.helpers import small_config
from tests.train.ranks import in_ranks

CALM = {"lr": 0.003}


def run_steps(overrides: dict[str, Any], steps: int = 3) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Losses of a few steps in float64, and the state after them."""
    run = prepare(small_config(**overrides))
    state = TrainState(run.state.model.double(), run.state.method.double(), run.config.optim, steps)
    rows = []
    with shared_steps(state, run.world):
        for step in range(steps):
            batch = run.pipeline.batch(step)
            losses = train_step(state, dataclasses.replace(batch, images=batch.images.double()))
            rows.append({"loss": float(losses.total.detach()), **{k: float(v) for k, v in losses.metrics.items()}})
    run.pipeline.close()
    return rows, {name: value.clone() for name, value in state.state_dict().items()}


def assert_same(one: Any, other: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(other[0], one[0], rtol=tolerance, atol=tolerance)
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        torch.testing.assert_close(other[1][name], value, rtol=tolerance, atol=tolerance, msg=name)


def settings(method: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    train = {"batch": 4, "mu": 2, "sync_batch_norm": True, "steps": 3}
    return {"method": method, "optim": CALM, "train": train, **overrides}


METHODS = [
    {"name": "interlude", "tau": 0.3},
    {"name": "interlude", "tau": 0.3, "layout": "separate", "delta": "per_class"},
    {"name": "interlude", "alpha_range": [0.0, 0.3], "distribution_alignment": True},
    {"name": "interlude_plus"},
    {"name": "fixmatch", "tau": 0.3},
    {"name": "flexmatch", "tau": 0.3},
    {"name": "freematch"},
    {"name": "mean_teacher"},
    {"name": "mixmatch"},
    {"name": "mixup_lr"},
    {"name": "pseudo_label", "tau": 0.3},
    {"name": "semimeta"},
    {"name": "semimeta", "reference": True},
    {"name": "semisupcon"},
    {"name": "softmatch"},
    {"name": "supervised"},
    {"name": "uda", "tau": 0.3},
    {"name": "vat"},
]


CASES = [*((2, method) for method in METHODS), *((4, METHODS[k]) for k in (1, 4, 8))]


@pytest.mark.parametrize(
    ("size", "method"), CASES, ids=lambda v: "-".join(map(str, v.values())) if isinstance(v, dict) else v
)
def test_several_processes_make_the_steps_of_one(size: int, method: dict[str, Any]) -> None:
    of_one = run_steps(settings(method))
    results = in_ranks(size, run_steps, settings(method))
    for result in results[1:]:  # to the bit
        assert_same(results[0], result, 0)
    assert_same(of_one, results[0])
