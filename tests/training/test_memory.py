"""The estimate of a step's memory against what a step takes, and the line where there is too little."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from interlude_fast.errors import MemoryExhausted
from interlude_fast.experiment.run import train_run
from interlude_fast.training import exhaustion
from interlude_fast.training.exhaustion import explained, is_exhaustion, refuse_too_large, would_fit
from interlude_fast.training.memory import Need, runs_at_once
from interlude_fast.training.room import Room, room
from interlude_fast.training.setup import load_data, prepare
from tests.helpers import TRAINED, small_config

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def need(**overrides: object) -> Need:
    config = small_config(**overrides)
    return Need(config, *load_data(config))


def limited(*lines: str, gib: float = 0) -> subprocess.CompletedProcess[str]:
    """A process that may have `gib` more address space than it has after its imports."""
    limit = f"""
import resource, torch
from interlude_fast.training.room import room, _fields, PROC
torch.set_num_threads(1)
if {gib}:
    used = _fields(PROC / "self" / "status", 1024)["VmSize"]
    resource.setrlimit(resource.RLIMIT_AS, (used + int({gib} * 2**30),) * 2)
"""
    code = "from tests.helpers import small_config\nfrom interlude_fast.experiment.run import train_run\n"
    return subprocess.run(
        [sys.executable, "-c", code + limit + "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # each thread's arena takes address space that nobody uses
    )


PEAK = """
import copy
from interlude_fast.training.setup import prepare
from interlude_fast.training.memory import Need
from interlude_fast.training.step import train_step

def peak():
    return _fields(PROC / "self" / "status", 1024)["VmHWM"]

