"""A test set by itself: images with the names of their classes, from a folder, a table or arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from interlude_fast.errors import DataError, few

from .datasets import TEST, UNLABELED, csv_table, npz
from .files import image_paths
from .images import refuse_unseen, shown


@dataclass(frozen=True)
class LabeledImages:
    """images: files, or uint8 [N, S, S, C]; names: [N], of their classes."""

    images: Sequence[Path] | np.ndarray
    names: Sequence[str]

    def labels(self, classes: Sequence[str]) -> list[int]:
        """[N], the numbers of the names in `classes`; some of those may not occur.

        Raises:
            DataError: a name is none of them.
        """
        own = sorted({*self.names})
        strange = [name for name in own if name not in classes]
        if strange:
            raise DataError(
                f"{len(own)} classes, {len(strange)} of them ({few(strange)}) not among the run's "
                f"{len(classes)} ({few(classes)}); classes are matched by name"
            )
        number = {name: k for k, name in enumerate(classes)}
        return [number[name] for name in self.names]


def labeled_images(path: Path) -> LabeledImages:
    """A folder of class folders, a .csv table (path,label[,split]), or .npz or .npy arrays, as those datasets read
    them. Of a table or arrays with test images these alone count, else every image with a label.

    Raises:
        DataError: there is no such thing, or no image with a label in it.
    """
    if path.is_dir():
        found = _of_folder(path)
    elif path.suffix.lower() in (".npz", ".npy"):
        found = _of_arrays(path)
    elif path.suffix.lower() == ".csv":
        found = _of_table(path)
    elif path.exists():
        raise DataError(f"{shown(path)} is neither a folder of class folders nor a .csv, .npz or .npy file")
    else:
        raise DataError(f"{shown(path)} does not exist")
    if not len(found.names):
        raise DataError(f"{shown(path)} holds no image with a label; a folder holds <class>/<image>")
    return found


def _of_folder(root: Path) -> LabeledImages:
    try:
        folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        refuse_unseen(error)
    pairs = [(folder / name, folder.name) for folder in folders for name in image_paths(folder)]
    return LabeledImages([path for path, _ in pairs], [name for _, name in pairs])


def _of_table(file: Path) -> LabeledImages:
    rows = csv_table.read_rows(file)
    csv_table.check_paths(rows, file.parent, file)
    rows = [row for row in rows if row["label"] and row["split"] != "unlabeled"]
    rows = [row for row in rows if csv_table.SPLITS[row["split"]] == TEST] or rows
    return LabeledImages([file.parent / row["path"] for row in rows], [row["label"] for row in rows])


def _of_arrays(file: Path) -> LabeledImages:
    dataset = npz.load(npz.Options(dataset="npz", root=file))
    chosen = dataset.indices(TEST)
    chosen = chosen if len(chosen) else np.flatnonzero(dataset.labels != UNLABELED)
    return LabeledImages(dataset.images[chosen], [dataset.classes[k] for k in dataset.labels[chosen]])
