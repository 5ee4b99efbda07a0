"""TMED-2's tables and folders, in miniature."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from interlude_fast.config import load
from interlude_fast.data.datasets import EXCLUDED, TEST, TRAIN, UNLABELED, VALIDATION, load_dataset, tmed2
from interlude_fast.data.datasets.tmed2 import TABLE, records
from interlude_fast.data.files import Record
from interlude_fast.errors import ConfigError, DataError
from tests.helpers import data_config, write_images

BOTH, VIEW = "view_and_diagnosis_labeled_set/labeled", "view_labeled_set/labeled"
ROWS = [  # query_key, view_label, split, SourceFolder
    ("5269s1_0.png", "PLAX", "train", BOTH),
    ("5269s2_1.png", "PSAX", "train", BOTH),
    ("17s1_3.png", "A4C", "val", BOTH),
    ("18s1_12.png", "A2C", "test", BOTH),
    ("18s1_13.png", "A4CorA2CorOther", "test", BOTH),
    ("5s1_0.png", "A4CorA2CorOther", "train", VIEW),
    ("5s1_1.png", "A2C", "train", VIEW),
]
UNLABELED_FILES = ["900s1_1.png", "18s3_0.png", "900s1_0.png"]


def write_table(table: Path, rows: list[tuple[str, ...]] = ROWS) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    columns = ["query_key", "view_label", "diagnosis_label", "view_classifier_split", "diagnosis_classifier_split"]
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, "SourceFolder"])
        writer.writerows([key, view, "no_AS", split, split, folder] for key, view, split, folder in rows)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_table(tmp_path / TABLE)
    for key, _, _, folder in ROWS:
        # An archive unpacked into its own folder gives labeled/labeled, as many users have it.
        place = tmp_path / folder / ("labeled" if folder == VIEW else "") / key
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    for name in UNLABELED_FILES:
        file = tmp_path / "unlabeled_set" / "unlabeled_set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "unlabeled_set" / "readme.txt").touch()
    return tmp_path


def test_records(root: Path) -> None:
    found, classes = records(root)
    assert classes == ("PLAX", "PSAX", "A4C", "A2C")
    assert found == [
        Record(f"{BOTH}/5269s1_0.png", 0, TRAIN, "5269"),
        Record(f"{BOTH}/5269s2_1.png", 1, TRAIN, "5269"),
        Record(f"{BOTH}/17s1_3.png", 2, VALIDATION, "17"),
        Record(f"{BOTH}/18s1_12.png", 3, TEST, "18"),
        Record(f"{BOTH}/18s1_13.png", UNLABELED, EXCLUDED, "18"),
        Record(f"{VIEW}/labeled/5s1_0.png", UNLABELED, EXCLUDED, "5"),
        Record(f"{VIEW}/labeled/5s1_1.png", 3, TRAIN, "5"),
        Record("unlabeled_set/unlabeled_set/18s3_0.png", UNLABELED, EXCLUDED, "18"),  # a patient of the test
        Record("unlabeled_set/unlabeled_set/900s1_0.png", UNLABELED, TRAIN, "900"),
        Record("unlabeled_set/unlabeled_set/900s1_1.png", UNLABELED, TRAIN, "900"),
    ]


@pytest.mark.parametrize("table", ["DEV479/TMED2_fold2_labeledpart.csv", "TMED2_fold1_labeledpart.csv"])
def test_another_table(root: Path, table: str) -> None:
    write_table(root / table, ROWS[:2])
    assert [r.path for r in records(root / table)[0]][:2] == [f"{BOTH}/5269s1_0.png", f"{BOTH}/5269s2_1.png"]
    assert len(records(root / table)[0]) == 5


def test_images_as_the_network_sees_them(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERLUDE_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
    write_images(root, [r.path for r in records(root)[0]], (112, 112), mode="L")
    dataset = tmed2.load(data_config(dataset="tmed2", root=root))
    assert dataset.images.shape == (10, 112, 112, 1)
    assert (dataset.mean, dataset.std, dataset.flip) == ((0.0,), (1.0,), False)
    assert dataset.groups.tolist()[:3] == ["5269", "5269", "17"]
    assert [len(dataset.indices(part)) for part in (TRAIN, VALIDATION, TEST, EXCLUDED)] == [5, 1, 1, 3]
    with pytest.raises(ConfigError, match=r"tmed2 wants data\.root"):
        load_dataset(data_config(dataset="tmed2"))


def test_the_preset() -> None:
    config = load(None, [{"data": {"dataset": "tmed2"}}])
    assert (config.optim.lr, config.train.mu, config.method.options.lambda_u) == (0.1, 5, 0.5)
    assert "lambda_u" not in load(None, [{"data": {"dataset": "tmed2"}, "method": {"name": "supervised"}}]).method


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("1s1_0.png", "PLAX", "train", BOTH), r"line 2: there is no .*/labeled/1s1_0\.png"),
        (("17s1_3.png", "PLEX", "train", BOTH), "line 2: unknown view_label 'PLEX'"),
        (("17s1_3.png", "PLAX", "valid", BOTH), "view_classifier_split is 'valid', not one of train, val, test"),
    ],
)
def test_rows_that_do_not_fit(root: Path, row: tuple[str, ...], message: str) -> None:
    write_table(root / TABLE, [row])
    with pytest.raises(DataError, match=message) as caught:
        records(root)
    assert "TMED2_fold0_labeledpart.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_damaged_files(root: Path) -> None:
    (root / TABLE).write_text("query_key,view_label\n17s1_3.png,PLAX\n")
    with pytest.raises(DataError, match=r"has no column 'view_classifier_split'"):
        records(root)
    (root / TABLE).write_text("query_key,view_label,view_classifier_split,SourceFolder\n17s1_3.png,PLAX\n")
    with pytest.raises(DataError, match="line 2 has too few columns"):
        records(root)
    (root / TABLE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot read the table"):
        records(root)
    (root / TABLE).unlink()
    with pytest.raises(DataError, match=r"cannot read the table .*_fold0_labeledpart\.csv \(No such file"):
        records(root)
    write_table(root / TABLE)
    (root / "unlabeled_set").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"no folder .*unlabeled_set; unpack"):
        records(root)


def test_names_tell_the_patient(root: Path) -> None:
    (root / "unlabeled_set" / "scan.png").touch()
    with pytest.raises(DataError, match=r"unlabeled_set/scan\.png is not named <patient>s<study>"):
        records(root)
