"""Seed-steps per second of S runs that differ in their seed: one after another with all threads, in S processes at
once with their share of the threads, and as one network with batched weights.

    python -m bench.seeds [--device cpu|cuda] [--seeds 2,4] [--out FILE] [--quick]

A step is whole: the batch's views, forward, backward, SGD and EMA. Batched weights are torch.func's: the
parameters of S networks stacked and the method's forward mapped over them, batch norms in train mode with the
statistics of each network's own rows, running statistics stacked too. The compiled ops have no rule for being
mapped over, so that side alone computes the losses and the fusion in the torch reference; its losses are checked
against one run's. No side captures or compiles its step.
"""

from __future__ import annotations

import argparse
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from interlude_fast import ops
from interlude_fast.config import ExperimentConfig, load
from interlude_fast.data.batch import Batch
from interlude_fast.data.decode import cores
from interlude_fast.data.processes import start_process, take_output
from interlude_fast.ops import checks
from interlude_fast.training.device import autocast
from interlude_fast.training.optim import learning_rate_factor
from interlude_fast.training.run import Run
from interlude_fast.training.setup import prepare
from interlude_fast.training.step import train_step

from . import harness

# name -> nested settings; both InterLUDE on the embedded digits, whose images the networks see as they are.
SETTINGS: dict[str, dict[str, Any]] = {
    "digits WRN-10-1": {
        "model": {"name": "wideresnet", "depth": 10, "width": 1},
        "train": {"batch": 16, "mu": 7},
    },
    "digits WRN-16-4": {
        "model": {"name": "wideresnet", "depth": 16, "width": 4},
        "train": {"batch": 64, "mu": 7},
    },
}


def configured(name: str, seed: int, device: str) -> ExperimentConfig:
    data = {"dataset": "digits", "labels": 40, "workers": 0}
    return load(None, [{"data": data, **SETTINGS[name]}, {"seed": seed, "train": {"device": device}}])


def step_of(run: Run) -> Callable[[], float]:
    """One whole step; its loss stays on the device."""

    def step() -> Any:
        return train_step(run.state, run.pipeline.batch(run.state.step), run.precision).total.detach()

    return step


class Batched:
    """S runs as one: parameters, their average and momentum [S, ...]."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs, self.step_number = runs, 0
        models: list[nn.Module] = [run.state.model for run in runs]
        self.weights, self.buffers = stack_module_state(models)
        self.weights = {name: w.detach() for name, w in self.weights.items()}
        self.average = {name: w.clone() for name, w in self.weights.items()}
        self.momentum = {name: torch.zeros_like(w) for name, w in self.weights.items()}
        self.decayed = {name for name, p in models[0].named_parameters() if p.ndim > 1}
        first = runs[0].state
        self.network, self.method = first.model, first.method
        self.gradients = vmap(grad_and_value(self._loss), randomness="different")

    def _loss(self, weights: Any, buffers: Any, images: Tensor, labels: Tensor, items: Tensor) -> Tensor:
        def network(x: Tensor) -> Tensor:
            return functional_call(self.network, (weights, buffers), (x,))

        batch = replace(self.template, images=images, labels=labels, unlabeled_items=items)
        return self.method(network, batch, network).total

    def step(self) -> Tensor:
        """Losses [S]."""
        batches: list[Batch] = [run.pipeline.batch(self.step_number) for run in self.runs]
        self.template = batches[0]
        of_all = (torch.stack([getattr(b, n) for b in batches]) for n in ("images", "labels", "unlabeled_items"))
        self.network.train()
        run = self.runs[0]
        # Labels cannot be looked at where a network is mapped over; those of a data set are known to be good.
        unlooked = patch.object(checks, "label_values", lambda *labels: None)
        with unlooked, ops.use_reference(), autocast(run.precision, run.device):
            gradients, losses = self.gradients(self.weights, self.buffers, *of_all)
        self._update(gradients)
        self.step_number += 1
        return losses

    @torch.no_grad()
    def _update(self, gradients: dict[str, Tensor]) -> None:
        """SGD with Nesterov's momentum and the average, as training/optim.py and training/ema.py do."""
        state, o = self.runs[0].state, self.runs[0].config.optim
        lr = o.lr * learning_rate_factor(o, self.step_number, state.steps)
        names = list(self.weights)
        w, m, a = ([d[name] for name in names] for d in (self.weights, self.momentum, self.average))
        g = [
            gradients[n].add(self.weights[n], alpha=o.weight_decay) if n in self.decayed else gradients[n]
            for n in names
        ]
        torch._foreach_mul_(m, o.momentum)
        torch._foreach_add_(m, g)
        moved = torch._foreach_add(g, m, alpha=o.momentum) if o.nesterov else m
        torch._foreach_add_(w, moved, alpha=-lr)
        torch._foreach_mul_(a, o.ema_decay)
        torch._foreach_add_(a, w, alpha=1 - o.ema_decay)


