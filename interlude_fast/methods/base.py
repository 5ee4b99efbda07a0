"""What a method is: the views it wants, its state, its options, its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from interlude_fast.config import Strict
from interlude_fast.data.batch import Batch, Layout, View


class Losses(NamedTuple):
    """total: differentiable scalar. metrics: scalars without gradient, by name; they stay on the device."""

    total: Tensor
    metrics: dict[str, Tensor]


class Method(nn.Module, ABC):
    """One training method. State that is carried over steps is registered as buffers, and so is saved,
    restored and moved with the run.

    Class attributes:
        Options: typed options; the defaults are the paper's.
        labeled_views, unlabeled_views: the views of each image that enter the network.

    Attributes:
        options: an instance of Options. num_classes: K.
    """

    Options: ClassVar[type[Strict]] = Strict
    labeled_views: ClassVar[tuple[View, ...]] = ("weak",)
    unlabeled_views: ClassVar[tuple[View, ...]] = ()

    def __init__(self, options: Any, num_classes: int) -> None:
        super().__init__()
        self.options, self.num_classes = options, num_classes

    @property
    def layout(self) -> Layout:
        """Row order of the network's input (data/batch.py)."""
        return "separate"

    @property
    def fusion_alpha(self) -> float:
        """Strength of embedding fusion that the network is built with; 0 for none."""
        return 0.0

    @property
    def fusion_at_eval(self) -> bool:
        """Whether the network fuses in eval mode too."""
        return False

    @abstractmethod
    def loss(self, logits: Tensor, batch: Batch) -> Losses:
        """Losses from the logits [N, K] of the batch's rows, in the batch's order."""

    def forward(self, model: nn.Module, batch: Batch) -> Losses:
        """One forward pass and its losses; methods that need more passes override this."""
        return self.loss(model(batch.images), batch)
