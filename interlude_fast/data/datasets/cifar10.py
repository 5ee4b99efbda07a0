"""CIFAR-10 from torchvision's local layout (`<root>/cifar-10-batches-py/`), downloaded where a network allows."""

from __future__ import annotations

from interlude_fast.options import RootConfig

from . import Dataset, LoadContext
from .torchvision_layout import load_pair

Options = RootConfig
FOLDER = "cifar-10-batches-py"
FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
WANTED = f"{', '.join(FILES)} (or cifar-10-python.tar.gz beside that folder)"


def load(options: RootConfig, context: LoadContext | None = None) -> Dataset:
    """50,000 training and 10,000 test images, uint8 [N, 32, 32, 3].

    Raises:
        DataError: torchvision is not installed, or the files are neither there nor to be downloaded; the
            message names them and their folder.
    """
    return load_pair(
        "cifar10",
        "CIFAR10",
        options.root,
        folder=FOLDER,
        wanted=WANTED,
        mean=(125.3 / 255, 123.0 / 255, 113.9 / 255),
        std=(63.0 / 255, 62.1 / 255, 66.7 / 255),
    )
