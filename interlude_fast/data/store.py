"""The training images as they lie on the device: uint8, read by every step, never copied again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .sources import Source
from .split import choose_labeled


@dataclass(frozen=True)
class Store:
    """Images and who is labeled.

    Attributes:
        images: uint8 [N, H, W, C] on the device.
        labeled: int64 [L], indices of the labeled images; labels: int64 [L], their classes.
        unlabeled: int64 [U], indices of the images seen without labels.
    """

    images: Tensor
    labeled: Tensor
    labels: Tensor
    unlabeled: Tensor


def build_store(
    source: Source, labels: int, seed: int, unlabeled_includes_labeled: bool, device: torch.device
) -> Store:
    """Puts a source on the device and chooses its labeled images from the seed.

    Raises:
        DataError: the label count does not fit the data set (see choose_labeled).
    """
    all_labels = torch.from_numpy(source.labels)
    labeled = choose_labeled(all_labels, labels, len(source.classes), seed)
    unlabeled = torch.arange(len(all_labels))
    if not unlabeled_includes_labeled:
        keep = torch.ones(len(all_labels), dtype=torch.bool)
        keep[labeled] = False
        unlabeled = unlabeled[keep]
    return Store(
        images=torch.from_numpy(source.images).contiguous().to(device),
        labeled=labeled.to(device),
        labels=all_labels[labeled].to(device),
        unlabeled=unlabeled.to(device),
    )
