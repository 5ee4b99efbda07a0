"""SoftMatch (Chen et al., ICLR 2023): pseudo labels weighed by a truncated Gaussian of their confidence."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from interlude_fast.data.batch import Batch
from interlude_fast.options import Strict

from .base import Losses, Method, TaskInfo
from .parts import (
    combine,
    masked_cross_entropy,
    normalized,
    pseudo_labels,
    start_or_update_average,
    update_average,
    wide,
)


class SoftMatchOptions(Strict):
    lambda_u: float = Field(1.0, ge=0)
    momentum: float = Field(0.999, ge=0, lt=1, description="of the running statistics")
    n_sigma: float = Field(2.0, gt=0, description="how much narrower the weight is than the confidences spread")
    form: Literal["torchssl", "usb"] = Field(
        "torchssl", description="order of statistics; torchssl's is the paper's"
    )
    target: Literal["uniform", "labeled"] | None = Field(
        None, description="what predictions are aligned with; None: labeled in torchssl, uniform in usb"
    )


class SoftWeight(nn.Module):
    """exp(-min(c - mean, 0)^2 n_sigma^2 / (2 variance)) of the confidence c = max normalize(q * wanted / seen).

    `seen` is the running mean prediction, `wanted` uniform or that of labeled images (options.target); mean and
    variance are of confidences before alignment (torchssl) or after it (usb). usb adds 1e-6 to both, and its
    `seen`, 0 until then, begins with the first batch; other buffers begin at 1 / K, the variance at 1.
    """

    mean: Tensor
    variance: Tensor
    wanted: Tensor
    seen: Tensor

    def __init__(self, num_classes: int, options: SoftMatchOptions) -> None:
        super().__init__()
        self.options, self.usb = options, options.form == "usb"
        self.follows_labeled = (options.target or ("uniform" if self.usb else "labeled")) == "labeled"
        uniform = torch.full((num_classes,), 1 / num_classes)
        self.register_buffer("mean", uniform[0].clone())
        self.register_buffer("variance", torch.tensor(1.0))
        self.register_buffer("wanted", uniform)
        self.register_buffer("seen", torch.zeros_like(uniform) if self.usb else uniform.clone())

    @torch.no_grad()
    def forward(self, q: Tensor, labeled: Tensor) -> Tensor:
        """Take in predictions q [N, K] and those for labeled images [B, K]; weights [N] in [0, 1] of q's rows."""
        momentum = self.options.momentum
        if self.follows_labeled:
            update_average(self.wanted, labeled.mean(0), momentum)
        start_or_update_average(self.seen, q.mean(0), momentum)
        aligned = self.align(q).amax(-1)
        confidence = aligned if self.usb else q.amax(-1)
        update_average(self.mean, confidence.mean(), momentum)
        update_average(self.variance, confidence.var(correction=min(1, len(q) - 1)), momentum)
        below = (aligned - self.mean).clamp(max=0)
        variance = self.variance.clamp(min=torch.finfo(self.variance.dtype).tiny)
        return (-(below**2) * self.options.n_sigma**2 / (2 * variance)).exp().to(q.dtype)

    def align(self, q: Tensor) -> Tensor:
        eps = 1e-6 if self.usb else 0.0
        return normalized(q * ((self.wanted + eps) / (self.seen + eps)).to(q.dtype))


class SoftMatch(Method):
    Options = SoftMatchOptions
    unlabeled_views = ("weak", "strong")

    def __init__(self, options: SoftMatchOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.weight = SoftWeight(task.num_classes, options)

    def loss(self, logits: Tensor, batch: Batch) -> Losses:
        labeled, weak, strong = batch.split(wide(logits))
        q, _, target = pseudo_labels(weak)
        weight = self.weight(q, labeled.detach().softmax(-1))
        supervised = F.cross_entropy(labeled, batch.labels)
        unsupervised = masked_cross_entropy(strong, target, weight)
        return combine(supervised, unsupervised, self.options.lambda_u, mask_rate=weight.mean())
