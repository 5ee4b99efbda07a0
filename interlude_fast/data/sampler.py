"""What the rows of step k are: which image each shows, in which view, and what its random draws are keyed by."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from interlude_fast.errors import ConfigError, DataError
from interlude_fast.ops import sample_rows

from .batch import Batch, RowOrder
from .store import Store


@dataclass(frozen=True)
class Plan:
    """A step's rows, all that a pipeline needs to make them; tensors on the store's device.

    Attributes:
        step: int64 scalar.
        items: int64 [N], store indices. keys: int64 [N], of the draws. views: int64 [N], 0 weak or 1 strong.
        labels: int64 [B]. unlabeled_items: int64 [B, mu], positions in the unlabeled set.
    """

    order: RowOrder
    step: Tensor
    items: Tensor
    keys: Tensor
    views: Tensor
    labels: Tensor
    unlabeled_items: Tensor

    def batch(self, images: Tensor) -> Batch:
        """The batch whose rows are `images`."""
        return Batch(images, self.labels, self.order, self.unlabeled_items, self.step)


class Sampler:
    """Stateless: `plan(k)` depends on the seed, the sizes and k alone.

    Args:
        order: of the rows of one rank; all `world` ranks together make a step of world * order.batch labeled
            images, and every image's draws are the same for any number of ranks.
        paired: whether a labeled image and the unlabeled ones beside it share their draws.

    Raises:
        DataError: mu exceeds the number of unlabeled images.
        ConfigError: a rank outside the world.
    """

    def __init__(
        self, store: Store, order: RowOrder, seed: int, *, paired: bool = False, rank: int = 0, world: int = 1
    ) -> None:
        if order.unlabeled_views and order.mu > len(store.unlabeled):
            raise DataError(f"mu = {order.mu}, but there are only {len(store.unlabeled)} unlabeled images")
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} of {world}")
        self.store, self.order, self.seed, self.world = store, order, seed, world
        self.first = rank * order.batch
        self.slots, views = (t.to(store.device) for t in order.rows)
        self.views = views % 2
        groups = order.groups.to(store.device)
        # A key is a slot of the whole step: labeled images first, then mu unlabeled ones beside each. The draws of
        # second views have the keys that follow.
        labeled_key = groups + self.first
        unlabeled_key = self.slots - order.batch + order.batch * world + self.first * order.mu
        keys = labeled_key if paired else torch.where(self.slots < order.batch, labeled_key, unlabeled_key)
        self.keys = keys + views // 2 * (order.batch * world * (1 + order.mu))

    def on(self, device: torch.device) -> Sampler:
        """One whose plans hold the same integers, made on `device`."""
        other = copy(self)
        other.store = self.store.indices_to(device)
        other.slots, other.views, other.keys = (t.to(device) for t in (self.slots, self.views, self.keys))
        return other

    def plan(self, step: int | Tensor) -> Plan:
        """The rows of a step, counted from 0: a number, or an int64 scalar on the store's device, which the host
        then does not know."""
        order, mine = self.order, slice(self.first, self.first + self.order.batch)
        # Filled on the device: no copy to wait for.
        device = self.store.device
        at = step if isinstance(step, Tensor) else torch.full((), step, dtype=torch.int64, device=device)
        labeled, unlabeled = sample_rows(
            at,
            seed=self.seed,
            labeled=len(self.store.labeled),
            unlabeled=max(1, len(self.store.unlabeled)),
            batch=order.batch * self.world,
            mu=order.mu if order.unlabeled_views else 0,
        )
        labeled, unlabeled = labeled[mine], unlabeled[mine]
        slots = torch.cat([self.store.labeled[labeled], self.store.unlabeled[unlabeled].flatten()])
        return Plan(order, at, slots[self.slots], self.keys, self.views, self.store.labels[labeled], unlabeled)
