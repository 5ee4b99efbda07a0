"""Rows of activations in place of rows of pixels: views that a frozen front has seen once (data/kept.py).

Which of its kept views an image shows in row r of step k is drawn from (seed, k, r). The second views of a kind
that some methods want are other ones of the image's views, where there are two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interlude_fast.data.batch import Batch
from interlude_fast.data.kept import KeptViews
from interlude_fast.data.sampler import Plan, Sampler
from interlude_fast.errors import ConfigError
from interlude_fast.reference.sampling import KEPT, draw

from .base import Ingredients


class KeptPipeline:
    """Batches whose images are activations [N, *shape] of the frozen front."""

    recordable = False

    def __init__(self, sampler: Sampler, kept: KeptViews, seed: int, dtype: torch.dtype) -> None:
        self.sampler, self.kept, self.seed, self.dtype = sampler, kept, seed, dtype
        slots_of_a_step = sampler.order.batch * (1 + sampler.order.mu)
        self.second = sampler.kinds // 2
        self.keys = sampler.keys - self.second * slots_of_a_step  # the same for both views of a kind
        self.counts = torch.where(sampler.views == 1, max(1, kept.plan.strong), kept.plan.weak)
        self.rows_of = [(sampler.views == kind).nonzero().flatten() for kind in (0, 1)]

    def batch(self, step: int) -> Batch:
        plan, kept = self.sampler.plan(step), self.kept
        numbers = self.numbers(plan)
        rows = torch.empty(len(plan.items), *kept.shape, dtype=self.dtype, device=plan.items.device)
        if len(kept.shape) == 3:
            rows = rows.contiguous(memory_format=torch.channels_last)
        for kind, take in enumerate((kept.weak, kept.strong)):
            if len(at := self.rows_of[kind]):
                rows[at] = take(plan.items[at], numbers[at]).to(self.dtype)
        return plan.batch(rows)

    def numbers(self, plan: Plan) -> Tensor:
        """Which of its views of a kind every row shows, int64 [n]."""
        first, further, *_ = draw(self.seed, plan.step, self.keys, KEPT, index=plan.views)
        other = (first + 1 + further % (self.counts - 1).clamp(min=1)) % self.counts
        return torch.where(self.second == 1, other, first % self.counts)

    def close(self) -> None: ...


def build(made_of: Ingredients) -> KeptPipeline:
    """Raises ConfigError where no front is there whose views could be kept."""
    if made_of.kept is None:
        raise ConfigError(
            "pipeline kept wants a network with a frozen front: set model.cut, e.g. --set model.cut=auto"
        )
    return KeptPipeline(made_of.sampler, made_of.kept, made_of.seed, made_of.dtype)
