"""The scripts' parts at work on a few rows."""

from __future__ import annotations

import pytest
import torch

from bench import harness, kernels, memory, ops, scaling, workload

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_asked", harness._asked)  # restored after
    harness.begin(harness.parser(""), ["--device", "cpu", "--quick"])


def test_noise_has_the_shape_that_its_root_names() -> None:
    run = workload.noise_run("WRN-10-1", CPU, images=300, classes=7, train={"batch": 2})
    assert run.dataset.images.shape == (300, 32, 32, 3)
    assert (len(run.dataset.classes), len(run.split.labeled), len(run.split.unlabeled)) == (7, 28, 300)


def test_step_by_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    from bench import step

    monkeypatch.setattr(step, "BLOCK", 0.0)
    rows = step.rows("WRN-10-1", CPU, 1, ["eager", "captured"], list(step.STAGES), repeats=2)
    found = {row["name"].partition(",")[0]: row for row in rows}
    assert list(found) == list(step.STAGES)
    for row in found.values():
        assert list(row["sides"])[:3] == ["eager", "strong", "reference"]
        assert "wants a GPU" in row["sides"]["captured"]["not measured"]


def test_step_numbers_reach_the_middle_of_a_long_run() -> None:
    (row,) = scaling.length_rows("WRN-10-1", CPU, 1, repeats=2)
    assert "step 536,870,912" in row["sides"]


def test_rows_are_counted() -> None:
    row = list(scaling.batch_rows("WRN-10-1", CPU, 4, repeats=2))[-1]
    assert [side["us_per_row"] > 0 for side in row["sides"].values()] == [True] * 4


def test_memory_of_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "FIRST", 1)
    found = memory.measure_cell(memory.cells("cpu", "WRN-10-1", [1], steps=3)[-1])
    assert found["growth_bytes"] == found["bytes_at_step_3"] - found["bytes_at_step_1"]
    assert found["peak_bytes"] > 50 * 2**20


def test_memory_cells_cover_batch_precision_and_pipeline() -> None:
    made = memory.cells("cuda", "WRN-28-2", [8, 64], steps=200)
    assert {cell["batch"] for cell in made} == {8, 64}
    assert {cell["precision"] for cell in made} == {"fp32", "bf16"}
    assert {cell["pipeline"] for cell in made} == {"resident", "host"}
    assert made[-1]["steps"] == 200


def test_every_way_is_profiled_alone() -> None:
    pytest.importorskip("torchvision")
    from bench import profiling

    eager, strong = (profiling.profile_row(name, "WRN-10-1", CPU, 1, steps=1) for name in ("eager", "strong"))
    captured = profiling.in_a_process("captured", "WRN-10-1", CPU, 1, 1)
    for row in (eager, strong):
        assert row["step_us"] > 0
        assert row["operators"] > 100
        assert len(row["largest"]) == 10
        assert row["peak_resident_bytes"] > 50 * 2**20
    assert "wants a GPU" in captured["not measured"]
    assert "exit code" in profiling.in_a_process("eager", "WRN-10-1", "no device", 1, 1)["not measured"]


def test_kernels_give_the_same_numbers_twice() -> None:
    cases = dict(kernels.small_cases())
    assert {name.split()[0].strip(",") for name in cases} == {"fusion", "loss", "delta", "rows", "views", "SGD"}
    for name in ("loss by class", "rows", "SGD and EMA"):
        kernels.alike(name, cases[name](CPU), cases[name](CPU))
    with pytest.raises(AssertionError, match=r"^rows: "):
        kernels.alike("rows", cases["rows"](CPU), [x + 1 for x in cases["rows"](CPU)])


def test_sides_are_timed_as_called_and_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: a captured side takes a second for its twenty calls, and one cannot be captured."""

    def captured(side: harness.Side, inputs: int, rounds: int) -> harness.Side:
        if side(0) == "plain":
            raise RuntimeError("no graph\nof it")
        return lambda i: None

    monkeypatch.setattr(ops, "captured", captured)
    monkeypatch.setattr(ops, "to_profile", [])
    monkeypatch.setattr(harness, "_seconds", lambda side, i, device: 1.0)
    monkeypatch.setattr(ops, "memory_share", lambda moved, seconds, device: {"bytes": moved, "seconds": seconds})
    sides = {"fused": lambda i: "fused", "eager": lambda i: "plain"}
    beside = {"copy": lambda i: "copy"}
    called, row = ops.both_rows("op", sides, torch.device("cuda"), moved=100, beside=beside)
    assert (called["name"], list(called["sides"])) == ("op", ["fused", "eager"])
    assert (row["name"], list(row["sides"])) == ("op, captured", ["fused", "copy", "eager"])
    assert row["sides"]["fused"]["median_us"] == 1e6 / 20
    assert row["sides"]["eager"] == {"not measured": "RuntimeError: no graph"}
    assert row["memory"] == {"bytes": 100, "seconds": 1 / 20}
    assert ops.to_profile == [(row, sides)]
    (alone,) = ops.both_rows("op", sides, CPU)
    assert alone["name"] == "op"


def test_the_memorys_speed_is_measured_in_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "copy_bandwidth", lambda device: 4e9)
    share = harness.memory_share(10**9, 0.5, CPU)
    assert share == {"bytes": 10**9, "gb_per_s": 2.0, "copy_gb_per_s": 4.0, "share_of_copy": 0.5}
