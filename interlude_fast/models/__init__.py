"""The networks: a file each, and a line each in the table below; `timm:<name>` is any network of timm."""

from __future__ import annotations

from typing import Any

from interlude_fast.config import validate
from interlude_fast.errors import unknown

from .base import Network, NetworkOptions, Shape
from .conv_large import ConvLarge
from .fusion import EmbeddingFusion
from .shake_shake import ShakeShake
from .timm_network import TimmNetwork
from .vit import ViT
from .weights import start_from
from .wideresnet import WideResNet

MODELS: dict[str, type[Network]] = {
    "wideresnet": WideResNet,
    "conv_large": ConvLarge,
    "shake_shake": ShakeShake,
    "vit": ViT,
}
TIMM = "timm:"


def resolve_options(name: str, options: dict[str, Any]) -> Any:
    """The network's typed options with its defaults filled in.

    Raises:
        ConfigError: an unknown network or option, or a value that does not fit.
    """
    if name not in MODELS and not name.startswith(TIMM):
        raise unknown("network", name, [*MODELS, f"{TIMM}<name>"])
    cls = TimmNetwork if name.startswith(TIMM) else MODELS[name]
    return validate(cls.Options, options, "model")


def build_model(
    name: str, options: dict[str, Any], shape: Shape, fusion: EmbeddingFusion, *, fresh: bool = True
) -> Network:
    """The network, its weights drawn from torch's generator, then those that its options name put in.

    Args:
        fresh: False where the caller puts weights of its own into it: none are read and none downloaded.

    Raises:
        ConfigError: options that do not fit together or to the images; weights that cannot be had or do not fit.
    """
    resolved = resolve_options(name, options)
    if not fresh:
        unread = {"weights": None, "pretrained": False}
        resolved = resolved.model_copy(update={k: v for k, v in unread.items() if hasattr(resolved, k)})
    if name.startswith(TIMM):
        network: Network = TimmNetwork(resolved, shape, fusion, name.removeprefix(TIMM))
    else:
        network = MODELS[name](resolved, shape, fusion)
    if resolved.weights is not None:
        start_from(network, resolved.weights)
    return network


__all__ = [
    "MODELS",
    "ConvLarge",
    "EmbeddingFusion",
    "Network",
    "NetworkOptions",
    "ShakeShake",
    "Shape",
    "TimmNetwork",
    "ViT",
    "WideResNet",
    "build_model",
    "resolve_options",
]
