"""TMED-2, views of echocardiograms, as its owners hand it out (https://tmed.cs.tufts.edu): grey PNG files, 112 px.

    <root>/DEV56/TMED2_fold0_labeledpart.csv      also DEV165, DEV479, and folds 1 and 2
    <root>/<SourceFolder>/<query_key>             what a line of that table names, e.g.
    <root>/view_and_diagnosis_labeled_set/labeled/5269s1_0.png
    <root>/unlabeled_set/**/*.png                 images without labels, of other patients

5269 is the patient and 1 the study. `data.root` is that folder, for DEV56 and fold 0, or one of the tables.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from interlude_fast.data.files import Record, dataset_from_files
from interlude_fast.data.images import refuse_unseen
from interlude_fast.errors import ConfigError, DataError
from interlude_fast.options import FilesConfig

from . import EXCLUDED, TEST, TRAIN, UNLABELED, VALIDATION, Dataset, LoadContext

Options = FilesConfig
TABLE = "DEV56/TMED2_fold0_labeledpart.csv"
COLUMNS = ("query_key", "view_label", "view_classifier_split", "SourceFolder")
CLASSES = ("PLAX", "PSAX", "A4C", "A2C")  # in the order of the owners' code
OTHER = ("A4CorA2CorOther", "Not_Provided")  # no class of the four-view task
SPLITS = {"train": TRAIN, "val": VALIDATION, "test": TEST}
UNLABELED_FOLDER = "unlabeled_set"


def load(options: FilesConfig, context: LoadContext | None = None) -> Dataset:
    """The four-view task, uint8 [N, 112, 112, 1], with training, validation and test images of its own and
    patients as groups. Pixels are not normalized. Views are not flipped, which would exchange the sides of the
    heart; the released InterLUDE code does flip: `augment.flip: true`.

    Raises:
        ConfigError: no data.root. DataError: as in `records`, or files that are no images.
    """
    if options.root is None:
        raise ConfigError("tmed2 wants data.root: the folder of the owners' files, or one of their tables in it")
    found, classes = records(options.root)
    root, channels = _table(options.root)[0], options.channels or 1
    options = options.model_copy(update={"size": options.size or 112, "channels": channels})
    mean, std = (0.0,) * channels, (1.0,) * channels
    return dataset_from_files("tmed2", root, found, classes, options, context, mean=mean, std=std, flip=False)


def records(root: Path) -> tuple[list[Record], tuple[str, ...]]:
    """The images of the table, in its order, then the unlabeled ones by path; and the class names.

    Images of no class of the task are excluded. So are unlabeled images of a patient whose images validate or
    test: they would show a network what it is going to be asked.

    Args:
        root: the folder above, or a table in it.

    Raises:
        DataError: the table, a column, a label, an image or the folder of unlabeled images is missing.
    """
    folder, table = _table(root)
    found = [_labeled(folder, table, number, row) for number, row in _rows(table)]
    held_out = {r.group for r in found if r.part in (VALIDATION, TEST)}
    for path in _unlabeled(folder):
        patient = _patient(path)
        found.append(Record(path, UNLABELED, EXCLUDED if patient in held_out else TRAIN, patient))
    return found, CLASSES


def _table(root: Path) -> tuple[Path, Path]:
    """(folder that paths start from, table)."""
    if root.suffix == ".csv":  # in DEV56 or its like, or taken out of it
        return (root.parent if (root.parent / UNLABELED_FOLDER).is_dir() else root.parent.parent), root
    return root, root / TABLE


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a table."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for column in COLUMNS:
                if column not in (reader.fieldnames or ()):
                    raise DataError(f"tmed2: {table} has no column '{column}'; is it a *_labeledpart.csv?")
            yield from ((reader.line_num, row) for row in reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"tmed2: cannot read the table {table} ({reason})") from None


def _labeled(folder: Path, table: Path, number: int, row: dict[str, str]) -> Record:
    where = f"tmed2: {table}, line {number}"
    if any(row[column] is None for column in COLUMNS):
        raise DataError(f"{where} has too few columns; copy the table again")
    view, split = row["view_label"], row["view_classifier_split"]
    if view not in CLASSES + OTHER:
        raise DataError(f"{where}: unknown view_label '{view}'")
    if split not in SPLITS:
        raise DataError(f"{where}: view_classifier_split is '{split}', not one of {', '.join(SPLITS)}")
    path = _find(folder, row["SourceFolder"].strip("/"), row["query_key"])
    if path is None:
        wanted = folder / row["SourceFolder"] / row["query_key"]
        raise DataError(f"{where}: there is no {wanted}; are all archives unpacked?")
    if view in OTHER:
        return Record(path, UNLABELED, EXCLUDED, _patient(path))
    return Record(path, CLASSES.index(view), SPLITS[split], _patient(path))


def _find(folder: Path, dataset: str, name: str) -> str | None:
    """Path of an image relative to folder; an archive that was unpacked into its own folder adds one level."""
    for path in (f"{dataset}/{name}", f"{dataset}/{dataset.rsplit('/', 1)[-1]}/{name}"):
        if (folder / path).is_file():
            return path
    return None


def _unlabeled(folder: Path) -> list[str]:
    if not (folder / UNLABELED_FOLDER).is_dir():
        raise DataError(f"tmed2: no folder {folder / UNLABELED_FOLDER}; unpack the unlabeled images there")
    found = []
    for parent, _, names in os.walk(folder / UNLABELED_FOLDER, onerror=refuse_unseen):
        relative = Path(parent).relative_to(folder).as_posix()
        found += [f"{relative}/{name}" for name in names if name.lower().endswith(".png")]
    return sorted(found)


def _patient(path: str) -> str:
    """'view_labeled_set/labeled/5269s1_0.png' -> '5269'."""
    name = path.rsplit("/", 1)[-1]
    patient = name.partition("s")[0]
    if not patient.isdigit():
        raise DataError(f"tmed2: {path} is not named <patient>s<study>_<number>.png")
    return patient
