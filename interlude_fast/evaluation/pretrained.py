"""A network of pretrained weights as it is, with no run behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from interlude_fast.data.images import shown
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import Progress, Silent
from interlude_fast.errors import ConfigError, nearest
from interlude_fast.models import (
    NETWORKS,
    TIMM,
    EmbeddingFusion,
    Shape,
    build_model,
    pretrained_input,
    resolve_options,
)
from interlude_fast.training.device import resolve_device

from .frozen import FrozenNetwork
from .trained_model import TrainedModel


def load_network(
    run_or_model: Path | str,
    network: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> FrozenNetwork:
    """The network of a run directory, or one of pretrained weights by its name.

    Args:
        network: of a run: "ema" (None), "raw" or "best_on_validation".
        device: auto, cpu, cuda or cuda:<i>; None: auto.

    Raises:
        InterludeError: neither a run directory nor a network's name, a network without pretrained weights, weights
            that cannot be had, or no such network of the run or device.
    """
    name = str(run_or_model)
    is_name = name in NETWORKS or name.startswith(TIMM)
    if Path(name).is_dir() and not (is_name and not (Path(name) / "config.yaml").is_file()):
        return TrainedModel.load(name, network or "ema", device)
    if not is_name:
        raise ConfigError(
            f"{shown(name)} is neither a run directory nor a network{nearest(name, [*NETWORKS, f'{TIMM}<name>'])}"
        )
    if network is not None:
        raise ConfigError(f"--network chooses among the networks of a run, and {name} is none; leave it out")
    return pretrained_network(name, device, progress)


def pretrained_network(name: str, device: str | None = None, progress: Progress | None = None) -> FrozenNetwork:
    """A network with the pretrained weights that belong to its name.

    Raises:
        ConfigError: an unknown network or device, or no pretrained weights.
    """
    where, options = resolve_device(device or "auto"), _pretrained_options(name)
    how = _preprocessing(name)
    with torch.random.fork_rng(devices=[]):
        shape = Shape(2, how.channels, how.size)  # its classifier is not asked
        return FrozenNetwork(
            build_model(name, options, shape, EmbeddingFusion(), note=(progress or Silent()).note),
            name,
            how,
            where,
        )


def _pretrained_options(name: str) -> dict[str, Any]:
    if not hasattr(resolve_options(name, {}), "pretrained"):
        raise ConfigError(f"{name} has no pretrained weights; name a run directory or {TIMM}<name>")
    return {"pretrained": True}


def _preprocessing(name: str) -> Preprocessing:
    """What the pretrained weights saw when they were made."""
    seen = pretrained_input(name, resolve_options(name, _pretrained_options(name)))
    if seen is None:
        raise ConfigError(f"{name}: timm has no pretrained weights of it; name another network")
    return Preprocessing(seen.size, seen.channels, "crop", seen.mean, seen.std, (), seen.interpolation)
