"""Splits: balanced, proportional, long-tailed, open set, held out by groups; as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlude_fast.data.datasets import TEST, TRAIN, UNLABELED, Dataset, from_arrays
from interlude_fast.data.manifest import manifest, replay, to_text
from interlude_fast.data.split import Split, choose, divide, draw_split, long_tailed_counts
from interlude_fast.errors import ConfigError, DataError
from tests.helpers import data_config


def dataset(per_class: tuple[int, ...] = (40, 30, 20), test: int = 9, **rest: Any) -> Dataset:
    """Images that differ, `per_class` training images of every class and then 10 without a label."""
    labels = np.concatenate([np.repeat(np.arange(len(per_class)), per_class), np.full(10, UNLABELED)])
    images = np.arange(len(labels) * 64).astype(np.uint32).view(np.uint8)[: len(labels) * 64].reshape(-1, 8, 8, 1)
    images[:, 0, 0, 0] = np.arange(len(labels))
    tested = (images[:test] + 1, np.arange(test) % len(per_class)) if test else None
    return from_arrays("made", (images, labels), tested, [f"c{k}" for k in range(len(per_class))], **rest)


def draw(made: Dataset | None = None, seed: int = 0, labels: int | None = 12, **settings: Any) -> Split:
    includes = settings.pop("unlabeled_includes_labeled", True)
    options = data_config(labels=labels, unlabeled_includes_labeled=includes, split=settings)
    return draw_split(made or dataset(), options, seed)


def counts(made: Dataset, part: np.ndarray) -> list[int]:
    return np.bincount(made.labels[part], minlength=len(made.classes)).tolist()


def test_balanced_follows_the_seed() -> None:
    made, split = dataset(), draw()
    assert counts(made, split.labeled) == [4, 4, 4]
    assert np.array_equal(split.labeled, draw().labeled)
    assert not np.array_equal(split.labeled, draw(seed=1).labeled)
    assert split.unlabeled.tolist() == list(range(100))
    assert np.array_equal(split.test, made.indices(TEST))
    assert not len(split.validation)


def test_labeled_images_can_be_kept_out_of_the_unlabeled_ones() -> None:
    split = draw(unlabeled_includes_labeled=False)
    assert sorted([*split.labeled, *split.unlabeled]) == list(range(100))


def test_every_label_there_is() -> None:
    assert counts(dataset(), draw(labels=None).labeled) == [40, 30, 20]


def test_proportional_counts() -> None:
    assert counts(dataset(), draw(labels=18, kind="proportional").labeled) == [8, 6, 4]
    assert counts(dataset((99, 1)), draw(dataset((99, 1)), labels=100, kind="proportional").labeled) == [99, 1]


def test_division_is_proportional_with_one_each_and_no_more_than_there_are() -> None:
    assert divide(3, np.array([1000, 1, 1])) == [1, 1, 1]
    assert divide(40, np.array([5000, 1000, 1000, 1000, 500, 500, 500, 500])) == [20, 4, 4, 4, 2, 2, 2, 2]
    assert divide(101, np.array([50, 3, 7, 11])) == [71, 4, 10, 16]
    assert divide(90, np.array([97, 3]), np.array([96, 2])) == [88, 2]
    assert divide(7, np.array([1, 100]), np.array([9, 3])) == [4, 3]
    with pytest.raises(DataError, match="7 images for 2 classes that can give 1 to 3"):
        divide(7, np.array([1, 100]), np.array([0, 3]))


def test_more_than_there_are_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="4 of 3"):
        choose(np.arange(3), 4, 0, 0)


@pytest.mark.parametrize("seed", range(8))
def test_large_hold_outs_leave_every_class_one_image(seed: int) -> None:
    made = dataset((97, 3), test=0)
    split = draw(made, seed=seed, labels=None, test=0.9)
    assert counts(made, split.test) == [88, 2]
    assert counts(made, split.labeled) == [9, 1]
    single = dataset((99, 1), test=0)
    assert counts(single, draw(single, seed=seed, labels=None, validation=0.5).labeled) == [49, 1]


def test_shares_of_two_hold_outs_are_of_all_labeled_images() -> None:
    made = dataset((100, 10), test=0)
    split = draw(made, labels=None, test=0.2, validation=0.1)
    assert (counts(made, split.test), counts(made, split.validation)) == ([20, 2], [10, 1])


def test_long_tailed_labels_and_unlabeled_images() -> None:
    made = dataset((40, 40, 40))
    split = draw(made, labels=21, kind="long_tailed", imbalance=4, unlabeled_imbalance=4)
    assert counts(made, split.labeled) == [12, 6, 3]
    known = split.unlabeled[made.labels[split.unlabeled] >= 0]
    assert counts(made, known) == [40, 20, 10]
    assert len(split.unlabeled) - len(known) == 10  # images of no known class stay
    reversed_tail = draw(made, unlabeled_imbalance=0.25, unlabeled_largest=20).unlabeled
    assert counts(made, reversed_tail[made.labels[reversed_tail] >= 0]) == [5, 10, 20]
    assert long_tailed_counts(1500, 100, 10) == [1500, 899, 539, 323, 193, 116, 69, 41, 25, 15]


def test_counts_of_each_class() -> None:
    assert counts(dataset(), draw(counts=[1, 2, 7]).labeled) == [1, 2, 7]


@pytest.mark.parametrize("wish", [0.2, 18])
def test_validation_images_are_in_no_other_part(wish: float) -> None:
    made, split = dataset(), draw(validation=wish)
    assert counts(made, split.validation) == [8, 6, 4]
    for other in (split.labeled, split.unlabeled, split.test):
        assert not np.intersect1d(split.validation, other).size


def test_a_test_set_can_be_held_out_where_there_is_none() -> None:
    made = dataset(test=0)
    split = draw(made, test=0.1, validation=0.1)
    assert len(split.test) == len(split.validation) == 9
    parts = [split.test, split.validation, split.unlabeled]
    assert sorted(np.concatenate(parts)) == list(range(100))


def test_groups_are_held_out_whole() -> None:
    groups = np.array([f"patient {i // 5}" for i in range(100)])
    made = dataset(test=0, groups=groups)
    split = draw(made, validation=0.2, test=0.2)
    held = [set(groups[part]) for part in (split.validation, split.test, split.unlabeled)]
    assert not held[0] & held[1]
    assert not (held[0] | held[1]) & held[2]
    assert 18 <= len(split.validation) <= 23


def test_open_set_classes_are_only_ever_unlabeled() -> None:
    made = dataset().hide_classes(["c1"])
    assert made.classes == ("c0", "c2")
    split = draw(made)
    assert counts(made, split.labeled) == [6, 6]
    assert set(range(40, 70)) <= set(split.unlabeled.tolist())
    assert len(split.test) == 6  # the three test images of c1 are out


def test_predefined_folds() -> None:
    made = dataset(folds=(np.arange(0, 90, 2), np.arange(1, 90, 2)))
    assert (draw(made, fold=1).labeled % 2 == 1).all()
    assert np.array_equal(draw(made, labels=None, fold=0).labeled, np.arange(0, 90, 2))
    with pytest.raises(ConfigError, match="has 2 folds"):
        draw(made, fold=2)


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (2, {}, "2 labels for 3 classes"),
        (10, {}, "do not divide over 3 classes; 9 or 12 do"),
        (93, {}, "only 90 training images"),
        (63, {}, "class 'c2' has 20 training images with a label, 21 asked for"),
        (12, {"counts": [1, 2]}, "2 numbers for 3 classes"),
        (12, {"test": 0.1}, "made has 9 test images of its own"),
        (12, {"validation": 2}, "is 2 images: of 3 classes each must give one"),
        (12, {"validation": 1.5}, "neither a share below 1 nor a whole number"),
        (12, {"imbalance": 2}, "wants data.split.kind = long_tailed"),
        (None, {"kind": "long_tailed"}, "wants data.labels"),
        (12, {"counts": [1, 2, 3], "kind": "proportional"}, "both say how many labels"),
        (12, {"validation": 90}, "90 of 90"),
        (12, {"unlabeled_imbalance": 2, "unlabeled_largest": 41}, "class 'c0' has 40"),
        (12, {"unlabeled_largest": 4}, "wants data.split.unlabeled_imbalance"),
    ],
)
def test_settings_that_do_not_fit(labels: int | None, settings: dict, message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        draw(labels=labels, **settings)


def test_bad_sources_are_refused() -> None:
    with pytest.raises(DataError, match="class 'c1' has no training image with a label"):
        dataset((5, 0, 5)).check()
    with pytest.raises(ConfigError, match="no class 'c9'"):
        dataset().hide_classes(["c9"])
    with pytest.raises(ConfigError, match="leaves 1 of 3"):
        dataset().hide_classes(["c0", "c1"])


def written(path: Path, made: Dataset, split: Split, **changes: Any) -> Path:
    values = manifest(made, split, data_config(labels=12), 0)
    path.write_text(to_text({**values, **changes}))
    return path


def test_a_manifest_replays_its_split(tmp_path: Path) -> None:
    made = dataset()
    split = draw(made, seed=3, validation=9, unlabeled_includes_labeled=False)
    file = written(tmp_path / "split.json", made, split)
    again = replay(file, dataset())
    for name in vars(split):
        assert np.array_equal(getattr(again, name), getattr(split, name)), name
    values = json.loads(file.read_text())
    assert values["labeled"]["hash"][0] == made.hashes[split.labeled[0]].decode()


def test_a_manifest_of_other_data_names_the_difference(tmp_path: Path) -> None:
    made = dataset()
    file = written(tmp_path / "split.json", made, draw(made))
    changed = dataset()
    changed.images[int(draw(made).labeled[2]), 3, 3] ^= 1
    with pytest.raises(DataError, match=r"made of other data: labeled image \d+ has hash"):
        replay(file, changed)
    with pytest.raises(DataError, match="it had 109 images, there are 100 now"):
        replay(file, dataset(test=0))
    relabeled = dataset()
    relabeled.labels[0] = 1
    with pytest.raises(DataError, match="labels or their order differ"):
        replay(file, relabeled)


@pytest.mark.parametrize(
    "change",
    [
        {"labeled": [999999]},
        {"labeled": [-1]},
        {"labeled": []},
        {"labeled": [4.7]},
        {"labeled": [3, 3]},
        {"labeled": [95]},  # has no label
        {"labeled": [100]},  # a test image
        {"unlabeled": [[0, 100]]},
        {"unlabeled": [[0, 10**11]]},
        {"unlabeled": [[5, 3]]},
        {"unlabeled": 3},
    ],
    ids=str,
)
def test_edited_manifests_are_checked(tmp_path: Path, change: dict[str, Any]) -> None:
    made = dataset()
    values = {k: {"index": v, "hash": []} if k == "labeled" else v for k, v in change.items()}
    file = written(tmp_path / "split.json", made, draw(made), **values)
    with pytest.raises(DataError, match="is damaged"):
        replay(file, made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.write_text(f.read_text()[:200]), "cut short"),
        (lambda f: f.write_text("{}"), "not a split of this version"),
        (lambda f: f.unlink(), "No such file"),
        (lambda f: written(f, dataset(), draw(), labeled=3), "damaged"),
    ],
)
def test_damaged_manifests(tmp_path: Path, change: Any, message: str) -> None:
    file = written(tmp_path / "split.json", dataset(), draw())
    change(file)
    with pytest.raises(DataError, match=message):
        replay(file, dataset())


def test_parts_of_a_source() -> None:
    assert dataset().indices(TRAIN).tolist() == list(range(100))
