"""What is in a data set, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .datasets import EXCLUDED, PARTS, TEST, TRAIN, VALIDATION, Dataset
from .duplicates import exact_groups, groups_of, image_hashes, near_pairs
from .split import Split

ROLES = ("labeled", "unlabeled", "validation", "test", "excluded")


@dataclass(frozen=True)
class Duplicates:
    """Images that show the same.

    Attributes:
        counts: "labeled-test" and so on -> images of the first role with a duplicate in the second; "test-test" is
            within.
        groups: paths or numbers of the images of each group, with their roles.
        conflicts: groups whose images have different labels.
    """

    counts: dict[str, int]
    groups: list[list[str]]
    conflicts: int


@dataclass(frozen=True)
class Inspection:
    """Facts about a data set and its split; see the fields' names. Values of mean and std in [0, 1]."""

    dataset: str
    hash: str
    images: int
    size: int
    channels: int
    roles: dict[str, int]
    classes: dict[str, dict[str, int]]
    mean: list[float]
    std: list[float]
    sizes: dict[str, int]
    modes: dict[str, int]
    unreadable: list[tuple[str, str]]
    exact: Duplicates
    near: Duplicates
    leaking_groups: dict[str, list[str]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def roles_of(dataset: Dataset, split: Split) -> np.ndarray:
    """int [N], indices into ROLES; "excluded" is what no part of the split has."""
    roles = np.full(len(dataset.images), ROLES.index("excluded"))
    for name in ("unlabeled", "validation", "test", "labeled"):  # labeled images may be among the unlabeled ones
        roles[getattr(split, name)] = ROLES.index(name)
    return roles


def inspect(dataset: Dataset, split: Split, *, near: bool = True) -> Inspection:
    """Counts, statistics, duplicates and leaks. `near` also looks for pictures that were recompressed, resized or
    brightened, which takes some seconds for 60,000 images."""
    roles = roles_of(dataset, split)
    files = dataset.files
    hashes = image_hashes(dataset.images) if files else dataset.hashes
    exact = exact_groups(hashes)
    similar = groups_of(near_pairs(dataset.images, exact=False)) if near else []
    sizes = Counter(map(tuple, files.sizes.tolist())) if files else {(dataset.size, dataset.size): len(roles)}
    modes = Counter(files.modes) if files else {"L" if dataset.channels == 1 else "RGB": len(roles)}
    return Inspection(
        dataset=dataset.name,
        hash=dataset.hash,
        images=len(dataset.images),
        size=dataset.size,
        channels=dataset.channels,
        roles={name: int((roles == r).sum()) for r, name in enumerate(ROLES) if (roles == r).any()},
        classes=_class_counts(dataset, roles),
        mean=list(dataset.mean),
        std=list(dataset.std),
        sizes={f"{w}x{h}": n for (w, h), n in Counter(sizes).most_common()},
        modes=dict(Counter(modes).most_common()),
        unreadable=list(files.skipped) if files else [],
        exact=_duplicates(dataset, roles, exact),
        near=_duplicates(dataset, roles, similar),
        leaking_groups=_leaks(dataset, roles),
    )


def _class_counts(dataset: Dataset, roles: np.ndarray) -> dict[str, dict[str, int]]:
    """class -> role -> images, of those whose class is known."""
    return {
        name: {
            role: int(((dataset.labels == k) & (roles == r)).sum())
            for r, role in enumerate(ROLES)
            if (roles == r).any()
        }
        for k, name in enumerate(dataset.classes)
    }


def _duplicates(dataset: Dataset, roles: np.ndarray, groups: list[np.ndarray]) -> Duplicates:
    counts: Counter[str] = Counter()
    conflicts = 0
    for group in groups:
        present = Counter(roles[group].tolist())
        for a, n in present.items():
            for b in present:
                if a != b or n > 1:
                    counts[f"{ROLES[a]}-{ROLES[b]}"] += n
        known = dataset.labels[group]
        conflicts += len(set(known[known >= 0].tolist())) > 1
    return Duplicates(dict(counts), [[_name(dataset, roles, i) for i in group] for group in groups], conflicts)


def _name(dataset: Dataset, roles: np.ndarray, index: int) -> str:
    return f"{dataset.files.paths[index] if dataset.files else index} ({ROLES[roles[index]]})"


def _leaks(dataset: Dataset, roles: np.ndarray) -> dict[str, list[str]]:
    """Groups with images on more than one side of training, validation and test."""
    if dataset.groups is None:
        return {}
    side = np.array([TRAIN, TRAIN, VALIDATION, TEST, EXCLUDED])[roles]
    names, group = np.unique(dataset.groups, return_inverse=True)
    present = np.zeros((len(names), len(PARTS)), dtype=bool)
    present[group, side] = True
    leaking = np.flatnonzero(present[:, :EXCLUDED].sum(1) > 1)
    return {str(names[g]): [PARTS[p] for p in range(EXCLUDED) if present[g, p]] for g in leaking}
