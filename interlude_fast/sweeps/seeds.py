"""One configuration with several seeds: a run each, and one table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from interlude_fast.config import ExperimentConfig, merge_config
from interlude_fast.data.decode import cores
from interlude_fast.errors import CheckpointError, ConfigError
from interlude_fast.experiment.environment import command_line, environment
from interlude_fast.experiment.result import LAST, NETWORKS, Result
from interlude_fast.experiment.run import DEFAULT_FOLDER
from interlude_fast.experiment.run_directory import RunDirectory, to_json
from interlude_fast.training.checkpoint import write_atomically
from interlude_fast.training.device import resolve_device
from interlude_fast.training.memory import runs_at_once
from interlude_fast.training.selection import BY_VALIDATION
from interlude_fast.training.setup import load_data

from .grid import make_cells
from .jobs import Failure, Job, tell
from .several import alone_in, common_part, finish, finished, raise_failures
from .statistics import frozen_features, show_errors, summary

FILES = ("seeds.json",)


@dataclass
class Seeds:
    """Runs that differ in their seed.

    Attributes:
        configs: by seed. part: "test" or "validation", whichever images the errors are of. folder: of the runs.
        results, failures: by the run's name, `seed<s>`.
    """

    configs: dict[int, ExperimentConfig]
    part: str
    folder: Path
    results: dict[str, Result] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)

    def finished(self) -> dict[int, Result]:
        """By seed, in the order asked for."""
        found = {seed: self.results.get(run_name(seed)) for seed in self.configs}
        return {seed: result for seed, result in found.items() if result is not None}

    def errors(self, kind: str, network: str) -> dict[int, float]:
        """By seed, of the finished runs that have them. kind: "last" or "best_on_validation"."""
        found = {}
        for seed, result in self.finished().items():
            evaluation = result.evaluations.get(kind, {}).get(network)
            scores = evaluation.scores.get(self.part) if evaluation else None
            if scores:
                found[seed] = scores.error
        return found

    def columns(self) -> dict[str, tuple[str, str]]:
        """Heading -> (kind, network)."""
        kinds = {LAST: "", BY_VALIDATION: ", best on validation"}
        named = {
            f"{self.part} error, {net}{what}": (kind, name)
            for kind, what in kinds.items()
            for name, net in NETWORKS.items()
        }
        return {heading: (k, n) for heading, (k, n) in named.items() if k == LAST or self.errors(k, n)}

    def as_dict(self) -> dict[str, Any]:
        """Every figure with mean, the sample's standard deviation and n; failures, and what was used."""
        first = next(iter(self.configs.values()))
        errors: dict[str, Any] = {}
        for kind, network in self.columns().values():
            found = self.errors(kind, network)
            figures = {"n": len(found), "errors": found, **summary(list(found.values()))}
            errors.setdefault(kind, {})[network] = figures
        return {
            "command": command_line(),
            "dataset": first.data.dataset,
            "labels": first.data.labels,
            "method": first.method.name,
            "seeds": list(self.configs),
            "error_of": f"{self.part} images",
            **errors,
            "seconds": {seed: result.seconds for seed, result in self.finished().items()},
            "failures": {name: failure.line for name, failure in self.failures.items()},
            "passport": environment(),
        }

    def save(self, folder: Path) -> None:
        """seeds.json, written atomically."""
        write_atomically(folder / FILES[0], (to_json(self.as_dict()) + "\n").encode())

    def table(self) -> Table:
        """A row a seed, then mean ± standard deviation."""
        first, columns, done = next(iter(self.configs.values())), self.columns(), self.finished()
        labels = first.data.labels or "all"
        table = Table(title=f"{first.data.dataset} {first.method.name}, {labels} labels, {len(done)} seeds")
        for number, heading in enumerate(("seed", *columns, "seconds")):
            table.add_column(heading, justify="right" if number else "left")
        for seed in self.configs:
            errors = (self.errors(*column).get(seed) for column in columns.values())
            shown = ["" if error is None else show_errors([error]) for error in errors]
            if run_name(seed) in self.failures:
                shown[0] = "failed"
            table.add_row(str(seed), *shown, f"{done[seed].seconds:.0f}" if seed in done else "")
        if len(done) > 1:
            means = [show_errors(list(self.errors(*column).values())) for column in columns.values()]
            seconds = mean(result.seconds for result in done.values())
            table.add_section()
            table.add_row(f"mean ± std, n = {len(done)}", *means, f"{seconds:.0f}")
        table.caption = frozen_features(done.values())
        return table

    def raise_failures(self) -> None:
        """As several.raise_failures."""
        raise_failures(self.failures, len(self.configs))


