"""`interlude-fast compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .main import one_line_errors
from .settings import overrides, shared_options


def parse_seeds(context: click.Context, option: click.Parameter, text: str) -> list[int]:
    """`"0-4,7"` -> [0, 1, 2, 3, 4, 7]"""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise click.BadParameter(f"wants seeds such as 0-4 or 0,3, got '{text}'")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


@click.command("compare")
@shared_options
@click.option("--methods", default="interlude,supervised", show_default=True, help="Names, separated by commas.")
@click.option("--seeds", default="0", show_default=True, callback=parse_seeds, help="E.g. 0-4 or 0,3.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file for the figures.")
@one_line_errors
def command(
    config_file: Path | None,
    assignments: tuple[str, ...],
    methods: str,
    seeds: list[int],
    out: Path | None,
    **flags: Any,
) -> None:
    """Train several methods on the same labels and print one table."""
    from interlude_fast.report import compare

    names = [name.strip() for name in methods.split(",")]
    asked = overrides(assignments, **flags)
    comparison = compare(names, seeds, asked, file=config_file, console=Console(stderr=True))
    Console().print(comparison.table())
    if out:
        comparison.save(out)
