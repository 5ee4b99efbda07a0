"""The data sets: a file each, and a line each in the table below."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from interlude_fast.config import DataConfig, Fit
from interlude_fast.errors import ConfigError, DataError, nearest, unknown

# name -> module with `load(options: DataConfig, progress) -> Dataset` and `USES`, the settings that it reads;
# imported when asked for.
DATASETS: dict[str, str] = {
    "cifar10": "interlude_fast.data.datasets.cifar10",
    "cifar100": "interlude_fast.data.datasets.cifar100",
    "csv": "interlude_fast.data.datasets.csv_table",
    "digits": "interlude_fast.data.datasets.digits",
    "folder": "interlude_fast.data.datasets.folder",
    "npz": "interlude_fast.data.datasets.npz",
    "stl10": "interlude_fast.data.datasets.stl10",
    "svhn": "interlude_fast.data.datasets.svhn",
    "tmed2": "interlude_fast.data.datasets.tmed2",
}

UNLABELED = -1
# What an image is for, as the data set says. "excluded": present and never used.
PARTS = ("train", "validation", "test", "excluded")
TRAIN, VALIDATION, TEST, EXCLUDED = range(4)


@dataclass(frozen=True)
class Files:
    """Where the images of a data set of files come from.

    Attributes:
        root: folder that the paths start from. paths: [N], of every image in order, relative to root.
        hashes: [N], of the files' bytes, 16 hexadecimal digits.
        sizes: int64 [N, 2], width and height before resizing. modes: [N], Pillow's names.
        skipped: (path, reason) of files that are not images or are damaged.
    """

    root: Path
    paths: tuple[str, ...]
    hashes: np.ndarray
    sizes: np.ndarray
    modes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Dataset:
    """All images of a data set, one numbering for everything that refers to them.

    Attributes:
        images: uint8 [N, S, S, C], C = 1 or 3; may be memory-mapped.
        labels: int64 [N] in [0, K), UNLABELED where there is none.
        parts: uint8 [N], TRAIN, VALIDATION, TEST or EXCLUDED.
        classes: the K class names.
        mean, std: per channel, of images scaled to [0, 1].
        flip: whether a mirrored image keeps its class.
        groups: [N] names, of images that belong together (a patient, a video), or None.
        folds: predefined choices of labeled images, indices each.
        files: where the images come from, or None for arrays.
        fit: how images of other shapes become square (data/images.py).
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    parts: np.ndarray
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True
    groups: np.ndarray | None = None
    folds: tuple[np.ndarray, ...] = ()
    files: Files | None = field(default=None, repr=False)
    fit: Fit = "crop"

    @property
    def size(self) -> int:
        return int(self.images.shape[1])

    @property
    def channels(self) -> int:
        return int(self.images.shape[-1])

    def indices(self, part: int) -> np.ndarray:
        """int64, of the images of a part."""
        return np.flatnonzero(self.parts == part)

    @cached_property
    def hashes(self) -> np.ndarray:
        """[N], 16 hexadecimal digits an image: of its file's bytes, or of its pixels where there is no file."""
        if self.files is not None:
            return self.files.hashes
        from interlude_fast.data.duplicates import image_hashes

        return image_hashes(self.images)

    @cached_property
    def hash(self) -> str:
        """Of everything that a split refers to: images in their order, labels, parts and classes; not the size
        that files are resized to."""
        whole = hashlib.sha256()
        for part in (self.hashes, self.labels.astype("<i8"), self.parts):
            whole.update(np.ascontiguousarray(part).data)
        whole.update("\n".join(self.classes).encode("utf-8", "surrogateescape"))
        return whole.hexdigest()

    def check(self) -> Dataset:
        """Itself, where it is consistent.

        Raises:
            DataError: no training image, fewer than two classes, or a class without a training image.
        """
        train = self.labels[self.parts == TRAIN]
        if not len(train):
            raise DataError(f"{self.name} has no training image")
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise DataError(f"{self.name} has the classes {', '.join(self.classes)}: at least two, all different")
        counts = np.bincount(train[train >= 0], minlength=len(self.classes))
        empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        if empty:
            raise DataError(f"{self.name}: class '{empty[0]}' has no training image with a label")
        return self

    def hide_classes(self, names: Sequence[str]) -> Dataset:
        """Open set: the training images of these classes lose their labels, validation and test images of them
        are excluded, and the class numbers close up.

        Raises:
            ConfigError: no such class, or fewer than two are left.
        """
        if not names:
            return self
        for name in names:
            if name not in self.classes:
                raise ConfigError(f"data.split.unknown_classes: no class '{name}'{nearest(name, self.classes)}")
        kept = [k for k, name in enumerate(self.classes) if name not in set(names)]
        if len(kept) < 2:
            raise ConfigError(f"data.split.unknown_classes leaves {len(kept)} of {len(self.classes)} classes")
        number = np.full(len(self.classes) + 1, UNLABELED)  # the last entry is that of UNLABELED
        number[kept] = np.arange(len(kept))
        labels = number[self.labels]
        hidden = (labels == UNLABELED) & (self.labels != UNLABELED)
        parts = np.where(hidden & (self.parts != TRAIN), EXCLUDED, self.parts).astype(np.uint8)
        return replace(self, labels=labels, parts=parts, classes=tuple(self.classes[k] for k in kept))


