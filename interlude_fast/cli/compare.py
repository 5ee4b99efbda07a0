"""`interlude-fast compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .main import one_line_errors
from .settings import names, out_option, several_runs_options, shared_options


@click.command("compare")
@shared_options
@click.option("--methods", default="interlude,supervised", show_default=True, help="Names, separated by commas.")
@several_runs_options
@out_option(help="JSON file for the figures.")
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
    from interlude_fast import api

    given: dict[str, Any] = {"config": config_file, "set": assignments, **flags}
    comparison = api.compare(names(methods), seeds=seeds, jobs=processes, **given)
    Console().print(comparison.table())
    if out:
        comparison.save(out)
