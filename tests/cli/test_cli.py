"""The command line as a user meets it: in a process of its own, with its exit codes and its one line."""

from __future__ import annotations

import errno
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from interlude_fast.cli import main
from interlude_fast.errors import Interrupted
from tests.helpers import flags

GOLDEN = Path(__file__).parent.parent / "golden" / "interlude_step_mean.npz"


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])


def train(*arguments: str | Path) -> list[str]:
    return ["train", "--device", "cpu", *flags(), *map(str, arguments)]


def test_a_process_of_its_own_is_quiet_and_keeps_exit_codes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "interlude_fast.cli"]
    two = train("--steps", "2", "--set", "optim.ema_warmup=true")  # else it is too short for its average
    for arguments, code, errors in ((two, 0, 0), (train("--steps", "0"), 2, 1)):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert len(done.stderr.splitlines()) == errors, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["doctor"], ["--help"]])
def test_a_full_disk_behind_standard_output_is_one_line(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "interlude_fast.cli", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "interlude-fast: error: the output cannot be written: No space left on device\n"


def test_a_closed_pipe_is_silent() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        command = [sys.executable, "-m", "interlude_fast.cli", "doctor"]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("interruption", "line"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (
            Interrupted(Path("my runs/1/checkpoints/last")),
            "interrupted after a checkpoint; go on with --run-dir 'my runs/1' --resume",
        ),
    ],
)
def test_an_interruption_says_whether_the_run_can_go_on(
    call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, interruption: KeyboardInterrupt, line: str
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise interruption

    monkeypatch.setattr("interlude_fast.experiment.run.train_run", interrupted)
    done = call(*train())
    assert (done.exit_code, done.stderr) == (130, f"interlude-fast: {line}\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/data/two\nlines"),
            "/data/two\\nlines: Permission denied",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "the output cannot be written: No space left on device",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "of ours"), None),
    ],
)
def test_what_the_file_system_refuses_is_one_line_and_a_mistake_of_ours_is_not(
    call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, error: OSError, line: str | None
) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("interlude_fast.experiment.run.train_run", refused)
    done = call(*train())
    if line is None:
        assert done.exception is error
    else:
        assert (done.exit_code, done.stderr) == (2, f"interlude-fast: error: {line}\n")


def test_train_eval_resume(call: Callable[..., Result]) -> None:
    done = call(*train("--run-dir", "run", "--seed", "3", "--steps", "4"))
    assert done.exit_code == 0, done.stderr
    assert "test error ema" in done.stdout
    (line,) = done.stderr.splitlines()  # else quiet where there is no terminal
    assert "averages over about 100 steps and this run had 4" in line
    again = call("eval", "run")
    assert again.exit_code == 0
    assert "test/ema" in again.stdout
    assert "360" in again.stdout
    resumed = call("train", "--run-dir", "run", "--resume")
    assert resumed.exit_code == 0, resumed.stderr
    changed = call("train", "--run-dir", "run", "--resume", "--seed", "4")
    assert changed.exit_code == 2
    assert "seed = 3, but 4 is asked for" in changed.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--dataset", "digitz"], "unknown dataset 'digitz'; did you mean 'digits'?"),
        (["--method", "interlud"], "unknown method 'interlud'; did you mean 'interlude'?"),
        (["--set", "optim.lrr=1"], "unknown key 'optim.lrr'; did you mean 'lr'?"),
        (["--labels", "5"], "5 labels for 10 classes"),
        (["--labels", "45"], "45 labels do not divide over 10 classes; 40 or 50 do"),
        (["--labels", "2000"], "only 1437 training images"),
        (["--set", "method.alpha=1.0"], "method.alpha = 1.0"),
        (["--set", "train.mu=0"], "train.mu = 0"),
        (["--set", "train.batch=0"], "train.batch = 0"),
        (["--steps", "0"], "train.steps = 0"),
        (["--device", "cuda:7"], "device 'cuda:7'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--resume"], "--resume wants the run to go on with"),
        (["--run-dir", "."], "exists and is never overwritten"),
        (["--run-dir", "missing", "--resume"], "missing is not a run directory"),
        (["--run-dir", "x" * 300], "cannot be read: File name too long"),
        (["--run-dir", "x" * 300, "--resume"], "cannot be read: File name too long"),
        (["--set", "optim.lr=1.0e+30"], "became NaN or infinite"),
        (
            ["--dataset", "cifar10", "--labels", "40", "--data-root", "here"],
            "data_batch_1" if importlib.util.find_spec("torchvision") else "cifar10 needs torchvision",
        ),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_bad_input_gets_one_line_and_exit_code_2(
    call: Callable[..., Result], arguments: list[str], line: str
) -> None:
    result = call(*train(*arguments))
    assert result.exit_code == 2, result.output
    assert line in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_unknown_options_and_commands_name_the_nearest(call: Callable[..., Result]) -> None:
    option, command = call("train", "--label", "40"), call("trian")
    assert (option.exit_code, command.exit_code) == (2, 2)
    assert "--labels" in option.stderr
    assert "did you mean 'train'" in command.stderr
    for result in (option, command, call("compare", "--seeds", "0-"), call("parity")):
        assert result.exit_code == 2
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert call("--help").exit_code == call("train", "--help").exit_code == call("--version").exit_code == 0


