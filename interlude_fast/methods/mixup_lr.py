"""Mixup-LR (Gyawali, Ghimire, Wang, ICDM 2020): MixMatch's loss and an adversarial Lipschitz penalty.

The penalty is lambda_lr * mean max(KL(p(x) || p(x + r)) / ||r|| - k, 0) over the unlabeled views x. An image's r
points where the KL grows fastest, found by power iteration; its length is drawn from U(eps_min, eps_max).
"""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from interlude_fast.config import Strict
from interlude_fast.data.batch import Batch
from interlude_fast.errors import ConfigError

from .base import Losses, Method, Problem
from .parts import (
    combine,
    direction,
    divergence,
    frozen_statistics,
    mix,
    mixed_losses,
    mixup_strength,
    per_row,
    ramp,
    random_permutation,
    sharpen,
    unit,
    wide,
)


class MixupLROptions(Strict):
    """`reference`: the released code's power iteration, with xi 10 and images cut to [-1, 1], though they are
    normalized and reach beyond: its direction is not the local one, and running statistics see x + r too."""

    temperature: float = Field(0.5, gt=0, description="of guessed labels")
    a: float = Field(0.75, gt=0, description="mixup strengths come from Beta(a, a)")
    lambda_u: float = Field(75.0, ge=0)
    ramp: float = Field(1.0, ge=0, le=1, description="share of the run in which lambda_u rises from 0")
    lambda_lr: float = Field(2.0, ge=0)
    k: float = Field(0.0, ge=0, description="Lipschitz ratios up to k cost nothing")
    eps_min: float = Field(0.1, gt=0, description="shortest perturbation, L2 over the normalized image")
    eps_max: float = Field(10.0, gt=0)
    xi: float = Field(0.1, gt=0, description="distance at which power iteration looks")
    iterations: int = Field(2, ge=1)
    clamp: bool = Field(True, description="power iteration stays within the range of pixels")
    reference: bool = False


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


class MixupLR(Method):
    """Passes in train mode: clean unlabeled views (once, without gradient, for guessed labels and penalty), mixed
    images, x + r. Running statistics follow the first two. All but the mixed pass is float32."""

    Options = MixupLROptions
    unlabeled_views = ("weak", "weak2")
    forwards = "apart"
    options: MixupLROptions
    lowest: Tensor
    highest: Tensor

    def __init__(self, options: MixupLROptions, problem: Problem) -> None:
        super().__init__(options, problem)
        if options.eps_min > options.eps_max:
            raise ConfigError(f"method.eps_min = {options.eps_min} is above method.eps_max = {options.eps_max}")
        ends = ((-1.0,), (1.0,)) if options.reference else (problem.lowest, problem.highest)
        self.xi, self.clamps = (10.0, True) if options.reference else (options.xi, options.clamp and all(ends))
        for name, end in zip(("lowest", "highest"), ends, strict=True):
            self.register_buffer(name, torch.tensor(end).reshape(-1, 1, 1), persistent=False)

    def forward(self, model: nn.Module, batch: Batch, ema: nn.Module) -> Losses:
        o, b = self.options, len(batch.labels)
        images = batch.images.to(next(model.parameters()).dtype)  # labeled, then both views of unlabeled ones
        x = images[b:]
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            clean = model(x)
        guess = sharpen(clean.softmax(-1).unflatten(0, (2, -1)).mean(0), o.temperature)
        truth = F.one_hot(batch.labels, self.num_classes).to(guess.dtype)
        strength, order = mixup_strength(o.a, like=x), random_permutation(len(images), like=x)
        strength = torch.maximum(strength, 1 - strength)
        targets = mix(torch.cat([truth, guess, guess]), strength, order)
        on_labels, on_guesses = mixed_losses(wide(model(mix(images, strength, order))), targets, b)
        with torch.autocast(x.device.type, enabled=False):
            lipschitz = self.penalty(model, x, clean)
        weight = o.lambda_u * ramp(batch.step, o.ramp * self.problem.steps)
        losses = combine(on_labels, on_guesses, weight, lipschitz=lipschitz)
        return losses._replace(total=losses.total + o.lambda_lr * lipschitz)

    def penalty(self, model: nn.Module, x: Tensor, logits: Tensor) -> Tensor:
        """lipschitz_penalty at perturbations of x [N, ...] that are drawn here; logits: f(x)."""
        o = self.options
        with frozen_statistics(model):
            bounds = (self.lowest, self.highest) if self.clamps else None
            d = direction(model, x, logits, torch.rand_like(x) - 0.5, self.xi, o.iterations, bounds)
        length = torch.empty(len(x), dtype=x.dtype, device=x.device).uniform_(o.eps_min, o.eps_max)
        r = perturbation(d, length, torch.rand_like(x) - 0.5, o.eps_min, o.eps_max)
        with contextlib.nullcontext() if o.reference else frozen_statistics(model):
            return lipschitz_penalty(logits, model(x + r), r, o.k)
