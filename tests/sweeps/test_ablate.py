"""Ablations: what is trained, resumed and left alone, and the tables."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from interlude_fast.errors import CheckpointError, ConfigError, DataError, InterludeError, RunError
from interlude_fast.experiment.result import Result, read_result
from interlude_fast.experiment.run import train_run
from interlude_fast.metrics import Scores
from interlude_fast.sweeps import jobs
from interlude_fast.sweeps.ablate import Ablation, ablate
from interlude_fast.sweeps.compare import compare
from interlude_fast.sweeps.grid import Cell, make_cells, parse_axis
from interlude_fast.training.checkpoint import load_tensors
from interlude_fast.training.state import TrainState
from tests.helpers import SMALL, before_steps, flags, image_names, write_images
from tests.training.test_runs import Stop, assert_same_run, stop_after

QUICK = {**SMALL, "train": {**SMALL["train"], "steps": 4, "device": "cpu"}}
pytestmark = pytest.mark.usefixtures("one_thread")


def call(out: Path, *grid: str, seeds: tuple[int, ...] = (0,), **rest: Any) -> Ablation:
    over = rest.pop("over", {})
    return ablate([parse_axis(text) for text in grid], list(seeds), [QUICK, over], out, **rest)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders of the runs that were trained in this process, "resumed" behind those that went on."""
    names: list[str] = []

    def counting(config, directory, *, resume, console):
        names.append("/".join(directory.parts[-2:]) + (" resumed" if resume else ""))
        return train_run(config, directory, resume=resume, console=console)

    monkeypatch.setattr(jobs, "train_run", counting)
    return names


def contents(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def cells_and_n(folder: Path) -> list[list[str]]:
    """The first two columns of a table with one axis."""
    return [line.split(",")[:2] for line in (folder / "table.csv").read_text().splitlines()[1:]]


def test_a_grid_is_trained_once(tmp_path: Path, trained: list[str]) -> None:
    found = call(tmp_path, "alpha=0,0.1", seeds=(0, 1))
    every = ["alpha=0/seed0", "alpha=0.1/seed0", "alpha=0/seed1", "alpha=0.1/seed1"]
    assert trained == every
    before = contents(tmp_path / "alpha=0")
    again = call(tmp_path, "method.alpha=0.0,1e-1", seeds=(0, 1))
    assert trained == every
    assert contents(tmp_path / "alpha=0") == before
    assert again.csv() == found.csv()
    call(tmp_path, "alpha=0,0.3", seeds=(0,))  # a grid grows
    assert trained[4:] == ["alpha=0.3/seed0"]
    assert cells_and_n(tmp_path) == [["0", "1"], ["0.3", "1"]]


def test_figures_are_those_of_the_runs(tmp_path: Path) -> None:
    call(tmp_path, "alpha=0,0.1", seeds=(0, 1))
    figures = json.loads((tmp_path / "ablation.json").read_text())
    assert figures["passport"]["torch"]
    assert figures["failures"] == {}
    for row in figures["rows"]:
        for seed in "01":
            result = json.loads((tmp_path / row["name"] / f"seed{seed}" / "result.json").read_text())
            assert row["ema"]["errors"][seed] == result["scores"]["test"]["ema"]["error"]
            assert row["raw"]["errors"][seed] == result["scores"]["test"]["raw"]["error"]
            assert row["seconds"][seed] == result["seconds"]


def test_an_interrupted_run_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    call(whole, "alpha=0,0.1", over={"train": {"steps": 8}})

    def interrupt(state: TrainState) -> None:
        if state.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        before_steps(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            call(broken, "alpha=0,0.1", over={"train": {"steps": 8}})
    assert (broken / "table.csv").exists()
    trained.clear()
    call(broken, "alpha=0,0.1", over={"train": {"steps": 8}})
    assert trained == ["alpha=0/seed0 resumed", "alpha=0.1/seed0"]
    for cell in ("alpha=0", "alpha=0.1"):
        assert_same_run(whole / cell / "seed0", broken / cell / "seed0")


def test_a_run_that_ended_between_its_last_checkpoint_and_its_result(tmp_path: Path, trained: list[str]) -> None:
    found = call(tmp_path, "alpha=0")
    (tmp_path / "alpha=0" / "seed0" / "result.json").unlink()
    again = call(tmp_path, "alpha=0")
    assert trained[1:] == ["alpha=0/seed0 resumed"]
    assert again.errors(again.cells[0], "ema") == found.errors(found.cells[0], "ema")
    call(tmp_path, "alpha=0")
    assert len(trained) == 2


@pytest.mark.parametrize("left", ["nothing", "config.yaml", "everything"])
def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    folder = tmp_path / "alpha=0" / "seed0"
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        assert isinstance(call(tmp_path, "alpha=0").failures["alpha=0/seed0"].error, Stop)
    (folder / "checkpoints" / "last").rename(folder / "checkpoints" / ".last.77.partial")
    if left != "everything":
        keep = (folder / "config.yaml").read_bytes()
        jobs.RunDirectory(folder).discard_unstarted()
        folder.mkdir()
        if left == "config.yaml":
            (folder / "config.yaml").write_bytes(keep)
    assert call(tmp_path, "alpha=0").results


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), "is in the way: it holds"),
        (lambda folder: (folder / "result.json").write_text('{"ema": {'), "result.json is missing or damaged"),
        (lambda folder: (folder / "result.json").write_text('{"ema": {"error": 1}}'), "result.json is damaged"),
        (lambda folder: (folder / "config.yaml").write_text(""), "config.yaml is empty"),
    ],
)
def test_damaged_folders_are_named_and_left_as_they_are(tmp_path: Path, damage: Any, line: str) -> None:
    call(tmp_path, "alpha=0")
    damage(tmp_path / "alpha=0" / "seed0")
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=line):
        call(tmp_path, "alpha=0")
    assert contents(tmp_path) == before


