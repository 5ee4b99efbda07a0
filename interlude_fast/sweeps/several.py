"""What is common to commands that leave several runs in one folder: doing those that are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import filelock
from rich.console import Console

from interlude_fast.errors import CheckpointError, ConfigError, InterludeError, RunError
from interlude_fast.experiment.result import Result, read_result

from .jobs import Failure, Job, describe, evaluated_on, standing, tell
from .worker import run_jobs


def finished(jobs: Sequence[Job]) -> dict[str, Result]:
    """Results of the runs that are done already, by name.

    Raises:
        CheckpointError: as jobs.standing and result.read_result.
    """
    return {job.name: read_result(job.directory) for job in jobs if job.directory and standing(job) == "finished"}


def finish(
    jobs: Sequence[Job],
    results: dict[str, Result],
    failures: dict[str, Failure],
    save: Callable[[], None],
    processes: int = 1,
    console: Console | None = None,
) -> None:
    """Do the runs that are not in `results`, and put each there, or into `failures`, as it ends; one that fails
    does not end the others.

    Args:
        save: called after every run. processes, console: as worker.run_jobs takes them.
    """
    screen = console or Console(quiet=True)
    left, done = [job for job in jobs if job.name not in results], len(results)
    if done:
        tell(screen, f"{done} of {len(jobs)} runs are done already")
    with closing(run_jobs(left, processes, console)) as outcomes:
        for number, (job, outcome) in enumerate(outcomes, done + 1):
            tell(screen, describe(job, outcome, number, len(jobs)))
            if isinstance(outcome, Failure):
                failures[job.name] = outcome
            else:
                results[job.name] = outcome
            save()


@contextmanager
def alone_in(out: Path, files: Sequence[str]) -> Iterator[None]:
    """While it lasts, no other call works in this folder.

    Args:
        files: what the call writes there; the others do not stand there without the first.

    Raises:
        ConfigError: one does, or the folder holds other tables. CheckpointError: it cannot be made.
    """
    others = [name for name in files[1:] if (out / name).exists() and not (out / files[0]).exists()]
    if others:
        raise ConfigError(f"{out} holds a {others[0]} that is not an ablation's; choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise ConfigError(f"another call is at work in {out}") from None
    except OSError as error:
        raise CheckpointError(f"folder {out} cannot be used: {error.strerror or error}") from None
    with lock:
        yield


def common_part(jobs: Sequence[Job], done: dict[str, Result], console: Console | None) -> str:
    """ "test" where every run has test images, else "validation".

    Raises:
        ConfigError: neither is there for all.
    """

    def enough(job: Job, parts: set[str]) -> None:
        if not parts:
            raise _no_images(job.name)

    parts = evaluated_on([job for job in jobs if job.name not in done], console, enough)
    for name, result in done.items():
        parts[name] = set(result.scores)
    for part in ("test", "validation"):
        if all(part in found for found in parts.values()):
            return part
    name = next(name for name, found in parts.items() if "test" not in found)
    raise _no_images(name)


def _no_images(name: str) -> ConfigError:
    return ConfigError(f"{name} has no test images; --set data.split.test=0.2, or data.split.validation for all")


def raise_failures(failures: dict[str, Failure], total: int) -> None:
    """Raises what went wrong: our own mistakes as they are, else one RunError that names every run."""
    for failure in failures.values():
        if not isinstance(failure.error, InterludeError):
            failure.throw()
    if failures:
        name, failure = next(iter(failures.items()))
        raise RunError(
            f"{len(failures)} of {total} runs failed: "
            f"{', '.join(failures)}; {name}: {failure.line}; the same command tries them again"
        )
