"""STL-10 from a local copy in torchvision's layout."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from interlude_fast.config import load
from interlude_fast.data.datasets import TEST, TRAIN, UNLABELED, load_dataset
from interlude_fast.data.datasets.stl10 import BINARY, FOLDER
from interlude_fast.errors import DataError
from interlude_fast.experiment.run import train_run
from interlude_fast.training.setup import prepare
from tests.helpers import data_config, small_config

torchvision = pytest.importorskip("torchvision")
COUNTS = {"train": 40, "unlabeled": 30, "test": 10}


@pytest.fixture
def local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small stand-in with the real file layout: images channel by channel, each column by column, labels from 1;
    torchvision is told its checksums."""
    rng = np.random.default_rng(0)
    folder = tmp_path / FOLDER
    folder.mkdir()
    for name, count in COUNTS.items():
        images = rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        images[5] = 0
        images[5, 1, 3, 2] = 255  # row 1, column 3, blue
        (folder / f"{name}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes(bytes(i % 10 + 1 for i in range(count)))
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    lines = [" ".join(str(4 * i + fold // 3) for i in range(10)) + " " for fold in range(10)]
    (folder / "fold_indices.txt").write_text("\n".join(lines) + "\n")
    sums = [[name, hashlib.md5((folder / name).read_bytes()).hexdigest()] for name in BINARY]
    dataset = torchvision.datasets.STL10
    monkeypatch.setattr(dataset, "train_list", [s for s in sums if not s[0].startswith("test")])
    monkeypatch.setattr(dataset, "test_list", [s for s in sums if s[0].startswith("test")])
    # No network in tests: a download that is tried must fail at once.
    monkeypatch.setattr(dataset, "download", lambda self: (_ for _ in ()).throw(OSError("no network")))
    return tmp_path


def test_images_labels_and_folds(local_copy: Path) -> None:
    dataset = load_dataset(data_config(dataset="stl10", root=local_copy))
    assert dataset.images.shape == (80, 96, 96, 3)
    assert dataset.images.flags.c_contiguous
    for i in (5, 45, 75):  # training, unlabeled, test
        assert np.argwhere(dataset.images[i]).tolist() == [[1, 3, 2]]
    assert dataset.labels.tolist() == [*range(10)] * 4 + [UNLABELED] * 30 + [*range(10)]
    assert dataset.indices(TRAIN).tolist() == list(range(70))
    assert dataset.indices(TEST).tolist() == list(range(70, 80))
    assert dataset.classes[3] == "class 3"
    assert len(dataset.folds) == 10
    assert dataset.folds[4].tolist() == list(range(1, 40, 4))


def test_the_images_are_torchvisions(local_copy: Path) -> None:
    dataset = load_dataset(data_config(dataset="stl10", root=local_copy))
    whole = torchvision.datasets.STL10(str(local_copy), split="train+unlabeled")
    assert np.array_equal(dataset.images[:70], whole.data.transpose(0, 2, 3, 1))
    assert dataset.labels[:40].tolist() == whole.labels[:40].tolist()


def test_the_preset_trains_it(local_copy: Path) -> None:
    data = {"dataset": "stl10", "root": str(local_copy)}
    run = prepare(load(None, [{"data": data, "train": {"device": "cpu"}}]))
    assert (len(run.split.labeled), len(run.split.unlabeled), len(run.split.test)) == (40, 70, 10)


def test_a_run_from_a_local_copy(local_copy: Path) -> None:
    config = small_config(data={"dataset": "stl10", "root": str(local_copy)}, train={"steps": 2})
    assert train_run(config, local_copy / "run").scores["test"]["ema"].n == 10


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("unlabeled_X.bin", shorten, r"stl10 wants train_X\.bin, .*unlabeled_X.*/stl10_binary, .*no network"),
        ("train_y.bin", Path.unlink, r"stl10 wants train_X\.bin, .*/stl10_binary, .*no network"),
        ("class_names.txt", Path.unlink, r"stl10 wants class_names\.txt in .*/stl10_binary"),
        ("fold_indices.txt", shorten, r"stl10_binary/fold_indices\.txt has \d lines instead of 10"),
        ("fold_indices.txt", lambda f: f.write_text("0\n" * 9 + "40"), "beyond the 40 training images"),
        ("fold_indices.txt", lambda f: f.write_text("a\n" * 10), "more than numbers"),
    ],
)
def test_incomplete_copies_get_one_line(
    local_copy: Path, name: str, damage: Callable[[Path], object], message: str
) -> None:
    damage(local_copy / FOLDER / name)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(data_config(dataset="stl10", root=local_copy))
    assert "\n" not in str(caught.value)
