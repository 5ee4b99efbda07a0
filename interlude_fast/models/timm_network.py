"""Any network of the timm library, as `timm:<name>` (docs/networks.md)."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import math
import socket
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from interlude_fast.errors import ConfigError, nearest

from .base import Network, NetworkOptions, Shape
from .fusion import EmbeddingFusion

DOWNLOAD_TIMEOUT = 10.0  # seconds without a byte


def import_timm(wanted_by: str, extra: str = "timm") -> Any:
    """The module timm, which comes with an extra of this package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import timm
    except ImportError:
        raise ConfigError(f"model.name = {wanted_by} needs timm: pip install 'interlude-fast[{extra}]'") from None
    return timm


class TimmBacked(Network):
    """A network around one of timm's, `net`; parameter names are timm's behind `net.`."""

    net: Any

    def embed(self, x: Tensor) -> Tensor:
        """images [N, C, H, W] -> embeddings [N, D]: what timm gives to its classifier."""
        return self.net.forward_head(self.net.forward_features(x), pre_logits=True)

    def classify(self, embedding: Tensor) -> Tensor:
        return self.net.get_classifier()(embedding)

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """As timm groups its parameters; norms behind a stage belong to it, and what it does not place (the head)
        is last."""
        from timm.models import group_parameters

        if not hasattr(self.net, "group_matcher"):
            return ()
        groups = group_parameters(self.net, self.net.group_matcher())
        return tuple(tuple(f"net.{name}" for name in groups[i]) for i in sorted(groups))

    def without_decay(self) -> set[str]:
        """What timm spares; it may name a parameter by a pattern."""
        patterns = self.net.no_weight_decay() if hasattr(self.net, "no_weight_decay") else set()
        names = [name for name, _ in self.net.named_parameters()]
        return {f"net.{name}" for pattern in patterns for name in fnmatch.filter(names, pattern)}

    def fit_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """timm's own names are taken too; a learned position embedding is resized, bicubically, to this grid."""
        from timm.layers import resample_abs_pos_embed

        if not any(name.startswith("net.") for name in weights):
            weights = {f"net.{name}": value for name, value in weights.items()}
        here, there = getattr(self.net, "pos_embed", None), weights.get("net.pos_embed")
        grid = getattr(getattr(self.net, "patch_embed", None), "grid_size", None)
        if here is None or there is None or grid is None or there.shape == here.shape or there.ndim != 3:
            return weights
        prefix = here.shape[1] - grid[0] * grid[1]
        patches = there.shape[1] - prefix
        if patches > 0 and math.isqrt(patches) ** 2 == patches:
            # As the reference does: without the smoothing that timm adds where a grid shrinks.
            resized = resample_abs_pos_embed(there, list(grid), num_prefix_tokens=prefix, antialias=False)
            weights = {**weights, "net.pos_embed": resized}
        return weights


class TimmOptions(NetworkOptions):
    pretrained: bool = Field(False, description="start from the weights that timm downloads")
    fusion_module: str | None = Field(
        None, description="the submodule whose input is fused; None: the last stage, or last quarter of blocks"
    )


def check_architecture(architecture: str) -> Any:
    """The module timm.

    Raises:
        ConfigError: it is not installed, or knows no such network or pretrained weights.
    """
    timm = import_timm(f"timm:{architecture}")
    base, _, tag = architecture.partition(".")
    if not timm.is_model(base):
        raise ConfigError(f"unknown timm network '{architecture}'{_nearest(base, timm.list_models())}")
    if tag and architecture not in (known := timm.list_pretrained(f"{base}.*")):
        raise ConfigError(f"unknown pretrained weights '{architecture}'{_nearest(architecture, known)}")
    return timm


