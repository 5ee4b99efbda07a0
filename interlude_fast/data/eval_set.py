"""Held-out images: what a trained network is evaluated on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .datasets import Dataset
from .kept import KeptViews
from .split import Split

HELD_OUT = ("test", "validation")


@dataclass(frozen=True)
class EvalSet:
    """Images with their classes, in the order of the dataset. They stay where they lie until a batch of them is
    asked for.

    Attributes:
        images: uint8 [N, S, S, C], all of a dataset's, on the host (perhaps memory-mapped) or on the device.
        indices: int64 [n], n > 0, of those in the set, beside the images. labels: int64 [n], on the device.
    """

    images: Tensor
    indices: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, size: int) -> Iterator[Tensor]:
        """uint8 [<= size, S, S, C] on the device, in the order of `labels`."""
        return (self.images[part].to(self.labels.device) for part in self.indices.split(size))

    def inputs(self, size: int, normalize: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """What a network is given of them, `size` at a time; normalize: uint8 [n, S, S, C] -> [n, C, S, S]."""
        return map(normalize, self.batches(size))


@dataclass(frozen=True)
class KeptEvalSet(EvalSet):
    """Images whose activations behind a frozen front are kept: networks are given these."""

    kept: KeptViews

    def inputs(self, size: int, normalize: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        return (self.kept.plain(part) for part in self.indices.split(size))


def held_out_sets(
    dataset: Dataset,
    split: Split,
    device: torch.device,
    images: Tensor | None = None,
    kept: KeptViews | None = None,
) -> dict[str, EvalSet]:
    """The "test" and the "validation" images of a split; a part without images is left out.

    Args:
        images: the dataset's images where they are on a device already; None: on the host.
        kept: what a frozen front makes of them; None: networks are given the images themselves.
    """
    images = torch.from_numpy(dataset.images) if images is None else images
    labels, found = torch.from_numpy(dataset.labels), {}
    for part in HELD_OUT:
        indices = torch.from_numpy(getattr(split, part))
        if len(indices):
            fields = (images, indices.to(images.device), labels[indices].to(device))
            found[part] = EvalSet(*fields) if kept is None else KeptEvalSet(*fields, kept)
    return found
