"""How fast steps are, and what they need."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

WARM_UP = 3  # steps, where they fit into a fifth of the time
LEAST = 2  # timed steps, however long they take
PROC = Path("/proc/self")


@dataclass(frozen=True)
class Timing:
    """steps done in `seconds`, after warming up for `first_seconds` (builds, compilation and first steps).

    Attributes:
        views: rows of a step.
        peak_bytes: of the GPU's memory as torch counts it, else of this process while it stepped, without the
            processes that it started; None where the system does not tell.
        waited: seconds of `seconds` without data; None where nobody counted.
    """

    steps: int
    seconds: float
    first_seconds: float
    views: int
    peak_bytes: int | None
    waited: float | None = None

    @property
    def steps_per_second(self) -> float:
        return self.steps / self.seconds

    @property
    def views_per_second(self) -> float:
        return self.views * self.steps_per_second

    @property
    def data_wait(self) -> float | None:
        """Share of the time without data."""
        return None if self.waited is None else self.waited / self.seconds

    def hours(self, steps: int) -> float:
        """Of so many steps."""
        return steps / self.steps_per_second / 3600

    def as_dict(self) -> dict[str, Any]:
        rates = ("steps_per_second", "views_per_second", "data_wait")
        return {**asdict(self), **{name: getattr(self, name) for name in rates}}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Callable[[], Any], device: torch.device) -> float:
    """Of one call, its work on the device included."""
    synchronize(device)
    began = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - began


def peak_memory(device: torch.device) -> int:
    """Bytes: most that torch held on a GPU, else the largest resident size of this process, since its start or the
    last reset_peak_memory. Processes that it started are not counted."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (PROC / "status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    # On Linux no less than its parent's at the time that it was started.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def reset_peak_memory(device: torch.device) -> bool:
    """Count peak_memory anew, of what is still held; False where the system does not let it be."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    with contextlib.suppress(OSError, AttributeError):  # freed memory, back to the system: glibc's alone has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (PROC / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def time_steps(step: Callable[[], Any], views: int, device: torch.device, seconds: float) -> Timing:
    """Call `step` for about `seconds`.

    Args:
        step: may give the seconds that it waited for data.
        views: rows of a step.
    """
    own = reset_peak_memory(device)
    began, warm = time.perf_counter(), 0
    while warm == 0 or (warm < WARM_UP and time.perf_counter() - began < seconds / 5):
        step()
        warm += 1
    synchronize(device)
    between, steps, waits = time.perf_counter(), 0, list[float]()
    while steps < LEAST or time.perf_counter() - between < seconds:
        waited = step()
        waits += [waited] if isinstance(waited, float) else []
        steps += 1
    synchronize(device)
    taken = time.perf_counter() - between
    peak = peak_memory(device) if own else None
    return Timing(steps, taken, between - began, views, peak, sum(waits) if waits else None)


def union(spans: Iterable[tuple[float, float]]) -> float:
    """Length that intervals cover together, overlaps once."""
    covered, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered


def busy_seconds(step: Callable[[], Any], device: torch.device, steps: int) -> float | None:
    """Seconds a step in which the GPU does anything, by its own clock; None where the profiler may not look."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step()
        synchronize(device)
    spans = [
        (event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in profiler.events() or ()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    return union(spans) / steps if spans else None
