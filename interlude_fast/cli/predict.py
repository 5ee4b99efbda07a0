"""`interlude-fast predict RUN IMAGES...`."""

from __future__ import annotations

from pathlib import Path

import click

from .main import one_line_errors, write_bytes
from .settings import NETWORKS, out_option


@click.command("predict")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@out_option(help="CSV file; default: standard output.")
@click.option("--device", help="auto (default), cpu, cuda or cuda:<i>.")
@click.option("--network", type=click.Choice(NETWORKS), default="ema", help="Default: ema.")
@one_line_errors
def command(run: Path, images: tuple[Path, ...], out: Path | None, device: str | None, network: str) -> None:
    """Classify IMAGES, files and folders, with a network of RUN, a run directory, and its own preprocessing: a CSV
    row each with path, class, probability and every class's probability."""
    from interlude_fast import api
    from interlude_fast.data.images import shown
    from interlude_fast.training.checkpoint import write_atomically

    found = api.predict(run, images, network=network, device=device)
    content = found.to_csv().encode("utf-8", "surrogateescape")  # names that are no text: their own bytes
    if out:
        write_atomically(out, content)
        click.echo(f"{len(found.paths)} predictions in {shown(out)}", err=True)
    else:
        write_bytes(content)
    for path, reason in found.skipped:
        click.echo(f"skipped {shown(path)}: {reason}", err=True)
