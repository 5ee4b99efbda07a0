"""Nested settings as they stand in YAML files and `--set key=value`: read, laid over one another, found by key."""

from __future__ import annotations

import contextlib
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested settings laid over others, which they do not change."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        # Another part's options do not carry over to the part that replaces it.
        replaced = both and "name" in value and merged[key].get("name", value["name"]) != value["name"]
        merged[key] = merge(merged[key], value) if both and not replaced else value
    return merged


def read_yaml(path: Path, instead: dict[Path, dict[str, Any]] | None = None, depth: int = 0) -> dict[str, Any]:
    """A YAML mapping; its `extends: <file beside it>` is read first.

    Args:
        instead: settings that take the place of a file that is extended.

    Raises:
        ConfigError: it cannot be read, is not YAML, or is no mapping of names.
    """
    if depth and instead and path in instead:
        return instead[path]
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that is none
        where = getattr(error, "problem_mark", None)
        raise ConfigError(
            f"configuration file {path} is not YAML{f', line {where.line + 1}' if where else ''}"
        ) from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"configuration file {path} must hold a mapping of named settings")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str) or depth > 8:
        raise ConfigError(f"configuration file {path}: extends must name a file beside it, and end somewhere")
    return merge(read_yaml(path.parent / base, instead, depth + 1), values)


def parse_assignment(text: str) -> dict[str, Any]:
    """`"method.tau=0.9"` -> `{"method": {"tau": 0.9}}`; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set wants key=value, got '{text}'")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--set {text}: the value is not YAML") from None
    return nested(key.strip(), as_number(parsed))


def as_number(value: Any) -> Any:
    """Text that is a number, as a number: YAML 1.1 reads 1e-3 as text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def nested(key: str, value: Any) -> dict[str, Any]:
    """`"method.tau", 0.9` -> `{"method": {"tau": 0.9}}`"""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def find_setting(settings: Any, key: str) -> list[Any]:
    """The value at a dotted key in a list of one, which is empty where there is none."""
    for part in key.split("."):
        if not isinstance(settings, dict) or part not in settings:
            return []
        settings = settings[part]
    return [settings]


def configs_folder() -> Path:
    """`configs/`: inside the installed package, or at the top of the source tree."""
    installed = Path(str(resources.files("interlude_fast"))) / "configs"
    return installed if installed.is_dir() else Path(__file__).resolve().parent.parent / "configs"
