"""CIFAR-10 from torchvision's local layout (`<root>/cifar-10-batches-py/`), downloaded where a network allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from interlude_fast.errors import DataError

from . import Source

FOLDER = "cifar-10-batches-py"
FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
DEFAULT_ROOT = Path("data")


def load(root: Path | None = None) -> Source:
    """50,000 training and 10,000 test images, uint8 [N, 32, 32, 3].

    Raises:
        DataError: torchvision is not installed, or the files are neither there nor to be downloaded; the
            message names them and their folder.
    """
    try:
        from torchvision.datasets import CIFAR10
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise DataError(f"cifar10 needs torchvision: pip install 'interlude-fast[vision]' ({error})") from None
    root = root or DEFAULT_ROOT
    download = not _is_complete(CIFAR10, root)
    try:
        train, test = (CIFAR10(str(root), train=part, download=download) for part in (True, False))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"cifar10 wants {', '.join(FILES)} (or cifar-10-python.tar.gz beside that folder) in "
            f"{root / FOLDER}, and a download failed: {reason}"
        ) from None
    return Source(
        name="cifar10",
        images=np.asarray(train.data),
        labels=np.asarray(train.targets, dtype=np.int64),
        test_images=np.asarray(test.data),
        test_labels=np.asarray(test.targets, dtype=np.int64),
        classes=tuple(train.classes),
        mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
        std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
    )


def _is_complete(dataset: type, root: Path) -> bool:
    """Whether every file is there with torchvision's checksum."""
    try:
        dataset(str(root), train=False, download=False)
    except RuntimeError:
        return False
    return True
