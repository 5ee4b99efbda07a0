"""Supervised only: cross-entropy on the weak views of the labeled images. The baseline of every other method."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from interlude_fast.data.batch import Batch
from interlude_fast.options import Strict

from .base import Losses, Method, TaskInfo
from .parts import check_per_class, class_weight_tensor, wide


class SupervisedOptions(Strict):
    class_weights: list[PositiveFloat] | None = None


class Supervised(Method):
    Options = SupervisedOptions
    options: SupervisedOptions
    class_weights: Tensor | None

    def __init__(self, options: SupervisedOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.register_buffer("class_weights", class_weight_tensor(options.class_weights, task.num_classes))

    @classmethod
    def check_classes(cls, options: SupervisedOptions, num_classes: int) -> None:
        check_per_class("class_weights", options.class_weights, num_classes)

    def loss(self, logits: Tensor, batch: Batch) -> Losses:
        logits = wide(logits)
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        total = F.cross_entropy(logits, batch.labels, weight=weights)
        return Losses(total, {"loss_labeled": total.detach()})
