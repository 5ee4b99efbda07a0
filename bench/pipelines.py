"""Views per second of every pipeline, in one run:
`python -m bench.pipelines [--device cpu|cuda] [--out FILE] [--quick]`."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.harness import begin, captured, measure, memory_share, parser, reason, show, write
from bench.views import ViewBatches, equal
from bench.workload import noise
from interlude_fast.data.augment import Policy
from interlude_fast.data.batch import RowOrder
from interlude_fast.data.datasets import Dataset
from interlude_fast.data.decode import cores
from interlude_fast.data.pipelines import PIPELINES, Pipeline, build_pipeline
from interlude_fast.data.split import Split, draw_split
from interlude_fast.errors import InterludeError
from interlude_fast.options import DataConfig

POLICY = Policy(flip=True)
BOTH = ("weak", "strong")
EQUAL = ("resident", "host", "torchvision, 0 workers", "torchvision, all cores")
BLOCK, MOST = 0.25, 20  # seconds that a timing should take at least, and batches that it takes at most
CAPTURED = "resident, captured"
V2 = "torchvision v2, whole batch"
V2_NOTE = "v2 draws once a call: all images of the batch share one crop, one RandAugment draw and one square"


class Steps:
    """A pipeline as a side of `measure`: `batches` steps a timing, in order, in the middle of a longer walk."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.step, self.batches = pipeline, 0, 1

    def __call__(self, i: int) -> Any:
        for _ in range(self.batches):
            batch = self.pipeline.batch(self.step)
            self.step += 1
        return batch

    def warm_up(self) -> None:
        """Start what works ahead, and use up what it has ready: what follows comes at the rate it is made."""
        for _ in range(3 if self.batches > 1 else 1):
            self.pipeline.batch(self.step)
            self.step += 1

    def settle(self, device: torch.device) -> None:
        """As many batches a timing as fill a block."""
        self.warm_up()
        began = time.perf_counter()
        self(0)
        if device.type == "cuda":
            torch.cuda.synchronize()
        self.batches = int(min(MOST, max(1, BLOCK / (time.perf_counter() - began))))
        self.pipeline.close()


