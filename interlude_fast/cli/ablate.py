"""`interlude-fast ablate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .main import complain, one_line_errors
from .settings import names, several_runs_options, shared_options


@click.command("ablate")
@shared_options
@click.option("--method", help="Method of the base configuration.")
@click.option("--methods", help="Names, separated by commas: an axis, each with its own preset.")
@click.option(
    *("--grid", "grids"),
    multiple=True,
    metavar="KEY=V1,V2,...",
    help="An axis: any setting such as train.mu, or alpha, lambda_dc, layout, delta, tau, lambda_u, labels.",
)
@click.option("--each", is_flag=True, help="Vary one axis at a time around the base, not their product.")
@several_runs_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of runs and tables.")
@one_line_errors
def command(
    config_file: Path | None,
    assignments: tuple[str, ...],
    methods: str | None,
    grids: tuple[str, ...],
    each: bool,
    seeds: list[int],
    processes: int,
    out: Path,
    **flags: Any,
) -> None:
    """Train a grid of configurations with every seed and write one table. What --out holds already is not done
    again; what was interrupted goes on."""
    from interlude_fast import api
    from interlude_fast.sweeps.grid import Axis, axes_as_grid, parse_axis

    axes = [Axis("method.name", tuple(names(methods)))] if methods is not None else []
    grid = axes_as_grid([*axes, *map(parse_axis, grids)])
    given: dict[str, Any] = {"config": config_file, "set": assignments, **flags}
    try:
        found = api.sweep(grid, seeds=seeds, out=out, each=each, jobs=processes, **given)
    except KeyboardInterrupt:
        complain("interrupted; the same command resumes the runs")
        sys.exit(130)
    Console().print(found.table())
    click.echo(f"tables and runs in {out}")
    found.raise_failures()