def test_a_folder_of_another_configuration(tmp_path: Path, trained: list[str]) -> None:
    call(tmp_path, "alpha=0")
    with pytest.raises(CheckpointError, match=r"alpha=0/seed0 holds a run with optim.lr = .* but 0.5 is asked"):
        call(tmp_path, "alpha=0", over={"optim": {"lr": 0.5}})
    split = {"file": str(tmp_path / "alpha=0" / "seed0" / "split.json")}
    with pytest.raises(CheckpointError, match=r"holds a run with data.labels = 20, but None is asked for"):
        call(tmp_path, "alpha=0", over={"data": {"labels": None, "split": split}})
    call(tmp_path / "replayed", "alpha=0", over={"data": {"labels": None, "split": split}})
    other = {"file": str(tmp_path / "replayed" / "alpha=0" / "seed0" / "split.json")}
    with pytest.raises(CheckpointError, match=r"data.split.file = .*split.json, but .*split.json is asked for"):
        call(tmp_path / "replayed", "alpha=0", over={"data": {"labels": None, "split": other}})
    call(tmp_path, "alpha=0", over={"train": {"log_every": 1}})  # which changes no figure
    assert len(trained) == 2


def test_a_file_in_the_way_of_a_run_is_not_removed(tmp_path: Path) -> None:
    thesis = tmp_path / "alpha=0" / "seed0" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("two years")
    with pytest.raises(CheckpointError, match=r"it holds thesis.txt"):
        call(tmp_path, "alpha=0")
    assert thesis.read_text() == "two years"


def test_tables_of_others_and_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"table.md that is not an ablation's"):
        call(tmp_path, "alpha=0")
    with pytest.raises(CheckpointError, match="cannot be used"):
        call(tmp_path / "table.md", "alpha=0")


def test_two_calls_do_not_work_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(*arguments: object, **options: object) -> None:
        call(tmp_path, "alpha=0")

    monkeypatch.setattr(jobs, "train_run", second)
    with pytest.raises(RunError, match="another call is at work"):
        call(tmp_path, "alpha=0").raise_failures()


