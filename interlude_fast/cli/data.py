"""`interlude-fast data inspect|split|preview|cache`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from .main import one_line_errors
from .settings import data_options, out_option


@click.group("data")
def command() -> None:
    """Look at a data set before you train on it: inspect, split, preview, cache."""


def load(config_file: Path | None, assignments: tuple[str, ...], flags: dict[str, Any]) -> Any:
    from interlude_fast import api

    return api.load_config(config_file, assignments, **flags)


@command.command("inspect")
@data_options
@out_option("--json", help="Everything found, every duplicate and file by name.")
@click.option("--near/--no-near", default=True, show_default=True, help="Look for near duplicates too.")
@one_line_errors
def inspect_command(
    config_file: Path | None, assignments: tuple[str, ...], out: Path | None, near: bool, **flags: Any
) -> None:
    """Counts, sizes, modes, statistics, class balance, unreadable files, exact and near duplicates within and
    across labeled, unlabeled and test images, and groups that leak from one side to the other."""
    from interlude_fast.data.images import shown
    from interlude_fast.data.inspection import inspect
    from interlude_fast.data.progress import RichProgress
    from interlude_fast.report.inspection import inspection_tables
    from interlude_fast.training.checkpoint import write_atomically
    from interlude_fast.training.setup import load_data

    dataset, split = load_data(load(config_file, assignments, flags), RichProgress(Console(stderr=True)))
    found = inspect(dataset, split, near=near)
    console = Console()
    for part in inspection_tables(found):
        console.print(
            shown(part) if isinstance(part, str) else part, markup=False, highlight=False, soft_wrap=True
        )
    if out:
        write_atomically(out, (json.dumps(found.as_dict(), indent=1) + "\n").encode())


@command.command("split")
@data_options
@out_option(required=True, help="JSON file; replay it with --split.")
@one_line_errors
def split_command(config_file: Path | None, assignments: tuple[str, ...], out: Path, **flags: Any) -> None:
    """Choose labeled, validation and test images, and write them to a file with their hashes."""
    from interlude_fast.data.manifest import manifest, to_text
    from interlude_fast.data.progress import RichProgress
    from interlude_fast.training.checkpoint import write_atomically
    from interlude_fast.training.setup import load_data

    config = load(config_file, assignments, flags)
    dataset, split = load_data(config, RichProgress(Console(stderr=True)))
    write_atomically(
        out, to_text(manifest(dataset, split, config.data, config.seed, config.data.split.file)).encode()
    )
    counts = ", ".join(f"{len(part)} {name}" for name, part in vars(split).items())
    click.echo(f"{counts} images in {out}")


@command.command("preview")
@data_options
@out_option(required=True, help="PNG file.")
@click.option("--images", "count", type=click.IntRange(1, 64), default=8, show_default=True, help="Rows.")
@click.option("--step", type=click.IntRange(0), default=0, show_default=True, help="Step whose views are drawn.")
@one_line_errors
def preview_command(
    config_file: Path | None, assignments: tuple[str, ...], out: Path, count: int, step: int, **flags: Any
) -> None:
    """Draw images (the first column) with weak (2) and strong (4) views as the network sees them."""
    import io

    from interlude_fast.data.preview import choose_items, preview
    from interlude_fast.data.progress import RichProgress
    from interlude_fast.training.checkpoint import write_atomically
    from interlude_fast.training.setup import load_data, view_policy

    config = load(config_file, assignments, flags)
    dataset, split = load_data(config, RichProgress(Console(stderr=True)))
    sheet = preview(dataset, choose_items(split, count), view_policy(config, dataset), seed=config.seed, step=step)
    png = io.BytesIO()
    sheet.save(png, "PNG")
    write_atomically(out, png.getvalue())
    click.echo(f"{out}: a row an image: as it is, 2 weak views, 4 strong views")


@command.command("cache")
@data_options
@click.option("--list", "listing", is_flag=True, help="Say what the cache holds, and prepare nothing.")
@click.option("--remove", metavar="KEY|all", help="Remove an entry, or all.")
@one_line_errors
def cache_command(
    config_file: Path | None, assignments: tuple[str, ...], listing: bool, remove: str | None, **flags: Any
) -> None:
    """Prepare a data set's images now (decode, resize, keep), or manage what was prepared."""
    from interlude_fast.data import cache
    from interlude_fast.data.datasets import LoadContext
    from interlude_fast.data.progress import RichProgress
    from interlude_fast.training.inputs import load_images

    if (listing or remove is not None) and not config_file and flags.get("dataset") is None:
        flags["dataset"] = "folder"  # any whose images are kept in a cache
    config = load(config_file, assignments, flags)
    folder = cache.expanded(getattr(config.data, "cache", None) or cache.default_cache())
    if remove is not None:
        freed = sum(entry.bytes for entry in cache.remove(folder, None if remove == "all" else remove))
        click.echo(f"{freed / 1e6:,.1f} MB freed in {folder}")
    elif listing:
        for e in cache.entries(folder):
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(e.last_used))
            shape = "kept views" if e.kept else f"{e.images} images, {e.size} px, {e.channels} channels"
            click.echo(f"{e.key}  {shape}, {e.bytes / 1e6:,.1f} MB, used {used}")
        click.echo(f"cache: {folder}")
    else:
        dataset = load_images(config, LoadContext(RichProgress(Console(stderr=True))))
        where = f"prepared in {folder}" if dataset.files else "arrays: nothing to prepare"
        click.echo(f"{dataset.name}: {len(dataset.images)} images, {dataset.size} px, {where}")
