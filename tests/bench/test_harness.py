"""The harness: what it makes of timings, and what it refuses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from bench import harness

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Timings that are known: a side's own number times 1, 2, 3, ... seconds. Gives the order of the turns."""
    turns: list[str] = []

    def seconds(side: harness.Side, i: int, device: torch.device) -> float:
        name, unit = side(i)
        turns.append(name)
        return unit * turns.count(name)

    monkeypatch.setattr(harness, "_seconds", seconds)
    return turns


SIDES = {"ours": lambda i: ("ours", 1.0), "theirs": lambda i: ("theirs", 3.0)}


def test_a_row_has_medians_spread_and_ratios_without_the_warm_up(clock: list[str]) -> None:
    row = harness.measure("both", SIDES, CPU, repeats=5, warmup=2, units=10)
    assert clock[:4] == ["theirs", "ours", "ours", "theirs"]  # in turn, and in turn first
    ours, theirs = row["sides"]["ours"], row["sides"]["theirs"]
    assert (ours["median_us"], ours["p10_us"], ours["p90_us"]) == (5e6, 3.4e6, 6.6e6)  # of 3, 4, 5, 6, 7 s
    assert (ours["per_second"], theirs["times_slower_than_ours"]) == (2.0, 3.0)


def test_calls_of_one_timing_share_it_and_missing_sides_are_named(clock: list[str]) -> None:
    row = harness.measure("both", SIDES, CPU, repeats=3, warmup=0, calls={"theirs": 3}, not_measured={"x": "none"})
    assert row["sides"]["theirs"]["times_slower_than_ours"] == 1.0
    assert row["sides"]["x"] == {"not measured": "none"}


def test_sides_that_differ_raise(clock: list[str]) -> None:
    def equal(a: object, b: object) -> None:
        assert a == b

    with pytest.raises(AssertionError):
        harness.measure("both", SIDES, CPU, check=equal)
    assert not clock


def test_options_reach_every_measurement(clock: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[torch.device] = []
    monkeypatch.setattr(harness, "flush_cache", flushed.append)
    monkeypatch.setattr(harness, "_asked", harness._asked)  # restored after
    harness.measure("both", SIDES, CPU, repeats=2, warmup=0)
    assert not flushed
    harness.begin(harness.parser(""), ["--device", "cpu", "--quick", "--flush"])
    clock.clear()
    harness.measure("both", SIDES, CPU, repeats=1000)
    assert len(clock) == len(flushed) == 2 * sum(harness.QUICK)


def test_a_commit_with_changes_is_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMMIT", raising=False)

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=n", "-c", "user.email=n@n")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert harness.commit(tmp_path) == "unknown"
    monkeypatch.setenv("COMMIT", "abc1234")  # counts without git alone
    assert harness.commit(tmp_path) == "abc1234"
    git("init")
    (tmp_path / "a.py").write_text("a = 1\n")
    git("add", "a.py")
    git("commit", "-m", "a")
    clean = harness.commit(tmp_path)
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    (results / "new.json").write_text("{}")
    assert harness.commit(tmp_path) == clean != "unknown"
    (tmp_path / "b.py").write_text("b = 1\n")
    assert harness.commit(tmp_path) == f"{clean} dirty"


def test_rows_are_written_with_what_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench/ops.py", "--quick"])
    harness.write(tmp_path / "ops.json", [{"name": "row"}])
    found = json.loads((tmp_path / "ops.json").read_text())
    assert found["command"] == "python -m bench.ops --quick"
    assert found["rows"] == [{"name": "row"}]
    assert {"commit", "threads", "date"} < found.keys()
    assert {"processor", "gpus", "driver", "torch"} < found["passport"].keys()
