"""The images of step k, as indices into the store."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interlude_fast.errors import DataError
from interlude_fast.ops import sample_rows

from .batch import RowOrder
from .store import Store


@dataclass(frozen=True)
class Sample:
    """slots: store indices [B + B*mu], labeled images first; labels [B]; unlabeled_items [B, mu]."""

    slots: Tensor
    labels: Tensor
    unlabeled_items: Tensor


class Sampler:
    """Stateless: `sample(k)` depends on the seed, the sizes and k alone.

    Raises:
        DataError: mu exceeds the number of unlabeled images.
    """

    def __init__(self, store: Store, order: RowOrder, seed: int) -> None:
        if order.unlabeled_views and order.mu > len(store.unlabeled):
            raise DataError(f"mu = {order.mu}, but there are only {len(store.unlabeled)} unlabeled images")
        self.store, self.order, self.seed = store, order, seed

    def sample(self, step: Tensor) -> Sample:
        """step: one int64 value on the store's device."""
        labeled, unlabeled = sample_rows(
            step,
            seed=self.seed,
            labeled=len(self.store.labeled),
            unlabeled=max(1, len(self.store.unlabeled)),
            batch=self.order.batch,
            mu=self.order.mu if self.order.unlabeled_views else 0,
        )
        slots = torch.cat([self.store.labeled[labeled], self.store.unlabeled[unlabeled].flatten()])
        return Sample(slots, self.store.labels[labeled], unlabeled)
