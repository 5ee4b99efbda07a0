"""The networks: a file each, and a line each in the table below; `timm:<name>` is any network of timm. From
outside the package: register_network, or an entry point of an installed package in the group
`interlude_fast.networks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from interlude_fast.errors import ConfigError, unknown
from interlude_fast.options import Strict, validate
from interlude_fast.registry import Registry

from .base import Network, NetworkOptions, PretrainedInput, Shape
from .cut import cut_network
from .fusion import EmbeddingFusion
from .norms import fold_norms
from .timm_network import TimmNetwork, TimmOptions, check_architecture
from .timm_weights import download_note, timm_input
from .weights import check_weight_file, start_from

NETWORKS: Registry[type[Network]] = Registry(
    "network",
    "interlude_fast.networks",
    {
        "conv_large": "interlude_fast.models.conv_large:ConvLarge",
        "efficientnet_lite0": "interlude_fast.models.efficientnet_lite:EfficientNetLite0",
        "efficientnet_lite1": "interlude_fast.models.efficientnet_lite:EfficientNetLite1",
        "efficientnet_lite2": "interlude_fast.models.efficientnet_lite:EfficientNetLite2",
        "shake_shake": "interlude_fast.models.shake_shake:ShakeShake",
        "vit": "interlude_fast.models.vit:ViT",
        "wideresnet": "interlude_fast.models.wideresnet:WideResNet",
    },
)
TIMM = "timm:"


def register_network(name: str, network: type[Network]) -> type[Network]:
    """Make a network of your own known by name, to the configuration and the commands of this process.

    Raises:
        ConfigError: the name is taken by another network, or it is none.
    """
    if not (isinstance(network, type) and issubclass(network, Network)):
        raise ConfigError(f"network '{name}' wants a subclass of Network, got {network!r}")
    return NETWORKS.register(name, network)


def resolve_options(name: str, options: dict[str, Any]) -> NetworkOptions:
    """The network's typed options with its defaults filled in.

    Raises:
        ConfigError: an unknown network or option, or a value that does not fit.
    """
    if name not in NETWORKS and not name.startswith(TIMM):
        raise unknown("network", name, [*NETWORKS, f"{TIMM}<name>"])
    cls = TimmNetwork if name.startswith(TIMM) else NETWORKS.find(name)
    resolved: NetworkOptions = validate(cls.Options, options, "model")
    if name.startswith(TIMM):
        check_architecture(name.removeprefix(TIMM))
    return resolved


def pretrained_input(name: str, options: Strict | dict[str, Any]) -> PretrainedInput | None:
    """What the pretrained weights of a configured network want to see; None where it starts from none. Those of a
    file (`weights`) are taken to want the same where `pretrained` is set beside it.

    Raises:
        ConfigError: as resolve_options, or the package that knows these weights is not installed.
    """
    options = options if isinstance(options, Strict) else resolve_options(name, options)
    if name.startswith(TIMM):
        return timm_input(name.removeprefix(TIMM)) if cast(TimmOptions, options).pretrained else None
    return NETWORKS.find(name).pretrained_input(options)


def check_weights(name: str, options: Strict) -> None:
    """Raises ConfigError where a file of weights that a fresh network starts from is missing or damaged."""
    if isinstance(options, NetworkOptions):
        cls = TimmNetwork if name.startswith(TIMM) else NETWORKS.find(name)
        if (file := cls.weight_file(options)) is not None:
            check_weight_file(file, _asking(options))


def _asking(options: NetworkOptions) -> str:
    return "model.weights" if options.weights is not None else "model.pretrained"


def build_model(
    name: str,
    options: Strict | dict[str, Any],
    shape: Shape,
    fusion: EmbeddingFusion,
    *,
    fresh: bool = True,
    note: Callable[[str], None] = lambda line: None,
) -> Network:
    """The network, its weights drawn from torch's generator, then those that its options name put in.

    Args:
        options: of the network's own class, as a configuration holds them; or as resolve_options takes them.
        fresh: False where the caller puts weights of its own into it: none are read and none downloaded.
        note: is given a line about weights before they are downloaded, and about a classifier that does not fit.

    Raises:
        ConfigError: options that do not fit the images; weights that cannot be had or do not fit.
    """
    options = options if isinstance(options, Strict) else resolve_options(name, options)
    assert isinstance(options, NetworkOptions)
    if not fresh or options.weights is not None:  # a file takes the place of pretrained weights
        unread = {"weights": options.weights if fresh else None, "pretrained": False}
        options = options.model_copy(update={k: v for k, v in unread.items() if hasattr(options, k)})
    if name.startswith(TIMM):
        if cast(TimmOptions, options).pretrained and (line := download_note(name.removeprefix(TIMM))):
            note(line)
        network: Network = TimmNetwork(cast(TimmOptions, options), shape, fusion, name.removeprefix(TIMM))
    else:
        network = NETWORKS.find(name)(options, shape, fusion)
    if (file := network.weight_file(options)) is not None:
        line = start_from(network, file, _asking(options))
        if line and options.weights is not None:  # of pretrained weights nobody expects another
            note(line)
    return network


def divide(network: Network, options: NetworkOptions, shape: Shape) -> Network:
    """The network with its norms and its cut as its options say. It computes what it computed, in eval mode.

    Raises:
        ConfigError: no such place to cut, or the network cannot be cut.
    """
    network.norm_mode = options.norm
    if options.norm == "folded" and (left := fold_norms(network, shape)):
        network.remarks = (*network.remarks, left)
    if options.cut is not None:
        cut_network(network, options.cut, shape)
    network.hold_still()
    return network


__all__ = [
    "NETWORKS",
    "EmbeddingFusion",
    "Network",
    "NetworkOptions",
    "PretrainedInput",
    "Shape",
    "TimmNetwork",
    "build_model",
    "check_weights",
    "divide",
    "pretrained_input",
    "register_network",
    "resolve_options",
]
