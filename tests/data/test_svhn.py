"""SVHN from a local copy in torchvision's layout."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from interlude_fast.config import load
from interlude_fast.data.datasets import TEST, TRAIN, load_dataset
from interlude_fast.errors import ConfigError, DataError
from interlude_fast.experiment.run import train_run
from interlude_fast.training.setup import prepare
from tests.helpers import data_config, small_config

torchvision = pytest.importorskip("torchvision")
COUNTS = {"train": 60, "test": 20, "extra": 30}


@pytest.fixture
def local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small stand-in with the real file layout (the digit 0 has label 10); torchvision is told its checksums."""
    rng = np.random.default_rng(0)
    dataset, files = torchvision.datasets.SVHN, {}
    for name, count in COUNTS.items():
        images = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        images[..., 5] = 0
        images[1, 3, 2, 5] = 255  # row 1, column 3, blue
        file = tmp_path / f"{name}_32x32.mat"
        scipy.io.savemat(file, {"X": images, "y": np.arange(count, dtype=np.uint8)[:, None] % 10 + 1})
        files[name] = ["http://nowhere.invalid", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(dataset, "split_list", files)
    # No network in tests: a download that is tried must fail at once.
    monkeypatch.setattr(dataset, "download", lambda self: (_ for _ in ()).throw(OSError("no network")))
    return tmp_path


def test_images_and_labels(local_copy: Path) -> None:
    dataset = load_dataset(data_config(dataset="svhn", root=local_copy))
    assert dataset.images.shape == (80, 32, 32, 3)
    assert dataset.images.flags.c_contiguous
    for i in (5, 65):
        assert np.argwhere(dataset.images[i]).tolist() == [[1, 3, 2]]
    assert dataset.labels[dataset.indices(TEST)].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    original = scipy.io.loadmat(local_copy / "train_32x32.mat")["X"]
    assert np.array_equal(dataset.images[11], original[..., 11])
    assert (dataset.classes, dataset.flip) == (tuple("0123456789"), False)


def test_extra_images_train_too(local_copy: Path) -> None:
    dataset = load_dataset(data_config(dataset="svhn", root=local_copy, extra=True))
    assert len(dataset.indices(TRAIN)) == 90
    assert dataset.indices(TEST).tolist() == list(range(90, 110))
    with pytest.raises(ConfigError, match=r"data\.extra = True means nothing to the dataset 'digits'"):
        load_dataset(data_config(dataset="digits", extra=True))


def test_the_preset_trains_it(local_copy: Path) -> None:
    run = prepare(load(None, [{"data": {"dataset": "svhn", "root": str(local_copy)}, "train": {"device": "cpu"}}]))
    assert len(run.split.labeled) == 40


def test_a_run_from_a_local_copy(local_copy: Path) -> None:
    config = small_config(data={"dataset": "svhn", "root": str(local_copy)}, train={"steps": 2})
    assert train_run(config, local_copy / "run").scores["test"]["ema"].n == 20


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_incomplete_copies_name_the_file_and_the_folder(local_copy: Path, damage: str) -> None:
    file = local_copy / "extra_32x32.mat"
    file.write_bytes(file.read_bytes()[:100]) if damage == "cut short" else file.unlink()
    load_dataset(data_config(dataset="svhn", root=local_copy))
    with pytest.raises(DataError, match=rf"svhn wants extra_32x32\.mat in {local_copy}, .*no network") as caught:
        load_dataset(data_config(dataset="svhn", root=local_copy, extra=True))
    assert "\n" not in str(caught.value)
