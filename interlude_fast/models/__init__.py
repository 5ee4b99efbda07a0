"""The networks: a file each, and a line each in the table below."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from interlude_fast.config import validate
from interlude_fast.errors import unknown

from .fusion import EmbeddingFusion
from .wideresnet import WideResNet

MODELS: dict[str, type[Any]] = {
    "wideresnet": WideResNet,
}


def resolve_options(name: str, options: dict[str, Any]) -> Any:
    """The network's typed options with its defaults filled in.

    Raises:
        ConfigError: an unknown network or option, or a value that does not fit.
    """
    if name not in MODELS:
        raise unknown("network", name, MODELS)
    return validate(MODELS[name].Options, options, "model")


def build_model(
    name: str, options: dict[str, Any], num_classes: int, channels: int, fusion: EmbeddingFusion, seed: int
) -> nn.Module:
    """The network with weights drawn from `seed` alone; the global generator is left as it was."""
    resolved = resolve_options(name, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](resolved, num_classes, channels, fusion)


__all__ = ["MODELS", "EmbeddingFusion", "WideResNet", "build_model", "resolve_options"]
