"""The networks: a file each, and a line each in the table below."""

from __future__ import annotations

from typing import Any

from interlude_fast.config import validate
from interlude_fast.errors import unknown

from .base import Network, NetworkOptions, Shape
from .fusion import EmbeddingFusion
from .wideresnet import WideResNet

MODELS: dict[str, type[Network]] = {
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


def build_model(name: str, options: dict[str, Any], shape: Shape, fusion: EmbeddingFusion) -> Network:
    """The network, its weights drawn from torch's generator."""
    resolved = resolve_options(name, options)
    return MODELS[name](resolved, shape, fusion)


__all__ = [
    "MODELS",
    "EmbeddingFusion",
    "Network",
    "NetworkOptions",
    "Shape",
    "WideResNet",
    "build_model",
    "resolve_options",
]
