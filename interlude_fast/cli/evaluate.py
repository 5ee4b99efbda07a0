"""`interlude-fast eval RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .main import one_line_errors
from .settings import NETWORKS, PATH, out_option


def _steps(context: click.Context, parameter: click.Parameter, text: str | None) -> list[int]:
    """ "2,4,8" -> [2, 4, 8]"""
    try:
        steps = [int(step) for step in text.split(",")] if text else []
    except ValueError:
        steps = [0]
    if len(set(steps)) < len(steps) or not all(1 <= step <= 255 for step in steps):
        raise click.BadParameter(f"'{text}': whole numbers from 1 to 255, e.g. 2,4,8")
    return steps


def _places(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> dict[str, Path]:
    """("lausanne=images/l",) -> {"lausanne": Path("images/l")}"""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        if not (name and equals and place) or name in found:
            raise click.BadParameter(f"'{text}': NAME=PATH, every NAME once")
        found[name] = Path(place)
    return found


@click.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--device", help="auto, cpu, cuda or cuda:<i>; default: the run's own.")
@click.option("--data-root", type=PATH, help="Where the data are now; so also --labeled, --unlabeled, --test.")
@click.option("--labeled", type=PATH, hidden=True)
@click.option("--unlabeled", type=PATH, hidden=True)
@click.option("--test", type=PATH, hidden=True)
@click.option("--network", type=click.Choice(NETWORKS), multiple=True, help="Repeatable; default: all there are.")
@click.option(
    "--fgsm", callback=_steps, metavar="STEPS", help="Error under FGSM of these pixel steps, e.g. 2,4,8."
)
@click.option(
    "--transfer",
    callback=_places,
    multiple=True,
    metavar="NAME=PATH",
    help="Another test set: class folders, .csv or .npz. Repeatable.",
)
@out_option(help="Everything as JSON; FILE.csv: the confusion matrices.")
@one_line_errors
def command(
    run: Path, network: tuple[str, ...], fgsm: list[int], transfer: dict[str, Path], out: Path | None, **flags: Any
) -> None:
    """Evaluate the saved networks of RUN, a run directory, on its test and validation images, and on others."""
    from interlude_fast import api
    from interlude_fast.data.images import shown
    from interlude_fast.report.tables import evaluation_tables

    found = api.evaluate(run, network=network, fgsm=fgsm, transfer=transfer, **flags)
    console = Console()
    for part in evaluation_tables(found):
        console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))
    if out:
        found.save(out)
        click.echo(
            f"everything in {shown(out)}" if out.suffix != ".csv" else f"confusion matrices in {shown(out)}"
        )
