"""CIFAR-100 from a local copy in torchvision's layout."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from interlude_fast.config import ModelSection, load
from interlude_fast.data.datasets import TEST, load_dataset
from interlude_fast.data.datasets.cifar100 import FILES, FOLDER
from interlude_fast.errors import DataError
from interlude_fast.training.setup import prepare
from tests.helpers import data_config

torchvision = pytest.importorskip("torchvision")


@pytest.fixture
def local_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small stand-in with the real file layout; torchvision is told its checksums."""
    rng = np.random.default_rng(0)
    (tmp_path / FOLDER).mkdir()
    sums = {}
    for name, count in zip(FILES, (400, 100, 0), strict=True):
        fine = [i % 100 for i in range(count)]
        content = {
            "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            "fine_labels": fine,
            "coarse_labels": [0] * count,
        }
        if name == "meta":
            content = {"fine_label_names": [f"fine {i}" for i in range(100)], "coarse_label_names": ["coarse"]}
        elif name == "train":
            content["data"][7] = 0
            content["data"][7, 2 * 1024 + 1 * 32 + 3] = 255  # blue, row 1, column 3
        blob = pickle.dumps(content)
        (tmp_path / FOLDER / name).write_bytes(blob)
        sums[name] = hashlib.md5(blob).hexdigest()
    dataset = torchvision.datasets.CIFAR100
    monkeypatch.setattr(dataset, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(dataset, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": sums["meta"]})
    # No network in tests: a download that is tried must fail at once.
    monkeypatch.setattr(dataset, "download", lambda self: (_ for _ in ()).throw(OSError("no network")))
    return tmp_path


def test_images_and_fine_labels(local_copy: Path) -> None:
    dataset = load_dataset(data_config(dataset="cifar100", root=local_copy))
    assert dataset.images.shape == (500, 32, 32, 3)
    assert np.argwhere(dataset.images[7]).tolist() == [[1, 3, 2]]
    assert dataset.labels[dataset.indices(TEST)].tolist() == list(range(100))
    assert (dataset.classes[42], len(dataset.classes), dataset.flip) == ("fine 42", 100, True)


def test_the_preset_trains_it(local_copy: Path) -> None:
    config = load(None, [{"data": {"dataset": "cifar100", "root": str(local_copy)}, "train": {"device": "cpu"}}])
    assert (config.model.options.width, config.optim.weight_decay) == (8, 1e-3)
    config.model = ModelSection.model_validate(
        {"name": "wideresnet", "depth": 28, "width": 1}
    )  # the whole one takes seconds to build
    assert len(prepare(config).split.labeled) == 400


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_incomplete_copies_name_the_files_and_the_folder(local_copy: Path, damage: str) -> None:
    file = local_copy / FOLDER / "test"
    file.write_bytes(file.read_bytes()[:100]) if damage == "cut short" else file.unlink()
    with pytest.raises(DataError, match=r"cifar100 wants train, test, .*cifar-100-python.*no network") as caught:
        load_dataset(data_config(dataset="cifar100", root=local_copy))
    assert "\n" not in str(caught.value)
