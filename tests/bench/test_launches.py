"""What is made of a profiler's events, on events that are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import memory, ops
from bench.launches import Event, launches_of, operators, summary

EVENTS = [  # two steps
    Event("cudaLaunchKernel", 0, 1, False),
    Event("cuLaunchKernelEx", 1, 2, False),
    Event("cudaGraphLaunch", 2, 3, False),
    Event("cudaLaunchCooperativeKernel", 3, 4, False),
    Event("cudaMemcpyAsync", 4, 5, False),
    Event("cudaStreamSynchronize", 5, 6, False),
    Event("cudaDeviceSynchronize", 8, 9, False),  # ends the profile
    Event("fuse", 2, 4, True),
    Event("fuse", 4, 5, True),
    Event("loss", 4, 6, True),  # beside the one before
    Event("Memcpy DtoD", 7, 8, True),
    Event("Context Sync", 6, 9, True),
]


def test_launches_busy_time_and_kernels_of_known_events() -> None:
    found = summary(EVENTS, steps=2)
    assert (found["host launches"], found["host graphs"], found["host waits"]) == (1.5, 0.5, 0.5)
    assert (found["kernels"], found["copies"]) == (1.5, 0.5)
    assert found["busy_us"] == 2.5e6  # from 2 to 6 and from 7 to 8, over two steps
    assert [k["name"] for k in found["largest"]] == ["fuse", "loss"]
    assert found["largest"][0] == {"name": "fuse", "us": 1.5e6, "count": 1.0, "share": 0.6}


def test_nothing_on_the_device_is_no_error() -> None:
    assert summary([], steps=3)["kernels"] == 0


def test_operators_of_a_cpu_are_counted_by_step() -> None:
    x = torch.ones(8)
    found = operators(lambda: [x.mul(2) for _ in range(6)], steps=3)
    assert next(k for k in found["largest"] if k["name"] == "aten::mul")["count"] == 2


def test_a_cpu_launches_nothing() -> None:
    assert set(launches_of(lambda i: torch.ones(2), torch.device("cpu")).values()) == {0}


def test_a_side_whose_launches_cannot_be_counted_ends_nothing() -> None:
    def broken(i: int) -> Any:
        raise RuntimeError("no profile\nof it")

    counted, missed = ops.count_launches({"a": broken, "b": lambda i: torch.ones(2)}, torch.device("cpu"))
    assert list(counted) == ["b"]
    assert missed == {"a": "RuntimeError: no profile"}


def test_a_process_that_does_not_end_is_a_row_that_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    from bench import profiling

    for module in (memory, profiling):
        monkeypatch.setitem(module.LIMIT, "cpu", 0.05)
    (cell, *_) = memory.cells("cpu", "WRN-10-1", [1], steps=3)
    assert memory.in_a_process(cell) == {"not measured": "no end within 0.05 s"}
    row = profiling.in_a_process("eager", "WRN-10-1", torch.device("cpu"), 1, 1)
    assert (row["way"], row["not measured"]) == ("eager", "no end within 0.05 s")