def from_arrays(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray] | None,
    classes: Sequence[str],
    **rest: Any,
) -> Dataset:
    """A Dataset of arrays: (images uint8 [N, S, S, C], labels [N], UNLABELED where there is none) of training
    and test. mean and std, where they are not given, are those of the training images."""
    return from_parts(name, [(TRAIN, *train), *([(TEST, *test)] if test is not None else [])], classes, **rest)


def from_parts(
    name: str, parts: Sequence[tuple[int, np.ndarray, np.ndarray]], classes: Sequence[str], **rest: Any
) -> Dataset:
    """A Dataset of any number of (part, images, labels), as in from_arrays and in this order; the first one, of
    training images, has at least one. Views and memory-mapped files are copied once, into the result."""
    parts = [parts[0], *(p for p in parts[1:] if len(p[1]))]
    first = parts[0][1]
    if len(parts) == 1:
        images = np.require(first, requirements=("C", "W"))  # torch warns of read-only memory
    else:  # np.concatenate alone would keep the order of transposed views, and a second copy would mend it
        images = np.empty((sum(len(x) for _, x, _ in parts), *first.shape[1:]), dtype=np.uint8)
        np.concatenate([x for _, x, _ in parts], out=images)
    kinds = np.repeat(np.array([p for p, _, _ in parts], dtype=np.uint8), [len(x) for _, x, _ in parts])
    labels = np.concatenate([np.asarray(y, dtype=np.int64) for _, _, y in parts])
    if "mean" not in rest:
        rest["mean"], rest["std"] = pixel_statistics(first)
    return Dataset(name, images, labels, kinds, tuple(classes), **rest)


def pixel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 [N, H, W, C], scaled to [0, 1]."""
    counts = [np.zeros(256) for _ in range(images.shape[-1])]
    for start in range(0, len(images), 4096):
        for c, total in enumerate(counts):
            total += np.bincount(images[start : start + 4096, ..., c].ravel(), minlength=256)
    value = np.arange(256) / 255
    means = [float(n @ value / n.sum()) for n in counts]
    stds = [float(np.sqrt(n @ (value - m) ** 2 / n.sum())) for n, m in zip(counts, means, strict=True)]
    return tuple(means), tuple(max(s, 1 / 255) for s in stds)  # a constant channel stays finite


def load_dataset(options: DataConfig, progress: Any = None) -> Dataset:
    """The data set that `options` names, checked, with its open-set classes hidden.

    Args:
        progress: where decoding is shown (data/progress.py); None shows nothing.

    Raises:
        ConfigError: no such data set, or a setting that this one does not have.
        DataError: its files are missing, incomplete or damaged.
    """
    name = options.dataset
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    module = importlib.import_module(DATASETS[name])
    for key in DataConfig.OF_SOME_DATASETS:
        if getattr(options, key) != DataConfig.model_fields[key].default and key not in module.USES:
            raise ConfigError(
                f"data.{key} = {getattr(options, key)} means nothing to the data set '{name}'; "
                "your own images: --dataset folder, csv or npz"
            )
    dataset: Dataset = module.load(options, progress)
    dataset = dataset.hide_classes(options.split.unknown_classes).check()
    for key, asked in (("mean", options.mean), ("std", options.std)):
        if asked is not None and len(asked) != dataset.channels:
            raise ConfigError(f"data.{key} = {asked}: the images of {name} have {dataset.channels} channels")
    return replace(dataset, mean=tuple(options.mean or dataset.mean), std=tuple(options.std or dataset.std))
