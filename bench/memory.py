"""Peak memory by batch, precision and pipeline, each in a process of its own, and whether it grows over the steps:
`python -m bench.memory [--device cpu|cuda] [--out FILE] [--quick]`.

On a GPU what torch allocated there; on a CPU the resident size of the process, interpreter and torch included, the
processes that it starts not.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench.harness import begin, parser, quick, write
from bench.workload import noise_run
from interlude_fast.benchmark.speed import take_step
from interlude_fast.benchmark.timing import peak_memory, synchronize

FIRST = 20  # steps, after which memory should stay as it is
LIMIT = {"cuda": 120, "cpu": 3600}  # seconds that a process may take


def memory_now(device: torch.device) -> int:
    """Bytes that torch has of a GPU, or the resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Train as a cell says; bytes at the peak, and after FIRST steps and the last where there are more."""
    device = torch.device(cell["device"])
    train = {name: cell[name] for name in ("batch", "precision", "compile")}
    run = noise_run(cell["network"], device, train=train, data={"pipeline": cell["pipeline"]})
    found: dict[str, Any] = {}
    for step in range(1, cell["steps"] + 1):
        take_step(run)
        if step in (FIRST, cell["steps"]) and cell["steps"] > FIRST:
            synchronize(device)
            found[f"bytes_at_step_{step}"] = memory_now(device)
    synchronize(device)
    run.pipeline.close()
    if cell["steps"] > FIRST:
        first, last = (found[f"bytes_at_step_{step}"] for step in (FIRST, cell["steps"]))
        found["growth_bytes"] = last - first
    if device.type == "cuda":
        found["peak_reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    return {"peak_bytes": peak_memory(device), "way": run.stepper.choice, **found}


def cells(
    device: str, network: str, batches: list[int], steps: int, compile: bool = False
) -> list[dict[str, Any]]:
    """By batch, by precision and by pipeline around the largest batch, and the first batch for `steps` steps."""
    precisions = ("fp32", "bf16") if device.startswith("cuda") else ("fp32",)
    base = {"device": device, "network": network, "compile": compile, "pipeline": "resident"}
    base |= {"precision": precisions[-1], "steps": 5}
    made = [base | {"batch": batch} for batch in batches]
    made += [made[-1] | {"precision": precision} for precision in precisions[:-1]]
    made += [made[len(batches) - 1] | {"pipeline": "host"}]
    return [*made, base | {"batch": batches[0], "steps": steps}]


def in_a_process(cell: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.memory", "--cell", json.dumps(cell)]
    limit = LIMIT.get(cell["device"].partition(":")[0])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"not measured": f"no end within {limit} s"}
    if done.returncode:
        return {"not measured": (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--network", help="of bench/workload.py; default: WRN-28-2, on a CPU WRN-10-1")
    options.add_argument("--batches", type=int, nargs="+", help="labeled images in a step")
    options.add_argument("--steps", type=int, help="over which memory should stay; default 200, 40 --quick")
    options.add_argument("--compile", action="store_true", help="torch.compile, as long runs on GPUs have it")
    options.add_argument("--cell", help="what one process does, as JSON")
    arguments, made = begin(options), []
    if arguments.cell:
        print(json.dumps(measure_cell(json.loads(arguments.cell))))
        return
    cuda = arguments.device.type == "cuda"
    network = arguments.network or ("WRN-28-2" if cuda and not quick() else "WRN-10-1")
    batches = arguments.batches or ([4, 8] if quick() else [8, 16, 32, 64])
    steps = arguments.steps or (40 if quick() else 200)
    for cell in cells(str(arguments.device), network, batches, steps, arguments.compile):
        found = in_a_process(cell)
        name = ", ".join(f"{cell[key]} {word}".strip() for key, word in NAMED) + ", compiled" * cell["compile"]
        print(f"{name:<64} {describe(found)}", flush=True)
        made.append({"name": name, **cell, **found})
        if arguments.out:
            write(arguments.out, made)


NAMED = (("network", ""), ("batch", "labeled"), ("precision", ""), ("pipeline", ""), ("steps", "steps"))


def describe(found: dict[str, Any]) -> str:
    if "not measured" in found:
        return f"not measured: {found['not measured']}"
    growth = (
        f", growth after step {FIRST}: {found['growth_bytes'] / 2**20:.1f} MiB" if "growth_bytes" in found else ""
    )
    return f"{found['peak_bytes'] / 2**20:,.0f} MiB{growth}"


if __name__ == "__main__":
    main()
