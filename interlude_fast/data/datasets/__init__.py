"""The datasets: a file each, and a line each in the table below. From outside the package: register_dataset, or an
entry point of an installed package in the group `interlude_fast.datasets`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Self

from interlude_fast.data.progress import Progress, Silent
from interlude_fast.errors import ConfigError, DataError, nearest
from interlude_fast.options import DataConfig, Fit, Interpolation, validate
from interlude_fast.registry import Registry

# name -> module or object with `Options`, the DataConfig that it reads, and `load(options, context) -> Dataset`.
DATASETS: Registry[Any] = Registry(
    "dataset",
    "interlude_fast.datasets",
    {
        "cifar10": "interlude_fast.data.datasets.cifar10",
        "cifar100": "interlude_fast.data.datasets.cifar100",
        "csv": "interlude_fast.data.datasets.csv_table",
        "digits": "interlude_fast.data.datasets.digits",
        "folder": "interlude_fast.data.datasets.folder",
        "npz": "interlude_fast.data.datasets.npz",
        "stl10": "interlude_fast.data.datasets.stl10",
        "svhn": "interlude_fast.data.datasets.svhn",
        "tmed2": "interlude_fast.data.datasets.tmed2",
    },
)

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


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What is known of a dataset before an image of it is opened: all that a split and a method's options need.

    Attributes:
        labels: int64 [N] in [0, K), UNLABELED where there is none.
        parts: uint8 [N], TRAIN, VALIDATION, TEST or EXCLUDED.
        classes: the K class names.
        groups: [N] names, of images that belong together (a patient, a video), or None.
        folds: predefined choices of labeled images, indices each.
    """

    name: str
    labels: np.ndarray
    parts: np.ndarray
    classes: tuple[str, ...]
    groups: np.ndarray | None = None
    folds: tuple[np.ndarray, ...] = ()

    def indices(self, part: int) -> np.ndarray:
        """int64, of the images of a part."""
        return np.flatnonzero(self.parts == part)

    def check(self) -> Self:
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

    def hide_classes(self, names: Sequence[str]) -> Self:
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


@dataclass(frozen=True, kw_only=True)
class Dataset(Listing):
    """All images of a dataset, one numbering for everything that refers to them.

    Attributes:
        images: uint8 [N, S, S, C], C = 1 or 3; may be memory-mapped.
        mean, std: per channel, of images scaled to [0, 1].
        flip: whether a mirrored image keeps its class.
        files: where the images come from, or None for arrays.
        fit, interpolation: how images of other shapes become square (data/images.py).
    """

    images: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True
    files: Files | None = field(default=None, repr=False)
    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"

    @property
    def size(self) -> int:
        return int(self.images.shape[1])

    @property
    def channels(self) -> int:
        return int(self.images.shape[-1])

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
    return Dataset(name=name, images=images, labels=labels, parts=kinds, classes=tuple(classes), **rest)


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


def register_dataset(name: str, dataset: Any) -> Any:
    """Make a dataset of your own known by name, to the configuration and the commands of this process.

    Args:
        dataset: a module or an object with `Options`, DataConfig or a subclass, and `load(options, context)`,
            which gives a Dataset (from_arrays and from_parts build one; data/files.py one of image files).

    Raises:
        ConfigError: the name is taken by another dataset, or one of the two is missing.
    """
    options = getattr(dataset, "Options", None)
    is_options = isinstance(options, type) and issubclass(options, DataConfig)
    if not (is_options and callable(getattr(dataset, "load", None))):
        raise ConfigError(
            f"dataset '{name}' wants `Options`, a subclass of DataConfig, and `load(options, context)`"
        )
    return DATASETS.register(name, dataset)


def dataset_options(values: dict[str, Any]) -> DataConfig:
    """The `data` section, typed as the dataset that it names wants it.

    Raises:
        ConfigError: no such dataset, or a setting that this one does not have.
    """
    name = values.get("dataset", DataConfig.model_fields["dataset"].default)
    if not isinstance(name, str):
        raise ConfigError(f"data.dataset is a name, got {name!r}")
    cls: type[DataConfig] = DATASETS.find(name).Options
    for key in values.keys() - cls.model_fields.keys():
        elsewhere = [
            d.Options.model_fields[key] for d in DATASETS.loadable().values() if key in d.Options.model_fields
        ]
        if not elsewhere:
            continue  # unknown everywhere: validation says so
        if values[key] == elsewhere[0].default:  # as earlier versions wrote it
            values = {k: v for k, v in values.items() if k != key}
            continue
        raise ConfigError(
            f"data.{key} = {values[key]} means nothing to the dataset '{name}'; your own images: "
            "--dataset folder, csv or npz"
        )
    options: DataConfig = validate(cls, values, "data")
    return options


@dataclass(frozen=True)
class LoadContext:
    """What a dataset's `load` may use.

    Attributes:
        progress: where decoding is shown.
        check: to be called as soon as classes and labels are known, before an image is opened; raises where the
            run's settings do not fit them. A dataset that has no images to decode need not call it.
        check_shape: to be called with the listing, side and channels, before an image is decoded.
    """

    progress: Progress = field(default_factory=Silent)
    check: Callable[[Listing], None] = lambda listing: None
    check_shape: Callable[[Listing, int, int], None] = lambda listing, side, channels: None


def load_dataset(
    options: DataConfig, progress: Progress | None = None, context: LoadContext | None = None
) -> Dataset:
    """The dataset that `options` name, checked, with its open-set classes hidden.

    Args:
        options: of the dataset's own class (dataset_options).
        progress: where decoding is shown; None shows nothing. context: instead of it.

    Raises:
        ConfigError: no such dataset, or a setting that does not fit its classes.
        DataError: its files are missing, incomplete or damaged.
    """
    context, hidden = context or LoadContext(progress or Silent()), options.split.unknown_classes

    def check(listing: Listing) -> None:
        context.check(listing.hide_classes(hidden).check())

    def check_shape(listing: Listing, side: int, channels: int) -> None:
        for key, asked in (("mean", options.mean), ("std", options.std)):
            if asked is not None and len(asked) != channels:
                raise ConfigError(
                    f"data.{key} = {asked}: the images of {options.dataset} have {channels} channels"
                )
        context.check_shape(listing.hide_classes(hidden), side, channels)

    inner = LoadContext(context.progress, check, check_shape)
    dataset: Dataset = DATASETS.find(options.dataset).load(options, inner)
    if not isinstance(dataset, Dataset):
        raise DataError(f"{options.dataset}: its load gave a {type(dataset).__name__}, no Dataset")
    check(dataset)
    check_shape(dataset, dataset.size, dataset.channels)
    dataset = dataset.hide_classes(hidden)
    return replace(dataset, mean=tuple(options.mean or dataset.mean), std=tuple(options.std or dataset.std))
