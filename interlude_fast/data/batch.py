"""A step's batch, and the one place that decides which row of it holds what.

Every pipeline fills rows in the order that RowOrder gives, and every method reads them by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

View = Literal["weak", "strong", "weak2", "strong2"]
Layout = Literal["interdigitated", "separate"]
# weak2 and strong2 are drawn as weak and strong are, independently of them; odd indices are strong.
VIEWS: tuple[View, ...] = ("weak", "strong", "weak2", "strong2")


@dataclass(frozen=True)
class RowOrder:
    """Rows of a step: B labeled images in `labeled_views`, mu unlabeled ones beside each in `unlabeled_views`.

    layout "interdigitated" (docs/equations.md): for each labeled image i, for each view, its row and then
    its mu unlabeled rows. "separate": role after role, all labeled ones first.
    joined: the labeled views are one part of B * views rows, each with its label.
    """

    batch: int
    mu: int
    labeled_views: tuple[View, ...]
    unlabeled_views: tuple[View, ...]
    layout: Layout = "separate"
    joined: bool = False

    def __post_init__(self) -> None:
        if self.layout == "interdigitated" and self.labeled_views != self.unlabeled_views:
            raise ValueError("the interdigitated layout needs the same views of labeled and unlabeled images")

    @cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """(slot, view) of every row, int64 [N]: slot 0..B-1 is a labeled image, B + i*mu + j the j-th unlabeled
        image beside labeled image i; view indexes VIEWS."""
        labeled = torch.arange(self.batch)
        unlabeled = self.batch + torch.arange(self.batch * self.mu).reshape(self.batch, self.mu)
        lv = [VIEWS.index(v) for v in self.labeled_views]
        uv = [VIEWS.index(v) for v in self.unlabeled_views]
        if self.layout == "interdigitated":
            group = torch.cat([labeled[:, None], unlabeled], 1)
            slots = group[:, None, :].expand(-1, len(lv), -1)
            views = torch.tensor(lv)[None, :, None].expand_as(slots)
            return slots.reshape(-1), views.reshape(-1)
        parts = [(labeled, v) for v in lv] + [(unlabeled.flatten(), v) for v in uv]
        slots = torch.cat([slot for slot, _ in parts])
        return slots, torch.cat([torch.full_like(slot, v) for slot, v in parts])

    @cached_property
    def groups(self) -> Tensor:
        """The labeled image of every row or that beside it, int64 [N] in [0, B)."""
        slot, _ = self.rows
        return torch.where(slot < self.batch, slot, (slot - self.batch) // max(1, self.mu))

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows [N, ...] -> [B, ...] for each of labeled_views (of joined ones all, view after view), then
        [B * mu, ...] for each of unlabeled_views, the mu images beside a labeled one after another."""
        b, views = self.batch, len(self.labeled_views)
        if self.joined:
            return rows.split([b * views] + [b * self.mu] * len(self.unlabeled_views))
        if self.layout == "interdigitated":
            groups = rows.unflatten(0, (b, views, 1 + self.mu))
            labeled = [groups[:, v, 0] for v in range(views)]
            return *labeled, *(groups[:, v, 1:].flatten(0, 1) for v in range(views))
        return rows.split([b] * views + [b * self.mu] * len(self.unlabeled_views))

    @property
    def labeled_parts(self) -> int:
        """How often the labels of a step repeat in Batch.labels."""
        return len(self.labeled_views) if self.joined else 1

    @property
    def count(self) -> int:
        return self.batch * (len(self.labeled_views) + self.mu * len(self.unlabeled_views))


@dataclass(frozen=True)
class Batch:
    """One step's input.

    Attributes:
        images: [N, C, H, W], normalized, rows in `order`; in a job of several processes, and for a method whose
            rows go through the network together, this process' share of them.
        labels: int64 [B]; of joined labeled views [B * views].
        order: what each row is.
        unlabeled_items: int64 [B, mu], positions in the unlabeled set (for methods with per-image state).
        step: int64 scalar on the images' device, counted from 0.
    """

    images: Tensor
    labels: Tensor
    order: RowOrder
    unlabeled_items: Tensor
    step: Tensor

    @property
    def mu(self) -> int:
        return self.order.mu

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """RowOrder.split of images, logits or embeddings."""
        return self.order.split(rows)
