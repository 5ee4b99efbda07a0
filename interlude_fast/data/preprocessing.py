"""What a trained network must be shown: kept in the run directory, so that predicting needs no training data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interlude_fast.errors import CheckpointError
from interlude_fast.options import Fit, Interpolation
from interlude_fast.reference.augment import look_up_values

from .augment import normalization_table
from .datasets import Dataset
from .images import Recipe


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input, and what its outputs are called.

    Attributes:
        size, channels, fit, interpolation: see data/images.py; the files of earlier versions, which lack the last
            one, mean bilinear. mean, std: per channel, of images scaled to [0, 1]. classes: the K class names.
    """

    size: int
    channels: int
    fit: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    interpolation: Interpolation = "bilinear"

    @classmethod
    def of(cls, dataset: Dataset) -> Preprocessing:
        d = dataset
        return cls(d.size, d.channels, d.fit, d.mean, d.std, d.classes, d.interpolation)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Raises CheckpointError where `values` are not as_dict()'s."""
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            made = cls(**fields)
            if not len(made.mean) == len(made.std) == made.channels:
                raise ValueError(f"{made.channels} channels")
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"preprocessing.json is damaged: {error}") from None
        return made

    @property
    def recipe(self) -> Recipe:
        """The rule by which a file becomes [size, size, channels]."""
        return Recipe(self.size, self.channels, self.fit, self.interpolation)

    def difference(self, other: Preprocessing) -> str:
        """How the images of another differ from these, in words; classes are not looked at, and statistics may
        differ by rounding. "" where they are the same."""
        for name, was in self.as_dict().items():
            now = getattr(other, name)
            close = name in ("mean", "std") and len(was) == len(now) and np.allclose(was, now, rtol=0, atol=1e-6)
            if name != "classes" and was != now and not close:
                return f"{name} {was}, not {now}"
        return ""

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 [N, S, S, C] -> the network's input, float32 [N, C, S, S], channels-last."""
        return look_up_values(images, normalization_table(self.mean, self.std, torch.float32, images.device))