def test_ablate_writes_tables_and_goes_on(call: Callable[..., Result]) -> None:
    arguments = ["ablate", "--device", "cpu", *flags(), "--steps", "2", "--grid", "alpha=0,0.1", "--out", "out"]
    done = call(*arguments)
    assert done.exit_code == 0, done.output
    assert done.stderr.splitlines()[-1].startswith("[2/2] alpha=0.1/seed0: error ")
    again = call(*arguments)
    assert (again.exit_code, again.stderr) == (0, "2 of 2 runs are done already\n")
    assert again.stdout == done.stdout
    assert Path("out/table.csv").read_text().startswith("alpha,n,test_error_ema_mean,")
    failed = call(*arguments[:-4], "--grid", "optim.lr=1e38", "--out", "failing")
    assert failed.exit_code == 2
    assert "1 of 1 runs failed: lr=1e+38/seed0; lr=1e+38/seed0: " in failed.stderr.splitlines()[-1]
    assert "lr" in failed.stdout  # the table, all the same


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--grid", "alpha=0"], "Missing option '--out'"),
        (["--out", "o"], "nothing varies"),
        (["--out", "o", "--grid", "alpah=0"], "did you mean 'alpha'?"),
        (["--out", "o", "--grid", "alpha=0,0"], "method.alpha = 0 is named twice"),
        (["--out", "o", "--grid", "alpha=0,7"], "method.alpha = 7"),
        (
            ["--out", "o", "--grid", "alpha=0", "--methods", "interlude,supervised"],
            "supervised has no such option",
        ),
        (["--out", "o", "--methods", "interlude,interlud"], "did you mean 'interlude'?"),
        (["--out", "o", "--grid", "labels=20,45"], "45 labels do not divide"),
        (["--out", "o", "--grid", "alpha=0", "--seeds", "0,0"], "a seed is named twice"),
        (["--out", "o", "--grid", "alpha=0", "--jobs", "0"], "--jobs"),
        (["--out", "o", "--grid", "alpha=0", "--device", "cuda:7"], "device 'cuda:7'"),
        (["--out", "x" * 300, "--grid", "alpha=0"], "File name too long"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_ablate_refuses_before_it_trains(call: Callable[..., Result], arguments: list[str], line: str) -> None:
    result = call("ablate", *flags(), *arguments)
    assert result.exit_code == 2, result.output
    assert line in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert not list(Path.cwd().glob("*/*/seed*"))


def test_parity_prints_every_quantity(call: Callable[..., Result]) -> None:
    result = call("parity", GOLDEN)
    assert result.exit_code == 0, result.stdout + result.stderr
    for quantity in ("loss delta", "gradients", "EMA weights", "eval logits with fusion"):
        assert quantity in result.stdout
    assert call("parity", "nothing.npz").exit_code == 2
    with np.load(GOLDEN) as golden:
        content = {name: golden[name] * (1 + 1e-8) if name == "final/fc.bias" else golden[name] for name in golden}
    np.savez("wrong.npz", **content)
    wrong = call("parity", "wrong.npz")
    assert wrong.exit_code == 1
    assert "NO PARITY" in wrong.stdout


def test_doctor_says_what_would_run(call: Callable[..., Result]) -> None:
    result = call("doctor")
    assert result.exit_code == 0
    assert "would run" in result.stdout


@pytest.mark.parametrize("command", ["ablate", "bench", "compare"])
def test_commands_of_one_process_are_refused_in_a_job(
    call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = call(command)
    assert result.exit_code == 2
    assert f"{command} is the work of one process" in result.stderr


def test_seeds_have_a_bound(call: Callable[..., Result]) -> None:
    result = call("train", "--seeds", "0-99999999")
    assert result.exit_code == 2
    assert "at most 1,000 seeds" in result.stderr
