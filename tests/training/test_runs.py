"""Whole runs: what they leave behind, exact resume, damaged and foreign checkpoints, NaN."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from interlude_fast.errors import CheckpointError, ConfigError, NonFiniteLossError
from interlude_fast.evaluation.evaluate import evaluate_run
from interlude_fast.experiment.run import train_run
from interlude_fast.experiment.run_directory import RunDirectory
from interlude_fast.sweeps.compare import compare
from interlude_fast.training import loop
from interlude_fast.training.checkpoint import load_tensors, read_checkpoint, write_atomically
from interlude_fast.training.setup import prepare
from interlude_fast.training.state import TrainState
from tests.helpers import SMALL, TRAINED, before_steps, flags, small_config


def losses(path: Path) -> list[tuple[int, float]]:
    """(step, loss) of every logged interval, to the bit."""
    return [(r["step"], r["loss"]) for r in RunDirectory(path).read_metrics() if "loss" in r]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return {
        f"{n}/{k}": v for n in ("raw", "ema") for k, v in load_tensors(RunDirectory(path).weights(n))[0].items()
    }


def assert_same_run(a: Path, b: Path) -> None:
    assert losses(a) == losses(b)
    assert weights(a).keys() == weights(b).keys()
    assert all(torch.equal(v, weights(b)[k]) for k, v in weights(a).items())


class Stop(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Makes the loop die in the middle, as a kill would."""

    def die(state: TrainState) -> None:
        if state.step == steps:
            raise Stop

    before_steps(monkeypatch, die)


