"""`interlude-fast import`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .main import one_line_errors
from .settings import PATH, data_options


@click.command("import")
@click.argument("file", type=PATH)
@data_options
@click.option("--out", type=PATH, required=True, help="Folder of the run that is made; it must not exist yet.")
@one_line_errors
def command(file: Path, out: Path, config_file: Path | None, assignments: tuple[str, ...], **flags: Any) -> None:
    """Turn a checkpoint of InterLUDE's, TorchSSL's, USB's, Mixup-LR's or SemiMeta's released code into a run
    directory: its weights, with the data set and the settings named here. Nothing in FILE is executed.

    E.g.: interlude-fast import model_best.pth --dataset cifar10 --labels 250 --out runs/theirs
    """
    from interlude_fast import api

    given: dict[str, Any] = {"config": config_file, "set": assignments, **flags}
    made = api.import_checkpoint(file, out, **given)
    options = ", ".join(f"{k} {v}" for k, v in made.released.options.items())
    what = f"{made.released.network} ({options}), {made.released.classes} classes"
    click.echo(f"{what}: {' and '.join(made.networks)} weights")
    if len(made.networks) == 1:
        click.echo("the file has one network: it stands for the raw and the EMA one")
    click.echo(f"try it: interlude-fast eval {made.directory}")
