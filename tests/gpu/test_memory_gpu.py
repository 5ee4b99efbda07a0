"""What only a GPU can show of memory: the estimate against the allocator, and a batch that is far too large."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from interlude_fast.errors import MemoryExhausted
from interlude_fast.experiment.run import train_run
from interlude_fast.training.memory import GIB, Need
from interlude_fast.training.setup import prepare
from interlude_fast.training.step import train_step
from tests.helpers import small_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_takes_what_is_estimated(precision: str) -> None:
    config = small_config(
        train={"device": "cuda", "precision": precision, "batch": 512, "mu": 7}, model={"width": 4}
    )
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    run = prepare(config)
    estimate = Need(config, run.dataset, run.split).estimate()
    assert estimate is not None
    for step in range(2):
        torch.cuda.reset_peak_memory_stats()
        train_step(run.state, run.pipeline.batch(step), run.precision)
    measured = torch.cuda.max_memory_allocated() - before
    assert 0.75 < (estimate.state + estimate.images + estimate.step) / measured < 1.3


def test_too_large_a_batch_is_one_line_and_what_would_fit_fits(tmp_path: Path) -> None:
    def trained(batch: int) -> None:
        train = {"device": "cuda", "precision": "fp32", "batch": batch, "mu": 7, "steps": 2}
        train_run(small_config(train=train, model={"width": 8}), tmp_path / str(batch))

    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 6 * GIB / total))  # a small GPU, so that the test is short
    try:
        with pytest.raises(MemoryExhausted, match=r"^cuda.* is out of memory: train.batch = 4096 ") as caught:
            trained(4096)
        line = str(caught.value)
        assert "checkpoints/last is intact" in line
        trained(int(line.split("train.batch = ")[2].split()[0]))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
