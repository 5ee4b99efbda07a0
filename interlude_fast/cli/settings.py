"""Options that commands share, and how they become overrides of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from interlude_fast.config import nested, parse_assignment

# option -> the setting that it overrides
OVERRIDES = {
    "dataset": "data.dataset",
    "labels": "data.labels",
    "data_root": "data.root",
    "labeled": "data.labeled",
    "unlabeled": "data.unlabeled",
    "test": "data.test",
    "split": "data.split.file",
    "pipeline": "data.pipeline",
    "method": "method.name",
    "seed": "seed",
    "steps": "train.steps",
    "device": "train.device",
    "precision": "train.precision",
    "compile": "train.compile",
    "capture": "train.capture",
    "budget": "train.budget",
}

MOST_SEEDS = 1000
PATH = click.Path(path_type=Path)
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
    click.option("--pipeline", help="auto, resident, host, dali or torchvision."),
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


def overrides(assignments: tuple[str, ...], **flags: Any) -> list[dict[str, Any]]:
    """`--set`s, then the flags that were given, as nested settings; later ones win."""
    given = {name: str(v) if isinstance(v, Path) else v for name, v in flags.items() if v is not None}
    return [
        *(parse_assignment(text) for text in assignments),
        *(nested(OVERRIDES[name], value) for name, value in given.items()),
    ]


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
