"""Which images make up a step: the stateless sampler (docs/equations.md as a function of the step)."""

from __future__ import annotations

import torch
from torch import Tensor

from interlude_fast import reference

from .extension import compiled_for, status

MOST_ITEMS = 2**31


def sample_rows(
    step: Tensor, *, seed: int, labeled: int, unlabeled: int, batch: int, mu: int
) -> tuple[Tensor, Tensor]:
    """The items of one step, as a pure function of (seed, step); equal on every device and in the reference.

    Args:
        step: one int64 value on the device where the items are wanted, 0 <= step < 2^63 / batch.
        seed: any int64.
        labeled: size of the labeled set, 1 to 2^31. It is walked through in one keyed permutation after
            another, cut to the batch.
        unlabeled: size of the unlabeled set, mu to 2^31. Beside each labeled row stand mu distinct items.
        batch: B, labeled rows of the step.
        mu: unlabeled rows per labeled row; 0 for none.

    Returns:
        labeled items [B] and unlabeled items [B, mu], int64, on step's device.

    Raises:
        TypeError: step is not one int64 value.
        ValueError: a size outside the ranges above.
    """
    if step.dtype != torch.int64 or step.numel() != 1:
        raise TypeError(f"step must be one int64 value, got {step.dtype} {list(step.shape)}")
    if batch < 1 or mu < 0:
        raise ValueError(f"batch must be >= 1 and mu >= 0, got {batch} and {mu}")
    if not 1 <= labeled <= MOST_ITEMS:
        raise ValueError(f"labeled must lie in [1, 2^31], got {labeled}")
    if not mu <= unlabeled <= MOST_ITEMS:
        raise ValueError(f"unlabeled must lie in [mu, 2^31], got {unlabeled} with mu = {mu}")
    if compiled_for(step):
        return torch.ops.interlude_fast.sample_rows(step, seed, labeled, unlabeled, batch, mu)
    return reference.sample_rows(step.reshape(()), seed, labeled, unlabeled, batch, mu)


if status().loaded:

    @torch.library.register_fake("interlude_fast::sample_rows")
    def _fake(step: Tensor, seed: int, labeled: int, unlabeled: int, batch: int, mu: int) -> tuple[Tensor, Tensor]:
        return step.new_empty(batch), step.new_empty(batch, mu)
