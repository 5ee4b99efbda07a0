"""`interlude-fast compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .main import one_line_errors
from .settings import names, overrides, several_runs_options, shared_options


@click.command("compare")
@shared_options
@click.option("--methods", default="interlude,supervised", show_default=True, help="Names, separated by commas.")
@several_runs_options
@click.option("--out", type=click.Path(path_type=Path), help="JSON file for the figures.")
@one_line_errors
def command(
    config_file: Path | None,
    assignments: tuple[str, ...],
    methods: str,
    seeds: list[int],
    processes: int,
    out: Path | None,
    **flags: Any,
) -> None:
    """Train several methods on the same labels and print one table."""
    from interlude_fast.sweep.compare import compare

    asked, console = overrides(assignments, **flags), Console(stderr=True)
    comparison = compare(names(methods), seeds, asked, file=config_file, processes=processes, console=console)
    Console().print(comparison.table())
    if out:
        comparison.save(out)
