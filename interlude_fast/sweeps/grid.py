"""A grid of configurations: its axes, and its cells with their names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from interlude_fast.config import ExperimentConfig, load
from interlude_fast.errors import ConfigError, nearest
from interlude_fast.settings_files import as_number, find_setting, nested

# Axes that have a short name; any other is named by its full key.
SHORT = {
    "method": "method.name",
    "model": "model.name",
    "dataset": "data.dataset",
    "labels": "data.labels",
    **{name: f"method.{name}" for name in ("alpha", "lambda_dc", "layout", "delta", "tau", "lambda_u")},
}
LONGEST_NAME = 120


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes.

    Raises:
        ConfigError: no value, or one that stands there twice.
    """

    key: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError(f"{self.key} wants at least one value")
        for number, value in enumerate(self.values):
            if value in self.values[:number]:
                raise ConfigError(f"{self.key} = {show(value)} is named twice: every run counts once")


@dataclass(frozen=True)
class Cell:
    """One configuration, and it with every seed.

    Attributes:
        name: of its folder. values: by the axes' keys, as the resolved configuration has them; a setting that it
            does not have is left out. configs: by seed, resolved.
    """

    name: str
    values: dict[str, Any]
    configs: dict[int, ExperimentConfig]


def parse_axis(text: str) -> Axis:
    """`"alpha=0,0.1"` -> Axis("method.alpha", (0, 0.1)); values are read as YAML.

    Raises:
        ConfigError: not of this form, or an unknown short name.
    """
    key, equals, listed = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise ConfigError(f"--grid wants KEY=VALUE,VALUE,..., got '{text}'")
    if key.partition(".")[0] == "seed":
        raise ConfigError("--grid seed=...: seeds are given by --seeds")
    if "." not in key and key not in SHORT:
        raise ConfigError(
            f"--grid {key}: neither a full key such as train.mu nor a short name{nearest(key, SHORT)}"
        )
    try:
        values = yaml.safe_load(f"[{listed}]")
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--grid {text}: the values are not YAML") from None
    return Axis(SHORT.get(key, key), tuple(map(as_number, values)))


def axes_as_grid(axes: Iterable[Axis]) -> dict[str, tuple[Any, ...]]:
    """Setting -> values.

    Raises:
        ConfigError: an axis stands there twice.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    for axis in axes:
        if axis.key in grid:
            raise ConfigError(f"{axis.key} is an axis twice; name its values in one --grid")
        grid[axis.key] = axis.values
    return grid


def show(value: Any) -> str:
    """A setting's value in names and tables: `0.0` -> `"0"`, `None` -> `"null"`, `True` -> `"true"`."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return value if isinstance(value, str) else json.dumps(value)


def short_names(axes: Iterable[Axis]) -> dict[str, str]:
    """Key -> name in folders and tables: its last part, or its section's where that is `name`; whole where two
    axes would be called the same."""
    names = {}
    for axis in axes:
        parts = axis.key.split(".")
        names[axis.key] = parts[-2] if parts[-1] == "name" and len(parts) > 1 else parts[-1]
    called = list(names.values())
    return {key: name if called.count(name) == 1 else key for key, name in names.items()}


def make_cells(
    axes: list[Axis],
    seeds: list[int],
    overrides: list[dict[str, Any]],
    *,
    file: Path | None = None,
    each: bool = False,
) -> list[Cell]:
    """The grid's cells, in the order of the axes, each with its method's preset; equal ones are one.

    Args:
        overrides: nested settings of all cells, as config.load takes them.
        file: a configuration file, instead of the presets.
        each: not the product of the axes, but the base configuration and every axis by itself.

    Raises:
        ConfigError: an axis or a seed stands there twice, or a cell is not configured well.
    """
    keys = [axis.key for axis in axes]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ConfigError(f"{twice} is an axis twice; name its values in one --grid")
    if len(set(seeds)) < len(seeds):
        raise ConfigError("a seed is named twice: every run counts once")
    if any("seed" in over for over in overrides):
        raise ConfigError("seeds are given by --seeds, not by --set seed=...")
    names, cells = short_names(axes), dict[str, Cell]()
    nobody_reads: dict[str, str] | None = None
    for chosen in _choices(axes, each):
        # A part's name first: it takes the options of the part that it replaces with it.
        ordered = sorted(chosen, key=lambda key: not key.endswith(".name"))
        asked = [*overrides, *(nested(key, chosen[key]) for key in ordered)]
        unread: dict[str, str] = {}
        configs = {seed: load(file, [*asked, {"seed": seed}], unread=unread) for seed in seeds}
        nobody_reads = unread if nobody_reads is None else {k: v for k, v in nobody_reads.items() if k in unread}
        settings = configs[seeds[0]].model_dump(mode="json")
        values = {key: found[0] for key in keys if (found := find_setting(settings, key))}
        name = cell_name({names[key]: values[key] for key in chosen if key in values})
        same = next((cell for cell in cells.values() if cell.configs == configs), None)
        if same is None and name in cells:
            raise ConfigError(f"two cells of the grid would be called {name}")
        if same is None:
            cells[name] = Cell(name, values, configs)
    if nobody_reads:  # what a method of the grid reads may mean nothing to another
        raise ConfigError(next(iter(nobody_reads.values())))
    return list(cells.values())


def _choices(axes: list[Axis], each: bool) -> list[dict[str, Any]]:
    """Axis key -> value, of every cell."""
    if each:
        return [{}, *({axis.key: value} for axis in axes for value in axis.values)]
    choices: list[dict[str, Any]] = [{}]
    for axis in axes:
        choices = [{**choice, axis.key: value} for choice in choices for value in axis.values]
    return choices


def cell_name(values: dict[str, Any]) -> str:
    """`{"layout": "separate", "alpha": 0.1}` -> `"alpha=0.1,layout=separate"`, whatever the order; `"base"` for
    none. Characters that a folder's name had better not have become `_`, and a hash keeps such names apart."""
    name = ",".join(f"{key}={show(values[key])}" for key in sorted(values)) or "base"
    safe = re.sub(r"[^A-Za-z0-9._+=,-]", "_", name)[:LONGEST_NAME]
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
