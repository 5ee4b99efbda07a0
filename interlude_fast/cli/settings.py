"""Options that `train` and `compare` share, and how they become overrides of the configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from interlude_fast.config import parse_assignment

# option -> the setting that it overrides
OVERRIDES = {
    "dataset": "data.dataset",
    "labels": "data.labels",
    "data_root": "data.root",
    "method": "method.name",
    "seed": "seed",
    "steps": "train.steps",
    "device": "train.device",
    "precision": "train.precision",
}

SHARED = [
    click.option("--dataset", help="Data set: digits (default), cifar10."),
    click.option("--labels", type=int, help="Labeled images in all, the same number of every class."),
    click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data set's local copy."),
    click.option("--steps", type=int, help="Training steps."),
    click.option("--device", help="auto, cpu, cuda or cuda:<i>."),
    click.option("--precision", help="auto, fp32 or bf16."),
    click.option(
        "--config", "config_file", type=click.Path(path_type=Path), help="YAML file; keys as in configs/."
    ),
    click.option(
        "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting, e.g. method.tau=0.9."
    ),
]


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(SHARED):
        command = option(command)
    return command


def overrides(assignments: tuple[str, ...], **flags: Any) -> list[dict[str, Any]]:
    """`--set`s, then the flags that were given, as nested settings; later ones win."""
    nested = [parse_assignment(text) for text in assignments]
    for name, value in flags.items():
        if value is None:
            continue
        setting: Any = str(value) if isinstance(value, Path) else value
        for part in reversed(OVERRIDES[name].split(".")):
            setting = {part: setting}
        nested.append(setting)
    return nested