def pipelines(
    dataset: Dataset, split: Split, order: RowOrder, device: torch.device, skip: list[str]
) -> tuple[dict[str, Steps], dict[str, str]]:
    """Sides, and why others are missing. Their images are what a run would have by default: bf16 on a GPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    wanted: dict[str, tuple[str, int | None]] = {
        "resident": ("resident", None),
        "host": ("host", None),
        "torchvision, 0 workers": ("torchvision", 0),
        "torchvision, all cores": ("torchvision", None),
        "dali": ("dali", None),
    }
    sides, missing = {}, {}
    for side, (name, workers) in wanted.items():
        if name in skip:
            missing[side] = "skipped"
        elif name not in PIPELINES:
            missing[side] = "this version has no such pipeline"
        else:
            try:
                made = build_pipeline(
                    name, dataset, split, order, POLICY, seed=0, device=device, dtype=dtype, workers=workers
                )
                made.batch(0)
                made.close()
                sides[side] = Steps(made)
            except (InterludeError, ImportError, RuntimeError) as error:
                missing[side] = str(error).splitlines()[0]
    return sides, missing


class Captured:
    """Batches of a recordable pipeline in a CUDA graph: what they add to a captured step."""

    batches = MOST

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        step = torch.zeros((), dtype=torch.int64, device=device)

        def batch(i: int) -> None:
            pipeline.batch(step)
            step.add_(1)

        self.replay = captured(batch, 1, self.batches)

    def __call__(self, i: int) -> Any:
        return self.replay(i)


class V2Batches:
    """torchvision.transforms.v2 on uint8 batches on the device."""

    def __init__(self, resident: Pipeline, dataset: Dataset) -> None:
        from torchvision.transforms import v2

        side = dataset.size
        crop = v2.RandomCrop(side, padding=int(side * POLICY.crop), padding_mode="reflect")
        share = (POLICY.cutout**2,) * 2
        square = v2.RandomErasing(p=1, scale=share, ratio=(1, 1), value=127)
        end = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(dataset.mean), list(dataset.std))]
        self.sampler, self.batches = resident.sampler, 1
        self.images = self.sampler.store.images.permute(0, 3, 1, 2).contiguous()
        self.rows = (self.sampler.views == 0).nonzero().flatten()  # each image once
        self.weak = v2.Compose([v2.RandomHorizontalFlip(), crop, *end])
        self.strong = v2.Compose(
            [v2.RandomHorizontalFlip(), crop, v2.RandAugment(POLICY.resolve().ops), square, *end]
        )

    def __call__(self, i: int) -> Tensor:
        for k in range(self.batches):
            chosen = self.images[self.sampler.plan(i + k).items[self.rows]]
            views = torch.cat([self.weak(chosen), self.strong(chosen)])
        return views


def check_equal(sides: dict[str, Steps]) -> list[str]:
    """Names of the sides whose batches are equal, byte by byte, at two steps; raises where one differs."""
    names = [name for name in EQUAL if name in sides]
    for step in (0, 5):
        batches = [sides[name].pipeline.batch(step).images for name in names]
        for name, images in zip(names, batches, strict=True):
            assert torch.equal(images, batches[0]), f"{name} differs from {names[0]} at step {step}"
    for name in names:
        sides[name].pipeline.close()
    return names


def pipeline_row(side: int, device: torch.device, skip: list[str], repeats: int) -> dict[str, Any]:
    labeled = 8 if side == 224 and device.type == "cpu" else 64
    dataset, order = noise(4096 if side < 224 else 1024, side), RowOrder(labeled, 7, BOTH, BOTH, "separate")
    sides, missing = pipelines(dataset, draw_split(dataset, DataConfig(labels=100), 0), order, device, skip)
    same = check_equal(sides)
    for steps in sides.values():
        steps.settle(device)
    every: dict[str, Any] = dict(sides)
    resident = sides["resident"].pipeline
    if device.type == "cuda":
        try:
            every[CAPTURED] = Captured(resident, device)
        except RuntimeError as error:
            missing[CAPTURED] = reason(error)
    try:
        every[V2] = V2Batches(resident, dataset)
        every[V2](0)
    except (ImportError, RuntimeError) as error:
        every.pop(V2, None)
        missing[V2] = reason(error)
    row = measure(
        f"{order.count} views ({labeled} labeled + {7 * labeled} unlabeled, weak and strong), {side} px, {device}",
        every,
        device,
        repeats=repeats,
        warmup=1,
        units=order.count,
        calls={name: s.batches for name, s in every.items()},
        before=lambda name: sides[name].warm_up() if name in sides else None,
        after=lambda name: sides[name].pipeline.close() if name in sides else None,
        not_measured=missing,
    )
    row |= {"equal bytes": same, "workers of all cores": cores(), V2: V2_NOTE}
    fastest = row["sides"][CAPTURED if CAPTURED in every else "resident"]["median_us"]
    moved = order.count * side * side * 3 * (1 + resident.batch(0).images.element_size())  # read and written once
    return row | {"resident": memory_share(moved, fastest / 1e6, device)}


def one_core_row(kind: str, repeats: int) -> dict[str, Any]:
    """CIFAR-sized views, the op beside Pillow, one core each; bytes compared at every input."""
    count = 512
    views = torch.full((count,), 1) if kind == "strong" else torch.arange(count) % 2
    made = ViewBatches(32, POLICY, views, torch.device("cpu"))
    sides: dict[str, Callable[[int], Tensor]] = {"fused": made.fused, "Pillow": made.pillow}
    try:
        from interlude_fast.data.pipelines.torchvision import flip_and_crop

        sides["Pillow, crops by torchvision"] = lambda i: made.pillow(i, flip_and_crop)
    except InterludeError:
        pass
    for i in range(4):
        for side in sides.values():
            equal(made.fused(i), side(i))
    name = f"{count} {kind} views of 32 px as pixels, one core"
    row = measure(name, sides, made.store.device, repeats=repeats, units=count)
    return row | {"equal bytes": True}


def on_one_core(kind: str, repeats: int) -> dict[str, Any]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return one_core_row(kind, repeats)
    finally:
        torch.set_num_threads(before)


def rows(arguments: argparse.Namespace) -> Iterator[Callable[[], dict[str, Any]]]:
    device = arguments.device
    for kind in ("strong", "weak and strong"):
        yield lambda kind=kind: on_one_core(kind, 4 * arguments.repeats)
    for side in arguments.sides:
        yield lambda side=side: pipeline_row(side, device, arguments.skip, arguments.repeats)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sides", type=int, nargs="+", help="of the images; default: 32 96 224, --quick: 32")
    options.add_argument("--skip", nargs="+", default=[], metavar="PIPELINE")
    options.add_argument("--repeats", type=int, default=7)
    arguments, made = begin(options), []
    arguments.sides = arguments.sides or ([32] if arguments.quick else [32, 96, 224])
    for row in rows(arguments):
        load = os.getloadavg()[0]  # before the row: while it runs it is its own
        made.append(row() | {"load_before": round(load, 2)})
        show(made[-1])
        if arguments.out:
            write(arguments.out, made)


if __name__ == "__main__":
    main()
