"""FlexMatch (Zhang et al., NeurIPS 2021): FixMatch with thresholds tau * mapping(a_c) by class.

a_c: the images last predicted confidently as c, over the most of any class. As published, an image keeps its
last confident prediction until it gets another; the paper's formula would count anew in every step.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from interlude_fast.data.batch import Batch
from interlude_fast.options import Strict

from .base import Losses, Method, TaskInfo
from .parts import combine, masked_cross_entropy, pseudo_labels, wide


class FlexMatchOptions(Strict):
    tau: float = Field(0.95, ge=0, le=1, description="threshold of the class that is learned best")
    lambda_u: float = Field(1.0, ge=0)
    thresh_warmup: bool = Field(True, description="images never confident yet count as a class in a's divisor")
    mapping: Literal["convex", "linear", "concave"] = Field("convex", description="a/(2-a), a, or ln(1+a)/ln 2")


class FlexThreshold(nn.Module):
    """Buffers: labels int64 [N_u], the last confident prediction of every unlabeled image or -1; counts int64
    [1 + K], images without one and of each class; learned [K], the a_c."""

    labels: Tensor
    counts: Tensor
    learned: Tensor

    def __init__(self, num_classes: int, unlabeled: int, options: FlexMatchOptions) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("labels", torch.full((unlabeled,), -1))
        self.register_buffer("counts", torch.tensor([unlabeled] + [0] * num_classes))
        self.register_buffer("learned", torch.zeros(num_classes))

    def forward(self, target: Tensor) -> Tensor:
        """Threshold [N] of rows predicted as target, int64 [N]."""
        a = self.learned[target]
        mapped = {"convex": a / (2 - a), "linear": a, "concave": a.log1p() / math.log(2)}
        return self.options.tau * mapped[self.options.mapping]

    @torch.no_grad()
    def update(self, confidence: Tensor, target: Tensor, items: Tensor) -> None:
        """Take in predictions [N] of the unlabeled images at `items`, int64 [N]; of an image that occurs twice,
        the last confident row counts."""
        rows = torch.arange(len(items), device=items.device)
        claims = torch.where(confidence >= self.options.tau, rows, -1)
        last = torch.full_like(self.labels, -1).scatter_reduce(0, items, claims, "amax")[items]  # -1: none
        before, wins = self.labels[items], (last == rows).long()
        self.counts.scatter_add_(0, before + 1, -wins).scatter_add_(0, target + 1, wins)
        # All rows of an image write the same value, so their order is of no account.
        self.labels.scatter_(0, items, torch.where(last >= 0, target[last.clamp(min=0)], before))
        most = self.counts.max()
        divisor = (most if self.options.thresh_warmup else self.counts[1:].max()).clamp(min=1)
        a = self.counts[1:].to(self.learned.dtype) / divisor
        self.learned.copy_(torch.where(most < len(self.labels), a, self.learned))


class FlexMatch(Method):
    Options = FlexMatchOptions
    unlabeled_views = ("weak", "strong")

    def __init__(self, options: FlexMatchOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.threshold = FlexThreshold(task.num_classes, task.unlabeled, options)

    def counts(self, weak: Tensor) -> Tensor:
        _, confidence, target = pseudo_labels(wide(weak))
        return confidence >= self.threshold(target)

    def loss(self, logits: Tensor, batch: Batch) -> Losses:
        labeled, weak, strong = batch.split(wide(logits))
        _, confidence, target = pseudo_labels(weak)
        mask = self.counts(weak).to(strong.dtype)
        self.threshold.update(confidence, target, batch.unlabeled_items.flatten())
        supervised = F.cross_entropy(labeled, batch.labels)
        unsupervised = masked_cross_entropy(strong, target, mask)
        return combine(supervised, unsupervised, self.options.lambda_u, mask_rate=mask.mean())
