"""FreeMatch (Wang et al., ICLR 2023): a self-adaptive threshold and self-adaptive fairness."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from interlude_fast.data.batch import Batch
from interlude_fast.options import Strict

from .base import Losses, Method, TaskInfo
from .parts import combine, masked_cross_entropy, normalized, pseudo_labels, update_average, wide


class FreeMatchOptions(Strict):
    lambda_u: float = Field(1.0, ge=0)
    lambda_f: float = Field(0.01, ge=0, description="weight of fairness; USB's configurations: 0.001")
    momentum: float = Field(0.999, ge=0, lt=1, description="of the running confidence and class shares")
    use_quantile: bool = Field(False, description="the 0.8-quantile of the confidences instead of their mean")
    clip: float = Field(1.0, ge=0, le=1, description="upper bound of the global threshold; USB's SVHN runs: 0.95")
    lowest: float = Field(0.0, ge=0, le=1, description="lower bound of every threshold; TorchSSL's SVHN runs: 0.9")
    highest: float = Field(1.0, ge=0, le=1, description="upper bound of every threshold; TorchSSL's SVHN: 0.95")

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> FreeMatchOptions:
        if self.lowest > self.highest:
            raise ValueError(f"lowest = {self.lowest} is above highest = {self.highest}")
        return self


class SelfAdaptiveThreshold(nn.Module):
    """Running means, at first 1 / K: of the confidence (scalar), of the predictions (mean [K]) and of the
    histogram of their largest classes (histogram [K])."""

    confidence: Tensor
    mean: Tensor
    histogram: Tensor

    def __init__(
        self, classes: int, momentum: float = 0.999, use_quantile: bool = False, clip: float = 1.0
    ) -> None:
        super().__init__()
        self.momentum, self.use_quantile, self.clip = momentum, use_quantile, clip
        self.register_buffer("confidence", torch.tensor(1 / classes))
        self.register_buffer("mean", torch.full((classes,), 1 / classes))
        self.register_buffer("histogram", torch.full((classes,), 1 / classes))

    @torch.no_grad()
    def update(self, q: Tensor, confidence: Tensor, target: Tensor) -> None:
        """Take in predictions q [N, K], their largest value [N] and where it is, int64 [N]; before forward."""
        now = confidence.quantile(0.8) if self.use_quantile else confidence.mean()
        update_average(self.confidence, now, self.momentum)
        self.confidence.clamp_(max=self.clip)
        update_average(self.mean, q.mean(0), self.momentum)
        update_average(self.histogram, F.one_hot(target, q.shape[1]).to(q.dtype).mean(0), self.momentum)

    def forward(self, target: Tensor) -> Tensor:
        """Threshold [N] of rows predicted as target, int64 [N]: confidence * mean_target / max mean."""
        return (self.confidence * self.mean / self.mean.max())[target]


def fairness(logits: Tensor, mask: Tensor, threshold: SelfAdaptiveThreshold, eps: float) -> Tensor:
    """sum_k P_k log(Q_k + eps), to be minimized and possibly negative; 0 where no row is selected. With 1/0 = 0,
    P = normalize(mean / histogram) of the threshold, Q = normalize(mean softmax(z) / hist(argmax z)) of the
    selected rows of logits z [N, K], those of mask [N] 1. Gradient through the mean in Q only."""
    p, mask = logits.softmax(-1), mask.to(logits.dtype)
    count, one_hot = mask.sum(), F.one_hot(logits.argmax(-1), logits.shape[1]).to(p.dtype)
    mean, histogram = ((mask[:, None] * x).sum(0) / count.clamp(min=1) for x in (p, one_hot))
    wanted = normalized(_over(threshold.mean, threshold.histogram)).to(p.dtype)
    found = _over(mean, histogram)
    found = found / torch.where(count > 0, found.sum(), 1)  # a gradient of 0 / 0 would outlast the last line
    return torch.where(count > 0, (wanted * (found + eps).log()).sum(), 0)


def _over(x: Tensor, histogram: Tensor) -> Tensor:
    inverse = 1 / histogram
    return x * torch.where(inverse.isfinite(), inverse, 0)  # infinite below 1e-38 too, where float32 decays to


class FreeMatch(Method):
    Options = FreeMatchOptions
    unlabeled_views = ("weak", "strong")

    def __init__(self, options: FreeMatchOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        o = options
        self.threshold = SelfAdaptiveThreshold(task.num_classes, o.momentum, o.use_quantile, o.clip)

    def counts(self, weak: Tensor) -> Tensor:
        q, confidence, target = pseudo_labels(wide(weak))
        threshold = copy.deepcopy(self.threshold)
        threshold.update(q, confidence, target)  # as loss does, before it asks
        return self._confident(threshold, confidence, target)

    def _confident(self, threshold: SelfAdaptiveThreshold, confidence: Tensor, target: Tensor) -> Tensor:
        return confidence >= threshold(target).clamp(self.options.lowest, self.options.highest)

    def loss(self, logits: Tensor, batch: Batch) -> Losses:
        o = self.options
        labeled, weak, strong = batch.split(wide(logits))
        q, confidence, target = pseudo_labels(weak)
        self.threshold.update(q, confidence, target)
        mask = self._confident(self.threshold, confidence, target).to(strong.dtype)
        fair = fairness(strong, mask, self.threshold, eps=1e-12)
        supervised = F.cross_entropy(labeled, batch.labels)
        unsupervised = masked_cross_entropy(strong, target, mask)
        rates = {"loss_fairness": fair, "mask_rate": mask.mean()}
        total, metrics = combine(supervised, unsupervised, o.lambda_u, **rates)
        return Losses(total + o.lambda_f * fair, metrics)
