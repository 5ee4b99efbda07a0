"""How fast a configuration would train here, with the released code's way beside it. Nothing trained is kept."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from interlude_fast.config import ExperimentConfig
from interlude_fast.data.progress import RichProgress
from interlude_fast.experiment.environment import command_line, environment
from interlude_fast.methods import Losses
from interlude_fast.training.checkpoint import save_checkpoint, write_atomically
from interlude_fast.training.device import float32_products
from interlude_fast.training.exhaustion import explained, refuse_too_large
from interlude_fast.training.meter import Meter
from interlude_fast.training.run import Run
from interlude_fast.training.setup import prepare

from .baseline import time_reference
from .timing import Timing, busy_seconds, seconds_of, time_steps

PROFILED = 20  # steps
NOT_MEASURED = "not measured"
REFERENCE = "InterLUDE as released (float32 by torch's defaults, eager, Pillow in workers)"


@dataclass(frozen=True)
class Bench:
    """What was measured. steps: of the configured run, with `evaluations` and `checkpoints`.

    Attributes:
        chosen: device, precision, step and pipeline in words.
        gpu_idle: share of a step's time in which the GPU does nothing; None where it was not measured.
        evaluation_seconds, checkpoint_seconds: of one.
        reference: of the reference recipe, or why there is none.
    """

    config: ExperimentConfig
    chosen: dict[str, str]
    ours: Timing
    gpu_idle: float | None
    evaluation_seconds: float
    checkpoint_seconds: float
    reference: Timing | str

    @property
    def evaluations(self) -> int:
        return math.ceil(self.config.train.steps / self.config.train.eval_every)

    @property
    def checkpoints(self) -> int:
        return 1 + math.ceil(self.config.train.steps / self.config.train.checkpoint_every)

    @property
    def steps(self) -> int:
        """Of the whole run; under a budget as many as fit into it where nothing is evaluated."""
        t = self.config.train
        return t.steps if t.budget is None else max(1, int(t.budget * self.ours.steps_per_second))

    @property
    def hours(self) -> float:
        """Of the whole run, with its evaluations and checkpoints."""
        if budget := self.config.train.budget:
            return budget / 3600
        around = self.evaluations * self.evaluation_seconds + self.checkpoints * self.checkpoint_seconds
        return self.ours.hours(self.steps) + around / 3600

    @property
    def ratio(self) -> float | None:
        """Steps of ours to one of the reference recipe."""
        theirs = self.reference
        return None if isinstance(theirs, str) else self.ours.steps_per_second / theirs.steps_per_second

    def as_dict(self) -> dict[str, Any]:
        theirs, steps = self.reference, self.steps
        return {
            "date": date.today().isoformat(),
            "command": command_line(),
            "dataset": self.config.data.dataset,
            "method": self.config.method.name,
            "network": self.config.model.model_dump(mode="json"),
            "chosen": self.chosen,
            "ours": {**self.ours.as_dict(), "gpu_idle": NOT_MEASURED if self.gpu_idle is None else self.gpu_idle},
            "projected": {
                "steps": steps,
                "budget_seconds": self.config.train.budget,
                "hours": self.hours,
                "training_hours": self.ours.hours(steps),
                "evaluations": self.evaluations,
                "evaluation_seconds": self.evaluation_seconds,
                "checkpoints": self.checkpoints,
                "checkpoint_seconds": self.checkpoint_seconds,
            },
            "reference": {
                "what": REFERENCE,
                **(
                    {NOT_MEASURED: theirs}
                    if isinstance(theirs, str)
                    else {**theirs.as_dict(), "training_hours": theirs.hours(steps), "times_slower": self.ratio}
                ),
            },
            "passport": environment(),
        }

    def save(self, path: Path) -> None:
        """as_dict() as a JSON file, written atomically."""
        write_atomically(path, (json.dumps(self.as_dict(), indent=2) + "\n").encode())

    def rows(self) -> list[tuple[str, str, str]]:
        """(what, ours, reference) in words."""
        theirs, steps = self.reference, self.steps
        idle = "" if self.gpu_idle is None else f"{self.gpu_idle:.1%}"
        on_gpu = self.chosen["device"].startswith("cuda")

        def both(what: str, show: Callable[[Timing], str]) -> tuple[str, str, str]:
            return what, show(self.ours), "" if isinstance(theirs, str) else show(theirs)

        around = f"{self.evaluations:,} evaluations of {show_seconds(self.evaluation_seconds)}, "
        around += f"{self.checkpoints:,} checkpoints"
        if budget := self.config.train.budget:
            around = f"the budget of {show_seconds(budget)}"
        return [
            both("steps/s", lambda t: f"{t.steps_per_second:,.3g}"),
            both("views/s", lambda t: f"{t.views_per_second:,.0f}"),
            both("waiting for data", lambda t: NOT_MEASURED if t.data_wait is None else f"{t.data_wait:.1%}"),
            ("GPU idle", idle or NOT_MEASURED, ""),
            both(
                "peak GPU memory" if on_gpu else "peak memory, without workers",
                lambda t: NOT_MEASURED if t.peak_bytes is None else f"{t.peak_bytes / 2**30:.2f} GiB",
            ),
            both("until it runs", lambda t: show_seconds(t.first_seconds)),
            both(f"{steps:,} steps", lambda t: show_seconds(3600 * t.hours(steps))),
            (f"with {around}", show_seconds(3600 * self.hours), ""),
        ]

    def heading(self) -> str:
        return f"{self.config.data.dataset}, {self.config.method.name}: " + ", ".join(self.chosen.values())

    def verdict(self) -> str:
        """One line about the reference recipe."""
        if self.ratio is None:
            return f"reference {NOT_MEASURED}: {self.reference}"
        other = self.config.method.name
        note = "" if other == "interlude" else f"; the reference trains InterLUDE, not {other}"
        return f"{self.ratio:.2f} times the steps/s of the reference: {REFERENCE}{note}"

    def table(self) -> Table:
        table = Table(title=self.heading(), caption=self.verdict())
        for heading in ("", "interlude-fast", "reference"):
            table.add_column(heading, justify="right" if heading else "left")
        for row in self.rows():
            table.add_row(*row)
        return table

    def lines(self) -> list[str]:
        """The table for where there is no terminal."""
        shown = (
            f"{what}: {ours}" + (f" (reference: {theirs})" if theirs else "") for what, ours, theirs in self.rows()
        )
        return [self.heading(), *shown, self.verdict()]


def show_seconds(seconds: float) -> str:
    """`7200.0` -> "2.0 h" """
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.3g} s"


def take_step(run: Run) -> tuple[Losses, float]:
    """A step as `train` does it, and the seconds that it waited for data."""
    if run.state.finished:
        run.state.step, run.state.position = 0, 0.0  # methods and schedules know nothing of steps beyond
    losses = run.stepper()
    return losses, run.stepper.waited


def measure_run(run: Run, seconds: float) -> tuple[Timing, float | None]:
    """Steps of a run as its loop does them, and the GPU's idle share."""
    meter, device = Meter(), run.device

    def step() -> float:
        losses, waited = take_step(run)
        meter.add(losses, waited)
        if meter.steps >= run.config.train.log_every:
            meter.fetch()
        return waited

    timing = time_steps(step, run.pipeline.sampler.order.count, device, seconds)
    busy = busy_seconds(step, device, PROFILED) if device.type == "cuda" else None
    idle = None if busy is None else max(0.0, 1 - busy * timing.steps_per_second)
    return timing, idle


