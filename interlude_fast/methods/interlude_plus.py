"""InterLUDE+ (Huang, Yu, Zhu, Hughes, ICML 2024): FreeMatch's adaptive thresholds and fairness in InterLUDE."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from interlude_fast.data.batch import Batch

from .base import Losses, TaskInfo
from .freematch import SelfAdaptiveThreshold, fairness
from .interaction import Interaction, InteractionOptions
from .parts import pseudo_labels, wide


class InterludePlusOptions(InteractionOptions):
    lambda_f: float = Field(0.05, ge=0, description="weight of fairness")
    threshold_momentum: float = Field(0.999, ge=0, lt=1, description="of the running confidence and shares")


class InterludePlus(Interaction):
    Options = InterludePlusOptions
    options: InterludePlusOptions

    def __init__(self, options: InterludePlusOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.threshold = SelfAdaptiveThreshold(task.num_classes, options.threshold_momentum)

    def loss(self, logits: Tensor, batch: Batch) -> Losses:
        _, _, weak, strong = batch.split(wide(logits))
        self.threshold.update(*pseudo_labels(weak))
        classes = torch.arange(self.num_classes, device=logits.device)
        parts = self.head(logits, batch, self.threshold(classes))
        learned = parts.targets.flatten() >= 0  # the head's own decision: a second softmax might round otherwise
        fair = fairness(strong, learned, self.threshold, eps=1e-9)
        return self.losses(parts, self.options.lambda_f * fair, loss_fairness=fair.detach())
