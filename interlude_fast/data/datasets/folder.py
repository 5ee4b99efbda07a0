"""Your own images in folders: `root/<class>/*.jpg`, or labeled and unlabeled folders apart.

`data.root` may hold class folders; or `train/`, `test/`, `val/` with class folders and `unlabeled/` with images at
any depth. `data.labeled`, `data.unlabeled` and `data.test` name such folders wherever they are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from interlude_fast.data.files import Record, dataset_from_files, image_paths
from interlude_fast.errors import ConfigError, DataError
from interlude_fast.options import AbsolutePath, FilesConfig

from . import PARTS, TEST, TRAIN, UNLABELED, VALIDATION, Dataset, LoadContext

# Folders of a root that are parts, not classes, where one of TRAIN_NAMES is there.
TRAIN_NAMES, UNLABELED_NAMES = ("train", "labeled"), ("unlabeled",)
PART_NAMES = {TRAIN: TRAIN_NAMES, TEST: ("test",), VALIDATION: ("val", "valid", "validation")}


class FolderConfig(FilesConfig):
    """Images in class folders: below one root, or in folders apart."""

    labeled: AbsolutePath | None = Field(None, description="folder: images in class folders, instead of root")
    unlabeled: AbsolutePath | None = Field(None, description="folder: images without labels, at any depth")
    test: AbsolutePath | None = Field(None, description="folder: test images in class folders")


Options = FolderConfig


def load(options: FolderConfig, context: LoadContext | None = None) -> Dataset:
    """Images of any size, resized once (data/images.py); class names are folder names.

    Raises:
        ConfigError: no folder is named, or two ways of naming them at once.
        DataError: a folder is missing or empty, a test class is not among the training classes, or an image is in
            training and in test.
    """
    labeled, unlabeled = _folders(options)
    everything = [folder for folder in (*labeled.values(), unlabeled) if folder]
    classes = class_names(labeled[TRAIN], everything)
    root = Path(os.path.commonpath(everything))
    records: list[Record] = []
    for part, folder in labeled.items():
        if folder:
            records += _class_records(folder, classes, part, root)
    _refuse_two_parts(records, root)
    if unlabeled:
        # A labeled or test image is not unlabeled too, by whatever way it is found.
        seen = {os.path.realpath(root / record.path) for record in records}
        found = [_relative(unlabeled / path, root) for path in image_paths(unlabeled)]
        if not found:
            raise DataError(f"folder: no image in the unlabeled folder {unlabeled}")
        records += [Record(path, UNLABELED, TRAIN) for path in found if os.path.realpath(root / path) not in seen]
    return dataset_from_files("folder", root, records, classes, options, context)


def _folders(options: FolderConfig) -> tuple[dict[int, Path | None], Path | None]:
    """(part -> folder of class folders, folder of unlabeled images), links resolved."""
    if options.root and options.labeled:
        raise ConfigError("data.root and data.labeled both name the labeled images; give one")
    named = {"root" if options.root else "labeled": options.root or options.labeled}
    named |= {"unlabeled": options.unlabeled, "test": options.test}
    for name, path in named.items():
        if path and not path.is_dir():
            raise DataError(f"folder: data.{name} = {path} is not a folder")
    root, unlabeled, test = (path.resolve() if path else None for path in named.values())
    if root is None:
        raise ConfigError("folder: where are the images? --data-root DIR, or --labeled DIR --unlabeled DIR")
    parts: dict[int, Path | None] = {TRAIN: root, TEST: None, VALIDATION: None}
    if _first(root, TRAIN_NAMES):
        parts = {part: _first(root, names) for part, names in PART_NAMES.items()}
    else:
        _refuse_parts_among_classes(root, test)
    inside = _first(root, UNLABELED_NAMES)
    if (inside and unlabeled and inside != unlabeled) or (parts[TEST] and test and parts[TEST] != test):
        raise ConfigError(f"{root} holds unlabeled or test images already; drop --unlabeled and --test")
    return {**parts, TEST: test or parts[TEST]}, unlabeled or inside


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    return next(((root / name).resolve() for name in names if (root / name).is_dir()), None)


def _refuse_parts_among_classes(root: Path, test: Path | None) -> None:
    for name in (*PART_NAMES[TEST], *PART_NAMES[VALIDATION]):
        if (root / name).is_dir() and (root / name).resolve() != test:
            raise DataError(
                f"folder: {root} holds '{name}' beside class folders; put those below {root / 'train'}, or name "
                f"test images by --test {root / name}"
            )


def _folder_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def class_names(folder: Path | None, others: Sequence[Path] = ()) -> list[str]:
    """Names of the class folders, sorted; `others` are folders that are no classes."""
    assert folder is not None
    names = [name for name in _folder_names(folder) if name not in UNLABELED_NAMES]
    names = [name for name in names if (folder / name).resolve() not in others]
    if not names and any(True for _ in image_paths(folder)):
        raise DataError(
            f"folder: no image in {folder} has a label: put some of every class into folders of their own, "
            "labeled/<class>/<image>, and train --labeled labeled --unlabeled with the rest; to see first which "
            f"images are alike, cluster the features of interlude-fast embed efficientnet_lite0 {folder} "
            "--out features.npz"
        )
    if len(names) < 2:
        raise DataError(
            f"folder: {folder} holds {len(names)} class folders, at least 2 wanted: <folder>/<class>/<image>"
        )
    return names


def _class_records(folder: Path, classes: list[str], part: int, root: Path) -> list[Record]:
    records = []
    for name in classes if part == TRAIN else class_names_of_part(folder, classes):
        found = [
            Record(_relative(folder / name / path, root), classes.index(name), part)
            for path in image_paths(folder / name)
        ]
        if not found and part == TRAIN:
            raise DataError(f"folder: class folder {folder / name} holds no image")
        records += found
    if not records:
        raise DataError(f"folder: no image in the class folders of {folder}")
    return records


def class_names_of_part(folder: Path, classes: list[str]) -> list[str]:
    """Class folders of a test or validation folder, all of which training must have."""
    names = _folder_names(folder)
    strange = [name for name in names if name not in classes]
    if strange:
        raise DataError(
            f"folder: {folder} has a class '{strange[0]}' that training does not have; it has "
            f"{', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"
        )
    if not names:
        raise DataError(f"folder: {folder} holds no class folder")
    return names


def _refuse_two_parts(records: list[Record], root: Path) -> None:
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(os.path.realpath(root / record.path), record)
        if other is not record:
            raise DataError(f"folder: {root / record.path} is there twice: as {_told(other)} and {_told(record)}")


def _told(record: Record) -> str:
    return f"{PARTS[record.part]} image {record.path}"


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
