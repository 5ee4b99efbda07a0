"""Classes of new images, by a trained run's own network and preprocessing."""

from __future__ import annotations

import csv
import io
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from interlude_fast.data.files import image_paths
from interlude_fast.data.images import shown
from interlude_fast.errors import DataError


@dataclass(frozen=True)
class Predictions:
    """probabilities: float32 [N, K] of `paths` [N] (of arrays their numbers); skipped: (path, reason) of images
    that cannot be read."""

    paths: tuple[str, ...]
    probabilities: np.ndarray
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def labels(self) -> list[str]:
        """[N], the most probable class of every image."""
        return [self.classes[k] for k in self.probabilities.argmax(1)]

    def to_csv(self) -> str:
        """A row an image: path, class, its probability, and p_<class> of every class."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["path", "class", "probability", *(f"p_{name}" for name in self.classes)])
        for path, p in zip(self.paths, self.probabilities, strict=True):
            best = int(p.argmax())
            rows.writerow([path, self.classes[best], f"{p[best]:.6f}", *(f"{value:.6f}" for value in p)])
        return text.getvalue()


def find_images(arguments: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the images in them at any depth.

    Raises:
        DataError: a path does not exist or cannot be looked at, or a folder holds no image.
    """
    found: list[Path] = []
    for path in arguments:
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{shown(path)} does not exist") from None
        except OSError as error:
            raise DataError(f"{shown(path)} cannot be read: {error.strerror or error}") from None
        inside = [path / name for name in image_paths(path)] if is_folder else [path]
        if not inside:
            raise DataError(f"{shown(path)} holds no image")
        found += inside
    return found
