"""The training step, whole and by stages, in every way there is: ours, the released code's and the best of plain
PyTorch, in one run: `python -m bench.step [--device cpu|cuda] [--out FILE] [--quick]`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.harness import begin, measure, parser, quick, show, write
from bench.recipes import reference, strong
from bench.workload import default_networks, noise_run
from interlude_fast.benchmark.baseline import settings
from interlude_fast.benchmark.speed import take_step
from interlude_fast.data.decode import cores
from interlude_fast.training.device import autocast
from interlude_fast.training.run import Run
from interlude_fast.training.step import set_numbers, update

STAGES = ("whole", "batch", "forward", "loss", "backward", "update")
BLOCK, MOST = 0.5, 20  # seconds that a timing of whole steps or batches should take, and of how many at most
# Ways to run our step. Its stages are those of the eager one: in a graph there are none.
WAYS = {
    "compiled and captured": {"compile": True, "capture": True},
    "captured": {"compile": False, "capture": True},
    "compiled": {"compile": True, "capture": False},
    "eager": {"compile": False, "capture": False},
}
RECIPES = ("strong", "reference")
ALLOWED = {"fp32": 2e-3, "bf16": 1e-1}


class Parts(Protocol):
    """A step in parts, as the recipes have it."""

    def batch(self) -> Any: ...
    def forward(self, batch: Any) -> Tensor: ...
    def loss(self, logits: Tensor, labels: Any) -> Tensor: ...
    def backward(self, loss: Tensor) -> None: ...
    def update(self) -> None: ...
    def step(self) -> Any: ...
    def close(self) -> None: ...


class Ours:
    """The parts of a run's step. `labels` of `loss` is the batch itself."""

    def __init__(self, run: Run) -> None:
        self.run, self.state, self.close = run, run.state, run.pipeline.close

    def batch(self) -> Any:
        return self.run.pipeline.batch(self.state.step)

    def forward(self, batch: Any) -> Tensor:
        with autocast(self.run.precision, self.run.device):
            return self.state.model(batch.images)

    def loss(self, logits: Tensor, labels: Any) -> Tensor:
        return self.state.method.loss(logits, labels).total

    def backward(self, loss: Tensor) -> None:
        self.state.optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def update(self) -> None:
        set_numbers(self.state)
        update(self.state)

    def step(self) -> Any:
        return take_step(self.run)


class Side:
    """One stage of a way as a side of `measure`: what the stage needs is there before it is timed."""

    def __init__(self, parts: Parts, stage: str, device: torch.device) -> None:
        self.parts, self.stage, self.device, self.calls = parts, stage, device, 1
        self.workers: set[BaseProcess] = set()
        if stage in ("whole", "batch"):
            return
        self.made = parts.batch()
        self.labels = self.made if isinstance(parts, Ours) else self.made[-1]
        logits = parts.forward(self.made)
        self.logits = logits.detach().clone().requires_grad_()
        self.total = parts.loss(logits, self.labels)
        parts.backward(self.total)
        parts.close()

    def settle(self) -> None:
        """As many steps or batches a timing as fill a block."""
        if self.stage in ("whole", "batch"):
            others = set(multiprocessing.active_children())
            self.before()
            self(0)
            began = time.perf_counter()
            self(0)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.calls = int(min(MOST, max(1, BLOCK / (time.perf_counter() - began))))
            self.workers = set(multiprocessing.active_children()) - others
            self.after()

    def signal(self, number: int) -> None:
        for worker in self.workers:
            if worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, number)

    def before(self) -> None:
        """Wakes or starts what works ahead; or makes the graph that is to be gone through."""
        if self.workers:
            self.signal(signal.SIGCONT)
        elif self.stage in ("whole", "batch"):
            self.parts.batch()
        elif self.stage == "backward":
            self.total = self.parts.loss(self.parts.forward(self.made), self.labels)

    def after(self) -> None:
        """Halts what works ahead; CUDA graphs of torch.compile want their backward pass before the next step.

        Workers sleep as they are, so that a timing goes on where its side's last one ended. Started anew they
        would fill their queue first, which steps that follow one another do not pay for.
        """
        if self.workers:
            self.signal(signal.SIGSTOP)
        elif self.stage in ("whole", "batch"):
            self.parts.close()
        elif self.device.type == "cuda" and self.stage in ("forward", "loss"):
            if self.stage == "forward":
                self.total = self.parts.loss(self.made_logits, self.labels)
            self.parts.backward(self.total)

    def close(self) -> None:
        """Ends what works ahead; asleep it could not be ended."""
        self.signal(signal.SIGCONT)
        self.parts.close()

    def __call__(self, i: int) -> Any:
        parts = self.parts
        if self.stage == "whole":
            return [parts.step() for _ in range(self.calls)][-1]
        if self.stage == "batch":
            return [parts.batch() for _ in range(self.calls)][-1]
        if self.stage == "forward":
            self.made_logits = parts.forward(self.made)
        elif self.stage == "loss":
            self.total = parts.loss(self.logits, self.labels)
        else:
            return parts.backward(self.total) if self.stage == "backward" else parts.update()


