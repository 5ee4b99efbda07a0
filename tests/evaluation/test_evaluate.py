"""A finished run evaluated again: in full, by network, against FGSM, and on test sets from elsewhere."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

from interlude_fast.api import predict
from interlude_fast.cli import main
from interlude_fast.config import load
from interlude_fast.data.labeled import labeled_images
from interlude_fast.errors import CheckpointError, DataError
from interlude_fast.evaluation.evaluate import evaluate_run
from interlude_fast.experiment.result import Result as Evaluation
from interlude_fast.experiment.run import train_run
from interlude_fast.experiment.run_directory import RunDirectory
from interlude_fast.report.tables import result_lines
from interlude_fast.training import evaluate as training_evaluate
from interlude_fast.training.checkpoint import load_tensors
from tests.helpers import SMALL, image_names, small_config, write_images

CLASSES = ("cat", "dog", "emu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/, a run trained on them, and another/, without emus and in another order of sizes."""
    root = tmp_path_factory.mktemp("transfer")
    write_images(root / "photos", image_names(CLASSES, 12))
    write_images(root / "another", image_names(("emu", "cat"), 5), size=(30, 20))
    data = {"dataset": "folder", "root": root / "photos", "labels": 6, "size": 12, "cache": root / "cache"}
    own = {"data": {**data, "split": {"test": 9, "validation": 6}}, "train": {"device": "cpu", "eval_every": 2}}
    small = {"model": SMALL["model"], "train": {**SMALL["train"], "steps": 6}}
    train_run(load(None, [small, own, {"method": {"name": "interlude", "fusion_at_eval": True}}]), root / "run")
    return root


