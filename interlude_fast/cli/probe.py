"""`interlude-fast probe DATA`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .main import one_line_errors
from .settings import shared_options


@click.command("probe")
@click.argument("data", required=False, type=click.Path(path_type=Path))
@shared_options
@click.option("--seed", type=int, help="Of the labels and of the folds.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Folder of the run, new.")
@one_line_errors
def command(
    data: Path | None, config_file: Path | None, assignments: tuple[str, ...], run_dir: Path | None, **flags: Any
) -> None:
    """What a pretrained network's features are worth as they are, within a minute.

    Logistic regression on the embeddings of the labeled images, and nearest neighbours. DATA as train takes it.
    The run that it leaves is predicted with and evaluated as any other.
    """
    from interlude_fast import api
    from interlude_fast.report.tables import result_lines

    result = api.probe(data, run_dir=run_dir, config=config_file, set=assignments, **flags)
    for line in result_lines(result):
        click.echo(line)
    click.echo(f"{result.seconds:.0f} s, everything in {result.directory}")
