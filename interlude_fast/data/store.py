"""The images as they lie in memory: uint8, read by every step, never copied again; and who is labeled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .datasets import Dataset
from .split import Split


@dataclass(frozen=True)
class Store:
    """Images and split.

    Attributes:
        images: uint8 [N, S, S, C], on the device where they fit there, else on the host (memory-mapped).
        labeled: int64 [L], indices of the labeled images; labels: int64 [L], their classes.
        unlabeled: int64 [U], indices of the images seen without labels.
        validation, test: int64, indices. all_labels: int64 [N], -1 where there is none.
        Index and label tensors are on the device.
    """

    images: Tensor
    labeled: Tensor
    labels: Tensor
    unlabeled: Tensor
    validation: Tensor
    test: Tensor
    all_labels: Tensor

    @property
    def device(self) -> torch.device:
        return self.labeled.device

    @property
    def resident(self) -> bool:
        """Whether the images lie where the batches are made."""
        return self.images.device == self.labeled.device

    def indices_to(self, device: torch.device) -> Store:
        """The same store with its index and label tensors on `device`; the images stay where they are."""
        return replace(self, **{name: t.to(device) for name, t in vars(self).items() if name != "images"})

    def take(self, indices: Tensor) -> Tensor:
        """uint8 images [M, S, S, C] of indices [M], on the device."""
        return self.images[indices.to(self.images.device)].to(self.device)

    def batches(self, indices: Tensor, size: int) -> Iterator[Tensor]:
        """The images of `indices` in order, `size` at a time, on the device."""
        return (self.take(part) for part in indices.split(size))


def build_store(dataset: Dataset, split: Split, device: torch.device, on_host: bool = False) -> Store:
    """Puts a dataset's images on the device, or leaves them on the host, and its split on the device."""
    images = torch.from_numpy(dataset.images)
    parts = {name: torch.from_numpy(getattr(split, name)).to(device) for name in vars(split)}
    labels = torch.from_numpy(dataset.labels).to(device)
    return Store(
        images=images if on_host else images.contiguous().to(device),
        labels=labels[parts["labeled"]],
        all_labels=labels,
        **parts,
    )
