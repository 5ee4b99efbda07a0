"""FixMatch (Sohn et al., NeurIPS 2020): confident predictions for weak views are the labels of the strong ones."""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from interlude_fast.data.batch import Batch
from interlude_fast.options import Strict

from .base import Losses, Method
from .parts import combine, masked_cross_entropy, pseudo_labels, wide


class FixMatchOptions(Strict):
    tau: float = Field(0.95, ge=0, le=1, description="confidence threshold of pseudo labels")
    lambda_u: float = Field(1.0, ge=0)
    hard_labels: bool = Field(True, description="false: the target is softmax(weak logits / temperature)")
    temperature: float = Field(0.5, gt=0, description="of soft targets; 1 as USB's code, which never applies it")

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> FixMatchOptions:
        if self.hard_labels:
            self.refuse_unread("with hard_labels", "temperature")
        return self


class FixMatch(Method):
    """L_u = mean [max softmax(w) >= tau] CE(s, target), over the unlabeled rows' weak logits w, without gradient,
    and their strong ones s."""

    Options = FixMatchOptions
    unlabeled_views = ("weak", "strong")

    def counts(self, weak: Tensor) -> Tensor:
        return pseudo_labels(wide(weak))[1] >= self.options.tau

    def loss(self, logits: Tensor, batch: Batch) -> Losses:
        o = self.options
        labeled, weak, strong = batch.split(wide(logits))
        _, _, target = pseudo_labels(weak)
        if not o.hard_labels:
            target = (weak.detach() / o.temperature).softmax(-1)
        mask = self.counts(weak).to(strong.dtype)
        supervised = F.cross_entropy(labeled, batch.labels)
        unsupervised = masked_cross_entropy(strong, target, mask)
        return combine(supervised, unsupervised, o.lambda_u, mask_rate=mask.mean())
