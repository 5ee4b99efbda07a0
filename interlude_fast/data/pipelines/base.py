"""What a pipeline is, and what it is built of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from interlude_fast.data.augment import Policy, ViewMaker, normalization_table
from interlude_fast.data.batch import Batch
from interlude_fast.data.datasets import Dataset
from interlude_fast.data.decode import cores
from interlude_fast.data.kept import KeptViews
from interlude_fast.data.sampler import Sampler


class Pipeline(Protocol):
    """What the loop knows of a pipeline. The batch of a step does not depend on the steps before it.

    Attributes:
        recordable: whether `batch` takes the step as an int64 scalar on the device too, and only launches kernels,
            so that a CUDA graph can hold it.
    """

    sampler: Sampler
    recordable: bool

    def batch(self, step: int) -> Batch: ...

    def close(self) -> None:
        """Ends threads and processes; a batch asked for later starts them anew."""


@dataclass(frozen=True)
class Ingredients:
    """What a pipeline is built of.

    Attributes:
        policy: how views are drawn. dtype: of the batch's images.
        workers: processes or threads; None: as many as there are cores.
        kept: views that a frozen front has seen already; None where there are none.
    """

    dataset: Dataset
    sampler: Sampler
    policy: Policy
    seed: int
    dtype: torch.dtype = torch.float32
    workers: int | None = None
    kept: KeptViews | None = None

    @property
    def worker_count(self) -> int:
        return cores() if self.workers is None else self.workers

    def view_maker(self, table: torch.Tensor | None = None) -> ViewMaker:
        """The fused op set up for this policy; `table` as for augment_views, None: normalization."""
        if table is None:
            device = self.sampler.store.device
            table = normalization_table(self.dataset.mean, self.dataset.std, self.dtype, device)
        return ViewMaker(self.policy, self.dataset.size, self.seed, table)
