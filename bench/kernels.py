"""Launches every kernel of the package, for tools that watch kernels (compute-sanitizer, ncu):
`python -m bench.kernels [--device cpu|cuda] [--small]`.

--small: many shapes and dtypes of few elements, each compared with the CPU's kernels, for checkers that make them
very slow. Else each kernel once, in the sizes of a step of WRN-28-2, for a profiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.harness import begin, parser
from interlude_fast import ops
from interlude_fast.benchmark.timing import synchronize
from interlude_fast.data.augment import Policy, ViewMaker, normalization_table

BY_CLASS = ("thresholds", "class_weights", "pseudo_label_bias")
CPU = torch.device("cpu")
Case = Callable[[torch.device], list[Tensor]]


def drawn(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, the same on every device; channels-last where there are four axes."""
    generator = torch.Generator().manual_seed(sum(shape))
    x = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last) if x.dim() == 4 else x
    return x.to(device, dtype)


def fusion(*shape: int, dtype: torch.dtype) -> Case:
    def case(device: torch.device) -> list[Tensor]:
        x = drawn(*shape, device=device, dtype=dtype).requires_grad_()
        y = ops.circular_shift_fusion(x, 0.25)
        return [y, *torch.autograd.grad(y, x, torch.ones_like(y))]

    return case


def loss(batch: int, mu: int, classes: int, dtype: torch.dtype = torch.float32, **options: Any) -> Case:
    """options: as of interlude_loss; a number among BY_CLASS stands for a tensor of it, one a class."""

    def case(device: torch.device) -> list[Tensor]:
        logits = drawn(2 * batch * (1 + mu), classes, device=device, dtype=dtype).requires_grad_()
        labels = (torch.arange(batch) * 7 % classes).to(device)
        by_class = {
            n: torch.full((classes,), v, device=device, dtype=torch.float32) if n in BY_CLASS else v
            for n, v in options.items()
        }
        found = ops.interlude_loss(logits, labels, mu=mu, **{"thresholds": 0.6, **by_class})
        return [*found, *torch.autograd.grad(found.total, logits)]

    return case


def delta_alone(batch: int, mu: int, classes: int, dtype: torch.dtype = torch.float32) -> Case:
    def case(device: torch.device) -> list[Tensor]:
        uw, us = (drawn(batch, mu, classes + k, device=device, dtype=dtype)[..., :classes] for k in (0, 1))
        uw, us = uw.contiguous().requires_grad_(), us.contiguous().requires_grad_()
        lw, ls = (x.detach()[:, 0].flip(0) for x in (uw, us))
        found = ops.delta_consistency_loss(lw, ls, uw, us, uw.detach()[..., 0] > 0)
        return [found, *torch.autograd.grad(found, (uw, us))]

    return case


def rows(labeled: int, unlabeled: int, batch: int, mu: int, step: int = 2**33 + 5) -> Case:
    def case(device: torch.device) -> list[Tensor]:
        at = torch.full((), step, dtype=torch.int64, device=device)
        return list(ops.sample_rows(at, seed=-9, labeled=labeled, unlabeled=unlabeled, batch=batch, mu=mu))

    return case


def views(side: int, count: int, dtype: torch.dtype, form: Any = "fixmatch") -> Case:
    def case(device: torch.device) -> list[Tensor]:
        stored = 64
        store = ((torch.arange(stored * side * side * 3) * 2654435761) >> 13 & 255).to(torch.uint8)
        row = torch.arange(count, device=device)
        table = normalization_table((0.45,) * 3, (0.25,) * 3, dtype, device)
        make = ViewMaker(Policy(flip=True, form=form), side, 3, table)
        images = store.reshape(stored, side, side, 3).to(device)
        return [make(images, row % stored, row, row % 2, torch.full((), 5, dtype=torch.int64, device=device))]

    return case


