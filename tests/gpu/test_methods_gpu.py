"""What only a GPU can show of the methods: steps that never wait for the device, and the CPU's losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch

from interlude_fast.methods import build_method
from interlude_fast.training.setup import prepare
from interlude_fast.training.step import train_step
from tests.helpers import TRAINED, small_config
from tests.methods.test_methods import PLAIN, PROBLEM, make_batch, small_network

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

# Draws of CPU and GPU generators differ; those of the others are the pipeline's.
WITHOUT_DRAWS = [name for name in PLAIN if name not in ("mixmatch", "mixup_lr", "semimeta", "vat")]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """From `set_sync_debug_mode` on, whatever waits for the device raises."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_step_never_waits_for_the_device(name: str, precision: str) -> None:
    run = prepare(small_config(method={"name": name}, train={"device": "cuda", "precision": precision}))
    for step in range(5):
        if step == 2:  # kernels are loaded and workspaces allocated
            torch.cuda.set_sync_debug_mode("error")
        losses = train_step(run.state, run.pipeline.batch(step), run.precision)
    torch.cuda.set_sync_debug_mode("default")
    assert all(value.isfinite() for value in (losses.total, *losses.metrics.values()))


@pytest.mark.parametrize("name", WITHOUT_DRAWS)
def test_losses_and_state_are_those_of_the_cpu(name: str) -> None:
    sides = []
    batches = [make_batch(build_method(name, {}, PROBLEM))[1] for _ in range(3)]
    for device in ("cpu", "cuda"):
        method = build_method(name, {}, PROBLEM, dtype=torch.float64).to(device)
        network, ema = small_network().to(device), small_network(1).requires_grad_(False).eval().to(device)
        totals = []
        for batch in batches:
            moved = {
                f.name: value.to(device)
                for f in dataclasses.fields(batch)
                if isinstance(value := getattr(batch, f.name), torch.Tensor)
            }
            totals.append(method(network, dataclasses.replace(batch, **moved), ema).total.detach())
        sides.append([torch.stack(totals).cpu(), *(value.cpu() for value in method.state_dict().values())])
    for ours, theirs in zip(*sides, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
