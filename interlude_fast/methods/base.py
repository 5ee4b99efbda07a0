"""What a method is: the views it wants, its state, its options, its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from interlude_fast.data.batch import Batch, Layout, View
from interlude_fast.models import Network
from interlude_fast.options import Strict


@dataclass(frozen=True)
class TaskInfo:
    """What a method may know of the run that it is part of.

    Attributes:
        num_classes: K. unlabeled: images in the unlabeled set. steps: of the whole run.
        lowest, highest: of the normalized pixels, per channel; none where a method is built by itself.
        learning_rate: of step k = 0..steps-1; None where a method is built by itself.
    """

    num_classes: int
    unlabeled: int = 0
    steps: int = 1
    lowest: tuple[float, ...] = ()
    highest: tuple[float, ...] = ()
    learning_rate: Callable[[int], float] | None = None


class Losses(NamedTuple):
    """total: differentiable scalar. metrics: scalars without gradient, by name; they stay on the device."""

    total: Tensor
    metrics: dict[str, Tensor]


class Method(nn.Module):
    """One training method. State that is carried over steps is registered as buffers, and so is saved,
    restored and moved with the run; parameters to train belong into the network (`adapt`).

    A method may draw from torch's generators: the loop seeds them anew for every step.

    Class attributes:
        Options: typed options; the defaults are the paper's. Its class attribute `training_defaults`, nested
            settings such as {"train": {"mu": 1}}, is what the paper trains with where that is not FixMatch's SGD
            with mu 7 (config.py lays it under every run of the method).
        labeled_views, unlabeled_views: the views of each image that enter the network.
        every_label: trains with the label of every training image, whatever data.labels says.
        fitted: the classifier is fitted to the embeddings of a frozen network; there are no steps.
        cannot_compile: why torch.compile cannot take the forward whole; empty where it can.
        forwards: whether all rows of a batch go through the network "together", or groups of them "apart", the
            smallest of which are the B labeled rows. In a job of several processes batch.images holds this
            process' rows alone in the first case; the network returns all rows' logits in both.

    Attributes:
        options: an instance of Options. task: see TaskInfo. num_classes: K.
    """

    Options: ClassVar[type[Strict]] = Strict
    labeled_views: ClassVar[tuple[View, ...]] = ("weak",)
    unlabeled_views: ClassVar[tuple[View, ...]] = ()
    every_label: ClassVar[bool] = False
    fitted: ClassVar[bool] = False
    forwards: ClassVar[str] = "together"
    cannot_compile: ClassVar[str] = ""

    def __init__(self, options: Any, task: TaskInfo) -> None:
        super().__init__()
        self.options, self.task, self.num_classes = options, task, task.num_classes

    @classmethod
    def fuses(cls, options: Any) -> bool:
        """Whether the network fuses embeddings under these options."""
        return False

    @classmethod
    def check_steps(cls, options: Any, steps: int) -> None:
        """Raises ConfigError where options do not fit a run of so many steps."""

    @classmethod
    def check_classes(cls, options: Any, num_classes: int) -> None:
        """Raises ConfigError where options do not fit the number of classes K. Called before images are read."""

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

    def adapt(self, network: Network) -> Network:
        """The network to train: `network`, or one around it, whose parameters are trained, averaged and saved."""
        return network

    def loss(self, logits: Tensor, batch: Batch) -> Losses:
        """Losses from the logits [N, K] of the batch's rows, in the batch's order; `batch.split` takes them apart.
        A method has this, or a `forward` of its own."""
        raise NotImplementedError(f"{type(self).__name__} has neither loss nor forward")

    def counts(self, weak: Tensor) -> Tensor | None:
        """Which strong rows enter the loss, bool [B * mu], by the logits [B * mu, K] of the unlabeled images' weak
        views; state stays as it is. None: all, or the method does not know before. What is False here must have
        weight 0 in `loss`: such rows may then be left out of the forward pass."""
        return None

    def forward(self, model: nn.Module, batch: Batch, ema: nn.Module) -> Losses:
        """One forward pass and its losses; methods that need more passes override this.

        Args:
            model: the network in train mode. ema: the one of averaged weights, in eval mode, without gradients.
        """
        logits = counting_logits(self, model, batch)
        return self.loss(model(batch.images) if logits is None else logits, batch)


def counting_logits(method: Method, model: nn.Module, batch: Batch) -> Tensor | None:
    """Logits [N, K] of a batch of which only the rows that count are computed with gradients: labeled ones, and
    strong views whose pseudo label enters the loss; other strong rows are 0. None where all rows must go through
    the network together, or where that is faster: on GPUs, whose steps do not wait for values."""
    if torch.compiler.is_compiling():
        return None
    knows = type(method).counts is not Method.counts and batch.order.unlabeled_views == ("weak", "strong")
    knows = knows and batch.order.layout == "separate"
    trunk = model.trunk if isinstance(model, Network) else None
    if not knows or trunk is None or not trunk.rows_apart or batch.images.device.type != "cpu":
        return None
    *labeled, weak, strong = batch.split(batch.images)
    with torch.no_grad():
        weak_logits = model(weak)
    counts = method.counts(weak_logits)
    if counts is None:
        return None
    rows = counts.nonzero().flatten()
    found = model(torch.cat([*labeled, strong[rows]]))
    first = len(found) - len(rows)
    strong_logits = found.new_zeros(len(strong), found.shape[1]).index_copy(0, rows, found[first:])
    return torch.cat([found[:first], weak_logits.to(found.dtype), strong_logits])
