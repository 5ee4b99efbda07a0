"""Every op beside plain torch in the same run: python -m bench.ops [--device cpu|cuda] [--out FILE] [--quick].

On a GPU small ops are timed twice: as called, which is mostly the host's time to launch them, and captured in CUDA
graphs, which is the device's time, and what a captured step pays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from bench.harness import begin, captured, measure, memory_share, parser, quick, reason, show, write
from bench.launches import launches_of
from bench.views import ViewBatches, equal
from interlude_fast import ops, reference
from interlude_fast.data.augment import Policy
from interlude_fast.models import EmbeddingFusion, Shape, build_model

INPUTS, ROUNDS = 4, 5  # inputs that the sides rotate through, and how often a graph goes through them
ALPHA = 0.1
LR, MOMENTUM, WEIGHT_DECAY, EMA_DECAY = 0.03, 0.9, 5e-4, 0.999


def close(ours: Any, theirs: Any) -> None:
    """To some roundings of the largest value: of 16 bits a sum near 0 keeps those of its terms."""
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (ours, theirs)), strict=True):
        allowed = 1e-3 if a.dtype == torch.float32 else 2**-7
        torch.testing.assert_close(a, b, rtol=0, atol=allowed * float(b.detach().abs().max()))


def both_rows(
    name: str,
    sides: dict[str, Callable[[int], Any]],
    device: torch.device,
    *,
    moved: int | None = None,
    beside: dict[str, Callable[[int], Any]] | None = None,
    check: Callable[[Any, Any], None] | None = None,
    **more: Any,
) -> Iterator[dict[str, Any]]:
    """The sides as called and, on a GPU, captured.

    Args:
        moved: bytes that have to be moved; adds the share of the memory's speed at which the first side does.
        beside: sides that compute something else, timed among the captured ones.
    """
    yield measure(name, sides, device, check=check, inputs=INPUTS, **more)
    if device.type != "cuda":
        return
    graphs: dict[str, Callable[[int], Any]] = {}
    missing: dict[str, str] = {}
    for side, call in {**sides, **(beside or {})}.items():
        try:
            graphs[side] = captured(call, INPUTS, ROUNDS)
        except Exception as error:  # the others are measured all the same
            missing[side] = reason(error)
    if next(iter(sides)) in missing:
        yield {
            "name": f"{name}, captured",
            "sides": {side: {"not measured": why} for side, why in missing.items()},
        }
        return
    calls = dict.fromkeys(graphs, INPUTS * ROUNDS)
    row = measure(f"{name}, captured", graphs, device, calls=calls, not_measured=missing, **more)
    if moved is not None:
        row["memory"] = memory_share(moved, row["sides"][next(iter(sides))]["median_us"] / 1e6, device)
    to_profile.append((row, sides))
    yield row


# Rows whose sides' launches are counted when everything is timed: a profiler may leave its traces in timings.
to_profile: list[tuple[dict[str, Any], dict[str, Callable[[int], Any]]]] = []


def fusion_rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """Forward and backward of the blend of a step's embeddings, channels-last as they come."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    for shape in ((1024, 64, 16, 16), (1024 if cuda else 256, 256, 16, 16)):
        x = [
            torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)
            for _ in range(INPUTS)
        ]
        g = torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        x = [t.requires_grad_() for t in x]

        def both_ways(
            function: Callable[[Tensor], Tensor], x: list[Tensor] = x, g: Tensor = g
        ) -> Callable[[int], Any]:
            return lambda i: torch.autograd.grad(function(x[i]), x[i], g)[0]

        def two_copies(i: int, x: list[Tensor] = x, g: Tensor = g) -> Any:
            return x[i].detach().clone(), g.clone()  # as many bytes as forward and backward have to move

        def eager(t: Tensor) -> Tensor:
            return (1 - ALPHA) * t + ALPHA * t.roll(-1, 0)

        sides = {"fused": both_ways(lambda t: ops.circular_shift_fusion(t, ALPHA)), "eager": both_ways(eager)}
        if cuda:
            sides["torch.compile"] = both_ways(torch.compile(eager, dynamic=False))
        name = f"fusion forward + backward {list(shape)} {str(dtype)[6:]}"
        beside = {"copies of as many bytes": two_copies}
        moved = 4 * g.numel() * g.element_size()
        yield from both_rows(name, sides, device, beside=beside, moved=moved, check=close, units=shape[0])


