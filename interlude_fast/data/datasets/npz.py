"""One's own arrays: a .npz archive, or the .npy dictionaries that the released code of InterLUDE and Fix-A-Step
reads.

An archive (`np.savez("mine.npz", images=..., labels=..., test_images=..., test_labels=...)`) holds for each of

    training       images, labels, groups                   also train_images, x_train, data, ...; see NAMES
    unlabeled      unlabeled_images, unlabeled_groups
    validation     validation_images, validation_labels, validation_groups
    test           test_images, test_labels, test_groups
    all            classes

what there is of it; MedMNIST's files and Keras' names are read as they are. A folder holds a file for each part,
with `images` and `labels` in it: l_train.npy or train.npy, u_train.npy, val.npy, test.npy; any name that says
which part it is will do. Labels of unlabeled files are not read: the released ones hold the true classes.

images: uint8 [N, S, S], [N, S, S, C] or [N, C, S, S], C = 1 or 3. labels: integers [N] or [N, 1], -1 where an
image has none; the classes are the values that occur, sorted, and are named by them, or with `classes` their
names, labels count those from 0. groups: [N] names of what belongs together (a patient, a video).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from interlude_fast.errors import ConfigError, DataError, nearest
from interlude_fast.options import RootConfig

from . import TEST, TRAIN, UNLABELED, VALIDATION, Dataset, LoadContext, from_parts
from .npy_dict import read_arrays

Options = RootConfig
# What an array is, for the part that it belongs to.
KINDS = {
    "images": ("images", "image", "data", "x"),
    "labels": ("labels", "label", "targets", "y"),
    "groups": ("groups", "group"),
}
PREFIXES = {
    "train": ("", "train", "labeled"),
    "unlabeled": ("unlabeled", "unlabelled", "u", "u_train"),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
CLASSES = ("classes", "class_names", "label_names")
PARTS = {"train": TRAIN, "unlabeled": TRAIN, "validation": VALIDATION, "test": TEST}


def _names() -> dict[str, tuple[str, str]]:
    """Every accepted name of an array -> (part, kind)."""
    found = {name: ("all", "classes") for name in CLASSES}
    found |= {prefix: (part, "images") for part, prefixes in PREFIXES.items() for prefix in prefixes if prefix[1:]}
    for part, prefixes in PREFIXES.items():
        for kind, words in KINDS.items():
            for p, w in ((p, w) for p in prefixes for w in words):
                found |= {name: (part, kind) for name in ((f"{p}_{w}", f"{w}_{p}") if p else (w,))}
    return found


NAMES = _names()
Arrays = dict[tuple[str, str], np.ndarray]


def load(options: RootConfig, context: LoadContext | None = None) -> Dataset:
    """Training, unlabeled, validation and test images in this order. Mean and standard deviation are those of the
    training images; views are flipped unless `augment.flip: false`.

    Raises:
        ConfigError: no data.root. DataError: a file or array that is missing, unknown, or not as above.
    """
    root = options.root
    if root is None:
        raise ConfigError("npz wants data.root: a .npz file, or a folder of .npy dictionaries")
    arrays = _from_folder(root) if root.is_dir() else _from_file(root)
    images = {part: _images(root, part, arrays[part, "images"]) for part in PARTS if (part, "images") in arrays}
    images = {part: x for part, x in images.items() if len(x)}
    if "train" not in images:
        raise DataError(f"{root}: no training images; store at least one, as 'images'")
    for part, x in images.items():
        if x.shape[1:] != images["train"].shape[1:]:
            raise DataError(
                f"{root}: {part} images are {x.shape[1:]}, training images {images['train'].shape[1:]}"
            )
    classes, labels = _classes(root, arrays, {p: _labels(root, p, arrays, len(x)) for p, x in images.items()})
    parts = [(PARTS[part], x, labels[part]) for part, x in images.items()]
    return from_parts("npz", parts, classes, groups=_groups(root, arrays, images))


def _from_file(file: Path) -> Arrays:
    found: Arrays = {}
    for name, array in read_arrays(file).items():
        key = NAMES.get(name.lower())
        if key is None:
            raise DataError(f"{file}: unknown array '{name}'{nearest(name, [*NAMES])}")
        if key in found:
            raise DataError(f"{file}: '{name}' and another array both are the {key[0]} {key[1]}")
        found[key] = array
    return found


def _from_folder(folder: Path) -> Arrays:
    found: Arrays = {}
    seen: dict[str, Path] = {}
    for file in sorted(p for p in folder.iterdir() if p.suffix in (".npy", ".npz")):
        part = _part_of(file)
        if part in seen:
            raise DataError(f"{folder}: {seen[part].name} and {file.name} both are the {part} images; keep one")
        seen[part] = file
        for (_, kind), array in _from_file(file).items():
            found["all" if kind == "classes" else part, kind] = array
    if "train" not in seen:
        raise DataError(f"{folder}: no l_train.npy or train.npy (a dictionary with 'images' and 'labels')")
    return found


def _part_of(file: Path) -> str:
    """By the words of a name; 'train' also stands in the names of unlabeled files, so it is asked last."""
    words = re.split(r"[^a-z]+", file.stem.lower())
    for part, starts in (("unlabeled", "unlabel"), ("validation", "val"), ("test", "test")):
        if any(word.startswith(starts) for word in words) or (part == "unlabeled" and "u" in words):
            return part
    if {"l", "train", "training"} & {*words} or any(word.startswith("label") for word in words):
        return "train"
    raise DataError(f"{file}: cannot tell what it is for; name it l_train, u_train, val or test")


def _images(root: Path, part: str, x: np.ndarray) -> np.ndarray:
    """uint8 [N, S, S, C], a view."""
    if x.dtype.kind == "f":
        scaled = x.size and x.min() >= 0 and x.max() <= 1
        todo = "multiply by 255 and store uint8" if scaled else "store uint8 in 0..255"
        raise DataError(f"{root}: {part} images are {x.dtype}{' in [0, 1]' if scaled else ''}; {todo}")
    if x.dtype != np.uint8:
        raise DataError(f"{root}: {part} images are {x.dtype}; store uint8 in 0..255")
    if x.ndim == 3:
        x = x[..., None]
    elif x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[-1] not in (1, 3):
        x = x.transpose(0, 2, 3, 1)
    if x.ndim != 4 or x.shape[-1] not in (1, 3) or x.shape[1] != x.shape[2]:
        shape = "x".join(map(str, x.shape))
        raise DataError(
            f"{root}: {part} images are {shape}; wanted are N x S x S, with 1 or 3 channels last or second"
        )
    return x


def _labels(root: Path, part: str, arrays: Arrays, count: int) -> np.ndarray:
    """int64 [N], as stored; UNLABELED where there is none."""
    if part == "unlabeled" or (part, "labels") not in arrays:
        if part in ("validation", "test"):
            raise DataError(f"{root}: {part} images without {part}_labels")
        return np.full(count, UNLABELED)
    y = arrays[part, "labels"]
    if y.dtype.kind not in "iu" or y.shape not in ((count,), (count, 1)):
        shape = "x".join(map(str, y.shape))
        raise DataError(
            f"{root}: {part} labels are {y.dtype} {shape}; wanted is one integer for each of {count} images"
        )
    y = y.reshape(count).astype(np.int64)
    lowest = 0 if part in ("validation", "test") else UNLABELED
    if y.min() < lowest:
        raise DataError(f"{root}: {part} label {y.min()} of image {y.argmin()}; the lowest is {lowest}")
    return y


def _classes(
    root: Path, arrays: Arrays, labels: dict[str, np.ndarray]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names, and labels that count them from 0."""
    values = np.unique(np.concatenate([*labels.values()]))
    values = values[values >= 0]
    if not len(values):
        raise DataError(f"{root}: no training image has a label; store integers as 'labels'")
    if ("all", "classes") not in arrays:
        number = {part: np.where(y < 0, UNLABELED, np.searchsorted(values, y)) for part, y in labels.items()}
        return tuple(map(str, values)), number
    names = tuple(_text(name) for name in arrays["all", "classes"].reshape(-1))
    if values[-1] >= len(names):
        raise DataError(f"{root}: label {values[-1]}, but 'classes' names only 0 to {len(names) - 1}")
    return names, labels


def _groups(root: Path, arrays: Arrays, images: dict[str, np.ndarray]) -> np.ndarray | None:
    """[N] names of all images; in a part without groups, where another has them, an image is its own."""
    if not any(kind == "groups" for _, kind in arrays):
        return None
    found: list[str] = []
    for part, x in images.items():
        names = arrays.get((part, "groups"), np.array([f"{part} image {i}" for i in range(len(x))]))
        if names.shape not in ((len(x),), (len(x), 1)):
            raise DataError(f"{root}: {len(names)} groups of {len(x)} {part} images")
        found += [_text(name) for name in names.reshape(-1)]
    return np.array(found)


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
