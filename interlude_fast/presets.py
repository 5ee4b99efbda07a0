"""Presets: what lies under the settings that a user asks for, out of `configs/` and of the methods."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .methods import METHODS
from .models import NETWORKS
from .settings_files import configs_folder, merge, read_yaml


def training_defaults(method: str) -> dict[str, Any]:
    """What the method's paper trains with where that is not what most do (`training_defaults` of its options).

    Raises:
        ConfigError: no such method.
    """
    return getattr(METHODS.find(method).Options, "training_defaults", {})


@dataclass(frozen=True)
class Base:
    """What a dataset's runs begin with, whatever the method.

    Attributes:
        dataset: its name. file: base.yaml, or scratch.yaml for networks without pretrained weights where there is
            one; None where the dataset has neither. settings: the file's.
    """

    dataset: str
    file: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def dataset_base(dataset: str, network: dict[str, Any]) -> Base:
    """The base settings of a dataset.

    Args:
        network: the `model` section that is asked for.
    """
    folder = configs_folder() / dataset
    if "/" in dataset or not (folder / "base.yaml").is_file():
        return Base(dataset)
    file = folder / "base.yaml"
    settings = read_yaml(file)
    scratch = folder / "scratch.yaml"
    own = network.get("name", settings.get("model", {}).get("name")) == settings.get("model", {}).get("name")
    pretrained = (own and network.get("pretrained", True)) or network.get("weights") or _is_pretrained(network)
    if scratch.is_file() and not pretrained:
        pretrained_one = settings["model"]["name"]
        file, settings = scratch, read_yaml(scratch)
        if "name" not in network:  # --no-pretrained, of the same network
            settings = {**settings, "model": {"name": pretrained_one}}
    return Base(dataset, file, settings)


def _is_pretrained(network: dict[str, Any]) -> bool:
    """Whether a `model` section asks for pretrained weights, or names a network that starts from them anyway."""
    name = network.get("name")
    cls = NETWORKS.find(name) if isinstance(name, str) and name in NETWORKS else None
    default = cls.Options.model_fields.get("pretrained") if cls else None
    return bool(network.get("pretrained", default.default if default else False))


def for_network(under: dict[str, Any], network: dict[str, Any]) -> dict[str, Any]:
    """A preset under another network than its own: how the network is cut, its norms and its head carry over, the
    network's own options do not."""
    own = under.get("model", {})
    if "name" not in network or network["name"] == own.get("name", network["name"]):
        return under
    kept = {key: own[key] for key in ("cut", "norm", "head") if key in own}
    if kept.get("cut") not in (None, "classifier"):
        kept["cut"] = "auto"
    return {**under, "model": {"name": network["name"], **kept}}


def preset(base: Base, method: str, labels: int | None) -> tuple[dict[str, Any], str]:
    """The settings that lie under what a user asks for, and in words where they are from: the dataset's base, the
    method's own defaults, and the published setting of this label count, or of the nearest one. A base for
    pretrained networks keeps its own optimizer and steps: papers' are for networks that begin anew.

    Args:
        labels: None for the count that the dataset's base.yaml names.

    Raises:
        ConfigError: no such method.
    """
    own = training_defaults(method)
    if base.file is None:
        return own, f"none for {base.dataset}: {method}'s own defaults"
    folder, wanted = base.file.parent, labels or base.settings.get("data", {}).get("labels")
    under = merge(base.settings, own)
    if base.settings.get("model", {}).get("cut") is not None:
        mu = {key: value for key, value in own.get("train", {}).items() if key == "mu"}
        mine: dict[str, Any] = {name: base.settings.get(name, {}) for name in ("optim", "train")}
        under = merge(merge(under, mine), {"train": mu})
    claim = _published(folder, method, wanted)
    if claim is None:
        return under, f"configs/{base.dataset}/{base.file.name}, with {method}'s own defaults"
    note = f"configs/{base.dataset}/{claim.name}"
    if claim.stem not in (f"{method}-{wanted}", method):
        note += f", the published setting nearest to {wanted} labels"
    return read_yaml(claim, {folder / "base.yaml": under}), note


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