def loss_rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """Loss head with gradient, B = 64, mu = 7."""
    for classes in (10, 100):
        for delta in ("mean", "per_class"):
            logits = [(3 * torch.randn(1024, classes, device=device)).requires_grad_() for _ in range(INPUTS)]
            labels = torch.randint(0, classes, (64,), device=device)

            def eager(
                i: int, logits: list = logits, labels: Tensor = labels, per_class: bool = delta == "per_class"
            ):
                total = reference.interlude_loss(logits[i], labels, 7, per_class=per_class)[0]
                return torch.autograd.grad(total, logits[i])[0]

            def plain(x: Tensor, labels: Tensor = labels, per_class: bool = delta == "per_class") -> Tensor:
                return reference.interlude_loss(x, labels, 7, per_class=per_class)[0]

            compiled = torch.compile(plain, dynamic=False)

            def by_compiler(i: int, logits: list = logits, compiled: Callable = compiled):
                return torch.autograd.grad(compiled(logits[i]), logits[i])[0]

            def fused(i: int, logits: list = logits, labels: Tensor = labels, delta: Any = delta):
                total = ops.interlude_loss(logits[i], labels, mu=7, delta=delta).total
                return torch.autograd.grad(total, logits[i])[0]

            name = f"loss head + gradient 1024 x {classes}, {delta}"
            sides = {"fused": fused, "eager": eager}
            if device.type == "cuda":
                sides["torch.compile"] = by_compiler
            yield from both_rows(name, sides, device, check=close, repeats=100)


def view_rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """512 images in a weak and a strong view: fused, torch, and Pillow one image at a time on one core."""
    forms: tuple[Literal["fixmatch", "usb"], ...] = ("fixmatch", "usb")
    for form in forms:
        for side in (32,) if quick() else (32, 96):
            made = ViewBatches(side, Policy(flip=True, form=form), torch.arange(1024) % 2, device, INPUTS)
            sides: dict[str, Callable[[int], Tensor]] = {"fused": made.fused, "torch": made.torch}
            if device.type == "cpu":
                sides["Pillow"] = made.pillow
            name = f"512 weak + 512 strong views, {side} px, {form}"
            yield measure(name, sides, device, check=equal, repeats=10, inputs=INPUTS, units=1024)


def conv_rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """The 3x3 convolutions of WRN-28-2's stages, 128 images, channels-last: the kernels are the CPU's."""
    for channels, side in ((32, 32), (64, 16), (128, 8)) if device.type == "cpu" else ():
        shape = (128, channels, side, side)
        x, g = (
            [torch.randn(shape).to(memory_format=torch.channels_last) for _ in range(INPUTS)] for _ in range(2)
        )
        x = [t.requires_grad_() for t in x]
        weight = (torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5).requires_grad_()
        functions = {"Winograd": ops.conv3x3, "library": reference.conv3x3}

        def forward(function: Callable, x: list = x, weight: Tensor = weight) -> Callable[[int], Any]:
            return lambda i: function(x[i].detach(), weight.detach())

        def backward(
            function: Callable, x: list = x, weight: Tensor = weight, g: list = g
        ) -> Callable[[int], Any]:
            y = [function(t, weight) for t in x]
            return lambda i: torch.autograd.grad(y[i], (x[i], weight), g[i], retain_graph=True)

        for name, make in (("forward", forward), ("backward", backward)):
            sides = {side_name: make(function) for side_name, function in functions.items()}
            name = f"convolution {name} {list(shape)}"
            yield measure(name, sides, device, check=close, repeats=10, inputs=INPUTS, units=shape[0])