def evaluation_seconds(run: Run, most: float) -> float:
    """Of one evaluation, measured where it hardly takes longer than `most`, else judged by a batch of it."""
    estimate = run.evaluation_seconds()
    return estimate if estimate > most else seconds_of(run.evaluate, run.device)


def checkpoint_seconds(run: Run) -> float:
    """Of one, in the folder for temporary files."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last"
        return seconds_of(lambda: save_checkpoint(path, run.state, run.identity(), run.selection), run.device)


def bench(
    config: ExperimentConfig, *, seconds: float = 30.0, reference: bool = True, console: Console | None = None
) -> Bench:
    """Measure what a configuration's training costs, by training it for a while.

    Args:
        seconds: about how long steps are timed, and as long those of the reference recipe.
        reference: whether that is run too.
        console: where progress is shown; None shows none.

    Raises:
        InterludeError: as train_run.
    """
    screen = console or Console(quiet=True)
    measured = _measure_ours(config, screen, seconds)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    theirs: Timing | str = "--no-reference"
    if reference:
        with screen.status("measuring the reference recipe"):
            theirs = time_reference(measured.config, torch.device(measured.chosen["device"]), seconds)
    return replace(measured, reference=theirs)


def _measure_ours(config: ExperimentConfig, screen: Console, seconds: float) -> Bench:
    with explained(config):
        run = prepare(config, RichProgress(screen))
        refuse_too_large(run.config, run.dataset, run.split)
    run.stepper.tell = lambda line: screen.print(line, markup=False, highlight=False, soft_wrap=True)
    try:
        gpus = [run.device] if run.device.type == "cuda" else []
        with (
            screen.status("measuring steps"),
            torch.random.fork_rng(devices=gpus),
            float32_products(run.precision),
            explained(run.config, (run.dataset, run.split)),
        ):
            timing, idle = measure_run(run, seconds)
            evaluation, checkpoint = evaluation_seconds(run, seconds), checkpoint_seconds(run)
    finally:
        run.pipeline.close()
    chosen = {"device": str(run.device), "precision": run.precision, "step": run.stepper.choice}
    chosen["pipeline"] = f"pipeline {run.pipeline_choice}"
    return Bench(run.config, chosen, timing, idle, evaluation, checkpoint, "")
