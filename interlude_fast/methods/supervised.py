"""Supervised only: cross-entropy on the weak views of the labeled images. The baseline of every other method."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from interlude_fast.config import Strict
from interlude_fast.data.batch import Batch

from .base import Losses, Method, Problem
from .parts import class_weight_tensor, wide


class SupervisedOptions(Strict):
    class_weights: list[float] | None = None


class Supervised(Method):
    Options = SupervisedOptions
    options: SupervisedOptions
    class_weights: Tensor | None

    def __init__(self, options: SupervisedOptions, problem: Problem) -> None:
        super().__init__(options, problem)
        self.register_buffer("class_weights", class_weight_tensor(options.class_weights, problem.num_classes))

    def loss(self, logits: Tensor, batch: Batch) -> Losses:
        logits = wide(logits)
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        total = F.cross_entropy(logits, batch.labels, weight=weights)
        return Losses(total, {"loss_labeled": total.detach()})
