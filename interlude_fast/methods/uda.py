"""UDA (Xie et al., NeurIPS 2020): sharpened predictions for weak views are the targets of strong ones. Training
signal annealing (TSA) leaves out labeled images that are learned better than the run's progress asks for."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from interlude_fast.data.batch import Batch
from interlude_fast.options import Strict

from .base import Losses, Method
from .parts import combine, masked_cross_entropy, pseudo_labels, ramp, wide


class UDAOptions(Strict):
    tau: float = Field(0.8, ge=0, le=1, description="confidence threshold of unlabeled rows")
    temperature: float = Field(0.4, gt=0, description="of targets; 1 as in USB's published runs, which skip it")
    lambda_u: float = Field(1.0, ge=0)
    tsa: Literal["none", "linear", "exp", "log"] = Field("none", description="how TSA's threshold rises to 1")
    tsa_form: Literal["paper", "torchssl"] = Field(
        "paper",
        description="mean over the rows kept, by the label's probability; torchssl: over all, by the largest",
    )

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> UDAOptions:
        if self.tsa == "none":
            self.refuse_unread("without tsa", "tsa_form")
        return self


def tsa_threshold(schedule: str, progress: Tensor, num_classes: int) -> Tensor:
    """eta = h (1 - 1/K) + 1/K of progress in [0, 1]; h: linear, exp or log."""
    h = {
        "linear": progress,
        "exp": (5 * (progress - 1)).exp(),
        "log": 1 - (-5 * progress).exp(),
    }[schedule]
    return h * (1 - 1 / num_classes) + 1 / num_classes


def annealed_cross_entropy(logits: Tensor, labels: Tensor, threshold: Tensor, form: str) -> Tensor:
    """Cross-entropy of logits [B, K] and labels [B] over the rows whose probability is at most the threshold."""
    p, largest, _ = pseudo_labels(logits)
    probability = largest if form == "torchssl" else p.gather(1, labels[:, None])[:, 0]
    kept = (probability <= threshold).to(logits.dtype)
    mean = masked_cross_entropy(logits, labels, kept)
    return mean if form == "torchssl" else mean / kept.mean().clamp(min=1 / len(labels))


class UDA(Method):
    """L_u = mean [max softmax(w) >= tau] CE(s, softmax(w / temperature)), of unlabeled rows' weak logits w,
    without gradient, and strong ones s. The cross-entropy's gradient is that of the paper's KL divergence."""

    Options = UDAOptions
    unlabeled_views = ("weak", "strong")

    def counts(self, weak: Tensor) -> Tensor:
        return pseudo_labels(wide(weak))[1] >= self.options.tau

    def loss(self, logits: Tensor, batch: Batch) -> Losses:
        o = self.options
        labeled, weak, strong = batch.split(wide(logits))
        if o.tsa == "none":
            supervised = F.cross_entropy(labeled, batch.labels)
        else:
            eta = tsa_threshold(o.tsa, ramp(batch.step, self.task.steps), self.num_classes)
            supervised = annealed_cross_entropy(labeled, batch.labels, eta.to(labeled.dtype), o.tsa_form)
        target = (weak.detach() / o.temperature).softmax(-1)
        mask = self.counts(weak).to(strong.dtype)
        unsupervised = masked_cross_entropy(strong, target, mask)
        return combine(supervised, unsupervised, o.lambda_u, mask_rate=mask.mean())
