"""`interlude-fast embed RUN|MODEL DATA... --out features.npz|.parquet`."""

from __future__ import annotations

from pathlib import Path

import click

from .main import complain, one_line_errors
from .settings import NETWORKS, out_option


@click.command("embed")
@click.argument("run_or_model", metavar="RUN|MODEL")
@click.argument("images", metavar="DATA...", type=click.Path(path_type=Path), nargs=-1, required=True)
@out_option(required=True, help=".npz, or .parquet with the extra [parquet].")
@click.option("--device", help="auto (default), cpu, cuda or cuda:<i>.")
@click.option("--network", type=click.Choice(NETWORKS), help="Of a run; default: ema.")
@one_line_errors
def command(
    run_or_model: str, images: tuple[Path, ...], out: Path, device: str | None, network: str | None
) -> None:
    """Write what a frozen network makes of DATA, files and folders: an embedding an image, of a run its
    probabilities too. RUN is a run directory; MODEL is the name of a network with pretrained weights, such as
    timm:resnet18."""
    from interlude_fast import api
    from interlude_fast.data.images import shown
    from interlude_fast.errors import few

    found = api.embed(
        run_or_model, images, out, network=network, device=device, overwrite=True
    )  # looked at before
    rows, size = found.embeddings.shape
    click.echo(f"{rows} embeddings of {size} numbers in {shown(out)}", err=True)
    if found.skipped:
        named = few([f"{shown(path)} ({reason})" for path, reason in found.skipped], 3)
        complain(f"skipped {len(found.skipped)} of {rows + len(found.skipped)} images: {named}")
