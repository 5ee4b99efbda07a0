"""MixMatch (Berthelot et al., NeurIPS 2019): guessed, sharpened labels, and mixup of all images of a step."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from interlude_fast.data.batch import Batch
from interlude_fast.options import Strict

from .base import Losses, Method
from .parts import combine, frozen_statistics, mixup_strength, ramp, random_permutation, sharpen, wide


class MixMatchOptions(Strict):
    training_defaults: ClassVar[dict[str, Any]] = {"train": {"mu": 1}}

    lambda_u: float = Field(100.0, ge=0)
    ramp: float = Field(0.4, ge=0, description="share of the run in which lambda_u rises from 0, linearly")
    temperature: float = Field(0.5, gt=0, description="of the sharpening of guessed labels")
    alpha: float = Field(0.5, gt=0, description="of mixup's lambda ~ Beta(alpha, alpha), one for the batch")
    interleave: bool = Field(True, description="labeled rows in every forward pass; false: as USB")


def mixup(x: Tensor, strength: Tensor, permutation: Tensor) -> Tensor:
    """l x + (1 - l) x[permutation], l the larger of strength and 1 - strength; in float32 at least."""
    x = wide(x)
    return torch.lerp(x[permutation], x, torch.maximum(strength, 1 - strength).to(x.dtype))


def interleave(chunks: list[Tensor]) -> list[Tensor]:
    """P chunks of as many rows: chunk i and chunk 0 exchange the i-th of their P parts. Its own inverse."""
    bounds = [len(chunks[0]) * i // len(chunks) for i in range(len(chunks) + 1)]
    parts = [slice(a, b) for a, b in pairwise(bounds)]
    mixed = [torch.cat([chunk[part] for chunk, part in zip(chunks, parts, strict=True)])]
    for chunk, part in zip(chunks[1:], parts[1:], strict=True):
        mixed.append(torch.cat([chunk[: part.start], chunks[0][part], chunk[part.stop :]]))
    return mixed


def target_losses(logits: Tensor, targets: Tensor, labeled: int) -> tuple[Tensor, Tensor]:
    """Of the first `labeled` rows the mean CE, of the others the mean (softmax - target)^2; both [N, K]."""
    unsupervised = F.mse_loss(logits[labeled:].softmax(-1), targets[labeled:])
    return F.cross_entropy(logits[:labeled], targets[:labeled]), unsupervised


class MixMatch(Method):
    """L_s = CE of the B mixed rows that labeled ones lead, L_u = mean over the other rows and classes of
    (softmax - target)^2. Passes hold B rows each, for any mu; running statistics follow the first."""

    Options = MixMatchOptions
    unlabeled_views = ("weak", "weak2")
    forwards = "apart"

    def forward(self, model: nn.Module, batch: Batch, ema: nn.Module) -> Losses:
        strength = mixup_strength(self.options.alpha, like=wide(batch.images))
        return self.mixed_losses(model, batch, strength, random_permutation(len(batch.images), batch.images))

    def mixed_losses(self, model: nn.Module, batch: Batch, strength: Tensor, permutation: Tensor) -> Losses:
        """The losses for given draws: a scalar in [0, 1] and int64 [N]."""
        o, b = self.options, len(batch.labels)
        guess = self.guess(model, batch)
        known = F.one_hot(batch.labels, self.num_classes).to(guess.dtype)
        targets = mixup(torch.cat([known, guess, guess]), strength, permutation)
        chunks = list(mixup(batch.images, strength, permutation).split(b))
        chunks = interleave(chunks) if o.interleave else chunks
        outputs = [model(chunks[0])]
        with frozen_statistics(model):
            outputs += [model(chunk) for chunk in chunks[1:]]
        logits = wide(torch.cat(interleave(outputs) if o.interleave else outputs))
        return combine(*target_losses(logits, targets, b), o.lambda_u * ramp(batch.step, o.ramp * self.task.steps))

    @torch.no_grad()
    def guess(self, model: nn.Module, batch: Batch) -> Tensor:
        """Labels [mu * B, K] of the unlabeled images: the sharpened mean prediction for their two views."""
        _, *views = batch.split(batch.images)
        with frozen_statistics(model):
            p = [wide(model(view)).softmax(-1) for view in views]
        return sharpen(torch.stack(p).mean(0), self.options.temperature)