@pytest.mark.parametrize(
    ("grid", "over", "line"),
    [
        ("alpha=0,0.1", {"data": {"labels": 45}}, "45 labels do not divide"),
        ("labels=20,2000", {}, "only 1437 training images"),
        ("alpha=0.1,2", {}, "method.alpha = 2"),
        ("method=interlude,nope", {}, "unknown method"),
    ],
)
def test_nothing_is_trained_where_something_does_not_fit(
    tmp_path: Path, trained: list[str], grid: str, over: dict, line: str
) -> None:
    with pytest.raises(InterludeError, match=line):
        call(tmp_path, grid, over=over)
    assert trained == []
    with pytest.raises(ConfigError, match="nothing varies"):
        call(tmp_path)


def test_images_without_a_test_set(tmp_path: Path, trained: list[str]) -> None:
    write_images(tmp_path / "photos", image_names(["cat", "dog"], 12), size=(8, 8))
    data = {"dataset": "folder", "root": str(tmp_path / "photos"), "labels": 4, "cache": str(tmp_path / "cache")}
    with pytest.raises(ConfigError, match=r"alpha=0/seed0 has no test images; --set data.split.test"):
        call(tmp_path / "out", "alpha=0", over={"data": data})
    with pytest.raises(ConfigError, match="no test images to compare on"):
        compare(["interlude", "supervised"], [0], [QUICK, {"data": data}])
    with pytest.raises(DataError, match="nowhere"):
        call(tmp_path / "out", "alpha=0", over={"data": {**data, "root": str(tmp_path / "nowhere")}})
    assert trained == []
    held_out = {**data, "split": {"validation": 0.25}}
    for _ in range(2):  # the second time from the results alone
        found = call(tmp_path / "out", "alpha=0", over={"data": held_out})
        assert found.part == "validation"
        header, figures = csv.reader(io.StringIO(found.csv()))
        assert header[2] == "validation_error_ema_mean"
        result = read_result(tmp_path / "out" / "alpha=0" / "seed0")
        assert float(figures[2]) == result.scores["validation"]["ema"].error
    assert len(trained) == 1


def test_a_run_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    found = call(tmp_path, "optim.lr=0.1,1e38", seeds=(0, 1))
    assert [len(found.finished(cell)) for cell in found.cells] == [2, 0]
    with pytest.raises(RunError, match=r"2 of 4 runs failed: lr=1e\+38/seed0, lr=1e\+38/seed1; .*NaN or infinite"):
        found.raise_failures()
    assert (tmp_path / "table.csv").read_text().splitlines()[2] == "1e+38,0,,,,,"
    failures = json.loads((tmp_path / "ablation.json").read_text())["failures"]
    assert list(failures) == ["lr=1e+38/seed0", "lr=1e+38/seed1"]


def test_a_mistake_of_ours_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("here")

    monkeypatch.setattr(jobs, "train_run", broken)
    with pytest.raises(ZeroDivisionError) as caught:
        call(tmp_path, "alpha=0").raise_failures()
    assert "in broken" in str(caught.value.__cause__)


def made_up(errors: dict[str, dict[int, tuple[float, float]]], *grid: str) -> Ablation:
    """A table of (EMA, raw) errors; a run takes ten seconds."""
    axes = [parse_axis(text) for text in grid]
    cells: list[Cell] = make_cells(axes, [0, 1, 2], [QUICK])
    results = {
        f"{cell}/seed{seed}": Result(
            Path(), {"test": {"ema": Scores(ema, 1 - ema, 0, 360), "raw": Scores(raw, 1 - raw, 0, 360)}}, 10
        )
        for cell, by_seed in errors.items()
        for seed, (ema, raw) in by_seed.items()
    }
    return Ablation(axes, [0, 1, 2], cells, "test", Path(), results)


