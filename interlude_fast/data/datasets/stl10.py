"""STL-10 from torchvision's local layout (`<root>/stl10_binary/`), downloaded where a network allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from interlude_fast.errors import DataError
from interlude_fast.options import RootConfig

from . import TEST, TRAIN, UNLABELED, Dataset, LoadContext, from_parts
from .torchvision_layout import DEFAULT_ROOT, open_dataset

Options = RootConfig
FOLDER = "stl10_binary"
BINARY = (*(f"{part}_{kind}.bin" for part in ("train", "test") for kind in "Xy"), "unlabeled_X.bin")
FILES = (*BINARY, "class_names.txt", "fold_indices.txt")
WANTED = f"{', '.join(FILES)} (or stl10_binary.tar.gz beside that folder)"
SIDE = 96


def load(options: RootConfig, context: LoadContext | None = None) -> Dataset:
    """5,000 training, 100,000 unlabeled and 8,000 test images in this order, uint8 [N, 96, 96, 3]; the ten
    predefined folds of 1,000 training images are `data.split.fold`. The images take 3.1 GB of memory, once.

    Raises:
        DataError: torchvision is not installed, or the files are neither there nor to be downloaded, or the
            lists of classes or folds are damaged; the message names them and their folder.
    """
    # This checks the checksums of all binary files, and reads only the test images.
    test = open_dataset("stl10", "STL10", options.root, folder=FOLDER, wanted=WANTED, split="test")
    folder = (options.root or DEFAULT_ROOT) / FOLDER
    train, unlabeled = _images(folder / "train_X.bin"), _images(folder / "unlabeled_X.bin")
    labels = np.fromfile(folder / "train_y.bin", dtype=np.uint8).astype(np.int64) - 1  # they count from 1
    return from_parts(
        "stl10",
        [
            (TRAIN, train, labels),
            (TRAIN, unlabeled, np.full(len(unlabeled), UNLABELED)),
            (TEST, test.data.transpose(0, 2, 3, 1), test.labels),
        ],
        _lines(folder / "class_names.txt"),
        mean=(112.4 / 255, 109.1 / 255, 98.6 / 255),
        std=(68.4 / 255, 66.6 / 255, 68.5 / 255),
        folds=_folds(folder / "fold_indices.txt", len(labels)),
    )


def _images(file: Path) -> np.ndarray:
    """uint8 [N, row, column, channel], a view of the file, which holds [N, channel, column, row]."""
    return np.memmap(file, dtype=np.uint8, mode="r").reshape(-1, 3, SIDE, SIDE).transpose(0, 3, 2, 1)


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text().split("\n")
    except (OSError, ValueError):
        raise DataError(f"stl10 wants {file.name} in {file.parent}") from None
    if len(lines := [line for line in lines if line.strip()]) != 10:
        raise DataError(f"stl10: {file} has {len(lines)} lines instead of 10; copy it again")
    return lines


def _folds(file: Path, count: int) -> tuple[np.ndarray, ...]:
    """Ten lines of indices of training images, counted from 0."""
    lines = _lines(file)
    try:
        folds = tuple(np.array(line.split(), dtype=np.int64) for line in lines)
    except ValueError:
        raise DataError(f"stl10: {file} holds more than numbers; copy it again") from None
    if any(fold.min() < 0 or fold.max() >= count for fold in folds):
        raise DataError(f"stl10: {file} names images beyond the {count} training images; copy it again")
    return folds
