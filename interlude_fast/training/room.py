"""How much memory a device has, and how much of it is free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


class Room(NamedTuple):
    """Bytes. total: that there will ever be. free: that can be had now."""

    total: int
    free: int


def room(device: torch.device) -> Room | None:
    """Of a GPU, or of the host as far as this process may use it: the machine's, its control groups' and its
    address space's, whichever is least. None where the system does not tell."""
    if device.type == "cuda":
        # A number: torch takes no other device for the share.
        index = torch.cuda.current_device() if device.index is None else device.index
        free, total = torch.cuda.mem_get_info(index)
        share = int(torch.cuda.get_per_process_memory_fraction(index) * total)
        return Room(share, max(0, min(free, share - torch.cuda.memory_reserved(index))))
    found = [*_machine(), *_control_groups(), *_address_space()]
    return Room(min(r.total for r in found), max(0, min(r.free for r in found))) if found else None


def _fields(file: Path, unit: int = 1) -> dict[str, int]:
    """`name[:] number` lines in bytes; none where the file cannot be read."""
    found = {}
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, *values = line.replace(":", " ").split()
            if values and values[0].isdigit():
                found[name] = int(values[0]) * unit
    return found


def _machine() -> Iterator[Room]:
    """Swap counts: a machine that has some does not kill."""
    m = _fields(PROC / "meminfo", 1024)
    if "MemAvailable" in m:
        total, free = m["MemTotal"] + m.get("SwapTotal", 0), m["MemAvailable"] + m.get("SwapFree", 0)
        yield Room(total, free)


def _control_groups() -> Iterator[Room]:
    """Of this process's group and those above it, version 2, or version 1's of memory."""
    with contextlib.suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds == "":
                base, names = CGROUPS, ("memory.max", "memory.current")
            elif "memory" in kinds.split(","):
                base, names = CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            else:
                continue
            own = base / path.strip("/")
            for folder in (own, *own.parents):
                yield from _control_group(folder, *names)
                if folder == base:
                    break


def _control_group(folder: Path, limit: str, usage: str) -> Iterator[Room]:
    with contextlib.suppress(OSError, ValueError):  # "max", or no such file: no limit here
        total, used = (int((folder / name).read_text()) for name in (limit, usage))
        swap = _fields(PROC / "meminfo", 1024).get("SwapTotal", 0)
        with contextlib.suppress(OSError, ValueError):
            swap = min(swap, int((folder / "memory.swap.max").read_text()))
        cached = _fields(folder / "memory.stat")
        freed = cached.get("active_file", 0) + cached.get("inactive_file", 0)
        yield Room(total + swap, total - used + freed + swap)


def _address_space() -> Iterator[Room]:
    if resource is None:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        used = _fields(PROC / "self" / "status", 1024).get("VmSize", 0)
        yield Room(limit, limit - used)
