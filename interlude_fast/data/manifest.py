"""A split as a JSON file: written with every run, and replayed by `--split FILE`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from interlude_fast.errors import DataError, few
from interlude_fast.options import DataConfig

from .datasets import Dataset
from .split import Split

FORMAT = "interlude-fast split 1"
NAMED = ("labeled", "validation", "test")  # parts whose images are listed with their hashes


def manifest(
    dataset: Dataset, split: Split, options: DataConfig, seed: int, replayed: Path | None = None
) -> dict[str, Any]:
    """What a split is, in JSON types; a replayed one keeps its own seed and settings. Images are listed by index
    and hash; of the unlabeled ones, which may be millions, ranges of indices [first, last] suffice, because `data`
    covers every image."""
    if replayed:
        return read_manifest(replayed)
    named = {
        name: {"index": part.tolist(), "hash": [h.decode() for h in dataset.hashes[part]]}
        for name, part in ((name, getattr(split, name)) for name in NAMED)
    }
    return {
        "format": FORMAT,
        "dataset": dataset.name,
        "data": dataset.hash,
        "images": len(dataset.images),
        "classes": list(dataset.classes),
        "seed": seed,
        "settings": {"labels": options.labels, **options.split.model_dump(mode="json", exclude={"file"})},
        **named,
        "labels": dataset.labels[split.labeled].tolist(),
        "unlabeled": _to_ranges(split.unlabeled),
    }


def to_text(values: dict[str, Any]) -> str:
    """A manifest as JSON, a line for every entry."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_manifest(path: Path) -> dict[str, Any]:
    """A file that `manifest` made.

    Raises:
        DataError: it is missing, cut short, or something else.
    """
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"split {path}: {error.strerror or error}") from None
    except ValueError:
        raise DataError(f"split {path} is cut short or not JSON") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(f"{path} is not a split of this version (format '{FORMAT}')")
    return values


def replay(path: Path, dataset: Dataset) -> Split:
    """The split of a manifest, for the data that it was made of.

    Raises:
        DataError: as read_manifest, or the data are others; the line says which image differs first.
    """
    values = read_manifest(path)
    try:
        if values["data"] != dataset.hash:
            raise DataError(f"split {path} was made of other data: {_first_difference(values, dataset)}")
        parts = {name: values[name]["index"] for name in NAMED}
        parts["unlabeled"] = _from_ranges(values["unlabeled"], len(dataset.images))
        split = Split(**{name: _indices(part, name, len(dataset.images)) for name, part in parts.items()})
        _check(split, dataset)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"split {path} is damaged: {type(error).__name__} {error}") from None
    return split


def _indices(values: Any, name: str, count: int) -> np.ndarray:
    found = np.asarray(values)
    if found.size and (found.dtype.kind != "i" or found.ndim != 1):
        raise ValueError(f"{name} images are not listed by whole numbers")
    found = found.astype(np.int64)
    if found.size and (found.min() < 0 or found.max() >= count or len(np.unique(found)) < len(found)):
        raise ValueError(f"{name} images are listed twice, or are not among the {count}")
    return np.sort(found)


def _check(split: Split, dataset: Dataset) -> None:
    """What every split that was written holds to; a file that was edited by hand may not."""
    if not len(split.labeled):
        raise ValueError("no labeled image")
    for name in NAMED:
        if (dataset.labels[getattr(split, name)] < 0).any():
            raise ValueError(f"a {name} image has no label")
    for held in ("validation", "test"):
        for other in {"labeled", "unlabeled", "validation", "test"} - {held}:
            if len(np.intersect1d(getattr(split, held), getattr(split, other))):
                raise ValueError(f"a {held} image is {other} too")


def _first_difference(values: dict[str, Any], dataset: Dataset) -> str:
    if values["dataset"] != dataset.name:
        return f"of '{values['dataset']}', but this is '{dataset.name}'"
    then, now = values["classes"], list(dataset.classes)
    if len(then) != len(now):
        return f"it had {len(then)} classes ({few(then)}), there are {len(now)} now ({few(now)})"
    if then != now:
        return f"its classes were {few(then)}; now they are {few(now)}"
    if values["images"] != len(dataset.images):
        return f"it had {values['images']} images, there are {len(dataset.images)} now"
    for name in NAMED:
        for index, before in zip(values[name]["index"], values[name]["hash"], strict=True):
            if dataset.hashes[index].decode() != before:
                where = f" ({dataset.files.paths[index]})" if dataset.files else ""
                return f"{name} image {index}{where} has hash {dataset.hashes[index].decode()}, then {before}"
    return "unlabeled images, labels or their order differ"


def _to_ranges(indices: np.ndarray) -> list[list[int]]:
    """[3, 4, 5, 9] -> [[3, 5], [9, 9]]"""
    if not len(indices):
        return []
    breaks = np.flatnonzero(np.diff(indices) != 1)
    first, last = np.r_[0, breaks + 1], np.r_[breaks, len(indices) - 1]
    return np.stack([indices[first], indices[last]], 1).tolist()


def _from_ranges(ranges: list[list[int]], count: int) -> np.ndarray:
    if any(not 0 <= first <= last < count for first, last in ranges):
        raise ValueError(f"unlabeled images are not among the {count}")
    return np.concatenate([np.arange(a, b + 1) for a, b in ranges]) if ranges else np.empty(0, dtype=np.int64)
