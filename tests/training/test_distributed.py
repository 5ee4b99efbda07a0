"""Runs of two and four processes (gloo, on this machine) beside those of one."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interlude_fast.errors import ConfigError, Interrupted, NonFiniteLossError
from interlude_fast.experiment.run import train_run
from interlude_fast.experiment.run_directory import RunDirectory
from interlude_fast.models.fusion import EmbeddingFusion
from interlude_fast.models.sharding import Shards
from interlude_fast.options import TrainConfig
from interlude_fast.training.checkpoint import load_tensors, read_checkpoint
from interlude_fast.training.distributed import World, loss_of_a_process
from interlude_fast.training.parallel import shared_steps
from interlude_fast.training.setup import prepare
from interlude_fast.training.state import TrainState
from interlude_fast.training.step import train_step
from interlude_fast.training.ways import choose
from tests.helpers import SMALL, before_steps, flags, small_config
from tests.training.ranks import answers_of_ranks, environment, in_ranks

CALM = {"lr": 0.003}
METHODS: list[dict[str, Any]] = [
    {"name": "interlude", "tau": 0.3},
    {"name": "interlude", "tau": 0.3, "layout": "separate", "delta": "per_class"},
    {"name": "interlude", "alpha_range": [0.0, 0.3], "distribution_alignment": True},
    {"name": "interlude_plus"},
    {"name": "fixmatch", "tau": 0.3},
    {"name": "flexmatch", "tau": 0.3},
    {"name": "freematch"},
    {"name": "mean_teacher"},
    {"name": "mixmatch"},
    {"name": "mixup_lr"},
    {"name": "pseudo_label", "tau": 0.3},
    {"name": "semimeta"},
    {"name": "semimeta", "reference": True},
    {"name": "semisupcon"},
    {"name": "softmatch"},
    {"name": "supervised"},
    {"name": "uda", "tau": 0.3},
    {"name": "vat"},
]
# Four processes: both layouts of fused rows, and groups of rows.
CASES = [*((2, method) for method in METHODS), *((4, METHODS[k]) for k in (0, 1, 8))]


def settings(method: dict[str, Any], synchronized: bool = True, **overrides: Any) -> dict[str, Any]:
    train = {"batch": 4, "mu": 2, "sync_batch_norm": synchronized, "steps": 3}
    return {"method": method, "optim": CALM, "train": train, **overrides}


def run_steps(overrides: dict[str, Any], steps: int = 2) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Losses of a few steps in float64, and the state after them."""
    run = prepare(small_config(**overrides))
    state = TrainState(run.state.model.double(), run.state.method.double(), run.config.optim, steps)
    rows = []
    with shared_steps(state, run.world):
        for step in range(steps):
            batch = run.pipeline.batch(step)
            losses = train_step(state, dataclasses.replace(batch, images=batch.images.double()))
            rows.append({"loss": float(losses.total.detach()), **{k: float(v) for k, v in losses.metrics.items()}})
    run.pipeline.close()
    return rows, {name: value.clone() for name, value in state.state_dict().items()}


def difference(one: Any, other: Any) -> float:
    """The largest, of any loss or tensor."""
    assert one[1].keys() == other[1].keys()
    pairs = [(a[k], b[k]) for a, b in zip(one[0], other[0], strict=True) for k in a]
    tensors = [(one[1][name].double() - other[1][name].double()).abs().max().item() for name in one[1]]
    return max(*(abs(a - b) for a, b in pairs), *tensors)


@pytest.mark.parametrize(
    ("size", "method"), CASES, ids=lambda v: "-".join(map(str, v.values())) if v != 2 and v != 4 else v
)
def test_several_processes_make_the_steps_of_one(size: int, method: dict[str, Any]) -> None:
    of_one = run_steps(settings(method))
    results = in_ranks(size, run_steps, settings(method))
    assert all(difference(results[0], result) == 0 for result in results[1:])
    assert difference(of_one, results[0]) < 1e-9


def test_without_batch_norms_nothing_needs_to_be_synchronized() -> None:
    network = {"name": "vit", "size": "tiny", "patch": 8, "drop_path": 0}
    overrides = settings(METHODS[0], synchronized=False, model=network)
    assert difference(run_steps(overrides), in_ranks(2, run_steps, overrides)[0]) < 1e-9


def test_batch_norms_of_their_own_are_kept_equal() -> None:
    overrides = settings(METHODS[0], synchronized=False)
    a, b = in_ranks(2, run_steps, overrides)
    assert difference(a, b) == 0
    assert difference(run_steps(overrides), a) > 1e-6  # so the comparisons above could fail


