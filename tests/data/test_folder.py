"""One's own images in folders: layouts, sizes and modes, and everything that can be wrong with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from interlude_fast.data.datasets import TEST, TRAIN, UNLABELED, VALIDATION, Dataset, load_dataset, tmed2
from interlude_fast.data.files import image_paths
from interlude_fast.errors import ConfigError, DataError
from tests.helpers import data_config, image_names, write_images


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERLUDE_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "mine"


def load(progress: Any = None, **options: Any) -> Dataset:
    return load_dataset(data_config(dataset="folder", **options), progress)


def labels_by_path(dataset: Dataset) -> dict[str, int]:
    assert dataset.files is not None
    return dict(zip(dataset.files.paths, dataset.labels.tolist(), strict=True))


def test_class_folders(root: Path) -> None:
    write_images(root, [*image_names("ab", 3), "a/deep/er.JPG", "b/notes.txt.png"])
    (root / "a" / "readme.txt").write_text("not an image")
    (root / ".hidden").mkdir()
    (root / "a" / "._x.png").write_text("what a Mac leaves")
    dataset = load(root=root)
    assert dataset.classes == ("a", "b")
    assert dataset.images.shape == (8, 12, 12, 3)
    assert labels_by_path(dataset)["a/deep/er.JPG"] == 0
    assert (dataset.parts == TRAIN).all()
    with Image.open(root / "b" / "1.png") as image:
        at = dataset.files.paths.index("b/1.png")
        np.testing.assert_array_equal(dataset.images[at], np.asarray(image))
    np.testing.assert_allclose(dataset.mean, dataset.images.reshape(-1, 3).mean(0) / 255)
    np.testing.assert_allclose(dataset.std, dataset.images.reshape(-1, 3).std(0) / 255)


def test_train_test_val_and_unlabeled_below_one_root(root: Path) -> None:
    for part in ("train", "test", "val"):
        write_images(root, image_names("ab", 2, f"{part}/"))
    write_images(root, ["unlabeled/x/1.png", "unlabeled/2.png"])
    dataset = load(root=root)
    assert np.bincount(dataset.parts).tolist() == [6, 4, 4]
    assert labels_by_path(dataset)["unlabeled/x/1.png"] == UNLABELED
    for part in (TRAIN, VALIDATION, TEST):
        assert set(dataset.labels[dataset.indices(part)].tolist()) >= {0, 1}


def test_labeled_unlabeled_and_test_folders_apart(tmp_path: Path) -> None:
    write_images(tmp_path / "l", image_names("ab", 2))
    write_images(tmp_path / "far" / "u", ["1.png", "2/3.png"])
    write_images(tmp_path / "t", image_names("b", 2))
    dataset = load(labeled=tmp_path / "l", unlabeled=tmp_path / "far" / "u", test=tmp_path / "t")
    assert np.bincount(dataset.labels + 1).tolist() == [2, 2, 4]
    assert dataset.labels[dataset.indices(TEST)].tolist() == [1, 1]
    assert "far/u/2/3.png" in dataset.files.paths


def test_a_labeled_or_test_image_is_not_unlabeled_too(tmp_path: Path) -> None:
    """--unlabeled may name the folder above all others."""
    write_images(tmp_path, [*image_names("ab", 2, "l/"), *image_names("ab", 1, "t/"), "more/1.png"])
    dataset = load(labeled=tmp_path / "l", unlabeled=tmp_path, test=tmp_path / "t")
    assert len(dataset.images) == 7
    assert (dataset.labels == UNLABELED).sum() == 1


def test_named_folders_are_no_classes(tmp_path: Path) -> None:
    write_images(
        tmp_path, [*image_names(["cat", "dog"], 3), *image_names(["cat", "dog"], 2, "held/"), "heap/1.png"]
    )
    dataset = load(labeled=tmp_path, unlabeled=tmp_path / "heap", test=tmp_path / "held")
    assert dataset.classes == ("cat", "dog")
    assert [len(dataset.indices(part)) for part in (TRAIN, TEST)] == [7, 4]


def test_a_link_does_not_make_an_image_twice(tmp_path: Path) -> None:
    write_images(tmp_path / "a", image_names(["cat", "dog"], 3))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert len(load(labeled=tmp_path / "a", unlabeled=tmp_path / "link").images) == 6
    with pytest.raises(DataError, match=r"is there twice: as train image cat/0\.png and test image"):
        load(labeled=tmp_path / "a", test=tmp_path / "link")


def test_sizes_modes_and_channels(root: Path) -> None:
    write_images(root, image_names("a", 2), (40, 30))
    write_images(root, image_names("b", 2), (50, 70), mode="L")
    assert load(root=root).images.shape == (4, 40, 40, 3)  # the median shorter side, 40
    assert load(root=root, size=24, channels=1, fit="pad").images.shape == (4, 24, 24, 1)
    write_images(root, image_names("a", 2), (400, 300), mode="L")
    write_images(root, image_names("b", 2), (500, 300), mode="L")
    assert load(root=root).images.shape == (4, 96, 96, 1)
    write_images(root, image_names("ab", 2), (224, 224))
    assert load(root=root).images.shape == (4, 224, 224, 3)


class Notes:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, what: str, total: int) -> None: ...

    def advance(self, n: int) -> None: ...

    def done(self) -> None: ...

    def note(self, line: str) -> None:
        self.lines.append(line)


def damage(root: Path) -> None:
    (root / "a" / "text.jpg").write_text("not an image at all")
    (root / "a" / "empty.png").touch()
    content = (root / "a" / "0.png").read_bytes()
    (root / "a" / "short.png").write_bytes(content[: len(content) // 2])
    if hasattr(os, "mkfifo"):
        os.mkfifo(root / "a" / "pipe.png")


def test_unreadable_files_are_named_and_skipped(root: Path) -> None:
    write_images(root, image_names("ab", 10))
    damage(root)
    notes = Notes()
    dataset = load(notes, root=root, max_unreadable=0.5)
    assert len(dataset.images) == 20
    assert {path for path, _ in dataset.files.skipped} >= {"a/text.jpg", "a/empty.png", "a/short.png"}
    assert any("of 24 image files cannot be read" in line and "empty.png" in line for line in notes.lines), (
        notes.lines
    )


def test_too_many_unreadable_files(root: Path) -> None:
    write_images(root, image_names("ab", 10))
    damage(root)
    with pytest.raises(DataError, match=r"4 of 24 image files cannot be read: .*max_unreadable=0.5 \(now 0.05\)"):
        load(root=root)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        ([], {}, "is not a folder"),
        (image_names("a", 2), {}, "holds 1 class folders, at least 2"),
        (["a/1.png", "b/note.txt"], {}, "class folder .*b holds no image"),
        ([*image_names("ab", 1, "train/"), "test/c/1.png"], {}, "has a class 'c' that training does not have"),
        ([*image_names("ab", 1), "../u/note.txt"], {"unlabeled": "../u"}, "no image in the unlabeled folder"),
        (image_names("ab", 1), {"unlabeled": "nowhere"}, "data.unlabeled = .*nowhere is not a folder"),
        ([*image_names("ab", 1, "train/"), "unlabeled/1.png", "u/1.png"], {"unlabeled": "u"}, "already"),
        ([*image_names("ab", 1), "test/a/1.png"], {}, "holds 'test' beside class folders; put those below"),
        ([*image_names("ab", 1, "train/"), "test/a/note.txt"], {}, "no image in the class folders of"),
        (image_names("ab", 1), {"labeled": "a"}, "both name the labeled images"),
        (image_names("ab", 1), {"extra": True}, "data.extra = True means nothing to the dataset 'folder'"),
    ],
)
def test_layouts_that_do_not_fit(root: Path, make: list[str], options: dict[str, Any], message: str) -> None:
    for name in make:
        if name.endswith(".png"):
            write_images(root, [name])
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("x")
    options = {k: root / v if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        load(root=root, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", ["folder", "tmed2"])
def test_folders_that_cannot_be_read_are_not_empty(root: Path, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    write_images(root, [*image_names("ab", 2), "a/secret/1.png", "unlabeled_set/secret/1s1_0.png"])
    real = os.scandir

    def denied(path: Any) -> Any:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match="secret cannot be read: Permission denied"):
        list(image_paths(root / "a")) if data == "folder" else tmed2._unlabeled(root)


def test_names_that_are_no_text(root: Path) -> None:
    strange = os.fsdecode(b"b\xff")
    write_images(root, image_names("ab", 10))
    (root / "b").rename(root / strange)
    (root / strange / "two\nlines.png").write_text("broken")
    notes = Notes()
    dataset = load(notes, root=root)
    assert dataset.classes == ("a", strange)
    assert len(dataset.hash) == 64
    assert any("b\\udcff/two\\nlines.png (not an image" in line for line in notes.lines)


def test_a_class_whose_every_image_is_unreadable(root: Path) -> None:
    write_images(root, image_names("a", 40))
    (root / "b").mkdir()
    (root / "b" / "1.png").write_text("broken")
    with pytest.raises(DataError, match="class 'b' has no training image with a label"):
        load(root=root)


def test_no_folder_named() -> None:
    with pytest.raises(ConfigError, match="--data-root DIR, or --labeled DIR --unlabeled DIR"):
        load()


def test_a_moved_folder_is_the_same_data(root: Path, tmp_path: Path) -> None:
    write_images(root, image_names("ab", 3))
    before = load(root=root).hash
    root.rename(tmp_path / "moved")
    assert load(root=tmp_path / "moved").hash == before
    assert load(root=tmp_path / "moved", size=8).hash == before  # a split is replayed at any size
    write_images(tmp_path / "moved", ["a/0.png"], (12, 12), mode="L")
    assert load(root=tmp_path / "moved", channels=3).hash != before