def descent(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Case:
    def case(device: torch.device) -> list[Tensor]:
        weights, gradients, velocities, shadows = (
            [drawn(*shape, device=device, dtype=dtype) for shape in shapes] for _ in range(4)
        )
        ops.sgd_ema_(
            weights, gradients, velocities, shadows, torch.full((), 0.03, dtype=torch.float64, device=device),
            scales=[1.0] * len(shapes), weight_decays=[5e-4] * len(shapes), momentum=0.9, nesterov=True,
            ema_decay=0.999,
        )  # fmt: skip
        return [*weights, *velocities, *shadows]

    return case


def small_cases() -> Iterator[tuple[str, Case]]:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        name = str(dtype)[6:]
        yield f"fusion {name}", fusion(13, 8, 3, 5, dtype=dtype)
        yield f"fusion {name}, one channel", fusion(3, 7, dtype=dtype)  # no whole 16 bytes a row
        yield f"fusion {name}, one row", fusion(1, 64, dtype=dtype)
        yield f"loss {name}", loss(5, 3, 10, dtype)
        yield f"delta alone {name}", delta_alone(5, 3, 10, dtype)
    yield "loss per class", loss(9, 7, 33, delta="per_class")
    yield "loss of many classes", loss(3, 1, 1000)
    yield "loss, separate rows", loss(5, 3, 10, layout="separate")
    yield "loss by class", loss(5, 3, 10, thresholds=0.4, class_weights=0.7, pseudo_label_bias=0.1)
    yield "loss of soft pseudo labels", loss(5, 3, 10, temperature=0.5, delta="per_class", class_weights=1.5)
    yield "rows", rows(40, 1437, 8, 7)
    yield "rows without unlabeled ones", rows(40, 1, 8, 0)
    for form in ("fixmatch", "usb"):
        yield f"views 32 px {form}", views(32, 96, torch.bfloat16, form)
        yield f"views 33 px {form}, float32", views(33, 32, torch.float32, form)
    yield "views 225 px, beyond shared memory", views(225, 6, torch.float32)
    yield "SGD and EMA", descent((7,), (16, 3, 3, 3), (1_003,), (10, 128))
    yield "SGD and EMA in float64", descent((7,), (33,), dtype=torch.float64)
    yield "SGD and EMA of more tensors than a launch takes", descent(*[(5 + i,) for i in range(180)])


def step_cases() -> Iterator[tuple[str, Case]]:
    yield "fusion", fusion(1024, 64, 16, 16, dtype=torch.bfloat16)
    yield "loss, mean", loss(64, 7, 10)
    yield "loss, per class", loss(64, 7, 100, delta="per_class")
    yield "rows", rows(250, 50_000, 64, 7)
    yield "views 32 px", views(32, 1024, torch.bfloat16)
    yield "views 96 px", views(96, 1024, torch.bfloat16)
    yield "SGD and EMA", descent(*[(128, 128, 3, 3)] * 8, *[(64, 64, 3, 3)] * 8, *[(128,)] * 40)


def alike(name: str, ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Sampling, views and SGD are equal to the bit; sums may be taken in another order."""
    for x, y in zip(ours, theirs, strict=True):
        narrow = x.dtype in (torch.float16, torch.bfloat16)
        allowed = {"rtol": 2e-2, "atol": 2e-3} if narrow else {}
        if name.startswith(("rows", "views", "SGD")):
            allowed = {"rtol": 0, "atol": 0}
        torch.testing.assert_close(x.cpu(), y, **allowed, msg=lambda why: f"{name}: {why}")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--small", action="store_true", help="many small shapes, compared with the CPU")
    arguments = begin(options)
    device = arguments.device
    if not ops.status().runs_on(device):
        raise SystemExit(f"bench.kernels: no compiled kernels for {device.type}: {ops.status().why_not}")
    failed = []
    for name, case in small_cases() if arguments.small else step_cases():
        try:
            found = case(device)
            synchronize(device)
            if arguments.small:
                alike(name, found, case(CPU))
            print(f"{name}: {len(found)} tensors", flush=True)
        except (AssertionError, RuntimeError) as error:  # the others are launched all the same
            failed.append(name)
            print(f"{name} FAILED: {error}", flush=True)
    if failed:
        raise SystemExit(f"bench.kernels: failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
