"""Options that commands share, and how they become overrides of the configuration."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

MOST_SEEDS = 1000
PATH = click.Path(path_type=Path)
OVERWRITE = "interlude_fast.overwrite"  # in a command's context
# Those that a run leaves behind; the last one where it has validation images.
NETWORKS = ("ema", "raw", "best_on_validation")
# Which images, and which of them are labeled.
DATA = [
    click.option("--dataset", help="digits (default), cifar10, cifar100, svhn, stl10, tmed2, folder, csv or npz."),
    click.option("--labels", type=int, help="Labeled images in all; default: the preset's, or all that have one."),
    click.option("--data-root", type=PATH, help="Folder or file of the data set's local copy."),
    click.option("--labeled", type=PATH, help="Your labeled images: class folders in this folder."),
    click.option("--unlabeled", type=PATH, help="Your unlabeled images: anywhere in this folder."),
    click.option("--test", type=PATH, help="Your test images: class folders in this folder."),
    click.option("--split", type=PATH, help="A split to replay: split.json of a run, or what data split wrote."),
]
SETTINGS = [
    click.option("--config", "config_file", type=PATH, help="YAML file; keys as in configs/."),
    click.option(
        "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting, e.g. method.tau=0.9."
    ),
]
SHARED = [
    *DATA,
    click.option("--model", help="wideresnet (default), efficientnet_lite0, timm:<name> and others."),
    click.option("--pretrained/--no-pretrained", default=None, help="Start from its pretrained weights."),
    click.option("--weights", type=PATH, help="File to start from: safetensors or torch.save."),
    click.option("--pipeline", help="auto, resident, host, dali, torchvision or kept (behind a frozen front)."),
    click.option("--steps", type=int, help="Training steps."),
    click.option("--device", help="auto, cpu, cuda or cuda:<i>."),
    click.option("--precision", help="auto, fp32, tf32, bf16 or fp16."),
    click.option("--compile/--no-compile", default=None, help="torch.compile; default: where it is faster."),
    click.option("--capture/--no-capture", default=None, help="The step as one CUDA graph; default: on GPUs."),
    click.option("--budget", help="Wall time, e.g. 30m: the schedule is scaled to end in it."),
    *SETTINGS,
]


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed([*DATA, *SETTINGS, click.option("--seed", type=int, help="Of the split.")]):
        command = option(command)
    return command


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(SHARED):
        command = option(command)
    return command


def why_not_written(out: Path, overwrite: bool) -> str | None:
    """What speaks against writing a file there, its missing folders made, in words; None: nothing."""
    try:
        found = os.lstat(out)
        if out.is_dir():
            return f"{out} is a folder; name a file"
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISLNK(found.st_mode):
            return f"{out} is not a file"
        if not overwrite:
            return f"{out} exists; --overwrite replaces it"
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        return f"{out} cannot be written: {error.strerror}"
    folder = next(folder for folder in out.absolute().parents if folder.exists())
    if not folder.is_dir():
        return f"{out} cannot be written: {folder} is not a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{out} cannot be written: no permission to write in {folder}"
    return None


def _look_at_out(context: click.Context, option: click.Parameter, out: Path | None) -> Path | None:
    if out is not None and (reason := why_not_written(out, context.meta[OVERWRITE])):
        raise click.BadParameter(reason)
    return out


def _keep_overwrite(context: click.Context, option: click.Parameter, value: bool) -> None:
    context.meta[OVERWRITE] = value


def out_option(name: str = "--out", **attributes: Any) -> Callable[..., Any]:
    """A file that a command writes, as its argument `out`, looked at before any work; and --overwrite."""
    file = click.option(name, "out", type=PATH, callback=_look_at_out, **attributes)
    overwrite = click.option(
        "--overwrite",
        is_flag=True,
        is_eager=True,  # known when the file is looked at
        expose_value=False,
        callback=_keep_overwrite,
        help=f"Replace the file of {name} where there is one.",
    )
    return lambda command: file(overwrite(command))


def names(text: str) -> list[str]:
    """`"a, b"` -> ["a", "b"]"""
    return [name.strip() for name in text.split(",")]


def parse_seeds(context: click.Context, option: click.Parameter, text: str | None) -> list[int] | None:
    """`"0-4,7"` -> [0, 1, 2, 3, 4, 7]; None stays None."""
    if text is None:
        return None
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise click.BadParameter(f"wants seeds such as 0-4 or 0,3, got '{text}'")
        if int(last or first) - int(first) >= MOST_SEEDS:
            raise click.BadParameter(f"wants at most {MOST_SEEDS:,} seeds, got '{text}'")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


SEVERAL_RUNS = [
    click.option("--seeds", default="0", show_default=True, callback=parse_seeds, help="E.g. 0-4 or 0,3."),
    click.option(
        *("--jobs", "processes"),
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Runs at a time, each in a process with its share of the cores.",
    ),
]


def several_runs_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(SEVERAL_RUNS):
        command = option(command)
    return command