def run_name(seed: int) -> str:
    return f"seed{seed}"


def default_folder(config: ExperimentConfig) -> Path:
    """runs/<data set>-<method>-<labels>-seeds: the same for the same command, which goes on there."""
    return DEFAULT_FOLDER / f"{config.data.dataset}-{config.method.name}-{config.data.labels or 'all'}-seeds"


def seed_configs(
    seeds: list[int], overrides: list[dict[str, Any]], file: Path | None = None, resume: Path | None = None
) -> dict[int, ExperimentConfig]:
    """The configuration with every seed.

    Args:
        overrides, file: as config.load takes them.
        resume: a folder whose runs' configuration is the base, instead of presets.

    Raises:
        ConfigError: a seed is named twice or elsewhere too, or the configuration does not fit.
        CheckpointError: there are no runs in `resume`.
    """
    if resume is None or file is not None:
        return make_cells([], seeds, overrides, file=file)[0].configs
    make_cells([], seeds, [over for over in overrides if "seed" in over])  # refuses seeds that are no list
    begun = [path for path in sorted(resume.glob("seed*/config.yaml"))]
    if not begun:
        raise CheckpointError(f"{resume} holds no runs to go on with: no seed<s>/config.yaml")
    base = RunDirectory.open(begun[0].parent).config()
    return {seed: merge_config(base, [*overrides, {"seed": seed}]) for seed in seeds}


def choose_processes(config: ExperimentConfig, runs: int) -> tuple[int, str]:
    """(runs at a time, why): as many as a GPU's memory holds; on a CPU one a core, as far as memory goes."""
    device = resolve_device(config.train.device)
    fit = runs_at_once(config, *load_data(config))
    most = runs if device.type == "cuda" else min(runs, cores())
    if fit is not None and fit < most:
        return fit, f"the free memory of {device} holds {fit}"
    return most, "all of them" if most == runs else "one a core"


def train_seeds(
    configs: dict[int, ExperimentConfig],
    out: Path | None = None,
    *,
    processes: int | None = None,
    console: Console | None = None,
) -> Seeds:
    """Train what `out` does not hold yet of a configuration's seeds, and write seeds.json there after every run.

    Args:
        configs: by seed, as seed_configs gives them. out: folder of the runs, `seed<s>`, None: default_folder's; a
            finished one is not done again, one that was interrupted goes on.
        processes: runs at a time; None: as choose_processes says.

    Returns:
        The figures. A run that fails does not end the others: see failures, raise_failures.

    Raises:
        InterludeError: before any training, where the configuration, its data or `out` does not fit.
    """
    first = next(iter(configs.values()), None)
    if first is None:
        raise ConfigError("no seeds: --seeds wants some, such as 0-4")
    out = out or default_folder(first)
    jobs = [Job(run_name(seed), config, out / run_name(seed)) for seed, config in configs.items()]
    if (out / "config.yaml").is_file():
        raise CheckpointError(f"{out} is the folder of one run; --run-dir with --seeds is a folder of runs")
    with alone_in(out, FILES):
        done = finished(jobs)
        found = Seeds(configs, common_part(jobs, done, console), out, done)
        found.save(out)
        left = len(jobs) - len(done)
        if processes is None and left:
            processes, why = choose_processes(first, left)
            if console:
                tell(console, f"{processes} of {left} runs at a time (--jobs): {why}")
        finish(jobs, found.results, found.failures, lambda: found.save(out), processes or 1, console)
    return found
