"""What torch's profiler sees of some calls: launches by the host, kernels and copies on the device, busy time."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Else CUPTI is torn down after every profile, and CUDA graphs that are profiled after that crash.
os.environ.setdefault("TEARDOWN_CUPTI", "0")
os.environ.setdefault("DISABLE_CUPTI_LAZY_REINIT", "1")

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from interlude_fast.benchmark.timing import synchronize, union

LARGEST = 10
# Calls of CUDA's runtime and driver, by parts of their names; a graph is one launch of many kernels.
HOST = {
    "launches": ("LaunchKernel", "LaunchCooperativeKernel"),
    "graphs": ("GraphLaunch",),
    "waits": ("Synchronize",),
}
COPIES = ("Memcpy", "Memset")


@dataclass(frozen=True)
class Event:
    """begin, end: seconds. device: whether it is work on a GPU, not of the host."""

    name: str
    begin: float
    end: float
    device: bool


def events_of(action: Callable[[], Any], device: torch.device, *, host: bool = False) -> list[Event]:
    """What happens in one call of `action`, which is waited for. On a GPU: its work and the calls that ask for it,
    and with `host` torch's operators too; on a CPU always those."""
    cuda = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=[*([ProfilerActivity.CPU] if host or not cuda else []), *cuda]) as profiler:
        action()
        synchronize(device)
    return [
        Event(e.name, e.time_range.start / 1e6, e.time_range.end / 1e6, e.device_type == DeviceType.CUDA)
        for e in profiler.events() or ()
        if not getattr(e, "is_user_annotation", False)
    ]


def largest(taken: Counter[str], counts: Counter[str], steps: int) -> list[dict[str, Any]]:
    """The names that took most, with microseconds and number a step and their share of all."""
    total = sum(taken.values()) or 1.0
    return [
        {
            "name": name[:160],
            "us": round(seconds / steps * 1e6, 2),
            "count": round(counts[name] / steps, 2),
            "share": round(seconds / total, 4),
        }
        for name, seconds in taken.most_common(LARGEST)
    ]


def summary(events: Sequence[Event], steps: int) -> dict[str, Any]:
    """Of a GPU's events over `steps` steps, a step: launches, graphs and waits of the host, kernels, copies, busy
    microseconds (work that overlaps counts once), the largest kernels. The wait that ends the profile is left out.
    """
    work = [e for e in events if e.device and "Sync" not in e.name]  # a wait is no work
    kernels = [e for e in work if not e.name.startswith(COPIES)]
    called = {
        what: sum(any(p in e.name for p in parts) for e in events if not e.device) for what, parts in HOST.items()
    }
    called["waits"] = max(0, called["waits"] - 1)
    taken: Counter[str] = Counter()
    for e in kernels:
        taken[e.name] += e.end - e.begin
    return {
        **{f"host {what}": round(n / steps, 2) for what, n in called.items()},
        "kernels": round(len(kernels) / steps, 2),
        "copies": round((len(work) - len(kernels)) / steps, 2),
        "busy_us": round(union((e.begin, e.end) for e in work) / steps * 1e6, 1),
        "largest": largest(taken, Counter(e.name for e in kernels), steps),
    }


def operators(action: Callable[[], Any], steps: int) -> dict[str, Any]:
    """On a CPU: torch's operators by their own time, over the `steps` steps that `action` takes."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        action()
    taken: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for e in profiler.key_averages():
        taken[e.key] += e.self_cpu_time_total / 1e6
        counts[e.key] += e.count
    return {"operators": round(sum(counts.values()) / steps, 2), "largest": largest(taken, counts, steps)}


def launches_of(side: Callable[[int], Any], device: torch.device) -> dict[str, float]:
    """Of one call: what the host launches, and kernels and copies on the device."""
    side(0)
    synchronize(device)
    found = summary(events_of(lambda: side(0), device), 1)
    return {name: found[name] for name in ("host launches", "kernels", "copies")}