def evaluate(overrides: dict[str, Any]) -> Any:
    run = prepare(small_config(**overrides))
    with shared_steps(run.state, run.world):
        return run.evaluate()


@pytest.mark.parametrize("eval_batch", [60, 37])  # shared equally, and not
def test_evaluations_are_shared(eval_batch: int) -> None:
    overrides = {"method": {"name": "interlude", "fusion_at_eval": True}, "train": {"eval_batch": eval_batch}}
    expected = evaluate(overrides)
    for scores in in_ranks(2, evaluate, overrides):
        found, wanted = scores["test"], expected["test"]
        assert found["ema"].error == wanted["ema"].error
        assert found["raw"].calibration_error == pytest.approx(wanted["raw"].calibration_error, rel=1e-5)


def test_ranks_and_passes_draw_otherwise_and_the_generator_is_left_alone() -> None:
    images, draws = torch.zeros(4, 1), []
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for rank in (0, 1):
        shards = Shards(rank, 2)
        for _ in range(2):
            with shards._own_draws(images):
                draws.append(float(torch.rand(())))
        assert torch.equal(torch.get_rng_state(), before)
    assert len({*draws}) == 4
    again = Shards(0, 2)
    with again._own_draws(images):
        assert float(torch.rand(())) == draws[0]


def test_fusion_goes_on_with_the_rows_of_the_next_process() -> None:
    x = torch.randn(6, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    fusion = EmbeddingFusion(0.3).train()
    expected = fusion(x)
    with fusion.continued(lambda row: x[3:4], x.device):
        first = fusion(x[:3])
    with fusion.continued(lambda row: x[:1], x.device):
        second = fusion(x[3:])
    assert torch.equal(torch.cat([first, second]), expected)
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(fusion(x), expected)


# Whole runs.
LONG = {"train": {"steps": 8, "log_every": 1}}


def whole_run(directory: Path, overrides: dict[str, Any], resume: bool = False) -> Any:
    return train_run(small_config(**overrides), directory, resume=resume)


def weights(path: Path) -> dict[str, Tensor]:
    return {
        f"{n}/{k}": v for n in ("raw", "ema") for k, v in load_tensors(RunDirectory(path).weights(n))[0].items()
    }


def assert_same_run(a: Path, b: Path) -> None:
    losses = [[(r["step"], r["loss"]) for r in RunDirectory(p).read_metrics() if "loss" in r] for p in (a, b)]
    assert losses[0] == losses[1]
    assert all(torch.equal(v, weights(b)[k]) for k, v in weights(a).items())


def test_one_process_writes_and_any_number_goes_on(tmp_path: Path) -> None:
    first, second = in_ranks(2, whole_run, tmp_path / "run", LONG)
    assert first.evaluations == second.evaluations
    rows = RunDirectory(tmp_path / "run").read_metrics()
    assert [r["step"] for r in rows if "loss" in r] == [*range(1, 9)]
    assert "2 processes" in (tmp_path / "run" / "log.txt").read_text()
    again = train_run(small_config(**LONG), tmp_path / "run", resume=True)  # alone
    assert again.scores["test"]["ema"].error == first.scores["test"]["ema"].error


def stopped_run(directory: Path, overrides: dict[str, Any]) -> None:
    """The second process is asked to stop at its fourth step."""

    def ask(state: TrainState) -> None:
        if state.step == 3 and not World.current().first:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        before_steps(patch, ask)
        whole_run(directory, overrides)


def test_a_signal_to_any_process_stops_all_at_one_step(tmp_path: Path) -> None:
    answers = answers_of_ranks(2, stopped_run, tmp_path / "run", LONG)
    kinds = sorted(type(answer).__name__ for answer in answers)
    assert kinds == [Interrupted.__name__, SystemExit.__name__]  # one of them says it
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "last")[1]["step"] == "5"  # one later
    in_ranks(2, whole_run, tmp_path / "run", LONG, True)
    in_ranks(2, whole_run, tmp_path / "whole", LONG)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def poisoned_run(directory: Path, everywhere: bool) -> None:
    def poison(state: TrainState) -> None:
        if state.step == 4 and (everywhere or World.current().first):
            state.model.fc.weight.data.fill_(float("nan"))

    with pytest.MonkeyPatch.context() as patch:
        before_steps(patch, poison)
        whole_run(directory, LONG)


@pytest.mark.parametrize("everywhere", [True, False])
def test_an_error_that_one_or_all_meet_is_said_once(tmp_path: Path, everywhere: bool) -> None:
    answers = answers_of_ranks(2, poisoned_run, tmp_path / "run", everywhere)
    said = [a for a in answers if isinstance(a, NonFiniteLossError)]
    silent = [a.code for a in answers if isinstance(a, SystemExit)]
    assert len(said) == 1
    assert silent == [2]


