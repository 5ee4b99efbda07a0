"""`interlude-fast train`."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from interlude_fast.errors import ConfigError

from .main import complain, one_line_errors
from .settings import parse_seeds, shared_options


def in_a_job(run: Callable[..., None]) -> Callable[..., None]:
    """A command that torchrun may start as several processes, of which the first alone prints."""

    @functools.wraps(run)
    def joining(*args: Any, **kwargs: Any) -> None:
        from interlude_fast.training.distributed import joined

        with joined() as world, contextlib.ExitStack() as stack:
            if not world.first:
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            if world.size > 1 and kwargs.get("seeds") is not None:
                raise ConfigError("--seeds trains runs of one process each: leave out torchrun, or use --seed")
            run(*args, **kwargs)

    return joining


@click.command("train")
@click.argument("data", required=False, type=click.Path(path_type=Path))
@shared_options
@click.option("--method", help="Method: interlude (default), supervised, fixmatch and others.")
@click.option("--seed", type=int, help="Labels, weights, batches and views all follow from it.")
@click.option("--seeds", callback=parse_seeds, help="Several runs, e.g. 0-4 or 0,3, and one table.")
@click.option("--jobs", type=click.IntRange(min=1), help="With --seeds: runs at a time; default: by the device.")
@click.option(
    "--run-dir", type=click.Path(path_type=Path), help="Folder of the run, new; with --seeds, of the runs."
)
@click.option("--resume", is_flag=True, help="Go on with the run in --run-dir, exactly.")
@one_line_errors
@in_a_job
def command(
    config_file: Path | None,
    assignments: tuple[str, ...],
    seeds: list[int] | None,
    jobs: int | None,
    run_dir: Path | None,
    resume: bool,
    **flags: Any,
) -> None:
    """Train. With no options: InterLUDE on the embedded digits, 40 labels.

    DATA: a folder of your images in class folders, a table (.csv) or arrays (.npz). --labels 40 uses 40 of the
    labels; without it, all.
    """
    from interlude_fast import api
    from interlude_fast.report.tables import result_lines

    given: dict[str, Any] = {"config": config_file, "set": assignments, "resume": resume, **flags}
    if seeds is not None:
        several_seeds(seeds, run_dir, jobs, given)
        return
    if jobs is not None:
        raise ConfigError("--jobs says how many runs are done at a time: it wants --seeds, such as 0-4")
    result = api.train(run_dir=run_dir, **given)
    for line in result_lines(result):
        click.echo(line)
    click.echo(f"{result.seconds:.0f} s, everything in {result.directory}")


def several_seeds(seeds: list[int], folder: Path | None, jobs: int | None, given: dict[str, Any]) -> None:
    """Trains what is missing and prints the table; exit code 2 where a run failed, 130 after an interrupt."""
    from interlude_fast import api

    try:
        found = api.sweep(seeds=seeds, out=folder, jobs=jobs, **given)
    except KeyboardInterrupt:
        complain("interrupted; the same command resumes the runs")
        sys.exit(130)
    Console().print(found.table())
    click.echo(f"runs and seeds.json in {found.folder}")
    found.raise_failures()
