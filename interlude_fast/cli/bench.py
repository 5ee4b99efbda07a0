"""`interlude-fast bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .main import one_line_errors
from .settings import out_option, shared_options


@click.command("bench")
@shared_options
@click.option("--method", help="Method: interlude (default), supervised, fixmatch and others.")
@click.option("--seed", type=int, help="Labels, weights, batches and views all follow from it.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    help="How long steps are timed, and as long those of the reference.",
)
@click.option("--no-reference", is_flag=True, help="Leave out the released code's way, which is timed beside.")
@out_option(help="JSON file for the figures.")
@one_line_errors
def command(
    config_file: Path | None,
    assignments: tuple[str, ...],
    seconds: float,
    no_reference: bool,
    out: Path | None,
    **flags: Any,
) -> None:
    """Measure how fast a run would be here, and keep nothing of it: same options as train."""
    from interlude_fast import api
    from interlude_fast.benchmark.speed import bench

    config = api.load_config(config_file, assignments, **flags)
    found = bench(config, seconds=seconds, reference=not no_reference, console=Console(stderr=True))
    console = Console()
    if console.is_terminal:
        console.print(found.table())
    else:
        for line in found.lines():
            click.echo(line)
    if out:
        found.save(out)
