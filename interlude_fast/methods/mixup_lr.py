"""Mixup-LR (Gyawali, Ghimire, Wang, ICDM 2020): MixMatch's loss and an adversarial Lipschitz penalty.

The penalty is lambda_lr * mean max(KL(p(x) || p(x + r)) / ||r|| - k, 0) over the unlabeled views x. An image's r
points where the KL grows fastest, found by power iteration; its length is drawn from U(eps_min, eps_max).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from interlude_fast.data.batch import Batch

from .base import Losses, TaskInfo
from .mixmatch import MixMatch, MixMatchOptions
from .parts import INNER_GRADIENTS, direction, divergence, frozen_statistics, per_row, unit, wide


class MixupLROptions(MixMatchOptions):
    """`reference`: the released code's power iteration, with xi 10 and images cut to [-1, 1], though they are
    normalized and reach beyond; its direction is not the local one."""

    training_defaults: ClassVar[dict[str, Any]] = {
        "optim": {"name": "adam", "lr": 0.002, "weight_decay": 0.0, "shrink": 0.02, "schedule": "constant"},
        "train": {"mu": 1},
    }

    lambda_u: float = Field(75.0, ge=0)
    ramp: float = Field(1.0, ge=0, description="share of the run in which lambda_u rises from 0, linearly")
    alpha: float = Field(0.75, gt=0, description="of mixup's lambda ~ Beta(alpha, alpha), one for the batch")
    lambda_lr: float = Field(2.0, ge=0)
    k: float = Field(0.0, ge=0, description="Lipschitz ratios up to k cost nothing")
    eps_min: float = Field(0.1, gt=0, description="shortest perturbation, L2 over the normalized image")
    eps_max: float = Field(10.0, gt=0)
    xi: float = Field(0.1, gt=0, description="distance at which power iteration looks")
    iterations: int = Field(2, ge=1, description="of the power iteration")
    clamp: bool = Field(True, description="power iteration stays within the range of pixels")
    reference: bool = False

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> MixupLROptions:
        if self.eps_min > self.eps_max:
            raise ValueError(f"eps_min = {self.eps_min} is above eps_max = {self.eps_max}")
        if self.reference:
            self.refuse_unread("with reference, which has its own", "xi", "clamp")
        return self


def perturbation(d: Tensor, length: Tensor, fallback: Tensor, shortest: float, longest: float) -> Tensor:
    """r = d * length [N, ...] without what is not finite; rows shorter or longer than they may be become
    unit(fallback). length: [N]."""
    r = (d * per_row(length, d)).nan_to_num(0, 0, 0)
    norm, slack = norms(r), 1e-5  # rounding alone replaces nothing
    outside = (norm < shortest * (1 - slack)) | (norm > longest * (1 + slack))
    return torch.where(per_row(outside, r), unit(fallback), r)


def norms(r: Tensor) -> Tensor:
    return torch.linalg.vector_norm(r.flatten(1), dim=1)


def lipschitz_penalty(logits: Tensor, moved: Tensor, r: Tensor, k: float) -> Tensor:
    """Mean of max(KL(p || p') / ||r|| - k, 0) with p of `logits`, f(x), and p' of `moved`, f(x + r)."""
    return (divergence(moved, logits.softmax(-1)) / norms(r) - k).relu().mean()


class MixupLR(MixMatch):
    """Running statistics follow MixMatch's first pass, not those of the penalty (the released code: all seven of a
    step). The penalty is float32 also under autocast."""

    Options = MixupLROptions
    cannot_compile = INNER_GRADIENTS
    lowest: Tensor
    highest: Tensor

    def __init__(self, options: MixupLROptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        ends = ((-1.0,), (1.0,)) if options.reference else (task.lowest, task.highest)
        self.xi, self.clamps = (10.0, True) if options.reference else (options.xi, options.clamp and all(ends))
        for name, end in zip(("lowest", "highest"), ends, strict=True):
            self.register_buffer(name, torch.tensor(end).reshape(-1, 1, 1), persistent=False)

    def forward(self, model: nn.Module, batch: Batch, ema: nn.Module) -> Losses:
        losses = super().forward(model, batch, ema)
        x = wide(batch.images[len(batch.labels) :])
        with frozen_statistics(model), torch.autocast(x.device.type, enabled=False):
            lipschitz = self.penalty(model, x)
        total = losses.total + self.options.lambda_lr * lipschitz
        return Losses(total, {**losses.metrics, "lipschitz": lipschitz.detach()})

    def penalty(self, model: nn.Module, x: Tensor) -> Tensor:
        """lipschitz_penalty at perturbations of x [N, C, H, W] that are drawn here."""
        o, bounds = self.options, (self.lowest, self.highest) if self.clamps else None
        with torch.no_grad():
            logits = model(x)
        d = direction(model, x, logits, torch.rand_like(x) - 0.5, self.xi, o.iterations, bounds)
        length = torch.empty(len(x), dtype=x.dtype, device=x.device).uniform_(o.eps_min, o.eps_max)
        r = perturbation(d, length, torch.rand_like(x) - 0.5, o.eps_min, o.eps_max)
        return lipschitz_penalty(logits, model(x + r), r, o.k)
