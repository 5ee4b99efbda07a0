"""CIFAR-100, its 100 fine classes, from torchvision's local layout (`<root>/cifar-100-python/`), downloaded where
a network allows."""

from __future__ import annotations

from interlude_fast.options import RootConfig

from . import Dataset, LoadContext
from .torchvision_layout import load_pair

Options = RootConfig
FOLDER = "cifar-100-python"
FILES = ("train", "test", "meta")
WANTED = f"{', '.join(FILES)} (or cifar-100-python.tar.gz beside that folder)"


def load(options: RootConfig, context: LoadContext | None = None) -> Dataset:
    """50,000 training and 10,000 test images, uint8 [N, 32, 32, 3].

    Raises:
        DataError: torchvision is not installed, or the files are neither there nor to be downloaded; the
            message names them and their folder.
    """
    return load_pair(
        "cifar100",
        "CIFAR100",
        options.root,
        folder=FOLDER,
        wanted=WANTED,
        mean=(129.3 / 255, 124.1 / 255, 112.4 / 255),
        std=(68.2 / 255, 65.4 / 255, 70.4 / 255),
    )
