"""Images listed in a CSV file with the columns path and label, and optionally group and split.

Paths are relative to the file's folder. An empty label is an unlabeled image; images of one group (a patient, a
video) are kept together when some are held out; split is train, validation, test or unlabeled.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interlude_fast.data.files import Record, dataset_from_files
from interlude_fast.data.images import shown
from interlude_fast.errors import ConfigError, DataError, nearest
from interlude_fast.options import FilesConfig

from . import TEST, TRAIN, UNLABELED, VALIDATION, Dataset, LoadContext

Options = FilesConfig
COLUMNS = ("path", "label", "group", "split")
SPLITS = {"": TRAIN, "train": TRAIN, "unlabeled": TRAIN, "validation": VALIDATION, "val": VALIDATION, "test": TEST}


def load(options: FilesConfig, context: LoadContext | None = None) -> Dataset:
    """Classes are the labels that occur, sorted (as numbers where all are).

    Raises:
        ConfigError: no file is named.
        DataError: the file, a field or an image is missing, a row repeats another, a path leaves the folder, an
            unknown split, or a test label that training does not have; the line gives the row.
    """
    if options.root is None:
        raise ConfigError("csv: which file? --data-root FILE.csv with the columns path,label")
    rows = read_rows(options.root)
    folder = options.root.parent
    check_paths(rows, folder, options.root)
    classes = _classes(rows, options.root)
    number = {name: k for k, name in enumerate(classes)}
    records = [
        Record(
            path=row["path"],
            label=number[row["label"]] if row["label"] and row["split"] != "unlabeled" else UNLABELED,
            part=SPLITS[row["split"]],
            group=row["group"] or None,
        )
        for row in rows
    ]
    return dataset_from_files("csv", folder, records, classes, options, context)


def read_rows(file: Path) -> list[dict[str, str]]:
    """Every row with all of COLUMNS, stripped, "" where there is nothing; paths normalized; "line" its number."""
    rows: list[dict[str, str]] = []
    named, stopped = shown(file), 0
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            # strict: a quote that is never closed would else swallow the rest of the file
            reader = csv.DictReader(stream, skipinitialspace=True, strict=True)
            try:
                reader.fieldnames = _columns(reader.fieldnames or [], named)
                for row in reader:
                    rows.append(_clean(row, reader.line_num, named))
            finally:
                stopped = reader.reader.line_num
    except OSError as error:
        raise DataError(f"csv: {named}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"csv: {named} is not a CSV file in UTF-8: {error}") from None
    except csv.Error as error:
        begun = f", in the row after line {rows[-1]['line']}" if rows else ""
        raise DataError(
            f"csv: {named} is not a CSV file: {error} (line {stopped}{begun}); is a quote left open?"
        ) from None
    if not rows:
        raise DataError(f"csv: {named} lists no image")
    return rows


def _columns(header: Sequence[str | None], file: str) -> list[str]:
    """The names of the columns, each of them known and there once."""
    names = [(name or "").strip().lower() for name in header]
    for name in names:
        if name not in COLUMNS:
            raise DataError(f"csv: {file} has a column '{shown(name)}'{nearest(name, COLUMNS)}")
        if names.count(name) > 1:
            raise DataError(f"csv: {file} has {names.count(name)} columns '{name}'")
    for wanted in COLUMNS[:2]:
        if wanted not in names:
            raise DataError(f"csv: {file} has no column '{wanted}'; the first line must name path,label")
    return names


def _clean(row: dict[str, Any], line: int, file: str) -> dict[str, str]:
    if None in row:
        raise DataError(f"csv: {file}, line {line}: more fields than columns")
    for name in COLUMNS[:2]:
        if row[name] is None:
            raise DataError(f"csv: {file}, line {line}: no field '{name}'; an unlabeled image has an empty one")
    values = {name: (row.get(name) or "").strip() for name in COLUMNS}
    values["split"] = values["split"].lower()
    if values["split"] not in SPLITS:
        raise DataError(
            f"csv: {file}, line {line}: unknown split '{shown(values['split'])}'{nearest(values['split'], SPLITS)}"
        )
    if not values["path"]:
        raise DataError(f"csv: {file}, line {line}: no path")
    if values["split"] in ("test", "validation", "val") and not values["label"]:
        raise DataError(f"csv: {file}, line {line}: an image of the {values['split']} split without a label")
    return {**values, "path": os.path.normpath(values["path"]), "line": str(line)}


def check_paths(rows: list[dict[str, str]], folder: Path, file: Path) -> None:
    """Raises DataError for a row whose path leaves the folder, repeats another or does not exist."""
    first: dict[str, str] = {}
    for row in rows:
        path, where = row["path"], f"csv: {shown(file)}, line {row['line']}"
        if os.path.isabs(path) or path.split(os.sep, 1)[0] == os.pardir:
            raise DataError(
                f"{where}: '{shown(path)}' leaves the folder {shown(folder)}; paths are relative to it"
            )
        if path in first:
            raise DataError(f"{where} repeats line {first[path]}: '{shown(path)}'; an image counts once")
        first[path] = row["line"]
    unseen = [(row, why) for row in rows if (why := _unseen(folder / row["path"]))]
    if unseen:
        row, why = unseen[0]
        raise DataError(
            f"csv: {shown(file)}, line {row['line']}: {shown(folder / row['path'])} {why}"
            f" ({len(unseen)} of {len(rows)} files cannot be found)"
        )


def _unseen(path: Path) -> str | None:
    """Why there is no such file to be seen, or None."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except (OSError, ValueError) as error:  # ValueError: a null byte
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return None


def _classes(rows: list[dict[str, str]], file: Path) -> list[str]:
    """The labels of training images; those of other splits must be among them."""
    known = {
        row["label"]
        for row in rows
        if row["label"] and SPLITS[row["split"]] == TRAIN and row["split"] != "unlabeled"
    }
    strange = [row for row in rows if row["label"] and row["label"] not in known and row["split"] != "unlabeled"]
    if strange:
        row = strange[0]
        raise DataError(
            f"csv: {shown(file)}, line {row['line']}: label '{shown(row['label'])}' of the {row['split']} "
            "split is not among the training labels"
        )
    if len(known) < 2:
        raise DataError(f"csv: {shown(file)} has {len(known)} labels among its training images, at least 2 wanted")
    try:
        return sorted(known, key=lambda name: (int(name), name))  # the name: "1" and "01" are two
    except ValueError:
        return sorted(known)