config = small_config(method={"name": NAME}, model={"width": 2}, train={"batch": 2, "mu": 7})
run = prepare(config)
train_step(run.state, run.pipeline.batch(0), "fp32")
small = Need(config, run.dataset, run.split).estimate()
before = peak()
config = small_config(method={"name": NAME}, model={"width": 2}, train={"batch": BATCH, "mu": 7})
large = Need(config, run.dataset, run.split).estimate()
run = prepare(config)
train_step(run.state, run.pipeline.batch(0), "fp32")
print(large.step, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_a_step_takes_what_is_estimated() -> None:
    done = limited("NAME, BATCH = 'interlude', 384", PEAK)
    assert done.returncode == 0, done.stderr
    estimated, measured = map(int, done.stdout.split())
    assert measured > 100 * 2**20  # not noise
    assert 0.7 < estimated / measured < 1.3


@pytest.mark.parametrize("name", TRAINED)
def test_every_method_is_traced(name: str) -> None:
    found = need(method={"name": name}, train={"eval_batch": 1}).estimate(2)
    assert found is not None
    assert found.step > 10**5


def test_the_state_is_counted_and_the_step_grows_with_the_batch() -> None:
    n = need()
    small, large = n.estimate(2), n.estimate(64)
    assert small is not None
    assert large is not None
    weights = sum(p.numel() * 4 for p in prepare(n.config).state.model.parameters())
    assert 3 * weights < small.state == large.state < 3.1 * weights  # weights, average, momentum
    assert 16 * small.step < large.step < 33 * small.step


def test_bf16_halves_the_activations() -> None:
    n = need(train={"batch": 64})
    full, half = n.estimate(), n.estimate(precision="bf16")
    assert full is not None
    assert half is not None
    assert 0.4 < half.step / full.step < 0.65


def test_the_largest_batch_is_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    n = need(train={"batch": 500, "eval_batch": 1})
    asked = n.estimate()
    assert asked is not None
    budget = asked.total // 3
    found = n.largest_batch(budget)
    assert found is not None
    batch, estimate = found
    assert estimate.total <= budget
    above = n.estimate(batch + 16)
    assert above is not None
    assert above.total > budget
    assert 130 < batch < 170
    assert n.largest_batch(asked.total) == (500, asked)
    assert n.largest_batch(10**4) is None
    monkeypatch.setattr(exhaustion, "computes_in_bf16", lambda device: False)
    assert would_fit(n, asked, budget) == f"train.batch = {batch} would fit"
    monkeypatch.setattr(exhaustion, "computes_in_bf16", lambda device: True)
    half = n.largest_batch(budget, "bf16")
    assert half is not None
    assert half[0] > batch
    advice = f"train.batch = {batch} would fit, or precision bf16 with train.batch = {half[0]}"
    assert would_fit(n, asked, budget) == advice


def test_an_evaluation_too_large_is_told_apart() -> None:
    n = need(train={"eval_batch": 360})
    asked = n.estimate()
    assert asked is not None
    assert would_fit(n, asked, asked.total // 2).startswith("train.eval_batch = ")


def test_refused_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(train={"batch": 2000, "steps": 1})
    has = Room(2**28, 2**28)
    monkeypatch.setattr(exhaustion, "room", lambda device: has)
    with pytest.raises(MemoryExhausted, match=r"^cpu has 0.2 GiB of memory: train.batch = 2000 and .* would fit"):
        train_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    has = Room(2**40, 2**20)  # not free now, but the machine has it: in doubt, go on
    refuse_too_large(config, *load_data(config))


def test_ordinary_runs_are_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhaustion, "Need", None)
    config = small_config()
    refuse_too_large(config, *load_data(config))


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux alone")
def test_too_little_is_one_line_and_what_would_fit_fits(tmp_path: Path) -> None:
    def trained(batch: int) -> subprocess.CompletedProcess[str]:
        config = f"small_config(train={{'batch': {batch}, 'steps': 1}}, model={{'width': 4}})"
        return limited(
            "from interlude_fast.experiment import run",
            "run.refuse_too_large = lambda *data: None",  # the allocator refuses here, not the look before
            f"from pathlib import Path; folder = Path({str(tmp_path)!r}) / '{batch}'",
            f"try: train_run({config}, folder)",
            "except Exception as error: print(type(error).__name__, error)",
            gib=1.2,
        )

    first = trained(1200)
    assert first.stdout.startswith("MemoryExhausted cpu ("), first.stdout + first.stderr
    assert "train.batch = 1200 and train.mu = 2 make 7,200 rows a step" in first.stdout
    assert f"the last checkpoint in {tmp_path}/1200/checkpoints/last is intact" in first.stdout
    assert len(first.stdout.splitlines()) == 1
    batch = first.stdout.split("; train.batch = ")[1].split()[0]
    second = trained(int(batch))
    assert second.returncode == 0, second.stderr
    assert second.stdout == ""


def test_errors_that_are_not_of_memory_pass() -> None:
    config = small_config()
    with pytest.raises(RuntimeError, match="shape"), explained(config):
        raise RuntimeError("shape mismatch")
    with pytest.raises(MemoryExhausted, match=r"is out of memory: train.batch = 4"), explained(config):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
    with pytest.raises(MemoryExhausted), explained(config):
        raise MemoryError
    assert is_exhaustion(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_exhaustion(ValueError("out of memory"))


def test_room() -> None:
    has = room(CPU)
    assert has is not None
    assert 0 < has.free <= has.total
    done = limited("print(*room(torch.device('cpu')))", gib=1)
    total, free = map(int, done.stdout.split())
    assert total < has.total
    assert free <= 2**30


def test_room_of_a_gpu_without_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda.get_per_process_memory_fraction, unlike its neighbours, wants one."""
    fakes = {
        "current_device": lambda: 3,
        "mem_get_info": lambda device: (5 * 2**30, 8 * 2**30),
        "get_per_process_memory_fraction": lambda device: {3: 0.5}[torch.device(device).index],
        "memory_reserved": lambda device: 2**30,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    assert room(torch.device("cuda")) == room(torch.device("cuda:3")) == Room(4 * 2**30, 3 * 2**30)


def test_how_many_runs_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from interlude_fast.training import memory

    config = small_config()
    for free, count in ((2**20, 1), (2**31, 3)):
        monkeypatch.setattr(memory, "room", lambda device, free=free: Room(2**40, free))
        assert runs_at_once(config, *load_data(config)) == count
