"""Forward and backward of WRN-28-2 on a CPU, float32, three ways in one run: this package's kernels and torch's,
channels-last, and torch's in its usual layout.

    python -m bench.cpu_step [--rows 128 1024] [--repeats 10] [--profile] [--out FILE]

--profile also prints each side's share of time by kind of op.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.harness import begin, measure, parser, show, write
from interlude_fast import ops
from interlude_fast.models.base import Shape
from interlude_fast.models.fusion import EmbeddingFusion
from interlude_fast.models.wideresnet import WideResNet, WideResNetOptions

CPU = torch.device("cpu")
INPUTS = 2
KINDS = {
    "convolution, both ways": ("convolution", "conv3x3"),
    "batch norm, activation": ("native_batch_norm", "leaky_relu", "batch_norm"),
    "add": ("aten::add",),
}


def step(rows: int, layout: torch.memory_format) -> Callable[[int], list[Tensor]]:
    """i -> gradients of the i-th batch."""
    torch.manual_seed(0)
    net = WideResNet(WideResNetOptions(), Shape(10), EmbeddingFusion()).to(memory_format=layout).train()
    images = [torch.randn(rows, 3, 32, 32).contiguous(memory_format=layout) for _ in range(INPUTS)]
    labels = torch.arange(rows) % 10

    def run(i: int) -> list[Tensor]:
        net.zero_grad(set_to_none=True)
        F.cross_entropy(net(images[i]), labels).backward()
        return [p.grad for p in net.parameters() if p.grad is not None]

    return run


def library(run: Callable[[int], Any]) -> Callable[[int], Any]:
    def without_kernels(i: int) -> Any:
        with ops.use_reference():
            return run(i)

    return without_kernels


def alike(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Whole gradients; single small ones differ by float32's rounding in 28 layers."""
    a, b = (torch.cat([g.flatten() for g in side]) for side in (ours, theirs))
    assert (a - b).norm() < 1e-2 * b.norm()


def shares(run: Callable[[int], Any]) -> dict[str, float]:
    """Percent of a step's own time by kind of op."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(0)
    taken: Counter[str] = Counter()
    for event in profile.key_averages():
        kind = next((k for k, parts in KINDS.items() if any(part in event.key for part in parts)), "rest")
        taken[kind] += event.self_cpu_time_total
    return {kind: round(100 * t / sum(taken.values()), 1) for kind, t in taken.most_common()}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, nargs="+", default=[128, 1024])
    options.add_argument("--repeats", type=int, default=10)
    options.add_argument("--profile", action="store_true")
    arguments = begin(options)
    table = []
    for rows in arguments.rows:
        ours = step(rows, torch.channels_last)
        sides = {
            "ours": ours,
            "channels-last": library(ours),
            "NCHW": library(step(rows, torch.contiguous_format)),
        }
        name = f"WRN-28-2 forward + backward, {rows} rows"
        row = measure(
            name, sides, CPU, check=alike, repeats=arguments.repeats, inputs=INPUTS, units=rows, warmup=1
        )
        if arguments.profile:
            row["percent"] = {side: shares(run) for side, run in sides.items()}
            print(*(f"{side}: {percent}" for side, percent in row["percent"].items()), sep="\n")
        show(row)
        table.append(row)
    if arguments.out:
        write(arguments.out, table)


if __name__ == "__main__":
    main()
