"""One's own arrays: .npz archives and the released .npy dictionaries."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from interlude_fast.data.datasets import TEST, TRAIN, UNLABELED, VALIDATION, Dataset, load_dataset
from interlude_fast.errors import ConfigError, DataError
from interlude_fast.experiment.run import train_run
from tests.helpers import data_config, small_config

rng = np.random.default_rng(0)
X = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
Y = np.arange(12) % 3


def read(root: Path, **settings: Any) -> Dataset:
    return load_dataset(data_config(dataset="npz", root=root, **settings))


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "mine.npz", **arrays)
    return folder / "mine.npz"


def test_every_part(tmp_path: Path) -> None:
    file = saved(
        tmp_path,
        images=X,
        labels=np.where(np.arange(12) < 9, Y, -1),
        unlabeled_images=X[:5],
        validation_images=X[:4],
        validation_labels=Y[:4],
        test_images=X[6:],
        test_labels=Y[6:],
        groups=np.array([f"p{i // 3}" for i in range(12)]),
        test_groups=np.array(["t"] * 6, dtype=object),  # as pandas gives strings
        classes=np.array(["ant", "bee", "cat"]),
    )
    dataset = read(file)
    assert np.array_equal(dataset.images, np.concatenate([X, X[:5], X[:4], X[6:]]))
    assert dataset.labels.tolist() == [*Y[:9], *[UNLABELED] * 8, *Y[:4], *Y[6:]]
    assert dataset.parts.tolist() == [TRAIN] * 17 + [VALIDATION] * 4 + [TEST] * 6
    assert dataset.classes == ("ant", "bee", "cat")
    assert dataset.groups is not None
    alone = [f"{part} image {i}" for part, n in (("unlabeled", 5), ("validation", 4)) for i in range(n)]
    assert dataset.groups.tolist() == [f"p{i // 3}" for i in range(12)] + alone + ["t"] * 6
    assert np.allclose(dataset.mean, X.reshape(-1, 3).mean(0) / 255)


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("data", "Targets", "X_test", "Y_test"),
    ],
)
def test_usual_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    dataset = read(saved(tmp_path, **dict(zip(names, (X, Y, X[:3], Y[:3]), strict=True))))
    assert dataset.parts.tolist() == [TRAIN] * 12 + [TEST] * 3
    assert dataset.labels.tolist() == [*Y, *Y[:3]]


def test_medmnist(tmp_path: Path) -> None:
    parts = {"train": slice(12), "val": slice(3), "test": slice(3, 9)}
    arrays = {f"{part}_images": X[s, ..., 0] for part, s in parts.items()}
    arrays |= {f"{part}_labels": Y[s, None].astype(np.uint8) for part, s in parts.items()}
    dataset = read(saved(tmp_path, **arrays))
    assert dataset.images.shape == (21, 8, 8, 1)
    assert dataset.parts.tolist() == [TRAIN] * 12 + [VALIDATION] * 3 + [TEST] * 6
    assert dataset.labels.tolist() == [*Y, *Y[:3], *Y[3:9]]


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_may_come_first(tmp_path: Path, channels: int) -> None:
    images = X[..., :channels]
    dataset = read(saved(tmp_path, images=images.transpose(0, 3, 1, 2), labels=Y))
    assert np.array_equal(dataset.images, images)
    assert dataset.images.flags.c_contiguous


def test_classes_are_the_values_of_the_labels(tmp_path: Path) -> None:
    dataset = read(saved(tmp_path, images=X, labels=Y * 10 + 5, test_images=X[:1], test_labels=[25]))
    assert dataset.classes == ("5", "15", "25")
    assert dataset.labels.tolist() == [*Y, 2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": X / 255, "labels": Y}, r"float64 in \[0, 1\]; multiply by 255 and store uint8"),
        ({"images": X.astype("f4"), "labels": Y}, r"float32; store uint8 in 0\.\.255"),
        ({"images": X.astype(int), "labels": Y}, "int64; store uint8"),
        ({"images": X[:, :7], "labels": Y}, "12x7x8x3; wanted are N x S x S"),
        ({"images": X[..., :2], "labels": Y}, "12x8x8x2; wanted are N x S x S"),
        ({"images": X[0], "labels": Y}, "8x8x3; wanted|8x8x3x1; wanted|one integer"),
        ({"images": X, "labels": Y[:9]}, "labels are int64 9; wanted is one integer for each of 12 images"),
        ({"images": X, "labels": np.eye(3)[Y]}, "labels are float64 12x3; wanted"),
        ({"images": X, "labels": Y - 2}, "train label -2 of image 0; the lowest is -1"),
        ({"images": X, "labels": Y, "test_images": X, "test_labels": Y - 1}, "test label -1 of image 0"),
        ({"images": X, "labels": Y, "test_images": X}, "test images without test_labels"),
        (
            {"images": X, "labels": Y, "test_images": X[:, :4, :4], "test_labels": Y},
            r"test images are \(4, 4, 3\)",
        ),
        ({"images": X}, "no training image has a label"),
        ({"test_images": X, "test_labels": Y}, "no training images; store at least one, as 'images'"),
        ({"images": X, "label": Y, "labels": Y}, "'labels' and another array both are the train labels"),
        ({"images": X, "lables": Y}, "unknown array 'lables'; did you mean 'labels'"),
        ({"images": X, "labels": Y, "classes": ["a", "b"]}, "label 2, but 'classes' names only 0 to 1"),
        ({"images": X, "labels": Y, "groups": ["a", "b"]}, "2 groups of 12 train images"),
    ],
)
def test_what_does_not_fit_gets_one_line(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(saved(tmp_path, **arrays))
    assert "\n" not in str(caught.value)
    assert "mine.npz" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not", b"hello there", b"\x93NUMPY\x01\x00\x76", None])
def test_damaged_files_get_one_line(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "mine.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"mine\.npz") as caught:
        read(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"npz wants data\.root"):
        load_dataset(data_config(dataset="npz"))


def test_archives_cut_short(tmp_path: Path) -> None:
    file = saved(tmp_path, images=X, labels=Y)
    whole = file.read_bytes()
    for length in range(0, len(whole), 97):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"mine\.npz"):
            read(file)


# The released dictionaries.


def released(folder: Path, images: np.ndarray = X, protocol: int = 4, suffix: str = ".npy") -> Path:
    """l_train, u_train (with its true labels), val and test, each np.save of {"images": ..., "labels": ...}."""
    parts = {"l_train": slice(6), "u_train": slice(6, 12), "val": slice(3), "test": slice(3, 9)}
    for name, s in parts.items():
        content = {"images": images[s], "labels": Y[s]}
        with (folder / f"{name}{suffix}").open("wb") as file:
            if protocol < 0:  # TMED-2's: an archive under this name
                np.savez(file, **content)
            else:
                dictionary = np.array(content, dtype=object)
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(dictionary))
                pickle.dump(dictionary, file, protocol=protocol)
    return folder


@pytest.mark.parametrize("protocol", [-1, 0, 1, 2, 3, 4])
def test_a_folder_of_dictionaries(tmp_path: Path, protocol: int) -> None:
    dataset = read(released(tmp_path, protocol=protocol))
    assert np.array_equal(dataset.images, np.concatenate([X, X[:3], X[3:9]]))
    assert dataset.labels.tolist() == [*Y[:6], *[UNLABELED] * 6, *Y[:3], *Y[3:9]]
    assert dataset.parts.tolist() == [TRAIN] * 12 + [VALIDATION] * 3 + [TEST] * 6


def test_as_numpy_writes_them(tmp_path: Path) -> None:
    """Also Fortran order, other byte orders, lists, numpy scalars, strings and views."""
    content = {
        "images": np.asfortranarray(X.transpose(0, 3, 1, 2)),  # STL-10's: channels first
        "labels": Y.astype(">i4"),
        "groups": np.array([f"p{i}" for i in range(12)]),
        "classes": ["a", "b", np.str_("c")],
        "test_images": X[::-1],
        "test_labels": [np.int64(k) for k in Y[::-1]],
    }
    np.save(tmp_path / "all.npy", content)  # type: ignore[arg-type]
    dataset = read(tmp_path / "all.npy")
    assert np.array_equal(dataset.images, np.concatenate([X, X[::-1]]))
    assert dataset.labels.tolist() == [*Y, *Y[::-1]]
    assert dataset.classes == ("a", "b", "c")
    assert dataset.groups is not None
    assert dataset.groups[11] == "p11"


def test_names_say_the_part(tmp_path: Path) -> None:
    released(tmp_path)
    (tmp_path / "l_train.npy").rename(tmp_path / "cifar10_labeled_250.npy")
    (tmp_path / "u_train.npy").rename(tmp_path / "cifar10_train_unlabeled.npy")
    (tmp_path / "val.npy").rename(tmp_path / "Validation.npy")
    assert read(tmp_path).parts.tolist() == [TRAIN] * 12 + [VALIDATION] * 3 + [TEST] * 6
    np.save(tmp_path / "test2.npy", Y)
    with pytest.raises(DataError, match=r"test\.npy and test2\.npy both are the test images"):
        read(tmp_path)
    (tmp_path / "test2.npy").rename(tmp_path / "indices.npy")
    with pytest.raises(DataError, match=r"indices\.npy: cannot tell what it is for"):
        read(tmp_path)
    (tmp_path / "indices.npy").rename(tmp_path / "cifar10_labeled_250.npy")
    with pytest.raises(DataError, match=r"cifar10_labeled_250\.npy holds no dictionary"):
        read(tmp_path)


def test_a_folder_without_training_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no l_train\.npy or train\.npy"):
        read(tmp_path)


def test_a_run_from_a_folder(tmp_path: Path) -> None:
    released(tmp_path, images=X.repeat(2, 1).repeat(2, 2))
    data = {"dataset": "npz", "root": str(tmp_path), "labels": 6}
    config = small_config(data=data, train={"steps": 2})
    assert train_run(config, tmp_path / "run").scores["test"]["ema"].n == 6


# Files of strangers.


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def state_of(content: Any, dtype: Any) -> Any:
    """An array whose pickle carries a state of one's choosing."""
    array_call = np.zeros(1).__reduce__()
    return type(
        "Forged", (), {"__reduce__": lambda self: (array_call[0], array_call[1], (1, (1,), dtype, False, content))}
    )()


