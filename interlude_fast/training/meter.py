"""Means over a logging interval."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from interlude_fast.methods import Losses


class Meter:
    """Sums metrics on the device; the host learns of them at `fetch`."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.names: list[str] = []
        self.steps = 0
        self.data_seconds = 0.0
        self.since = time.perf_counter()

    def add(self, losses: Losses, data_seconds: float) -> None:
        values = {"loss": losses.total.detach(), **losses.metrics}
        stacked = torch.stack([v.float() for v in values.values()])
        self.names, self.total = list(values), stacked if self.total is None else self.total + stacked
        self.steps += 1
        self.data_seconds += data_seconds

    def fetch(self) -> dict[str, float]:
        """Means since the last fetch, with the speed; starts anew."""
        assert self.total is not None
        means = dict(zip(self.names, (self.total / self.steps).tolist(), strict=True))
        seconds = time.perf_counter() - self.since
        speed = {"steps_per_second": self.steps / seconds, "data_wait": self.data_seconds / seconds}
        self.__init__()  # type: ignore[misc]
        return {**means, **speed}
