"""What a step costs as the run grows: `python -m bench.scaling [--device cpu|cuda] [--out FILE] [--quick]`.

Flat in the number of unlabeled images, of classes, in the step number and the run's length; linear in the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from bench.harness import begin, measure, parser, quick, show, write
from bench.workload import noise_run as any_run
from interlude_fast.benchmark.speed import take_step
from interlude_fast.training.run import Run


def noise_run(network: str, device: torch.device, train: dict[str, Any], **more: Any) -> Run:
    """Not compiled: that takes a minute for each of many runs, and what is asked here does not hang on it."""
    return any_run(network, device, train={"compile": False, **train}, **more)


def steps_of(run: Run, first: int = 0) -> Any:
    """Whole steps from number `first` on, as a side of `measure`."""
    run.state.step = first
    return lambda i: take_step(run)


def batches_of(run: Run) -> Any:
    return lambda i: run.pipeline.batch(i)


def both_rows(what: str, runs: dict[str, Run], device: torch.device, repeats: int) -> Iterator[dict[str, Any]]:
    """A row of batches and one of whole steps; the first run is the measure of the others."""
    for kind, side in (("batch", batches_of), ("whole step", steps_of)):
        sides = {name: side(run) for name, run in runs.items()}
        yield measure(f"{kind} by {what}, {device.type}", sides, device, repeats=repeats)


def unlabeled_rows(network: str, device: torch.device, batch: int, repeats: int) -> Iterator[dict[str, Any]]:
    sizes = (1 << 11, 1 << 13, 1 << 15) if quick() else (1 << 12, 1 << 14, 1 << 16, 1 << 18)
    runs = {f"{n:,}": noise_run(network, device, images=n, train={"batch": batch}) for n in sizes}
    yield from both_rows("unlabeled images", runs, device, repeats)


def class_rows(network: str, device: torch.device, batch: int, repeats: int) -> Iterator[dict[str, Any]]:
    runs = {f"{k:,}": noise_run(network, device, classes=k, train={"batch": batch}) for k in (10, 100, 1000)}
    yield from both_rows("classes", runs, device, repeats)


def batch_rows(network: str, device: torch.device, batch: int, repeats: int) -> Iterator[dict[str, Any]]:
    sizes = [batch * factor // 4 for factor in (1, 2, 4, 8)]
    runs = {f"{16 * b:,} rows": noise_run(network, device, train={"batch": b}) for b in sizes}
    for row in both_rows("rows", runs, device, repeats):
        for side, b in zip(row["sides"].values(), sizes, strict=True):
            side["us_per_row"] = round(side["median_us"] / (16 * b), 3)
        yield row


def length_rows(network: str, device: torch.device, batch: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Steps at the beginning of runs of several lengths, and far inside the longest."""
    lengths = (1 << 10, 1 << 20, 1 << 30)
    runs = {f"step 0 of {n:,}": noise_run(network, device, train={"batch": batch, "steps": n}) for n in lengths}
    sides = {name: steps_of(run) for name, run in runs.items()}
    inside = noise_run(network, device, train={"batch": batch, "steps": lengths[-1]})
    sides[f"step {lengths[-1] // 2:,}"] = steps_of(inside, lengths[-1] // 2)
    yield measure(f"whole step by step number and run length, {device.type}", sides, device, repeats=repeats)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--network", help="of bench/workload.py; default: WRN-28-2, on a CPU WRN-10-1")
    options.add_argument("--batch", type=int, help="labeled images in a step; default 64, 8 on a CPU")
    options.add_argument("--repeats", type=int, help="timings; default 100, 15 on a CPU")
    arguments, made = begin(options), []
    device, cuda = arguments.device, arguments.device.type == "cuda"
    network = arguments.network or ("WRN-28-2" if cuda and not quick() else "WRN-10-1")
    batch, repeats = arguments.batch or (64 if cuda else 4 if quick() else 8), arguments.repeats
    for part in (unlabeled_rows, batch_rows, class_rows, length_rows):
        for row in part(network, device, batch, repeats or (100 if cuda else 15)):
            show(row)
            made.append(row | {"network": network})
            if arguments.out:
                write(arguments.out, made)


if __name__ == "__main__":
    main()
