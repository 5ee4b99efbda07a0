"""Several methods over several seeds, side by side."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from interlude_fast.errors import ConfigError
from interlude_fast.experiment.environment import command_line, environment
from interlude_fast.experiment.result import NETWORKS, Result
from interlude_fast.training.checkpoint import write_atomically

from .grid import Axis, make_cells
from .jobs import Failure, Job, describe, evaluated_on, tell
from .statistics import frozen_features, show_errors, summary
from .worker import run_jobs


@dataclass(frozen=True)
class Comparison:
    """results[method][i] belongs to seeds[i]."""

    dataset: str
    labels: int | None
    seeds: list[int]
    results: dict[str, list[Result]]

    def errors(self, method: str, network: str) -> list[float]:
        return [result.scores["test"][network].error for result in self.results[method]]

    def as_dict(self) -> dict[str, Any]:
        """Errors by method and network with mean and standard deviation, seconds, and what was used."""
        rows = {method: self._row(method) for method in self.results}
        return {
            "command": command_line(),
            "dataset": self.dataset,
            "labels": self.labels,
            "seeds": self.seeds,
            "test_images": next(iter(self.results.values()))[0].scores["test"]["ema"].n,
            "test_error": rows,
            "passport": environment(),
        }

    def _row(self, method: str) -> dict[str, Any]:
        errors = {net: self.errors(method, net) for net in ("raw", "ema")}
        seconds = [result.seconds for result in self.results[method]]
        return {**{net: {"errors": e, **summary(e)} for net, e in errors.items()}, "seconds": seconds}

    def save(self, path: Path) -> None:
        """as_dict() as a JSON file, written atomically."""
        write_atomically(path, (json.dumps(self.as_dict(), indent=2) + "\n").encode())

    def table(self) -> Table:
        several = len(self.seeds) > 1
        what = f"mean ± standard deviation over {len(self.seeds)} seeds" if several else f"seed {self.seeds[0]}"
        table = Table(
            title=f"{self.dataset}, {self.labels or 'all'} labels: test error after the last step, {what}"
        )
        for heading in ("method", *NETWORKS.values(), "seconds"):
            table.add_column(heading, justify="left" if heading == "method" else "right")
        for method, results in self.results.items():
            cells = [show_errors(self.errors(method, net)) for net in NETWORKS]
            table.add_row(method, *cells, f"{mean(result.seconds for result in results):.0f}")
        table.caption = frozen_features(next(iter(self.results.values())))
        return table


def compare(
    methods: list[str],
    seeds: list[int],
    overrides: list[dict[str, Any]],
    *,
    file: Path | None = None,
    processes: int = 1,
    console: Console | None = None,
) -> Comparison:
    """Train every method with every seed on the same labeled images and configuration.

    Args:
        overrides: nested settings for all runs, as config.load takes them.
        file: a configuration file, instead of the presets.
        processes: runs at a time, as run_jobs takes them.

    Raises:
        ConfigError: before any training, where one of the runs is not configured well or there is nothing to
            compare on.
        InterludeError: as train_run.
    """
    axis = Axis("method.name", tuple(methods))
    cells = make_cells([axis], seeds, overrides, file=file)
    jobs = {
        (c.values[axis.key], s): Job(f"{c.values[axis.key]} seed {s}", c.configs[s]) for s in seeds for c in cells
    }
    data = cells[0].configs[seeds[0]].data

    def enough(job: Job, parts: set[str]) -> None:
        if "test" not in parts:
            raise ConfigError(f"{data.dataset} has no test images to compare on; --set data.split.test=0.2")

    evaluated_on(jobs.values(), console, enough)
    results: dict[str, Result] = {}
    with closing(run_jobs(list(jobs.values()), processes, console)) as outcomes:
        for job, outcome in outcomes:
            if console and processes > 1:
                tell(console, describe(job, outcome, len(results) + 1, len(jobs)))
            if isinstance(outcome, Failure):
                outcome.throw()
            else:
                results[job.name] = outcome
    by_method = {method: [results[jobs[method, seed].name] for seed in seeds] for method in methods}
    return Comparison(data.dataset, data.labels, seeds, by_method)
