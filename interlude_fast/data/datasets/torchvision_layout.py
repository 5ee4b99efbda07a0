"""What the datasets in torchvision's local layouts share: find the files, download, or say what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from interlude_fast.errors import DataError

from . import Dataset, from_arrays

DEFAULT_ROOT = Path("data")


def open_dataset(name: str, dataset: str, root: Path | None, folder: str, wanted: str, **arguments: Any) -> Any:
    """torchvision.datasets.<dataset>(root, **arguments), downloaded only where its files are not all there.

    Args:
        folder, wanted: where the files are looked for under root, and which, for the message.

    Raises:
        DataError: torchvision is not installed, or the files are neither there nor to be downloaded.
    """
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise DataError(f"{name} needs torchvision: pip install 'interlude-fast[vision]' ({error})") from None
    root = root or DEFAULT_ROOT
    made = getattr(datasets, dataset)
    try:
        return made(str(root), **arguments, download=False)
    except Exception:  # whatever a damaged file raises: only torchvision's checksums tell
        try:
            return made(str(root), **arguments, download=True)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{name} wants {wanted} in {root / folder}, and a download failed: {reason}") from None


def load_pair(
    name: str,
    dataset: str,
    root: Path | None,
    *,
    folder: str,
    wanted: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset:
    """A data set whose `train=True` and `train=False` halves hold `data` [N, S, S, C] and `targets`."""
    train, test = (open_dataset(name, dataset, root, folder, wanted, train=part) for part in (True, False))
    pairs = [(np.asarray(half.data), np.asarray(half.targets)) for half in (train, test)]
    return from_arrays(name, pairs[0], pairs[1], train.classes, mean=mean, std=std)
