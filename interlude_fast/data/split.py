"""Which images are labeled, unlabeled, validation and test: a function of the settings and the seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from interlude_fast import reference
from interlude_fast.errors import ConfigError, DataError
from interlude_fast.options import DataConfig, SplitConfig

if TYPE_CHECKING:
    from .datasets import Listing

# Keys of the permutations that choose held-out images; classes 0, 1, ... key those of the others.
VALIDATION_KEY, TEST_KEY = 1 << 20, 2 << 20


@dataclass(frozen=True)
class Split:
    """Indices into a Listing, int64, ascending. Validation and test images are in no other part; whether the
    labeled ones are among the unlabeled is a setting."""

    labeled: np.ndarray
    unlabeled: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def draw_split(dataset: Listing, options: DataConfig, seed: int) -> Split:
    """The split that `options` ask for.

    Raises:
        DataError: a class has too few images, or counts do not fit the data set.
        ConfigError: settings that contradict each other or the data set.
    """
    from .datasets import TEST, TRAIN, VALIDATION  # datasets/digits.py needs this module

    wish, labels = options.split, dataset.labels
    pool = dataset.indices(TRAIN)
    own_test, own_validation = dataset.indices(TEST), dataset.indices(VALIDATION)
    _refuse_second(dataset.name, "test", len(own_test), wish.test)
    _refuse_second(dataset.name, "validation", len(own_validation), wish.validation)
    known = int((labels[pool] >= 0).sum())  # what shares are of
    test, pool = _hold_out(dataset, pool, wish.test, known, seed, TEST_KEY)
    validation, pool = _hold_out(dataset, pool, wish.validation, known, seed, VALIDATION_KEY)
    candidates = pool[labels[pool] >= 0]
    if wish.fold is not None:
        candidates = np.intersect1d(candidates, _fold(dataset, wish.fold))
    labeled = _choose_labeled(labels, candidates, options, dataset.classes, seed)
    unlabeled = _choose_unlabeled(labels, pool, wish, dataset.classes, seed)
    if not options.unlabeled_includes_labeled:
        unlabeled = np.setdiff1d(unlabeled, labeled)
    return Split(
        labeled=labeled,
        unlabeled=unlabeled,
        validation=own_validation if len(own_validation) else validation,
        test=own_test if len(own_test) else test,
    )


def with_every_label(dataset: Listing, split: Split) -> Split:
    """The same held-out images, and the label of every other training image that has one."""
    from .datasets import TRAIN, UNLABELED

    known = np.flatnonzero((dataset.parts == TRAIN) & (dataset.labels != UNLABELED))
    held_out = np.concatenate([split.validation, split.test])
    return replace(split, labeled=np.setdiff1d(known, held_out))


def choose(members: np.ndarray, count: int, seed: int, key: int) -> np.ndarray:
    """`count` of `members` by the permutation of (seed, key), in drawn order.

    Raises:
        ValueError: there are not so many.
    """
    if count > len(members):
        raise ValueError(f"{count} of {len(members)} members")  # the permutation would walk for ever
    if not count:
        return members[:0]
    zero = torch.zeros((), dtype=torch.int64)
    order = reference.permute(torch.arange(count), len(members), seed, zero, zero + key, reference.SPLIT)
    return members[order.numpy()]


def tail(ratio: float, classes: int) -> np.ndarray:
    """Weights [K] that fall geometrically by `ratio` = first / last, or rise below 1; the largest is 1."""
    fall = np.array([ratio ** (-k / max(1, classes - 1)) for k in range(classes)])
    return fall / fall.max()


def long_tailed_counts(largest: int, ratio: float, classes: int) -> list[int]:
    """Images of each class along `tail`: the largest class has `largest`, every class at least one."""
    return [max(1, int(largest * w + 1e-9)) for w in tail(ratio, classes)]


def divide(total: int, weights: np.ndarray, most: np.ndarray | None = None) -> list[int]:
    """`total` over classes in proportion to `weights` [K] by largest remainders; at least one each, at most `most`
    [K] of a class.

    Raises:
        DataError: fewer than one for every class that may have one, or more than all may have.
    """
    most = np.full(len(weights), total) if most is None else most
    least = np.minimum(most, 1)
    if not least.sum() <= total <= most.sum():
        raise DataError(f"{total} images for {len(weights)} classes that can give {least.sum()} to {most.sum()}")
    exact = total * (weights / weights.sum())
    counts = np.clip(np.floor(exact).astype(np.int64), least, most)
    while left := total - int(counts.sum()):
        step = 1 if left > 0 else -1
        movable = counts < most if left > 0 else counts > least
        counts[np.where(movable, (exact - counts) * step, -np.inf).argmax()] += step
    return counts.tolist()


def labels_per_class(options: DataConfig, available: np.ndarray) -> list[int]:
    """Labeled images of every class.

    Args:
        available: int [K], labeled images that there are.

    Raises:
        DataError: the count does not fit. ConfigError: as many counts as classes are wanted.
    """
    wish, total, classes = options.split, options.labels, len(available)
    if wish.counts is not None:
        if len(wish.counts) != classes:
            raise ConfigError(f"data.split.counts has {len(wish.counts)} numbers for {classes} classes")
        return list(wish.counts)
    if total is None:
        return available.tolist()
    if total < classes:
        raise DataError(f"{total} labels for {classes} classes: every class needs at least one")
    if total > available.sum():
        raise DataError(f"{total} labels asked for, but there are only {available.sum()} training images with one")
    if wish.kind == "proportional":
        return divide(total, available, available)
    if wish.kind == "long_tailed":
        return divide(total, tail(wish.imbalance, classes))
    if total % classes:
        below, above = total - total % classes, total - total % classes + classes
        raise DataError(
            f"{total} labels do not divide over {classes} classes; {below} or {above} do "
            "(or --set data.split.kind=proportional)"
        )
    return [total // classes] * classes


def _choose_labeled(
    labels: np.ndarray, candidates: np.ndarray, options: DataConfig, classes: tuple[str, ...], seed: int
) -> np.ndarray:
    available = np.bincount(labels[candidates], minlength=len(classes))
    counts = labels_per_class(options, available)
    for name, there, wanted in zip(classes, available, counts, strict=True):
        if not there:
            raise DataError(f"class '{name}' has no training image with a label left to choose from")
        if wanted > there:
            raise DataError(f"class '{name}' has {there} training images with a label, {wanted} asked for")
    chosen = [
        choose(candidates[labels[candidates] == k], count, seed, key=k) for k, count in enumerate(counts) if count
    ]
    return np.sort(np.concatenate(chosen))


def _choose_unlabeled(
    labels: np.ndarray, pool: np.ndarray, wish: SplitConfig, classes: tuple[str, ...], seed: int
) -> np.ndarray:
    """The pool, or a long-tailed part of its known classes; images of no known class all stay. Chosen by the
    permutations that choose the labeled images, which are therefore among them (where no fold is asked for)."""
    if wish.unlabeled_imbalance is None:
        return pool
    known = pool[labels[pool] >= 0]
    available = np.bincount(labels[known], minlength=len(classes))
    largest = wish.unlabeled_largest or int((available / tail(wish.unlabeled_imbalance, len(classes))).min())
    counts = long_tailed_counts(largest, wish.unlabeled_imbalance, len(classes))
    chosen = [pool[labels[pool] < 0]]
    for k, (name, count) in enumerate(zip(classes, counts, strict=True)):
        if count > available[k]:
            raise DataError(
                f"class '{name}' has {available[k]} training images, {count} unlabeled ones asked for; "
                "lower data.split.unlabeled_largest"
            )
        chosen.append(choose(known[labels[known] == k], count, seed, key=k))
    return np.sort(np.concatenate(chosen))


def _refuse_second(name: str, part: str, own: int, wish: float) -> None:
    if own and wish:
        raise ConfigError(f"data.split.{part}: {name} has {own} {part} images of its own")


def _fold(dataset: Listing, fold: int) -> np.ndarray:
    if fold >= len(dataset.folds):
        raise ConfigError(
            f"data.split.fold = {fold}: {dataset.name} has {len(dataset.folds)} folds, counted from 0"
        )
    return dataset.folds[fold]


def _hold_out(
    dataset: Listing, pool: np.ndarray, wish: float, total: int, seed: int, key: int
) -> tuple[np.ndarray, np.ndarray]:
    """(held out, rest) of the pool: class by class in proportion, or whole groups where there are groups."""
    if not wish:
        return pool[:0], pool
    setting = f"data.split.{'test' if key == TEST_KEY else 'validation'} = {wish:g}"
    known = pool[dataset.labels[pool] >= 0]
    count = round(wish * total) if wish < 1 else int(wish)
    if not 0 < count < len(known):
        raise DataError(f"{setting} is {count} of {len(known)} images with a label")
    if dataset.groups is not None:
        return _hold_out_groups(dataset.groups, pool, known, count, seed, key, setting)
    labels = dataset.labels[known]
    present = np.unique(labels)
    available = np.bincount(labels)[present]
    if not np.count_nonzero(available > 1) <= count <= (available - 1).sum():
        raise DataError(
            f"{setting} is {count} images: of {len(present)} classes each must give one and keep one for training"
        )
    counts = divide(count, available, available - 1)
    chosen = [choose(known[labels == k], n, seed, key + int(k)) for k, n in zip(present, counts, strict=True)]
    held = np.sort(np.concatenate(chosen))
    return held, np.setdiff1d(pool, held)


def _hold_out_groups(
    groups: np.ndarray, pool: np.ndarray, known: np.ndarray, count: int, seed: int, key: int, setting: str
) -> tuple[np.ndarray, np.ndarray]:
    names, group, size = np.unique(groups[known], return_inverse=True, return_counts=True)
    order = choose(np.arange(len(names)), len(names), seed, key)
    enough = int(np.searchsorted(np.cumsum(size[order]), count)) + 1
    if enough >= len(names):
        raise DataError(f"{setting}: only {len(names)} groups, too few to hold some out whole")
    # Also unlabeled images of a held-out group leave the pool: they show the same patient.
    left = ~np.isin(groups[pool], names[order[:enough]])
    return np.sort(known[np.isin(group, order[:enough])]), pool[left]
