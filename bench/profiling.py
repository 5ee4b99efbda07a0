"""Where a step's time goes in every way to run it, ours and the recipes', by torch's profiler:
`python -m bench.profiling [--device cpu|cuda] [--out FILE] [--quick]`.

Each way has a process of its own: seconds a step without the profiler, then over some 20 steps the launches, the
idle share and the largest kernels, and the memory it holds at most. On a CPU, operators by their own time.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.harness import begin, parser, quick, reason, write
from bench.launches import events_of, operators, summary
from bench.step import RECIPES, WAYS, Parts, our_ways, recipes
from bench.workload import default_networks
from interlude_fast.benchmark.timing import peak_memory, reset_peak_memory, synchronize

STEPS, WARM_UP = 20, 5
LIMIT = {"cuda": 180, "cpu": 3600}  # seconds that a process may take, torch.compile included


class Memory:
    """What torch's allocator holds on a GPU at most, beyond what was there before.

    Args:
        beside: something else that was made in this process: its own peak is not counted.
    """

    def __init__(self, device: torch.device, beside: bool = False) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self.told = not beside or reset_peak_memory(device)
        if self.cuda:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)

    def peak(self) -> dict[str, Any]:
        """Bytes; on a CPU the largest resident size of the process so far, without those that it started."""
        if not self.cuda:
            return {"peak_resident_bytes": peak_memory(self.device) if self.told else "not measured"}
        allocated, reserved = self.before
        return {
            "peak_allocated_bytes": torch.cuda.max_memory_allocated(self.device) - allocated,
            "peak_reserved_bytes": torch.cuda.max_memory_reserved(self.device) - reserved,
        }


def profiled(parts: Parts, memory: Memory, device: torch.device, steps: int) -> dict[str, Any]:
    """What a way's steps cost."""
    for _ in range(min(steps, WARM_UP)):
        parts.step()
    synchronize(device)
    began = time.perf_counter()
    for _ in range(steps):
        parts.step()
    synchronize(device)
    step_us = (time.perf_counter() - began) / steps * 1e6
    held = memory.peak()

    def action() -> None:
        for _ in range(steps):
            parts.step()

    if device.type == "cuda":
        seen = summary(events_of(action, device), steps)
        seen["idle_share"] = (
            round(max(0.0, 1 - seen["busy_us"] / step_us), 4) if seen["kernels"] else "not measured"
        )
    else:
        seen = operators(action, steps)
    return {"step_us": round(step_us, 1), "steps": steps, **held, **seen}


def one_way(
    name: str, memory: Memory, network: str, device: torch.device, batch: int, steps: int
) -> dict[str, Any]:
    """Of one of our ways, or of a recipe."""
    ours = name in WAYS
    made, missing = our_ways(network, device, batch, [name if ours else "eager"])
    if not made:
        return {"not measured": next(iter(missing.values()))}
    (run,) = (way.run for way in made.values())
    parts: Parts = next(iter(made.values()))
    if not ours:
        memory = Memory(device, beside=True)  # the run that the recipe is made after
        theirs, failed = recipes(run, (name,))
        if name not in theirs:
            return {"not measured": failed[name]}
        parts = theirs[name]
    try:
        return profiled(parts, memory, device, steps) | ({"precision": run.precision} if ours else {})
    finally:
        parts.close()
        run.pipeline.close()


def profile_row(name: str, network: str, device: torch.device, batch: int, steps: int) -> dict[str, Any]:
    row = {"name": f"{name}, {network}, {16 * batch} rows, {device.type}", "way": name, "network": network}
    memory = Memory(device)
    try:
        found = one_way(name, memory, network, device, batch, steps)
        if (
            found.get("kernels") == 0
        ):  # a profiler that has been there may see into graphs that are recorded after it
            seen = one_way(name, memory, network, device, batch, steps)
            found = {**seen, **{key: found[key] for key in found if key == "step_us" or key.startswith("peak")}}
        return row | found
    except Exception as error:
        return row | {"not measured": reason(error)}


def in_a_process(*asked: Any) -> dict[str, Any]:
    """profile_row in a process of its own: what one way leaves, or ends with, is not the next one's."""
    command = [sys.executable, "-m", "bench.profiling", "--cell", json.dumps([str(value) for value in asked])]
    name, network, device = asked[:3]
    limit = LIMIT.get(str(device).partition(":")[0])
    missing = {"name": f"{name}, {network}", "way": name, "network": network}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return missing | {"not measured": f"no end within {limit} s"}
    if done.returncode:
        why = (done.stderr.splitlines() or [""])[-1]
        return missing | {"not measured": f"exit code {done.returncode}: {why}"[:300]}
    return json.loads(done.stdout.splitlines()[-1])


def describe(row: dict[str, Any]) -> str:
    if "not measured" in row:
        return f"{row['name']:<52} not measured: {row['not measured']}"
    shown: dict[str, Callable[[Any], str]] = {
        "host launches": lambda n: f"{n:,.0f} launches",
        "host graphs": lambda n: f"{n:,.0f} graphs",
        "kernels": lambda n: f"{n:,.0f} kernels",
        "idle_share": lambda share: f"idle {share:.1%}" if isinstance(share, float) else f"idle {share}",
        "peak_allocated_bytes": lambda n: f"{n / 2**30:.2f} GiB",
        "operators": lambda n: f"{n:,.0f} operators",
    }
    found = ", ".join(show(row[key]) for key, show in shown.items() if key in row)
    return f"{row['name']:<52} {row['step_us'] / 1000:,.2f} ms, {found}"


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--networks", nargs="+", help="of bench/workload.py; default: WRN-28-2, --quick: WRN-10-1"
    )
    options.add_argument("--batch", type=int, help="labeled images in a step; default 64, 4 on a CPU or --quick")
    options.add_argument("--ways", nargs="+", choices=[*WAYS, *RECIPES], help="default: all that there are")
    options.add_argument("--steps", type=int, help=f"profiled; default {STEPS}, 2 on a CPU or --quick")
    options.add_argument("--cell", help="what one process does, as JSON")
    arguments, made = begin(options), []
    if arguments.cell:
        name, network, device, batch, steps = json.loads(arguments.cell)
        print(json.dumps(profile_row(name, network, torch.device(device), int(batch), int(steps))))
        return
    small = quick() or arguments.device.type != "cuda"
    names = arguments.ways or [*(WAYS if arguments.device.type == "cuda" else ["eager"]), *RECIPES]
    for network in arguments.networks or default_networks(arguments.device, quick())[:1]:
        batch, steps = arguments.batch or (4 if small else 64), arguments.steps or (2 if small else STEPS)
        for name in names:
            row = in_a_process(name, network, arguments.device, batch, steps)
            print(describe(row), flush=True)
            for k in row.get("largest", ()):
                print(f"    {k['us']:>10,.1f} us  {k['share']:>6.1%}  x{k['count']:g}  {k['name'][:90]}")
            made.append(row)
            if arguments.out:
                write(arguments.out, made)


if __name__ == "__main__":
    main()
