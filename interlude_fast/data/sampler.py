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
        items: int64 [n], store indices. keys: int64 [n], of the draws. views: int64 [n], 0 weak or 1 strong; of a
            rank's n rows, or all N.
        labels: as in Batch. unlabeled_items: int64 [B, mu], positions in the unlabeled set; of all rows.
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


def check_unlabeled(unlabeled: int, mu: int) -> None:
    """Raises DataError where there are fewer unlabeled images than a labeled one has beside it."""
    if mu > unlabeled:
        raise DataError(f"mu = {mu}, but there are only {unlabeled} unlabeled images")


class Sampler:
    """Stateless: `plan(k)` depends on the seed, the sizes and k alone.

    Args:
        order: of the rows of a step.
        paired: whether a labeled image and the unlabeled ones beside it share their draws.
        rank, world: a plan's rows are the rank-th of `world` equal shares of the step's, one after another.

    Attributes:
        slots, kinds: of the rows in a plan, as RowOrder.rows gives them. views, keys: as in Plan.

    Raises:
        DataError: mu exceeds the number of unlabeled images.
        ConfigError: a rank outside the world, or rows that cannot be shared equally.
    """

    def __init__(
        self, store: Store, order: RowOrder, seed: int, *, paired: bool = False, rank: int = 0, world: int = 1
    ) -> None:
        check_unlabeled(len(store.unlabeled), order.mu if order.unlabeled_views else 0)
        if not 0 <= rank < world or order.count % world:
            raise ConfigError(f"rank {rank} of {world} has no equal share of {order.count} rows")
        self.store, self.order, self.seed = store, order, seed
        share = order.count // world
        mine = slice(rank * share, (rank + 1) * share)
        self.slots, self.kinds, groups = (t[mine].to(store.device) for t in (*order.rows, order.groups))
        self.views = self.kinds % 2
        # The draws of second views have the keys that follow.
        slots_of_a_step = order.batch * (1 + order.mu)
        self.keys = (groups if paired else self.slots) + self.kinds // 2 * slots_of_a_step

    def on(self, device: torch.device) -> Sampler:
        """One whose plans hold the same integers, made on `device`."""
        other = copy(self)
        other.store = self.store.indices_to(device)
        for name in ("slots", "kinds", "views", "keys"):
            setattr(other, name, getattr(self, name).to(device))
        return other

    def plan(self, step: int | Tensor) -> Plan:
        """The rows of a step, counted from 0: a number, or an int64 scalar on the store's device, which the host
        then does not know."""
        order = self.order
        # Filled on the device: no copy to wait for.
        device = self.store.device
        at = step if isinstance(step, Tensor) else torch.full((), step, dtype=torch.int64, device=device)
        labeled, unlabeled = sample_rows(
            at,
            seed=self.seed,
            labeled=len(self.store.labeled),
            unlabeled=max(1, len(self.store.unlabeled)),
            batch=order.batch,
            mu=order.mu if order.unlabeled_views else 0,
        )
        slots = torch.cat([self.store.labeled[labeled], self.store.unlabeled[unlabeled].flatten()])
        labels = self.store.labels[labeled].repeat(order.labeled_parts)
        return Plan(order, at, slots[self.slots], self.keys, self.views, labels, unlabeled)
