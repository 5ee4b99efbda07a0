"""The data sets: a file each, and a line each in the table below."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from interlude_fast.errors import unknown

# name -> module with `load(root: Path | None) -> Source`; imported when asked for.
SOURCES: dict[str, str] = {
    "cifar10": "interlude_fast.data.sources.cifar10",
    "digits": "interlude_fast.data.sources.digits",
}


@dataclass(frozen=True)
class Source:
    """A data set in memory.

    Attributes:
        images, test_images: uint8 [N, H, W, C], C = 1 or 3.
        labels, test_labels: int64 [N] in [0, K).
        classes: the K class names.
        mean, std: per channel, of images scaled to [0, 1].
        flip: whether a mirrored image keeps its class.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True

    @property
    def channels(self) -> int:
        return int(self.images.shape[-1])


def load_source(name: str, root: Path | None = None) -> Source:
    """The data set `name`, from `root` or its default place.

    Raises:
        ConfigError: no such data set.
        DataError: its files are missing, incomplete or damaged.
    """
    if name not in SOURCES:
        raise unknown("data set", name, SOURCES)
    return importlib.import_module(SOURCES[name]).load(root)