def test_a_run_leaves_everything_behind(tmp_path: Path) -> None:
    result = train_run(small_config(), tmp_path / "run")
    names = {p.relative_to(tmp_path / "run").as_posix() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    board = {n for n in names if n.startswith("tensorboard/")}
    assert board
    assert names - board == {
        *(
            "config.yaml",
            "passport.json",
            "split.json",
            "preprocessing.json",
            "metrics.jsonl",
            "result.json",
            "log.txt",
        ),
        *("checkpoints/last", "weights/raw.safetensors", "weights/ema.safetensors"),
    }
    rows = RunDirectory(tmp_path / "run").read_metrics()
    assert {"loss", "mask_rate", "steps_per_second", "data_wait"} <= rows[0].keys()
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert len(set(split["labeled"]["index"])) == 20
    assert evaluate_run(tmp_path / "run").scores == result.scores


def test_same_seed_same_run_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_run(small_config(seed=seed), tmp_path / name)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


@pytest.mark.parametrize("method", TRAINED)
def test_resume_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    config = small_config(method={"name": method})
    train_run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stop):
            train_run(config, tmp_path / "stopped")
    assert losses(tmp_path / "stopped")[-1][0] == 4
    train_run(config, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_resume_after_kill_9(tmp_path: Path) -> None:
    long = {**SMALL, "train": {**SMALL["train"], "steps": 40}}
    command = [sys.executable, "-m", "interlude_fast.cli", "train", "--device", "cpu", *flags(long), "--run-dir"]
    process = subprocess.Popen(
        [*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    checkpoint = tmp_path / "killed" / "checkpoints" / "last"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists(), process.stderr.read().decode()
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 39, "lo')  # a line that the kill cut short
    subprocess.run([*command, str(tmp_path / "killed"), "--resume"], check=True, capture_output=True)
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_resume_of_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    config = small_config()
    first = train_run(config, tmp_path / "run")
    before, result = weights(tmp_path / "run"), (tmp_path / "run" / "result.json").read_bytes()
    again = train_run(config, tmp_path / "run", resume=True)
    assert again.scores == first.scores
    assert all(torch.equal(v, before[k]) for k, v in weights(tmp_path / "run").items())
    assert (tmp_path / "run" / "result.json").read_bytes() == result


def test_an_existing_run_directory_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("two years")
    with pytest.raises(CheckpointError, match="exists and is never overwritten"):
        train_run(small_config(), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_default_directories_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [train_run(small_config(train={"steps": 1}), None).directory for _ in range(2)]
    assert [str(p) for p in paths] == ["runs/digits-interlude-20-seed0", "runs/digits-interlude-20-seed0-2"]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "something else":
        path.write_bytes(b"PNG" * 1000)
    elif how == "missing":
        path.unlink()
    elif how == "other tensors":
        path.write_bytes((path.parent.parent / "weights" / "ema.safetensors").read_bytes())


@pytest.mark.parametrize("how", ["cut short", "empty", "something else", "missing", "other tensors"])
def test_damaged_checkpoints_get_one_line_and_lose_nothing(tmp_path: Path, how: str) -> None:
    train_run(small_config(), tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "last", how)
    files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match="checkpoints/last") as caught:
        train_run(small_config(), tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)
    assert files == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}


def test_a_resumed_run_keeps_its_configuration(tmp_path: Path) -> None:
    train_run(small_config(), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"the run to resume has optim.lr = .* but 0.5 is asked for"):
        train_run(small_config(optim={"lr": 0.5}), tmp_path / "run", resume=True)
    train_run(small_config(train={"log_every": 1}), tmp_path / "run", resume=True)


def test_a_checkpoint_of_another_configuration(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        train_run(small_config(seed=seed), tmp_path / name)
    foreign = (tmp_path / "b" / "checkpoints" / "last").read_bytes()
    (tmp_path / "a" / "checkpoints" / "last").write_bytes(foreign)
    files = {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match="another configuration"):
        train_run(small_config(), tmp_path / "a", resume=True)
    assert files == {p: p.read_bytes() for p in (tmp_path / "a").rglob("*") if p.is_file()}


@pytest.mark.parametrize("content", [b"nonsense\n", b"{}\n", b"5\n", b"\xff\xfe\n"])
def test_metrics_that_are_none_are_named_and_kept(tmp_path: Path, content: bytes) -> None:
    train_run(small_config(), tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    damaged = content + file.read_bytes()
    file.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"metrics.jsonl, line 1"):
        train_run(small_config(), tmp_path / "run", resume=True)
    assert file.read_bytes() == damaged


def test_evaluating_more_often_than_logging_on_a_terminal(tmp_path: Path) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    train_run(small_config(train={"eval_every": 1, "log_every": 4}), tmp_path / "run", console=screen)
    assert "data wait" in screen.file.getvalue()
    rows = RunDirectory(tmp_path / "run").read_metrics()
    assert [r["step"] for r in rows if "test/ema/error" in r] == [*range(1, 9)]


def test_weights_that_are_not_finite_never_replace_a_checkpoint(tmp_path: Path) -> None:
    wild = small_config(optim={"lr": 1e38}, train={"log_every": 1, "checkpoint_every": 1})
    with pytest.raises(NonFiniteLossError):
        train_run(wild, tmp_path / "run")
    _, metadata = read_checkpoint(tmp_path / "run" / "checkpoints" / "last")
    assert metadata["step"] == "0"  # that of the beginning


def test_an_interrupt_saves_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(state: TrainState) -> None:
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    config = small_config(train={"log_every": 1, "checkpoint_every": 100})
    train_run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        before_steps(patch, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_run(config, tmp_path / "run")
    assert load_tensors(tmp_path / "run" / "checkpoints" / "last")[1]["step"] == "4"
    train_run(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(("step", "saved"), [(4, "5"), (8, "8")])
def test_an_interrupt_while_a_step_is_logged_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, saved: str
) -> None:
    real = loop._log

    def interrupting(meter, recorder, now, *args):
        if now == step:
            os.kill(os.getpid(), signal.SIGINT)
        real(meter, recorder, now, *args)

    config = small_config(train={"log_every": 1, "checkpoint_every": 100})
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_log", interrupting)
        with pytest.raises(KeyboardInterrupt):
            train_run(config, tmp_path / "run")
    assert load_tensors(tmp_path / "run" / "checkpoints" / "last")[1]["step"] == saved
    train_run(config, tmp_path / "run", resume=True)
    train_run(config, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    assert (tmp_path / "run" / "result.json").exists()


def test_nan_ends_the_run_and_the_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poison(state: TrainState) -> None:
        if state.step == 4:
            state.model.fc.weight.data.fill_(float("nan"))

    before_steps(monkeypatch, poison)
    with pytest.raises(
        NonFiniteLossError, match=r"loss.* became NaN or infinite between steps 5 and 6.*is intact"
    ):
        train_run(small_config(), tmp_path / "run")
    tensors, metadata = load_tensors(tmp_path / "run" / "checkpoints" / "last")
    assert metadata["step"] == "3"
    assert all(t.isfinite().all() for t in tensors.values())


def test_evaluating_a_run_that_is_not_finished_or_not_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 5)
    with pytest.raises(Stop):
        train_run(small_config(), tmp_path / "run")
    with pytest.raises(CheckpointError, match="has not finished"):
        evaluate_run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="not a run directory"):
        evaluate_run(tmp_path)


def test_compare_trains_every_method_on_the_same_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [SMALL, {"train": {"steps": 2, "device": "cpu"}}]
    result = compare(["interlude", "supervised"], [0, 1], settings)
    result.save(tmp_path / "out" / "figures.json")
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert len(figures["test_error"]["supervised"]["ema"]["errors"]) == 2
    assert figures["passport"]["torch"] == torch.__version__
    for i in range(2):
        a, b = (json.loads((r[i].directory / "split.json").read_text()) for r in result.results.values())
        assert a["labeled"] == b["labeled"]


@pytest.mark.parametrize(
    ("methods", "override"),
    [
        (["interlude", "nope"], {}),
        (["supervised", "supervised"], {}),
        (["interlude", "supervised"], {"seed": 4}),
        (["interlude", "supervised"], {"method": {"tau": 0.5}}),
    ],
    ids=str,
)
def test_compare_refuses_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, methods: list[str], override: dict
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        compare(methods, [0], [SMALL, override])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_run(small_config(), tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last"
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["last"]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_batches_come_in_the_training_dtype(precision: str, dtype: torch.dtype) -> None:
    run = prepare(small_config(train={"precision": precision}))
    assert run.pipeline.batch(0).images.dtype == dtype


def test_bf16_runs_on_the_cpu(tmp_path: Path) -> None:
    assert (
        train_run(small_config(train={"precision": "bf16", "steps": 3}), tmp_path / "run").scores["test"]["ema"].n
        == 360
    )
