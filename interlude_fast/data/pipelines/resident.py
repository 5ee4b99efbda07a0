"""The default pipeline: the images lie on the device as uint8, and a batch is made there."""

from __future__ import annotations

import torch

from interlude_fast.data.augment import Policy, ViewMaker, normalization_table
from interlude_fast.data.batch import Batch, RowOrder
from interlude_fast.data.sampler import Sampler
from interlude_fast.data.store import Store


class ResidentPipeline:
    """Batches from a store on the device.

    Args:
        policy: how weak and strong views are drawn.
        mean, std: per channel, of images scaled to [0, 1].
        dtype: of the batch's images; they come in channels-last memory format.
    """

    def __init__(
        self,
        store: Store,
        order: RowOrder,
        policy: Policy,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.store = store
        self.order, self.sampler = order, Sampler(store, order, seed)
        device = store.images.device
        self.slot, self.view = (t.to(device) for t in order.rows)
        # Rows that are to share their drawn parameters share this number: a labeled image and its partners.
        group = torch.where(self.slot < order.batch, self.slot, (self.slot - order.batch) // max(1, order.mu))
        self.draw_row = group if policy.paired else self.slot
        table = normalization_table(mean, std, dtype, device)
        self.make_views = ViewMaker(policy, store.images.shape[1], seed, table)

    def batch(self, step: int) -> Batch:
        at = torch.full((), step, dtype=torch.int64, device=self.view.device)  # filled there: no copy to wait for
        sample = self.sampler.sample(at)
        items = sample.slots[self.slot]
        return Batch(
            images=self.make_views(self.store.images, items, self.draw_row, self.view, at),
            labels=sample.labels,
            order=self.order,
            unlabeled_items=sample.unlabeled_items,
        )