def check(name: str, device: str) -> float:
    """Largest relative difference of two steps' losses, batched and one by one; raises where they differ."""
    runs = [prepare(configured(name, seed, device)) for seed in (0, 1)]
    batched = Batched([prepare(configured(name, seed, device)) for seed in (0, 1)])
    worst = 0.0
    for _ in range(2):
        alone = torch.stack([torch.as_tensor(step_of(run)()) for run in runs])
        together = batched.step()
        worst = max(worst, float(((alone - together).abs() / alone.abs()).max()))
    assert worst < (1e-3 if runs[0].precision == "fp32" else 5e-2), f"batched losses are off by {worst:.1e}"
    return worst


def timed(steps: list[Callable[[], Any]], rounds: int, device: str) -> float:
    """Seconds of `rounds` rounds of all steps."""

    def done() -> float:
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()

    began = done()
    for _ in range(rounds):
        for step in steps:
            step()
    return done() - began


def serve() -> None:
    """A process of the second side: says when it is ready, and does as many steps as it is told, until told 0."""
    answers = take_output()
    name, seed, device, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    step = step_of(prepare(configured(name, seed, device)))
    timed([step], 3, device)
    answers.write(b"r")
    answers.flush()
    while rounds := pickle.load(sys.stdin.buffer):
        timed([step], rounds, device)
        answers.write(b"d")
        answers.flush()


class Processes:
    """S of them, at work between `go` and its return."""

    def __init__(self, name: str, count: int, device: str) -> None:
        self.threads = max(1, cores() // count)
        self.all: list[subprocess.Popen[bytes]] = []
        for seed in range(count):
            self.all.append(start_process(__name__ if __name__ != "__main__" else "bench.seeds", self.threads))
            self._tell(self.all[-1], (name, seed, device, self.threads))
        self._hear()

    def _tell(self, process: subprocess.Popen[bytes], what: Any) -> None:
        assert process.stdin is not None
        pickle.dump(what, process.stdin)
        process.stdin.flush()

    def _hear(self) -> None:
        for process in self.all:
            assert process.stdout is not None
            if not process.stdout.read(1):
                raise SystemExit("a process died; its error stands above")

    def go(self, rounds: int) -> float:
        """Seconds until all have done `rounds` steps."""
        began = time.perf_counter()
        for process in self.all:
            self._tell(process, rounds)
        self._hear()
        return time.perf_counter() - began

    def close(self) -> None:
        for process in self.all:
            self._tell(process, 0)
            process.wait()


def compare(name: str, count: int, device: str, turns: int, seconds: float) -> dict[str, Any]:
    """One row: seed-steps per second of every side, the sides in turn; median, least and most of the turns."""
    torch.set_num_threads(cores())
    steps = [step_of(prepare(configured(name, seed, device))) for seed in range(count)]
    batched = Batched([prepare(configured(name, seed, device)) for seed in range(count)])
    processes = Processes(name, count, device)
    try:
        timed(steps, 2, device)
        timed([batched.step], 2, device)
        rounds = max(1, round(seconds / max(1e-6, timed(steps, 1, device))))
        sides: dict[str, Callable[[], float]] = {
            "one after another": lambda: timed(steps, rounds, device),
            "processes": lambda: processes.go(rounds),
            "batched weights": lambda: timed([batched.step], rounds, device),
        }
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(turns):
            for side, work in sides.items():
                rates[side].append(count * rounds / work())
    finally:
        processes.close()
    figures = {
        side: {"seed_steps_per_second": round(median(r), 3), "least": round(min(r), 3), "most": round(max(r), 3)}
        for side, r in rates.items()
    }
    return {
        "name": f"{name}, {count} seeds",
        "seeds": count,
        "steps_per_turn": rounds,
        "turns": turns,
        "threads_of_a_process": processes.threads,
        "sides": figures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seeds", default="2,4", help="counts, separated by commas")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="the small network, two short turns")
    asked = parser.parse_args()
    rows = []
    for name in list(SETTINGS)[: 1 if asked.quick else None]:
        off = check(name, asked.device)
        for count in map(int, asked.seeds.split(",")):
            row = compare(name, count, asked.device, *((2, 1.0) if asked.quick else (7, 5.0)))
            row["batched_loss_off_by"] = off
            rows.append(row)
            sides = "  ".join(f"{side} {f['seed_steps_per_second']}" for side, f in row["sides"].items())
            print(f"{row['name']:<28} seed-steps/s: {sides}", flush=True)
    if asked.out:
        harness.write(asked.out, rows)


if __name__ == "__main__":
    main()
