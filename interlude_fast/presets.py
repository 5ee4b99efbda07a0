"""Presets: what lies under the settings that a user asks for, out of `configs/` and of the methods."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .methods import METHODS
from .settings_files import configs_folder, merge, read_yaml


def training_defaults(method: str) -> dict[str, Any]:
    """What the method's paper trains with where that is not what most do (`training_defaults` of its options).

    Raises:
        ConfigError: no such method.
    """
    return getattr(METHODS.find(method).Options, "training_defaults", {})


def preset(dataset: str, method: str, labels: int | None) -> tuple[dict[str, Any], str]:
    """The settings that lie under what a user asks for, and in words where they are from: the dataset's base.yaml,
    the method's own defaults, and the published setting of this label count, or of the nearest one.

    Args:
        labels: None for the count that the dataset's base.yaml names.

    Raises:
        ConfigError: no such method.
    """
    own, folder = training_defaults(method), configs_folder() / dataset
    base_file = folder / "base.yaml"
    if "/" in dataset or not base_file.is_file():
        return own, f"none for {dataset}: {method}'s own defaults"
    base = read_yaml(base_file)
    under, wanted = merge(base, own), labels or base.get("data", {}).get("labels")
    claim = _published(folder, method, wanted)
    if claim is None:
        return under, f"configs/{dataset}/base.yaml, with {method}'s own defaults"
    note = f"configs/{dataset}/{claim.name}"
    if claim.stem not in (f"{method}-{wanted}", method):
        note += f", the published setting nearest to {wanted} labels"
    return read_yaml(claim, {base_file: under}), note


def _published(folder: Path, method: str, labels: int | None) -> Path | None:
    """`<method>-<labels>.yaml`, `<method>.yaml`, or the file of the nearest label count, whichever there is."""
    for suffix in (f"-{labels}", ""):
        if (folder / f"{method}{suffix}.yaml").is_file():
            return folder / f"{method}{suffix}.yaml"
    texts = (file.stem.removeprefix(f"{method}-") for file in folder.glob(f"{method}-*.yaml"))
    counts = sorted(int(text) for text in texts if text.isdigit())
    if not counts or not labels:
        return None
    return folder / f"{method}-{min(counts, key=lambda count: abs(math.log(count / labels)))}.yaml"


def read_user_file(file: Path, default_method: str, method: str | None = None) -> tuple[dict[str, Any], bool]:
    """A user's file, and whether it is one of `configs/`. Between such a file and the base.yaml that it extends
    lie the defaults of its method, as where `preset` finds it.

    Args:
        method: that which is asked for instead of the file's; it then trains as its own paper does.
    """
    values = read_yaml(file)
    if not file.resolve().is_relative_to(configs_folder().resolve()):
        return values, False
    of_file = (values.get("method") or {}).get("name", default_method)
    own = training_defaults(method or of_file)
    if method not in (None, of_file):
        return merge(values, own), True
    base_file = file.parent / "base.yaml"
    if file.name == base_file.name or not base_file.is_file():
        return merge(values, own), True
    return read_yaml(file, {base_file: merge(read_yaml(base_file), own)}), True
