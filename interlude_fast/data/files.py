"""A data set from a list of image files: surveyed, prepared once, and described."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from interlude_fast.errors import DataError
from interlude_fast.options import FilesConfig

from .cache import FileFacts, Prepared, default_cache, prepared_images, survey
from .datasets import TRAIN, Dataset, Files, Listing, LoadContext
from .images import IMAGE_SUFFIXES, Recipe, refuse_unseen, shown
from .progress import Progress

GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
LARGEST_OWN_SIZE, DEFAULT_MOST = 224, 96
LEAST_SIZE = 32  # under max_size
NAMED_SKIPPED = 3  # unreadable files that a message names


class Record(NamedTuple):
    """An image file.

    Attributes:
        path: relative to the data set's root, with forward slashes.
        label: in [0, K), or UNLABELED. part: TRAIN, VALIDATION, TEST or EXCLUDED.
        group: of images that belong together (a patient), or None.
    """

    path: str
    label: int
    part: int
    group: str | None = None


def image_paths(folder: Path) -> Iterator[str]:
    """Image files at any depth below a folder, relative to it, in a fixed order. Hidden files, other suffixes and
    what linked folders below it hold are left out.

    Raises:
        DataError: a folder cannot be read.
    """
    found = []
    for where, folders, names in os.walk(folder, onerror=refuse_unseen):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(where, folder)
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                found.append(Path(inside, name).as_posix())
    return iter(sorted(found))


def dataset_from_files(
    name: str,
    root: Path,
    records: Sequence[Record],
    classes: Sequence[str],
    options: FilesConfig,
    context: LoadContext | None = None,
    **rest: Any,
) -> Dataset:
    """A Dataset of image files, from the cache where they were prepared before.

    Args:
        root: what the records' paths are relative to.
        rest: fields of Dataset; mean and std, where they are not given, are those of the training images.

    Raises:
        DataError: no file at all, more unreadable ones than options.max_unreadable, or no place for the cache.
    """
    if not records:
        raise DataError(f"{name}: no image file in {shown(root)}")
    context, cache = context or LoadContext(), options.cache or default_cache()
    progress, groups = context.progress, _groups(records)
    listing = Listing(
        name=name,
        labels=np.array([record.label for record in records], dtype=np.int64),
        parts=np.array([record.part for record in records], dtype=np.uint8),
        classes=tuple(classes),
        groups=groups,
    )
    context.check(listing)
    if options.size and options.channels:  # what the files say cannot change them
        context.check_shape(listing, options.size, options.channels)
    paths = [root / record.path for record in records]
    facts = survey(paths, cache, progress)
    recipe = choose_recipe(facts, options)
    context.check_shape(listing, recipe.size, recipe.channels)
    prepared = prepared_images(paths, facts, recipe, cache, progress)
    skipped = tuple((records[i].path, reason) for i, reason in prepared.skipped)
    _judge_skipped(name, skipped, len(records), options.max_unreadable, progress)
    kept = [records[i] for i in prepared.kept]
    parts = np.array([record.part for record in kept], dtype=np.uint8)
    if "mean" not in rest:
        rest["mean"], rest["std"] = _statistics(prepared, parts == TRAIN)
    known = [facts[i] for i in prepared.kept]
    return Dataset(
        name=name,
        images=prepared.images,
        labels=np.array([record.label for record in kept], dtype=np.int64),
        parts=parts,
        classes=tuple(classes),
        groups=_groups(kept),
        files=Files(
            root=root,
            paths=tuple(record.path for record in kept),
            hashes=np.array([f.digest[:16] for f in known], dtype="S16"),
            sizes=np.array([(f.width, f.height) for f in known], dtype=np.int64).reshape(-1, 2),
            modes=tuple(f.mode for f in known),
            skipped=skipped,
        ),
        fit=recipe.fit,
        interpolation=recipe.interpolation,
        **rest,
    )


def _groups(records: Sequence[Record]) -> np.ndarray | None:
    """[N]; without a group, an image is its own."""
    if not any(record.group for record in records):
        return None
    return np.array([record.group or record.path for record in records])


def choose_recipe(facts: Sequence[FileFacts], options: FilesConfig) -> Recipe:
    """Size and channels of the prepared images: as configured, else from the files. Images that are all squares of
    one size up to 224 px keep it; others get the median of their shorter sides, at most 96, in steps of 8. Under
    options.max_size all get that median, at most max_size and at least 32."""
    readable = [f for f in facts if not f.reason]
    channels = options.channels or (1 if all(f.mode in GREY_MODES for f in readable) else 3)
    sizes = {(f.width, f.height) for f in readable}
    size = options.size
    median = float(np.median([min(f.width, f.height) for f in readable])) if readable else 8
    if size is None and options.max_size is not None:
        size = min(max(LEAST_SIZE, int(median) // 8 * 8), options.max_size)
    if size is None and len(sizes) == 1:
        width, height = next(iter(sizes))
        size = width if width == height and 8 <= width <= LARGEST_OWN_SIZE else None
    if size is None:
        size = max(8, int(min(median, DEFAULT_MOST)) // 8 * 8)
    return Recipe(size, channels, options.fit, options.interpolation or "bilinear")


def _judge_skipped(
    name: str, skipped: tuple[tuple[str, str], ...], total: int, most: float, progress: Progress
) -> None:
    if not skipped:
        return
    named = ", ".join(f"{shown(path)} ({reason})" for path, reason in skipped[:NAMED_SKIPPED])
    more = f" and {len(skipped) - NAMED_SKIPPED} more" if len(skipped) > NAMED_SKIPPED else ""
    what = f"{len(skipped)} of {total} image files cannot be read: {named}{more}"
    if len(skipped) > most * total:
        raise DataError(
            f"{name}: {what}; mend or remove them, or allow more: --set data.max_unreadable=0.5 (now {most:g})"
        )
    progress.note(f"skipped: {what}")


def _statistics(prepared: Prepared, train: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of the data set's training images, labeled, unlabeled and those that
    a split holds out, scaled to [0, 1]."""
    count = max(1, int(train.sum())) * prepared.images.shape[1] ** 2
    mean = prepared.sums[train].sum(0) / count
    variance = np.maximum(prepared.squares[train].sum(0) / count - mean**2, 1)  # a constant channel stays finite
    return tuple((mean / 255).tolist()), tuple((np.sqrt(variance) / 255).tolist())