def forged_dtype(flags: int) -> Any:
    """An object dtype that claims to be of plain bytes: numpy's own unpickling would take them for pointers."""
    state = (3, "|", None, None, None, -1, -1, flags)
    return type("Forged", (), {"__reduce__": lambda self: (np.dtype, ("O8", False, True), state)})()


@pytest.mark.parametrize("where", ["labels", "nested", "whole", "member of an archive"])
@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch {}",), r"(posix|nt)\.system"),
        (eval, ("open('{}', 'w').close()",), r"builtins\.eval"),
        (exec, ("open('{}', 'w').close()",), r"builtins\.exec"),
        (getattr, ("", "join"), r"builtins\.getattr"),
        (np.load, ("{}",), r"numpy\.load"),
        (Path.touch, (Path("{}"),), r"builtins\.getattr|pathlib.*"),
    ],
)
def test_nothing_of_a_pickle_runs(
    tmp_path: Path, where: str, function: Callable, arguments: tuple, named: str
) -> None:
    sentinel = tmp_path / "sentinel"
    call = Calls(function, *(a.format(sentinel) if isinstance(a, str) else a for a in arguments))
    content: Any = {"images": X, "labels": call}
    if where == "nested":
        inner = np.empty(2, dtype=object)
        inner[1] = [{"deep": call}]
        content = {"images": X, "labels": inner}
    elif where != "labels":
        content = call
    file = tmp_path / "l_train.npy"
    np.save(file, np.array([content], dtype=object).reshape(()))
    if where.startswith("member"):
        with zipfile.ZipFile(tmp_path / "mine.npz", "w") as archive:
            archive.write(file, "labels.npy")
        file = tmp_path / "mine.npz"
    with pytest.raises(DataError, match=rf"{file} wants to call {named}, which") as caught:
        read(file)
    assert "\n" not in str(caught.value)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "value",
    [
        state_of(b"\x41" * 8, forged_dtype(flags=0)),
        state_of(b"\x41" * 8, forged_dtype(flags=63)),
        state_of(b"\x41" * 7, np.dtype("i8")),
        state_of([1, 2], np.dtype("O")),
        state_of(b"\x41" * 8, np.dtype("i4,i4")),
        state_of(b"\x41" * 8, "i8"),
        {1, 2},
    ],
)
def test_forged_arrays_are_refused(tmp_path: Path, value: Any) -> None:
    np.save(tmp_path / "l_train.npy", {"images": X, "labels": value})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"l_train\.npy") as caught:
        read(tmp_path / "l_train.npy")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "code",
    [
        b"cnumpy\nndarray\n(dVx\nI1\nsb.",  # the state of a class
        b"c_codecs\nencode\nN(dV__init__\nI1\ns\x86b.",  # its attributes, by the second half of a state
        b"c_codecs\nencode\n(Va\nVrot13\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntVb\ntR.",
        b"cnumpy\nndarray.__class__\n.",
        b"cnumpy\n__builtins__\n.",
        b"\x82\x01.",  # copyreg's extensions
        b"Vid\nQ.",  # a persistent id
        b"]" * 50 + b"a" * 49 + b".",
    ],
)
def test_forged_pickles_are_refused(tmp_path: Path, code: bytes) -> None:
    with (tmp_path / "l_train.npy").open("wb") as file:
        empty = np.array(None, dtype=object)
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(empty))
        file.write(code)
    with pytest.raises(DataError, match=r"l_train\.npy") as caught:
        read(tmp_path / "l_train.npy")
    assert "\n" not in str(caught.value)


def test_dictionaries_cut_short_or_damaged(tmp_path: Path) -> None:
    np.save(tmp_path / "l_train.npy", {"images": X[:2], "labels": Y[:2]})  # type: ignore[arg-type]
    whole = bytearray((tmp_path / "l_train.npy").read_bytes())
    flips = np.random.default_rng(1)
    for length in range(0, len(whole), 37):
        (tmp_path / "l_train.npy").write_bytes(whole[:length])
        with pytest.raises(DataError):
            read(tmp_path / "l_train.npy")
    lines = []
    for _ in range(300):  # either still a data set, or one line
        damaged = bytearray(whole)
        damaged[flips.integers(len(whole))] = flips.integers(256)
        (tmp_path / "l_train.npy").write_bytes(damaged)
        try:
            read(tmp_path / "l_train.npy")
        except DataError as error:
            lines.append(str(error))
    assert lines
    assert not any("\n" in line for line in lines)