class TimmNetwork(TimmBacked):
    """images [N, C, S, S] -> logits [N, K], by the network that timm calls `architecture`.

    Raises:
        ConfigError: timm is not installed or has no such network; it does not take such images; no fusion point
            is known, or it is none; pretrained weights that cannot be downloaded.
    """

    Options = TimmOptions

    def __init__(
        self, options: TimmOptions, shape: Shape, fusion: EmbeddingFusion, architecture: str = "resnet18"
    ) -> None:
        super().__init__()
        self.name, self.fusion = self._name(architecture), fusion
        self.net = self._create(architecture, options.pretrained, shape)
        first_head = self.net.default_cfg.get("classifier") or "head"
        self.classifier = f"net.{first_head if isinstance(first_head, str) else first_head[0]}"
        place = options.fusion_module or (fusion_place(self.net) if fusion.alpha else None)
        if place is None and fusion.alpha:
            raise ConfigError(
                f"{self.name}: no place to fuse embeddings is known; name a submodule with model.fusion_module, "
                "or set method.alpha=0"
            )
        module = self._submodule(place) if place else None
        self.embedding_size = self._try_out(shape, place, module)
        if module is not None:
            fusion.attach(module)

    def _name(self, architecture: str) -> str:
        """As the configuration has it."""
        return f"timm:{architecture}"

    def _create(self, architecture: str, pretrained: bool, shape: Shape) -> Any:
        timm = check_architecture(architecture)
        settings = {"num_classes": shape.classes, "in_chans": shape.channels}
        config = timm.get_pretrained_cfg(architecture)
        if config is not None and config.fixed_input_size:
            settings["img_size"] = shape.side
        if pretrained and not (config and config.has_weights):
            raise ConfigError(f"{self.name}: timm has no pretrained weights of it; set model.pretrained=false")
        try:
            with _quick_download() if pretrained else contextlib.nullcontext():
                return timm.create_model(architecture, pretrained=pretrained, **settings)
        except Exception as error:  # of whatever library builds it or downloads for it
            what = f"it cannot be built for images of {shape.channels} channels and {shape.side} px"
            if pretrained:
                what = (
                    f"its pretrained weights {config.hf_hub_id or ''} could not be downloaded; use "
                    "model.weights=FILE, or set model.pretrained=false"
                )
            raise ConfigError(f"{self.name}: {what} ({_first_line(error)})") from None

    def _submodule(self, name: str) -> nn.Module:
        known = dict(self.net.named_modules())
        if name not in known:
            names = [n for n in known if n and n.count(".") <= name.count(".")]
            raise ConfigError(f"model.fusion_module: {self.name} has no submodule '{name}'{_nearest(name, names)}")
        return known[name]

    @torch.no_grad()
    def _try_out(self, shape: Shape, place: str | None, module: nn.Module | None) -> int:
        """D, by passing two images through; checks that they come through as this class supposes."""
        images = torch.linspace(-1, 1, 2 * shape.channels * shape.side**2)
        images = images.reshape(2, shape.channels, shape.side, shape.side)
        entered: list[Any] = []
        of_its_own = ConfigError(
            f"{self.name}: its classifier is not one layer behind its embedding; choose another"
        )
        if not isinstance(self.net.get_classifier(), nn.Module):
            raise of_its_own
        self.net.eval()
        try:
            with _input_of(module, entered):
                embedding = self.embed(images)
            same = torch.allclose(self.classify(embedding), self.net(images), rtol=1e-4, atol=1e-5)
        except Exception as error:
            raise ConfigError(
                f"{self.name} does not take images of {shape.channels} channels and {shape.side} px; choose "
                f"another network or data.size ({_first_line(error)})"
            ) from None
        self.net.train()
        if not same or embedding.ndim != 2:
            raise of_its_own
        rows_enter = len(entered) == 1 and isinstance(entered[0], Tensor) and len(entered[0]) == 2
        if module is not None and not rows_enter:
            raise ConfigError(
                f"{self.name}: {place} does not receive one tensor with a row for every image; name another "
                "submodule with model.fusion_module"
            )
        return embedding.shape[1]


def fusion_place(net: Any) -> str | None:
    """Name of the submodule whose input is fused where none is named: the last stage of a network in stages, the
    first of the last quarter of one in blocks; None where neither is known."""
    children = dict(net.named_children())
    for name in ("layer4", "s4"):  # ResNet and RegNet, with their kin
        if name in children:
            return name
    for name in ("stages", "layers"):  # ConvNeXt, Swin, ...
        if isinstance(children.get(name), (nn.Sequential, nn.ModuleList)):
            return f"{name}.{len(children[name]) - 1}"
    if isinstance(children.get("blocks"), (nn.Sequential, nn.ModuleList)):  # transformers, EfficientNet
        return f"blocks.{last_quarter(len(children['blocks']))}"
    return None


def last_quarter(blocks: int) -> int:
    """Index of the first block of the last quarter, of at least one block."""
    return blocks - max(1, blocks // 4)


@contextlib.contextmanager
def _input_of(module: nn.Module | None, entered: list[Any]) -> Iterator[None]:
    if module is None:
        yield
        return
    handle = module.register_forward_pre_hook(lambda m, arguments: entered.append(next(iter(arguments), None)))
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _quick_download() -> Iterator[None]:
    """A hub that does not answer is not asked again and again, for a minute: what is cached is used then. Other
    downloads that hang end."""
    from huggingface_hub import constants, get_session

    before = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        if not constants.HF_HUB_OFFLINE:
            try:
                get_session().head(constants.ENDPOINT, timeout=DOWNLOAD_TIMEOUT)
            except Exception:
                constants.HF_HUB_OFFLINE = True
        yield
    finally:
        constants.HF_HUB_OFFLINE = before[0]
        socket.setdefaulttimeout(before[1])


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "")[:200]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _nearest(name: str, known: list[str]) -> str:
    """Up to three names; all of them would be a thousand."""
    return nearest(name, difflib.get_close_matches(name, known, 3, 0.3) or known[:10])
