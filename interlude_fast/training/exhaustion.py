"""The one line where a device has too little memory for a run, and what would fit."""

from __future__ import annotations

import contextlib
import gc
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from interlude_fast.config import ExperimentConfig
from interlude_fast.data.datasets import Dataset
from interlude_fast.data.split import Split
from interlude_fast.errors import MemoryExhausted

from .device import computes_in_bf16, resolve_device
from .memory import GIB, USABLE, Estimate, Need
from .room import room
from .setup import load_data

# No network saves this many times the bytes of its input; what is far from the machine's memory is not traced.
MOST_PER_INPUT = 4000
SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "ALLOC_FAILED")


def gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"


def asked_for(need: Need, estimate: Estimate) -> str:
    t = need.config.train
    return (
        f"train.batch = {t.batch} and train.mu = {t.mu} make {estimate.rows:,} rows a step, "
        f"about {gib(estimate.total)} in {need.precision}"
    )


def would_fit(need: Need, estimate: Estimate, budget: int) -> str:
    """What to ask for instead, of `budget` bytes."""
    t, told = need.config.train, []
    if estimate.state + estimate.images + estimate.evaluation > budget:
        size = need.largest_evaluation(budget)
        told += [f"train.eval_batch = {size}"] if size else []
    if estimate.state + estimate.images + estimate.step > budget:
        if found := need.largest_batch(budget):
            told.append(f"train.batch = {found[0]} would fit")
        elif t.mu > 1:
            told.append("not even train.batch = 2 would fit; lower train.mu, or a smaller model")
        if need.precision not in ("bf16", "fp16") and computes_in_bf16(need.device):
            found = need.largest_batch(budget, "bf16")
            told += [f"precision bf16 with train.batch = {found[0]}"] if found else []
    text = ", or ".join(told) or "a smaller model would fit"
    if need.device.type == "cuda" and need.pipeline == "resident" and need.dataset.images.nbytes > GIB / 10:
        text += f"; data.pipeline = host frees {gib(need.dataset.images.nbytes)}"
    return text


def refuse_too_large(config: ExperimentConfig, dataset: Dataset, split: Split) -> None:
    """Before the first step on a CPU, where the system would kill the process without a word.

    Raises:
        MemoryExhausted: a step alone takes more than all memory that there is.
    """
    device = resolve_device(config.train.device)
    has = room(device) if device.type == "cpu" else None
    t, pixels = config.train, dataset.channels * dataset.size**2
    if has is None or max(4 * t.batch * (1 + t.mu), t.eval_batch) * pixels * 4 * MOST_PER_INPUT < has.total:
        return
    need = Need(config, dataset, split)
    estimate = need.estimate()
    if estimate and estimate.total - estimate.images > has.total:
        raise MemoryExhausted(
            f"{device} has {gib(has.total)} of memory: {asked_for(need, estimate)}; "
            f"{would_fit(need, estimate, int(USABLE * has.free))}"
        )


def is_exhaustion(error: BaseException) -> bool:
    """Whether an error says that memory could not be had."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextlib.contextmanager
def explained(
    config: ExperimentConfig, data: tuple[Dataset, Split] | None = None, checkpoint: Path | None = None
) -> Iterator[None]:
    """While it lasts, exhausted memory is one line that says what would fit.

    Args:
        data: of the configuration, where it is loaded. checkpoint: named as intact where it is there.

    Raises:
        MemoryExhausted: instead of torch's, the allocator's and Python's errors; all others pass.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_exhaustion(error):
            raise
        traceback.clear_frames(error.__traceback__)  # they hold the step's tensors
        error.__traceback__ = error.__context__ = None
        said = " ".join(str(error).split())[:120]
        kept = f"; the last checkpoint in {checkpoint} is intact" if checkpoint and checkpoint.exists() else ""
        raise MemoryExhausted(_explanation(config, data, said) + kept) from None


def _explanation(config: ExperimentConfig, data: tuple[Dataset, Split] | None, said: str) -> str:
    device = resolve_device(config.train.device)
    gc.collect()
    held = 0
    if device.type == "cuda":
        torch.cuda.empty_cache()
        held = torch.cuda.memory_allocated(device)
    has = room(device)
    where = f"{device} ({gib(has.total)}, {gib(has.free)} free) is out of memory" if has else f"{device}: {said}"
    try:
        need = Need(config, *(data or load_data(config)))
        estimate = need.estimate()
        if has is None or estimate is None:
            return f"{where}: {said}; try a smaller train.batch"
        held = held if device.type == "cuda" else estimate.state
        # It did not fit, whatever the estimate says, which is up to a third too low.
        budget = int(min(USABLE * (has.free + held), 0.6 * estimate.total))
        return f"{where}: {asked_for(need, estimate)}; {would_fit(need, estimate, budget)}"
    except (RuntimeError, MemoryError) as error:
        if not is_exhaustion(error):
            raise
        return f"{where}: not even the data and the network fit; {said}"