def test_an_existing_run_directory_is_said_once(tmp_path: Path) -> None:
    answers = answers_of_ranks(2, whole_run, tmp_path, LONG)
    assert "exists and is never overwritten" in str(answers[0])
    assert isinstance(answers[1], SystemExit)


def test_one_clock_leads_all_processes_through_a_budget(tmp_path: Path) -> None:
    overrides = {"train": {"budget": 4, "steps": 100000, "log_every": 1000}}
    a, b = in_ranks(2, whole_run, tmp_path / "run", overrides)
    assert a.evaluations == b.evaluations
    assert a.evaluations["last"]["ema"].step == b.evaluations["last"]["ema"].step > 0


DEAF = """
import os, signal, sys, time
from pathlib import Path
from interlude_fast.training import distributed
distributed._is_first_to_say = lambda: True
signal.signal(signal.SIGTERM, lambda *_: None)
with distributed.end_in_time(distributed.World(0, 2), Path(sys.argv[1]), seconds=0.2):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0 if sys.argv[2] == "hears" else 60)
"""


@pytest.mark.parametrize("who", ["hears", "waits"])
def test_a_process_that_cannot_answer_says_so_and_ends(tmp_path: Path, who: str) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "last"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    done = subprocess.run(
        [sys.executable, "-c", DEAF, str(checkpoint), who], capture_output=True, text=True, timeout=120
    )
    said = f"does not answer; go on with --run-dir {tmp_path / 'run'} --resume\n"
    assert done.returncode == (0 if who == "hears" else 2)
    assert done.stderr.endswith(said) == (who == "waits")


COMMAND = [sys.executable, "-m", "interlude_fast.cli", "train", "--device", "cpu"]


def test_a_batch_that_cannot_be_shared_is_one_line(tmp_path: Path) -> None:
    from tests.training.ranks import free_port

    port = free_port()
    command = [*COMMAND, "--set", "train.batch=5", "--run-dir", str(tmp_path / "run")]
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **environment(rank, 2, port)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = "".join(process.communicate(timeout=120)[1] for process in processes)
    assert [process.returncode for process in processes] == [2, 2]
    assert said.count("\n") == 1
    assert "train.batch = 5 cannot be shared equally by WORLD_SIZE = 2 processes" in said
    assert not (tmp_path / "run").exists()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_killed_process_ends_the_job_and_the_run_goes_on(tmp_path: Path) -> None:
    """With torchrun, as in docs/distributed.md."""
    overrides = {"train": {**SMALL["train"], "steps": 30, "log_every": 1}}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, *COMMAND[1:], *flags({**SMALL, **overrides}), "--run-dir", str(tmp_path / "run")]
    slow = {**os.environ, "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=slow)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while job.poll() is None and time.monotonic() < deadline and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.01)
    os.kill(children(job.pid)[1], signal.SIGKILL)
    _, said = job.communicate(timeout=120)
    lines = [line for line in said.splitlines() if line.startswith("interlude-fast:")]
    assert len(lines) == 1, said
    assert "another process of the job ended" in lines[0]
    assert f"--run-dir {tmp_path / 'run'} --resume" in lines[0]
    assert job.returncode != 0
    in_ranks(2, whole_run, tmp_path / "run", overrides, True)
    in_ranks(2, whole_run, tmp_path / "whole", overrides)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


# What is refused.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"WORLD_SIZE": "2"}, r"RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set: start the job with torchrun"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE = 'many' is not a number"),
        (environment(0, 2, 1) | {"RANK": "2"}, "out of range"),
    ],
)
def test_environments_that_are_no_job(monkeypatch: pytest.MonkeyPatch, values: dict, message: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        World.of_environment()


def test_a_job_of_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert World.of_environment() == World() == World.current()


def test_shared_steps_are_eager() -> None:
    choice = choose(TrainConfig(), "cuda", alone=False)
    assert (list(map(str, choice.ways)), choice.why) == (["eager"], "several processes share each step")
    for name in ("compile", "capture"):
        with pytest.raises(ConfigError, match=f"train.{name}: steps that several processes share run eagerly"):
            choose(TrainConfig(**{name: True}), "cuda", alone=False)


def test_errors_that_are_no_loss_of_a_process_pass() -> None:
    with pytest.raises(RuntimeError, match="out of luck"), loss_of_a_process(World(0, 2), None):
        raise RuntimeError("out of luck")