class Descent:
    """WRN-28-2's weights, gradients, velocities and averages, once for each side, which all walk on alike."""

    def __init__(self, device: torch.device) -> None:
        fusion = EmbeddingFusion()
        network = build_model("wideresnet", {}, Shape(classes=10), fusion)
        start = [p.detach().to(device) for p in network.to(memory_format=torch.channels_last).parameters()]
        self.gradients = [[torch.randn_like(p) for p in start] for _ in range(INPUTS)]
        self.lr = torch.full((), LR, device=device, dtype=torch.float64)
        self._start = start

    def fused(self) -> Callable[[int], list[Tensor]]:
        weights, shadows = ([p.clone() for p in self._start] for _ in range(2))
        velocities = [torch.zeros_like(p) for p in weights]
        scales, decays = [1.0] * len(weights), [WEIGHT_DECAY] * len(weights)

        def step(i: int) -> list[Tensor]:
            ops.sgd_ema_(
                weights, self.gradients[i], velocities, shadows, self.lr, scales=scales, weight_decays=decays,
                momentum=MOMENTUM, nesterov=True, ema_decay=EMA_DECAY,
            )  # fmt: skip
            return [*weights, *shadows]

        return step

    def torch(self, **implementation: bool) -> Callable[[int], list[Tensor]]:
        """torch.optim.SGD(foreach=True) or (fused=True), then the average by foreach, as a plain loop has them."""
        weights = [p.clone().requires_grad_() for p in self._start]
        shadows = [p.clone() for p in self._start]
        # With a decay: without one foreach writes into the gradients, which the sides share.
        sgd = torch.optim.SGD(
            weights, LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True, **implementation
        )

        @torch.no_grad()
        def step(i: int) -> list[Tensor]:
            for p, g in zip(weights, self.gradients[i], strict=True):
                p.grad = g
            sgd.step()
            torch._foreach_mul_(shadows, EMA_DECAY)
            torch._foreach_add_(shadows, [p.detach() for p in weights], alpha=1 - EMA_DECAY)
            return [*weights, *shadows]

        return step


def optimizer_rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """SGD with Nesterov momentum and the moving average of WRN-28-2's weights."""
    descent = Descent(device)
    sides = {
        "fused": descent.fused(),
        "torch foreach": descent.torch(foreach=True),
        "torch fused": descent.torch(fused=True),
    }
    count = sum(g.numel() for g in descent.gradients[0])
    after = [side(0) for side in sides.values()]
    for other in after[1:]:
        torch.testing.assert_close(after[0], other)
    yield from both_rows("SGD + EMA, WRN-28-2", sides, device, repeats=100, units=count)


def count_launches(
    sides: dict[str, Callable[[int], Any]], device: torch.device
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """What each side launches, and why it could not be counted for some."""
    counted, missed = {}, {}
    for side, call in sides.items():
        try:
            counted[side] = launches_of(call, device)
        except Exception as error:  # the others are counted all the same
            missed[side] = reason(error)
    return counted, missed


def main() -> None:
    arguments, rows, failed = begin(parser(__doc__)), [], []

    def keep() -> None:
        if arguments.out:
            write(arguments.out, rows)

    for part in (fusion_rows, loss_rows, conv_rows, optimizer_rows, view_rows):
        try:
            for row in part(arguments.device):
                show(row)
                rows.append(row)
                keep()
        except Exception as error:  # the others are measured all the same
            failed.append(f"{part.__name__}: {reason(error)}")
            print(failed[-1], flush=True)
    for row, sides in to_profile:
        row["launches"], missed = count_launches(sides, arguments.device)
        failed += [f"launches of {row['name']}, {side}: {why}" for side, why in missed.items()]
        print(f"{row['name']:<44} launches {row['launches']}", flush=True)
        keep()
    if failed:
        sys.exit("bench.ops: " + "; ".join(failed))


if __name__ == "__main__":
    main()