def test_tables_hold_mean_and_sample_standard_deviation() -> None:
    errors = {
        "alpha=0,tau=0.9": {0: (0.1, 0.2), 1: (0.2, 0.2), 2: (0.6, 0.5)},
        "alpha=0.1,tau=0.9": {1: (0.25, 0.5)},
    }
    found = made_up(errors, "alpha=0,0.1,0.2", "tau=0.9")
    header, *rows = csv.reader(io.StringIO(found.csv()))
    figures = [f"test_error_{net}_{what}" for net in ("ema", "raw") for what in ("mean", "std")]
    assert header == ["alpha", "n", *figures, "seconds"]
    assert rows[0][:2] == ["0", "3"]
    # EMA: variance (0.04 + 0.01 + 0.09) / 2 around 0.3. Raw: (0.01 + 0.01 + 0.04) / 2 around 0.3.
    assert [float(x) for x in rows[0][2:]] == pytest.approx([0.3, 0.07**0.5, 0.3, 0.03**0.5, 10])
    assert rows[1] == ["0.1", "1", "0.25", "", "0.5", "", "10"]
    assert rows[2] == ["0.2", "0", "", "", "", "", ""]
    assert found.markdown().splitlines() == [
        "| alpha | n | test error, EMA network | test error, raw network | seconds |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| 0 | 3 | 30.00% ± 26.46% | 30.00% ± 17.32% | 10 |",
        "| 0.1 | 1 | 25.00% | 50.00% | 10 |",
        "| 0.2 | 0 |  |  |  |",
    ]
    row = found.as_dict()["rows"][1]
    assert (row["n"], row["ema"]) == (1, {"errors": {1: 0.25}, "mean": 0.25, "std": None})
    assert found.table().row_count == 3


def test_several_at_a_time_give_the_same(tmp_path: Path) -> None:
    one = call(tmp_path / "one", "alpha=0,0.1", seeds=(0,))
    two = call(tmp_path / "two", "alpha=0,0.1", seeds=(0,), processes=2)
    for a, b in zip(one.as_dict()["rows"], two.as_dict()["rows"], strict=True):
        assert (a["ema"], a["raw"], a["n"]) == (b["ema"], b["raw"], b["n"])
    for cell in ("alpha=0", "alpha=0.1"):
        assert_same_run(tmp_path / "one" / cell / "seed0", tmp_path / "two" / cell / "seed0")


def test_several_at_a_time_with_one_that_fails(tmp_path: Path) -> None:
    found = call(tmp_path, "optim.lr=1e38,0.1", processes=2)
    assert [len(found.finished(cell)) for cell in found.cells] == [0, 1]
    with pytest.raises(RunError, match=r"lr=1e\+38/seed0: .*NaN or infinite"):
        found.raise_failures()


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_and_the_same_command_again(tmp_path: Path, processes: int) -> None:
    steps = 300  # the signal must come before the end also on a busy machine
    train = {**SMALL["train"], "steps": steps, "checkpoint_every": 10**6, "log_every": 1}
    out, base = tmp_path / "out", {**SMALL, "train": train}
    command = [sys.executable, "-m", "interlude_fast.cli", "ablate", "--device", "cpu", *flags(base)]
    command += ["--grid", "alpha=0,0.1", "--jobs", str(processes), "--out", str(out)]
    # A session of its own: the signal goes to all of its processes, as a terminal's Ctrl-C does.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )
    begun = [out / name / "seed0" / "metrics.jsonl" for name in ("alpha=0", "alpha=0.1")[:processes]]
    deadline = time.monotonic() + 240
    while not all(file.exists() for file in begun) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=240)
    assert process.returncode == 130, complaint
    assert complaint == "interlude-fast: interrupted; the same command resumes the runs\n"
    stopped = [file.parent for file in begun if not (file.parent / "result.json").exists()]
    assert stopped  # the first may have finished before the second began
    for folder in stopped:
        _, metadata = load_tensors(folder / "checkpoints" / "last")
        assert 0 < int(metadata["step"]) < steps
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert cells_and_n(out) == [["0", "1"], ["0.1", "1"]]
