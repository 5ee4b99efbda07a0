"""CIFAR-10 from a local copy in torchvision's layout."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from interlude_fast.data.datasets import TEST, load_dataset
from interlude_fast.data.datasets.cifar10 import FILES, FOLDER
from interlude_fast.errors import DataError
from interlude_fast.experiment.run import train_run
from tests.helpers import data_config, small_config

torchvision = pytest.importorskip("torchvision")


@pytest.fixture
def local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small stand-in with the real file layout; torchvision is told its checksums."""
    rng = np.random.default_rng(0)
    (tmp_path / FOLDER).mkdir()
    sums = {}
    for name in FILES:
        content = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": [*range(10)] * 2}
        if name == "batches.meta":
            content = {"label_names": [f"class {i}" for i in range(10)]}
        blob = pickle.dumps(content)
        (tmp_path / FOLDER / name).write_bytes(blob)
        sums[name] = hashlib.md5(blob).hexdigest()
    dataset = torchvision.datasets.CIFAR10
    monkeypatch.setattr(dataset, "train_list", [[n, sums[n]] for n in FILES[:5]])
    monkeypatch.setattr(dataset, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": sums["batches.meta"]})
    # No network in tests: a download that is tried must fail at once.
    monkeypatch.setattr(dataset, "download", lambda self: (_ for _ in ()).throw(OSError("no network")))
    return tmp_path


def test_images_labels_and_names(local_copy: Path) -> None:
    dataset = load_dataset(data_config(dataset="cifar10", root=local_copy))
    assert dataset.images.shape == (120, 32, 32, 3)
    assert dataset.images.dtype == np.uint8
    assert dataset.labels[dataset.indices(TEST)].tolist() == [*range(10)] * 2
    assert dataset.classes[3] == "class 3"
    assert dataset.flip


def test_a_run_from_a_local_copy(local_copy: Path) -> None:
    config = small_config(data={"dataset": "cifar10", "root": str(local_copy)}, train={"steps": 2})
    assert train_run(config, local_copy / "run").scores["test"]["ema"].n == 20


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_incomplete_copies_name_the_files_and_the_folder(local_copy: Path, damage: str) -> None:
    file = local_copy / FOLDER / "data_batch_3"
    file.write_bytes(file.read_bytes()[:100]) if damage == "cut short" else file.unlink()
    with pytest.raises(
        DataError, match=r"cifar10 wants data_batch_1, .*cifar-10-batches-py.*no network"
    ) as caught:
        load_dataset(data_config(dataset="cifar10", root=local_copy))
    assert "\n" not in str(caught.value)