@pytest.fixture
def call(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command line in this process, beside the run, on a wide terminal."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])


def test_everything_by_default(place: Path) -> None:
    found = evaluate_run(place / "run")
    result = json.loads((place / "run" / "result.json").read_text())
    assert {part: [*networks] for part, networks in found.scores.items()} == {
        part: ["ema", "raw", "best_on_validation"] for part in ("test", "validation")
    }
    assert json.loads(json.dumps(found.as_dict()["report"])) == result["scores"]
    about = result["best_on_validation"]["ema"]["step"]
    assert found.selected == {"network": "ema", "step": str(about), "selected_by": "accuracy"}


def test_what_is_not_defined_is_left_out_of_the_metrics(place: Path) -> None:
    names = {name for row in RunDirectory(place / "run").read_metrics() for name in row}
    scores = {"error", "accuracy", "balanced_accuracy", "macro_f1", "auroc", "calibration_error"}
    for part, network in (("test", "ema"), ("validation", "raw")):
        found = {n.rpartition("/")[2] for n in names if n.startswith(f"{part}/{network}/")}
        assert found == scores  # of three classes there are no five best ones
    assert (
        json.loads((place / "run" / "result.json").read_text())["scores"]["test"]["ema"]["top5_accuracy"] is None
    )


def rows(table: Path, run: Path, network: str) -> dict[str, tuple[str, str]]:
    """path -> (true class, predicted class) of the images of a folder of class folders."""
    found = predict(run, [table], device="cpu", network=network)
    best = [found.classes[k] for k in found.probabilities.argmax(1)]
    return {path: (Path(path).parent.name, c) for path, c in zip(found.paths, best, strict=True)}


@pytest.mark.parametrize("network", ["ema", "raw", "best_on_validation"])
def test_a_transfer_set_is_judged_as_predict_sees_it(place: Path, network: str) -> None:
    found = evaluate_run(place / "run", networks=[network], transfer={"other": place / "another"})
    assert {*found.scores["other"]} == {network}
    detail = found.scores["other"][network]
    pairs = rows(place / "another", place / "run", network).values()
    expected = [[sum(p == (a, b) for p in pairs) for b in CLASSES] for a in CLASSES]
    assert detail.confusion == expected
    assert detail.n == 10
    assert detail.recall["dog"] is None
    assert detail.balanced_accuracy == pytest.approx((detail.recall["cat"] + detail.recall["emu"]) / 2)


def figures(found: Evaluation, name: str) -> list[list[int]]:
    return found.scores[name]["ema"].confusion


def test_folder_table_and_arrays_are_one_test_set(place: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "set", image_names(("emu", "dog"), 4))
    files = sorted((tmp_path / "set").rglob("*.png"))
    lines = [f"{f.relative_to(tmp_path).as_posix()},{f.parent.name},test" for f in files]
    write_images(tmp_path, ["train.png"])
    (tmp_path / "set.csv").write_text("\n".join(["path,label,split", *lines, "train.png,elk,train"]) + "\n")
    pixels = np.stack([np.asarray(Image.open(f)) for f in files])
    names = np.array(["dog", "elephant", "emu"])  # without images of the second
    labels = np.array([int(np.flatnonzero(names == f.parent.name)[0]) for f in files])
    np.savez(tmp_path / "set.npz", images=pixels, labels=labels, classes=names)
    with pytest.raises(DataError, match=r"label 'dog' of the test split"):  # the training dataset is stricter
        load_table(tmp_path / "set.csv")
    sets = {"folder": tmp_path / "set", "csv": tmp_path / "set.csv", "npz": tmp_path / "set.npz"}
    found = evaluate_run(place / "run", networks=["ema"], transfer=sets)
    assert figures(found, "folder") == figures(found, "csv") == figures(found, "npz")
    assert np.sum(figures(found, "folder"), 1).tolist() == [0, 4, 4]


def load_table(file: Path) -> None:
    from interlude_fast.data.datasets import load_dataset

    load_dataset(load(None, [{"data": {"dataset": "csv", "root": file}}]).data)


def test_what_is_no_test_set(tmp_path: Path) -> None:
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("cats")
    for name, line in (("nowhere", "does not exist"), ("empty", "no image"), ("notes.txt", "is neither")):
        with pytest.raises(DataError, match=line):
            labeled_images(tmp_path / name)


def test_unreadable_files_are_named_and_do_not_count(place: Path, call: Callable[..., Result]) -> None:
    shutil.copytree(place / "another", place / "torn")
    (place / "torn" / "cat" / "0.png").write_bytes(b"no image")
    done = call("eval", "run", "--transfer", "torn=torn")
    assert done.exit_code == 0, done.stderr
    assert "torn: 9 images" in done.stdout
    assert "torn: skipped torn/cat/0.png: not an image" in done.stdout


def test_the_command_line(call: Callable[..., Result], place: Path) -> None:
    done = call("eval", "run", "--fgsm", "2,8", "--transfer", "other=another", "--out", "all.json")
    assert done.exit_code == 0, done.stderr
    for text in ("test: 9 images", "validation: 6 images", "other: 10 images", "other/best_on_validation"):
        assert text in done.stdout
    for text in ("top-5", "macro-F1", "AUROC", "calibration error", "recall emu", "FGSM 8/255", "pixel units"):
        assert text in done.stdout
    written = json.loads((place / "all.json").read_text())
    assert written["report"]["other"]["raw"]["n"] == 10
    assert [*written["fgsm"]["error"]["ema"]] == ["2", "8"]
    assert "pixel units" in written["fgsm"]["units"]
    one = call("eval", "run", "--network", "raw", "--out", "confusion.csv")
    assert "test/raw" in one.stdout
    assert "ema" not in one.stdout.replace("best_on_validation: ema", "")
    with (place / "confusion.csv").open(newline="") as file:
        table = [*csv.DictReader(file)]
    assert [row["true class"] for row in table] == [*CLASSES] * 2
    assert sum(int(row[f"predicted {c}"]) for row in table for c in CLASSES) == 9 + 6


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--transfer", "x=strange"], "4 classes, 2 of them (fox, owl) not among the run's 3 (cat, dog, emu)"),
        (["--transfer", "x=nowhere"], "transfer set 'x', nowhere: nowhere does not exist"),
        (["--transfer", "test=another"], "choose another"),
        (["--transfer", "another"], "NAME=PATH"),
        (["--transfer", "a=another", "--transfer", "a=photos"], "every NAME once"),
        (["--fgsm", "0.5"], "whole numbers from 1 to 255"),
        (["--fgsm", "300"], "whole numbers from 1 to 255"),
        (["--network", "emma"], "emma"),
        (["--data-root", "strange"], "it had 3 classes (cat, dog, emu), there are 4 now (cat, emu, fox, owl)"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_input_gets_one_line(
    call: Callable[..., Result], place: Path, arguments: list[str], line: str
) -> None:
    if not (place / "strange").exists():
        write_images(place / "strange", image_names(("cat", "emu", "fox", "owl"), 9))
    done = call("eval", "run", *arguments)
    assert done.exit_code == 2, done.output
    assert line in done.stderr
    assert len([text for text in done.stderr.splitlines() if not text.startswith("prepared")]) == 1, done.stderr


def test_predict_with_a_named_network(call: Callable[..., Result], place: Path) -> None:
    told = {
        n: call("predict", "run", "another", "--network", n).stdout for n in ("ema", "raw", "best_on_validation")
    }
    assert told["ema"] == call("predict", "run", "another").stdout != told["raw"]
    tensors = [load_tensors(RunDirectory(place / "run").weights(n))[0] for n in ("ema", "best_on_validation")]
    same = all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())
    assert (told["ema"] == told["best_on_validation"]) == same


def test_a_run_without_validation_images_kept_no_such_network(tmp_path: Path) -> None:
    result = train_run(small_config(train={"steps": 2}), tmp_path / "run")
    with pytest.raises(CheckpointError, match="it has no validation images"):
        evaluate_run(tmp_path / "run", networks=["best_on_validation"])
    assert [*evaluate_run(tmp_path / "run").scores["test"]] == ["ema", "raw"]
    told = "\n".join(result_lines(result))
    assert "best_on_validation" not in told
    assert "selected on the test set: not a fair figure" in told


def test_fgsm_of_a_run(place: Path) -> None:
    found = evaluate_run(place / "run", networks=["raw"], fgsm=[1, 32])
    assert found.fgsm_on == "test"
    assert {*found.fgsm} == {"raw"}
    assert all(0 <= error <= 1 for error in found.fgsm["raw"].values())
    assert found.fgsm["raw"][32] >= found.scores["test"]["raw"].error


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_networks_are_evaluated_with_the_products_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """On a GPU torch's own default is neither: result.json and a later evaluation would differ by an image."""
    train_run(small_config(train={"precision": precision, "steps": 2}), tmp_path / "run")
    seen, real = [], training_evaluate.predict_logits

    def watched(*arguments: Any) -> Tensor:
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return real(*arguments)

    monkeypatch.setattr(training_evaluate, "predict_logits", watched)
    evaluate_run(tmp_path / "run")
    assert len(seen) == 2
    assert set(seen) == {(precision != "fp32",) * 2}