def agree(run: Run, recipe: Any) -> None:
    """Raises where a recipe with our weights gives other logits, or another loss of equal logits, than we do."""
    recipe.model.load_state_dict(run.state.model.state_dict())
    batch = run.pipeline.batch(0)
    with torch.no_grad(), autocast(run.precision, run.device):
        ours, alpha = run.state.model(batch.images), (0.1,) if isinstance(recipe, reference.Recipe) else ()
        theirs = recipe.model(batch.images, *alpha)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=ALLOWED[run.precision] * float(ours.abs().max()))
    logits = 4 * torch.randn(ours.shape, device=run.device)
    loss = recipe.loss(logits, batch.labels)
    torch.testing.assert_close(run.state.method.loss(logits, batch).total, loss, rtol=1e-4, atol=1e-5)


def our_ways(
    network: str, device: torch.device, batch: int, names: list[str]
) -> tuple[dict[str, Ours], dict[str, str]]:
    """Ways to run our step by name, and why others are missing."""
    ways: dict[str, Ours] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            run = noise_run(network, device, train={"batch": batch, **WAYS[name]})
            run.stepper.tell = lambda line, name=name: missing.setdefault(name, line)
            take_step(run)
            if name not in missing:
                ways[name] = Ours(run)
        except Exception as error:  # the others are measured all the same
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return ways, missing


def recipes(first: Run, wanted: Sequence[str] = RECIPES) -> tuple[dict[str, Parts], dict[str, str]]:
    """The recipes in the sizes of a run, and why one is missing."""
    ways: dict[str, Parts] = {}
    missing: dict[str, str] = {}
    asked = settings(first.config, first.dataset, first.split, str(first.device))
    plain = {"compile_mode": None}  # where CUDA graphs of torch.compile do not work
    tries = [("strong", strong, {}), ("strong", strong, plain), ("reference", reference, {"workers": cores()})]
    for name, module, more in tries:
        if name in ways or name not in wanted:
            continue
        try:
            recipe = module.build(**asked, **more)
            agree(first, recipe)
            recipe.step()
            recipe.step()
            recipe.close()
            ways[name] = recipe
        except Exception as error:  # the others are measured all the same
            missing[name] = f"{more} {type(error).__name__}: {error}".splitlines()[0]
    return ways, missing


def rows(
    network: str, device: torch.device, batch: int, names: list[str], stages: list[str], repeats: int
) -> Iterator[dict[str, Any]]:
    ours, missing = our_ways(network, device, batch, names)
    if not ours:
        sys.exit(f"bench.step: no way to run the step works here: {missing}")
    first = next(reversed(ours.values())).run
    theirs, missing_recipes = recipes(first)
    notes = {"precision": first.precision, "workers": cores(), "failed": missing | missing_recipes}
    ways: dict[str, Parts] = {**ours, **theirs}
    for stage in stages:
        staged = ways if stage == "whole" else {"eager": ours.get("eager", Ours(first)), **theirs}
        sides = {name: Side(way, stage, device) for name, way in staged.items()}
        try:
            for side in sides.values():
                side.settle()
            row = measure(
                f"{stage}, {network}, {16 * batch} rows, {device.type}",
                dict(sides),
                device,
                repeats=repeats,
                warmup=1,
                units=16 * batch,
                calls={name: side.calls for name, side in sides.items()},
                before=lambda name, sides=sides: sides[name].before(),
                after=lambda name, sides=sides: sides[name].after(),
                not_measured={name: why for name, why in notes["failed"].items() if name not in ways},
            )
        finally:
            for side in sides.values():
                side.close()
        yield row | notes | {"timed together": {name: side.calls for name, side in sides.items()}}
    for way in ways.values():
        way.close()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--networks", nargs="+", help="of bench/workload.py; default: those of the papers")
    options.add_argument("--batch", type=int, help="labeled images in a step; default 64, 8 on a CPU, 4 --quick")
    options.add_argument(
        "--ways", nargs="+", choices=list(WAYS), help="default: all that there are; --quick: eager"
    )
    options.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    options.add_argument("--repeats", type=int, help="timings; default 30, 5 on a CPU")
    arguments, made = begin(options), []
    cuda = arguments.device.type == "cuda"
    batch = arguments.batch or (4 if quick() else 64 if cuda else 8)
    names = arguments.ways or (list(WAYS) if cuda else ["eager"] if quick() else ["eager", "compiled"])
    repeats = arguments.repeats or (30 if cuda else 5)
    for network in arguments.networks or default_networks(arguments.device, quick()):
        for row in rows(network, arguments.device, batch, names, arguments.stages, repeats):
            show(row)
            made.append(row)
            if arguments.out:
                write(arguments.out, made)


if __name__ == "__main__":
    main()
