"""Times two or more ways of computing one thing in one run: in turn, after a warm-up, on rotating inputs,
outputs checked against the first; medians with spread, one JSON row each with what it was made on."""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from interlude_fast.experiment.environment import environment
from interlude_fast.training.captured import recording
from interlude_fast.training.checkpoint import write_atomically

Side = Callable[[int], Any]  # computes on the i-th input
FLUSHED = 1 << 28  # bytes: more than the last cache of a GPU or of a processor's core complex
ROOT = Path(__file__).parent.parent
QUICK = (5, 1)  # repeats and warm-up at most under --quick
_asked = argparse.Namespace(quick=False, flush=False)


def parser(description: str | None) -> argparse.ArgumentParser:
    """What every script takes; a script may add to it and gives it to `begin`."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--out", type=Path, help="JSON file")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--threads", type=int, help="CPU threads of torch; 1 compares core with core")
    made.add_argument("--quick", action="store_true", help="small sizes, few repeats: to see that it works")
    made.add_argument("--flush", action="store_true", help="empty the caches before every timing")
    return made


def begin(options: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments, with `device` as torch's, after what they ask of torch and of `measure`."""
    global _asked
    _asked = options.parse_args(arguments)
    if _asked.threads:
        torch.set_num_threads(_asked.threads)
    _asked.device = torch.device(_asked.device)
    return _asked


def quick() -> bool:
    """Whether --quick was asked for."""
    return _asked.quick


@functools.cache
def _flush_buffer(device: torch.device) -> Tensor:
    return torch.empty(FLUSHED, dtype=torch.uint8, device=device)


def flush_cache(device: torch.device) -> None:
    """Write more than the caches hold, so that what comes next is read from memory."""
    _flush_buffer(device).zero_()


def _seconds(side: Side, i: int, device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        side(i)
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    side(i)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def captured(side: Side, inputs: int, rounds: int = 5) -> Side:
    """A side as one CUDA graph of inputs * rounds calls: what the device takes for them, without the host that
    launches them, as a captured step has it. Raises what the capture raises."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for i in range(inputs):
            side(i)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with recording(graph, stream):
        for _ in range(rounds):
            for i in range(inputs):
                side(i)
    kept = graph, side  # whose inputs the graph reads where they lie
    return lambda i: kept[0].replay()


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written a second by torch's copy of a tensor beyond any cache; median of 15."""
    size = 1 << (31 if device.type == "cuda" else 28)
    a = torch.ones(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * size / median([_seconds(lambda i: b.copy_(a), i, device) for i in range(20)][5:])


def memory_share(moved: int, seconds: float, device: torch.device) -> dict[str, Any]:
    """How near something that moves so many bytes is to the memory's speed, as a copy in the same run has it."""
    speed, copied = moved / seconds, copy_bandwidth(device)
    return {
        "bytes": moved,
        "gb_per_s": round(speed / 1e9, 2),
        "copy_gb_per_s": round(copied / 1e9, 2),
        "share_of_copy": round(speed / copied, 4),
    }


def reason(error: Exception) -> str:
    """Why a side is missing, in a line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def measure(
    name: str,
    sides: dict[str, Side],
    device: torch.device,
    *,
    check: Callable[[Any, Any], None] | None = None,
    repeats: int = 30,
    inputs: int = 4,
    units: float = 1.0,
    warmup: int = 3,
    calls: Mapping[str, int] | None = None,
    before: Callable[[str], None] | None = None,
    after: Callable[[str], None] | None = None,
    not_measured: Mapping[str, str] | None = None,
    flush: bool = False,
) -> dict[str, Any]:
    """One row: seconds of every side (median, 10th and 90th percentile) and how many times the first is faster.

    Args:
        sides: by name; the first is ours.
        check: called with (ours, theirs) for every other side; raises where they differ.
        inputs: how many inputs the sides rotate through; each side sees the same ones.
        units: things done per call, for `per_second`.
        calls: of sides that do the thing more than once a time they are called; figures are for one.
        before, after: called with a side's name around each of its timings, not timed themselves (to start what
            works in the background, and to stop it before the others' turn).
        not_measured: sides that are missing in this run, and why.
        flush: empties the caches before every timing, as --flush does everywhere.
    """
    names = list(sides)
    if _asked.quick:
        repeats, warmup = min(repeats, QUICK[0]), min(warmup, QUICK[1])
    for other in names[1:]:
        if check:
            check(sides[names[0]](0), sides[other](0))
    taken: dict[str, list[float]] = {side: [] for side in names}
    for turn in range(repeats + warmup):
        for side in names if turn % 2 else reversed(names):
            if before:
                before(side)
            if flush or _asked.flush:
                flush_cache(device)
            seconds = _seconds(sides[side], turn % inputs, device) / (calls or {}).get(side, 1)
            if after:
                after(side)
            if turn >= warmup:
                taken[side].append(seconds)
    row: dict[str, Any] = {"name": name, "sides": {}}
    ours = median(taken[names[0]])
    for side, seconds in taken.items():
        spread = quantiles(seconds, n=10, method="inclusive")
        row["sides"][side] = {
            "median_us": round(median(seconds) * 1e6, 2),
            "p10_us": round(spread[0] * 1e6, 2),
            "p90_us": round(spread[-1] * 1e6, 2),
            "per_second": round(units / median(seconds), 1),
            "times_slower_than_ours": round(median(seconds) / ours, 2),
        }
    row["sides"].update({side: {"not measured": why} for side, why in (not_measured or {}).items()})
    return row


def show(row: dict[str, Any]) -> None:
    sides = "  ".join(
        f"{side} not measured"
        if "not measured" in s
        else f"{side} {s['median_us']:.0f} us (x{s['times_slower_than_ours']})"
        for side, s in row["sides"].items()
    )
    print(f"{row['name']:<44} {sides}", flush=True)


def commit(root: Path = ROOT) -> str:
    """Of the tree that is measured; "... dirty" where it has changes beside results. Without git, as where files
    alone were copied, what the environment variable COMMIT says, else "unknown"."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=root)
        return done.stdout.strip() if done.returncode == 0 else "unknown"

    told = os.environ.get("COMMIT") or "unknown"
    try:
        head = git("rev-parse", "--short", "HEAD")
        changed = git("status", "--porcelain", "--", ".", ":!bench/results")
    except OSError:
        return told
    return told if head == "unknown" else head + (" dirty" if changed not in ("", "unknown") else "")


@functools.cache
def _made_on() -> dict[str, Any]:
    """Asked once: rows are written as they come."""
    return {"commit": commit(), "threads": torch.get_num_threads(), "passport": environment()}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows with the machine, versions, commit and command. Scripts call it after every row, so that what was
    measured is there whatever ends them."""
    content = {
        "date": date.today().isoformat(),
        "command": "python -m " + " ".join(["bench." + Path(sys.argv[0]).stem, *sys.argv[1:]]),
        **_made_on(),
        "rows": list(rows),
    }
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
