"""`interlude-fast parity FILE.npz`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from .main import one_line_errors


@click.command("parity")
@click.argument("file", type=click.Path(path_type=Path))
@one_line_errors
def command(file: Path) -> None:
    """Replay recorded float64 steps of the released code and print the largest relative difference of every
    quantity, with fused kernels and with the torch reference; exit code 1 above 1e-9."""
    from interlude_fast.training.parity import TOLERANCE, replay_both

    sides = replay_both(file)
    table = Table(title=f"{file.name}: largest relative difference, float64 (limit {TOLERANCE:g})")
    for heading in ("quantity", *sides):
        table.add_column(heading, justify="left" if heading == "quantity" else "right")
    for quantity in next(iter(sides.values())):
        table.add_row(quantity, *(f"{side[quantity]:.1e}" for side in sides.values()))
    Console().print(table)
    if "fused kernels" not in sides:
        click.echo("fused kernels: not compared, no compiled extension (see interlude-fast doctor)")
    worst = max(value for side in sides.values() for value in side.values())
    click.echo(f"largest: {worst:.1e}, {'parity' if worst <= TOLERANCE else 'NO PARITY'}")
    sys.exit(0 if worst <= TOLERANCE else 1)
