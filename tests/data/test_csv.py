"""Images listed in a CSV file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from interlude_fast.data.datasets import TEST, TRAIN, UNLABELED, VALIDATION, Dataset, load_dataset
from interlude_fast.data.split import draw_split
from interlude_fast.errors import DataError
from tests.helpers import data_config, write_images


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERLUDE_FAST_CACHE", str(tmp_path / "cache"))
    write_images(tmp_path, [f"i/{n}.png" for n in range(12)])
    return tmp_path / "list.csv"


def load(file: Path, text: str) -> Dataset:
    file.write_text(text, encoding="utf-8")
    return load_dataset(data_config(dataset="csv", root=file))


def test_paths_labels_groups_and_splits(table: Path) -> None:
    dataset = load(
        table,
        "\ufeffPath, Label ,group,split\n"  # as spreadsheets write it
        'i/0.png,10,p1,train\n"i/1.png",9,p1,\n./i/2.png,,p2,unlabeled\ni/3.png,9,p3,val\ni/4.png,10,p4,TEST\n'
        "i/5.png,10,p5,unlabeled\n",
    )
    assert dataset.classes == ("9", "10")  # as numbers
    assert dataset.labels.tolist() == [1, 0, UNLABELED, 0, 1, UNLABELED]
    assert dataset.parts.tolist() == [TRAIN, TRAIN, TRAIN, VALIDATION, TEST, TRAIN]
    assert dataset.groups.tolist() == ["p1", "p1", "p2", "p3", "p4", "p5"]
    assert dataset.files.paths[2] == "i/2.png"


def test_path_and_label_are_enough(table: Path) -> None:
    dataset = load(table, "path,label\n" + "".join(f"i/{n}.png,{'cat' if n % 2 else 'dog'}\n" for n in range(12)))
    assert dataset.classes == ("cat", "dog")
    assert dataset.groups is None


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["--5", "3"], ("--5", "3")),
        (["²", "1"], ("1", "²")),
        (["10", "-9"], ("-9", "10")),
        (["1", "01", "001"], ("001", "01", "1")),  # in an order that is always the same
    ],
)
def test_labels_that_look_like_numbers(table: Path, labels: list[str], classes: tuple[str, ...]) -> None:
    rows = "".join(f"i/{n}.png,{label}\n" for n, label in enumerate(labels))
    assert load(table, "path,label\n" + rows).classes == classes


def test_names_that_begin_with_dots(table: Path) -> None:
    write_images(table.parent, ["..y.png"])
    assert load(table, "path,label\n..y.png,1\ni/0.png,2\n").files.paths == ("..y.png", "i/0.png")


def test_a_folder_that_may_not_be_looked_into(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.stat

    def denied(path: Path, **options: bool) -> os.stat_result:
        if path.name == "0.png":
            raise PermissionError(13, "Permission denied")
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", denied)
    with pytest.raises(DataError, match=r"line 2: .*0\.png cannot be read: Permission denied \(1 of 2"):
        load(table, "path,label\ni/0.png,1\ni/1.png,2\n")


def test_held_out_groups_stay_whole(table: Path) -> None:
    rows = "".join(f"i/{n}.png,{n % 2},p{n // 2}\n" for n in range(12))
    dataset = load(table, "path,label,group\n" + rows)
    split = draw_split(dataset, data_config(labels=None, split={"validation": 0.3, "test": 0.2}), 0)
    held = [set(dataset.groups[part].tolist()) for part in (split.validation, split.test, split.unlabeled)]
    assert [len(part) for part in (split.validation, split.test)] == [4, 2]
    assert not held[0] & held[1]
    assert not (held[0] | held[1]) & held[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path'"),
        ("path,label\n", "lists no image"),
        ("path,lable\ni/0.png,1\n", "column 'lable'; did you mean 'label'"),
        ("path\ni/0.png\n", "no column 'label'"),
        ("path,label\ni/0.png,1\ni/0.png,1\n", "line 3 repeats line 2: 'i/0.png'"),
        ("path,label\ni/0.png,1\n./i/x/../0.png,2\n", "line 3 repeats line 2"),
        ("path,label\n../secret.png,1\n", "line 2: '../secret.png' leaves the folder"),
        ("path,label\n/etc/passwd,1\n", "line 2: '/etc/passwd' leaves the folder"),
        ("path,label\ni/0.png,1\ni/99.png,2\n", r"line 3: .*99.png does not exist \(1 of 2"),
        ("path,label,split\ni/0.png,1,trian\n", "unknown split 'trian'; did you mean 'train'"),
        ("path,label,split\ni/0.png,1,\ni/1.png,2,\ni/2.png,3,test\n", "line 4: label '3' of the test split"),
        ("path,label,split\ni/0.png,1,\ni/1.png,,test\n", "line 3: an image of the test split without a label"),
        ("path,label\ni/0.png,1\ni/1.png,1\n", "has 1 labels"),
        ("path,label\ni/0.png,1,2,3\n", "line 2: more fields"),
        ("path,label\n,1\n", "line 2: no path"),
        ("path,label,label\ni/0.png,1,2\n", "has 2 columns 'label'"),
        ("path,label\ni/0.png,1\ni/1.png\n", "line 3: no field 'label'"),
        (
            'path,label\ni/0.png,1\ni/1.png,"2\ni/2.png,1\n',
            r"unexpected end of data \(line 4, in the row after line 2",
        ),
        ('"path,label\ni/0.png,1\n', r"unexpected end of data \(line 2\)"),
        (f"path,label\ni/0.png,1\n{'x' * 300}.png,2\n", r"line 3: .*x.png cannot be read: File name too long"),
        ("path,label\ni/0.png/x.png,1\n", r"line 2: .*x.png does not exist"),
        ('path,label\n"a\nb.png",1\n', r"line 3: .*a\\nb.png does not exist"),
        ('path,label\n"../a\nb.png",1\n', r"'../a\\nb.png' leaves"),
        ('path,label\n"a\nb",1\n"a\nb",1\n', r"line 5 repeats line 3: 'a\\nb'"),
        ('path,label,split\ni/0.png,1,"a\nb"\n', r"unknown split 'a\\nb'"),
    ],
)
def test_bad_tables_name_the_line(table: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(table, text)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_tables(table: Path) -> None:
    table.write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        load_dataset(data_config(dataset="csv", root=table))
    with pytest.raises(DataError, match="Is a directory"):
        load_dataset(data_config(dataset="csv", root=table.parent))
    with pytest.raises(DataError, match="No such file"):
        load_dataset(data_config(dataset="csv", root=table.parent / "none.csv"))
