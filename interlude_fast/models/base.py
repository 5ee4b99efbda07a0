"""What a network is: an embedding with a fusion point in it, and a classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from interlude_fast.options import AbsolutePath, Interpolation, Strict

from .fusion import EmbeddingFusion
from .sharding import Shards

if TYPE_CHECKING:
    from .cut import Cut

Norm = Literal["train", "frozen", "folded"]


@dataclass(frozen=True)
class Shape:
    """classes: K. channels, side: of the square images."""

    classes: int
    channels: int = 3
    side: int = 32


@dataclass(frozen=True)
class PretrainedInput:
    """The images that weights were trained on, and that they should go on to see: square, of `size` px, resized by
    `interpolation`; mean, std: per channel, of images scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation
    size: int
    channels: int = 3

    def of_channels(self, channels: int) -> PretrainedInput:
        """The same for images of another number of channels, which have the channels' average."""
        if channels == self.channels:
            return self
        mean, std = ((sum(values) / len(values),) * channels for values in (self.mean, self.std))
        return replace(self, mean=mean, std=std, channels=channels)


class NetworkOptions(Strict):
    """What every network takes."""

    weights: AbsolutePath | None = Field(
        None,
        description="file to start from, of safetensors or torch.save; a classifier of other K is left",
    )
    cut: Annotated[int, Field(ge=0)] | str | None = Field(
        None,
        description="the stage, by name or number, before which the network is frozen; auto: the last third of "
        "the stages is trained; classifier: only that; None: everything",
    )
    norm: Norm = Field(
        "train",
        description="batch norms: train; or keep the statistics that they start with, as layers of their own "
        "(frozen) or folded into the convolutions (the same numbers, and faster)",
    )
    head: Literal["fresh", "probe"] = Field(
        "fresh", description="probe: the classifier starts as the logistic regression of the labeled images"
    )


class Network(nn.Module, ABC):
    """images [N, C, H, W] -> logits [N, K]. Built as `cls(options, shape, fusion)`.

    Class attributes:
        Options: typed options.

    Attributes:
        classifier: where the last layer's parameters are, the prefix of their names.
        fusion: applied to the rows of a batch somewhere inside `embed`.
        embedding_size: D.
        shards: in a job of several processes, what part of a batch this one computes.
        norm_mode: `norm` of NetworkOptions. cut: where the frozen front ends; None: everything is trained.
        kept: whether what enters is the front's activations of images, not images (data/kept.py).
        remarks: lines for the user about how it was built.
    """

    Options: ClassVar[type[NetworkOptions]] = NetworkOptions
    classifier: str = "fc"
    fusion: EmbeddingFusion
    embedding_size: int
    shards: Shards | None = None
    norm_mode: Norm = "train"
    cut: Cut | None = None
    kept: bool = False
    remarks: tuple[str, ...] = ()
    _still: tuple[nn.Module, ...] = ()

    @classmethod
    def weight_file(cls, options: Any) -> Path | None:
        """The file that a fresh network of these options starts from."""
        return options.weights

    @classmethod
    def pretrained_input(cls, options: Any) -> PretrainedInput | None:
        """What the pretrained weights that these options choose want to see; None: what the dataset says."""
        return None

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """images [N, C, H, W] -> embeddings [N, D]."""

    @abstractmethod
    def classify(self, embedding: Tensor) -> Tensor:
        """embeddings [N, D] -> logits [N, K]."""

    @property
    def trunk(self) -> Network:
        """The network itself; of one that is built around another, the inner one, which is cut."""
        return self

    @property
    def rows_apart(self) -> bool:
        """Whether a row's embedding depends on that row alone while the network trains, in one process."""
        return self.norm_mode != "train" and self.fusion.alpha == 0 and self.shards is None

    def embed_rows(self, x: Tensor) -> Tensor:
        """`embed` of the rows of a batch, images or, where they are kept, the front's activations [N, ...]."""
        if self.cut is None:
            return self.embed(x)
        return self.cut.embed(self, x if self.kept else self.cut.activations(self, x))

    def embedding(self, x: Tensor) -> Tensor:
        """`embed_rows` of a batch, which the processes of a job share."""
        embed = self.embed_rows
        return embed(x) if self.shards is None else self.shards.embed(embed, self.fusion, x, self.training)

    def hold_still(self) -> None:
        """Finds the layers that stay in eval mode while the network trains: the front's, and norms that do not
        train. Called when they are known."""
        self._still = tuple(
            module
            for name, module in self.named_modules()
            if (self.norm_mode != "train" and isinstance(module, nn.modules.batchnorm._BatchNorm))
            or (self.cut is not None and self.cut.holds(name))
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        for module in self._still:
            module.training = False
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.embedding(x))

    def layers(self) -> tuple[tuple[str, ...], ...]:
        """Prefixes of parameter names, layer by layer from the input on, for layer-wise learning rates; () where
        there is no such order."""
        return ()

    def fit_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """A weight file's tensors under this network's names and, where there is a rule for it, in its shapes."""
        return weights

    def without_decay(self) -> set[str]:
        """Names of parameters that weight decay spares beside all vectors (biases, norms)."""
        return set()
