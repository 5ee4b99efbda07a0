"""Two processes on two GPUs (NCCL) beside one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interlude_fast.training.parallel import shared_steps
from interlude_fast.training.setup import prepare
from interlude_fast.training.step import train_step
from tests.helpers import small_config
from tests.training.ranks import in_ranks

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")


def losses(method: dict[str, Any]) -> list[float]:
    train = {"device": "cuda", "precision": "fp32", "sync_batch_norm": True, "batch": 8}
    run = prepare(small_config(method=method, optim={"lr": 0.003}, train=train))
    with shared_steps(run.state, run.world):
        return [float(train_step(run.state, run.pipeline.batch(step)).total) for step in range(5)]


@pytest.mark.parametrize(
    "method", [{"name": "interlude", "tau": 0.3}, {"name": "mixmatch"}], ids=lambda m: m["name"]
)
def test_two_gpus_make_the_steps_of_one(method: dict[str, Any]) -> None:
    first, second = in_ranks(2, losses, method)
    assert first == pytest.approx(second, rel=1e-5)
    assert first == pytest.approx(losses(method), rel=1e-3)
