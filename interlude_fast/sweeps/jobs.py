"""Several runs: where each stands, and doing what is left of one."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from rich.console import Console

from interlude_fast.config import ExperimentConfig
from interlude_fast.data.datasets import Listing, LoadContext
from interlude_fast.data.eval_set import HELD_OUT
from interlude_fast.data.manifest import replay
from interlude_fast.data.progress import Progress, RichProgress
from interlude_fast.data.split import Split, draw_split
from interlude_fast.errors import CheckpointError, InterludeError
from interlude_fast.experiment.result import Result
from interlude_fast.experiment.run import first_change, train_run
from interlude_fast.experiment.run_directory import RunDirectory
from interlude_fast.training.checks import TrainingChecks, check_machine
from interlude_fast.training.distributed import World
from interlude_fast.training.identity import what_counts
from interlude_fast.training.inputs import data_settings, load_images

Standing = Literal["new", "stopped", "finished"]
# Settings that do not change a data set or its split.
NOT_OF_DATA = {"pipeline", "workers", "cache"}


@dataclass(frozen=True)
class Job:
    """One run of several. config: resolved. directory: where it is or will be; None for a free one in runs/."""

    name: str
    config: ExperimentConfig
    directory: Path | None = None


@dataclass(frozen=True)
class Failure:
    """What ended a run, without the frames, which would hold on to its memory; traceback tells of them."""

    error: Exception
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        text = "".join(traceback.format_exception(error))
        error.__traceback__ = error.__context__ = error.__cause__ = None
        return cls(error, text)

    @property
    def line(self) -> str:
        kind = "" if isinstance(self.error, InterludeError) else f"{type(self.error).__name__}: "
        return kind + " ".join(str(self.error).split())

    def throw(self) -> None:
        raise self.error from RuntimeError(self.traceback)


Outcome = Result | Failure


def standing(job: Job) -> Standing:
    """Where a job stands in its folder.

    Raises:
        CheckpointError: the folder holds something else, or a run of another configuration.
    """
    if job.directory is None or not job.directory.exists():
        return "new"
    folder = RunDirectory(job.directory)
    if (job.directory / "config.yaml").is_file():
        if change := first_change(_identity(folder.config()), _identity(job.config)):
            raise CheckpointError(f"{job.directory} holds a run with {change}; choose another folder")
        if folder.result.exists():
            return "finished"
        if folder.checkpoint.exists():
            return "stopped"
    folder.refuse_started()
    return "new"


def _identity(config: ExperimentConfig) -> dict[str, object]:
    """What counts in a run, and its images: a folder of several is not for those of two places."""
    data = config.model_dump(mode="json")["data"]
    places = {name: data.get(name) for name in ("root", "labeled", "unlabeled", "test")}
    return {**what_counts(config), "data": {**what_counts(config)["data"], **places, "split": data["split"]}}


def evaluated_on(
    jobs: Iterable[Job],
    console: Console | None = None,
    enough: Callable[[Job, set[str]], None] = lambda job, parts: None,
) -> dict[str, set[str]]:
    """Which of "test" and "validation" images every job will have, by its name. Judges the settings of all jobs as
    training/setup.py does those of one, before an image is opened or decoded, then loads the data, a dataset at a
    time, and so finds what is wrong with it or with a split before any training.

    Args:
        enough: raises where a job's images are too few to report on; called before images are opened too.

    Raises:
        ConfigError, DataError: as setup.prepare.
    """
    jobs, world = list(jobs), World.current()
    for job in jobs:
        check_machine(job.config, world, fresh=True)

    def dataset_key(job: Job) -> str:
        beside = {*NOT_OF_DATA, "labels", "unlabeled_includes_labeled"}
        return data_settings(job.config).model_dump_json(exclude=beside)

    parts: dict[str, set[str]] = {}
    for _, group in groupby(sorted(jobs, key=dataset_key), key=dataset_key):
        of_dataset, splits = list(group), dict[str, set[str]]()
        progress = RichProgress(console or Console(quiet=True))
        checks = _Checks(of_dataset, world, enough, progress)
        context = LoadContext(progress, checks.with_classes, checks.with_shape)
        dataset = load_images(of_dataset[0].config, context)
        for job in of_dataset:
            data, seed = job.config.data, job.config.seed
            key = f"{seed} {data.model_dump_json(exclude=NOT_OF_DATA)}"
            if key not in splits:
                split = replay(data.split.file, dataset) if data.split.file else draw_split(dataset, data, seed)
                splits[key] = _parts(split)
            parts[job.name] = splits[key]
            enough(job, splits[key])
    return parts


def _parts(split: Split) -> set[str]:
    return {part for part in HELD_OUT if len(getattr(split, part))}


class _Checks:
    """TrainingChecks of several jobs on one dataset; networks that differ in their seed alone are built once."""

    def __init__(
        self, jobs: Sequence[Job], world: World, enough: Callable[[Job, set[str]], None], progress: Progress
    ) -> None:
        self.jobs, self.enough = jobs, enough
        self.checks = [TrainingChecks(job.config, world, True, progress) for job in jobs]

    def with_classes(self, listing: Listing) -> None:
        for job, check in zip(self.jobs, self.checks, strict=True):
            check.replayed = job.config.data.split.file is not None
            check.with_classes(listing)
            if not check.replayed:
                self.enough(job, _parts(draw_split(listing, job.config.data, job.config.seed)))

    def with_shape(self, listing: Listing, side: int, channels: int) -> None:
        seen = set()
        for check in self.checks:
            key = check.config.model_dump_json(include={"model", "method", "optim", "train"})
            if key not in seen:
                seen.add(key)
                check.with_shape(listing, side, channels)
                check.network = None


def run_job(job: Job, console: Console | None = None) -> Outcome:
    """Begin or go on with a run. Interruptions are raised, errors returned."""
    try:
        resume = standing(job) != "new"
        if job.directory is not None and not resume:
            RunDirectory(job.directory).discard_unstarted()
        return train_run(job.config, job.directory, resume=resume, console=console)
    except Exception as error:
        return Failure.of(error)


def tell(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def describe(job: Job, outcome: Outcome, number: int, total: int) -> str:
    """One line about a run that has ended."""
    if isinstance(outcome, Failure):
        return f"[{number}/{total}] {job.name} failed: {outcome.line}"
    error = f"error {outcome.error:.2%}, " if outcome.headline else ""
    return f"[{number}/{total}] {job.name}: {error}{outcome.seconds:.0f} s"
