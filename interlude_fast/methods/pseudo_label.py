"""Pseudo-Label (Lee, ICML workshop 2013): a confident prediction is its own image's label. As TorchSSL and USB run
it: one weak view, a fixed threshold, a weight that rises over the first part of the run."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import nn

from interlude_fast.data.batch import Batch
from interlude_fast.options import Strict

from .base import Losses, Method
from .parts import combine, frozen_statistics, masked_cross_entropy, pseudo_labels, ramp, wide


class PseudoLabelOptions(Strict):
    training_defaults: ClassVar[dict[str, Any]] = {"train": {"mu": 1}}

    tau: float = Field(0.95, ge=0, le=1, description="confidence threshold of pseudo labels")
    lambda_u: float = Field(1.0, ge=0)
    ramp: float = Field(0.4, ge=0, description="share of the run in which lambda_u rises from 0, linearly")


class PseudoLabel(Method):
    """L_u = mean [max softmax(u) >= tau] CE(u, argmax u) of unlabeled rows' logits u; the label has no gradient.
    These rows go through the network by themselves and leave its running statistics alone."""

    Options = PseudoLabelOptions
    unlabeled_views = ("weak",)
    forwards = "apart"

    def forward(self, model: nn.Module, batch: Batch, ema: nn.Module) -> Losses:
        o = self.options
        labeled_images, images = batch.split(batch.images)
        labeled = wide(model(labeled_images))
        with frozen_statistics(model):
            unlabeled = wide(model(images))
        _, confidence, target = pseudo_labels(unlabeled)
        mask = (confidence >= o.tau).to(unlabeled.dtype)
        supervised = F.cross_entropy(labeled, batch.labels)
        unsupervised = masked_cross_entropy(unlabeled, target, mask)
        weight = o.lambda_u * ramp(batch.step, o.ramp * self.task.steps)
        return combine(supervised, unsupervised, weight, mask_rate=mask.mean())
