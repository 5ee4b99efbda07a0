"""Ablations: a grid of configurations and seeds in one folder, and its table."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from interlude_fast.errors import ConfigError
from interlude_fast.experiment.environment import command_line, environment
from interlude_fast.experiment.result import NETWORKS, Result
from interlude_fast.training.checkpoint import write_atomically

from .grid import Axis, Cell, make_cells, short_names, show
from .jobs import Failure, Job
from .several import alone_in, common_part, finish, finished, raise_failures
from .statistics import frozen_features, show_errors, summary

FILES = ("ablation.json", "table.csv", "table.md")


@dataclass
class Ablation:
    """A grid and what is known of its runs.

    Attributes:
        part: "test" or "validation", whichever images the errors are of. folder: of the runs.
        results, failures: by the run's name, `<cell>/seed<s>`.
    """

    axes: list[Axis]
    seeds: list[int]
    cells: list[Cell]
    part: str
    folder: Path
    results: dict[str, Result] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)

    @cached_property
    def columns(self) -> dict[str, str]:
        """Key -> heading of the axes that vary; all of them where none does."""
        shown = {
            key: name
            for key, name in short_names(self.axes).items()
            if len({_value(cell, key) for cell in self.cells}) > 1
        }
        return shown or short_names(self.axes)

    @cached_property
    def passport(self) -> dict[str, Any]:
        return environment()

    def finished(self, cell: Cell) -> dict[int, Result]:
        """By seed."""
        found = {seed: self.results.get(run_name(cell, seed)) for seed in self.seeds}
        return {seed: result for seed, result in found.items() if result is not None}

    def errors(self, cell: Cell, network: str) -> dict[int, float]:
        """By seed, of the finished runs. network: "ema" or "raw"."""
        return {seed: result.scores[self.part][network].error for seed, result in self.finished(cell).items()}

    def as_dict(self) -> dict[str, Any]:
        """Every figure: rows with the errors of every seed, failures, and what was used."""
        return {
            "command": command_line(),
            "dataset": self.cells[0].configs[self.seeds[0]].data.dataset,
            "axes": {axis.key: list(axis.values) for axis in self.axes},
            "seeds": self.seeds,
            "error_of": f"{self.part} images",
            "rows": [self._row(cell) for cell in self.cells],
            "failures": {name: failure.line for name, failure in self.failures.items()},
            "passport": self.passport,
        }

    def _row(self, cell: Cell) -> dict[str, Any]:
        finished = self.finished(cell)
        errors = {net: self.errors(cell, net) for net in NETWORKS}
        return {
            "name": cell.name,
            "values": cell.values,
            "n": len(finished),
            **{net: {"errors": e, **summary(list(e.values()))} for net, e in errors.items()},
            "seconds": {seed: result.seconds for seed, result in finished.items()},
        }

    def csv(self) -> str:
        """A line a cell; errors and their standard deviations as shares of 1, empty where there is none."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        measured = [f"{self.part}_error_{net}_{what}" for net in NETWORKS for what in ("mean", "std")]
        writer.writerow([*self.columns.values(), "n", *measured, "seconds"])
        for cell in self.cells:
            row = self._row(cell)
            figures = [row[net][what] for net in NETWORKS for what in ("mean", "std")]
            seconds = round(mean(row["seconds"].values()), 1) if row["n"] else None
            writer.writerow([*self._values(cell), row["n"], *figures, seconds])
        return text.getvalue()

    def markdown(self) -> str:
        rows = [self._headings(), ["---"] * len(self.columns) + ["---:"] * 4, *map(self._shown, self.cells)]
        return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)

    def table(self) -> Table:
        table = Table(title=f"{self.part} error after the last step, mean ± standard deviation over n seeds")
        for number, heading in enumerate(self._headings()):
            table.add_column(Text(heading), justify="left" if number < len(self.columns) else "right")
        for cell in self.cells:
            table.add_row(*map(Text, self._shown(cell)))
        table.caption = frozen_features((r for c in self.cells for r in self.finished(c).values()), self.part)
        return table

    def _headings(self) -> list[str]:
        return [
            *self.columns.values(),
            "n",
            *(f"{self.part} error, {net}" for net in NETWORKS.values()),
            "seconds",
        ]

    def _values(self, cell: Cell) -> list[str]:
        return [_value(cell, key) for key in self.columns]

    def _shown(self, cell: Cell) -> list[str]:
        errors = [show_errors(list(self.errors(cell, net).values())) for net in NETWORKS]
        finished = self.finished(cell).values()
        seconds = f"{mean(result.seconds for result in finished):.0f}" if finished else ""
        return [*self._values(cell), str(len(finished)), *errors, seconds]

    def save(self, folder: Path) -> None:
        """ablation.json, table.csv and table.md, each written atomically."""
        content = (json.dumps(self.as_dict(), indent=2) + "\n", self.csv(), self.markdown())
        for name, text in zip(FILES, content, strict=True):
            write_atomically(folder / name, text.encode())

    def raise_failures(self) -> None:
        """Raises what went wrong: our own mistakes as they are, else one RunError that names every run."""
        raise_failures(self.failures, len(self.cells) * len(self.seeds))


def _value(cell: Cell, key: str) -> str:
    return show(cell.values[key]) if key in cell.values else ""


def run_name(cell: Cell, seed: int) -> str:
    return f"{cell.name}/seed{seed}"


def ablate(
    axes: list[Axis],
    seeds: list[int],
    overrides: list[dict[str, Any]],
    out: Path,
    *,
    each: bool = False,
    file: Path | None = None,
    processes: int = 1,
    console: Console | None = None,
) -> Ablation:
    """Train what `out` does not hold yet of a grid, and write its tables there after every run.

    Args:
        out: folder of the grid; a run is in `<cell>/seed<s>`. A finished one is not done again, one that was
            interrupted goes on.
        overrides, file, each: as grid.make_cells. processes: runs at a time.

    Returns:
        The figures. A run that fails does not end the others: see failures, raise_failures.

    Raises:
        InterludeError: before any training, where something in the grid, its data or `out` does not fit.
    """
    if not axes:
        raise ConfigError("nothing varies: name an axis, --grid KEY=VALUE,VALUE,... or --methods a,b")
    cells = make_cells(axes, seeds, overrides, file=file, each=each)
    jobs = [Job(name := run_name(cell, seed), cell.configs[seed], out / name) for seed in seeds for cell in cells]
    with alone_in(out, FILES):
        done = finished(jobs)
        ablation = Ablation(axes, seeds, cells, common_part(jobs, done, console), out, done)
        ablation.save(out)
        finish(jobs, ablation.results, ablation.failures, lambda: ablation.save(out), processes, console)
    return ablation
