"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interlude_fast import ops
from tests.support.sitecustomize import CHOICE, pretend

SUPPORT = Path(__file__).parent / "support"
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pytest_addoption(parser: pytest.Parser) -> None:
    choices = ("auto", "chosen", "refused")
    text = "what torch says of bf16 on the processor, here and in processes that tests start; auto: the truth"
    parser.addoption("--bf16", choices=choices, default="auto", help=text)


def pytest_configure(config: pytest.Config) -> None:
    choice = config.getoption("--bf16")
    if choice != "auto":
        before = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(SUPPORT)]
        os.environ |= {CHOICE: choice, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *before])}
        pretend(torch, choice)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random tensors of a test depend neither on the tests before it nor on the process it runs in."""
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def kernels(device: torch.device) -> None:
    """Skips a test of compiled kernels where its device has none."""
    status = ops.status()
    if not status.runs_on(device):
        pytest.skip(f"no compiled kernels for {device.type}: {status.why_not or 'built without CUDA'}")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests of tiny tensors: threads that wait for one another cost more than they bring. Restored after."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def within_budget() -> Callable[..., None]:
    """Asserts that a result is as near to the float64 truth as plain torch's in the same dtype.

    At most twice plain torch's largest error, plus, since plain torch may hit the truth by luck, a few units
    in the last place of the arithmetic (float32 for 16-bit inputs) for sums of `terms` terms.
    """

    def check(result: Tensor, plain: Tensor, truth: Tensor, terms: int = 1) -> None:
        assert result.shape == plain.shape == truth.shape
        if result.numel() == 0:
            return
        arithmetic = torch.float64 if result.dtype == torch.float64 else torch.float32
        result, plain, truth = (t.detach().cpu().double() for t in (result, plain, truth))
        floor = 8 * terms**0.5 * torch.finfo(arithmetic).eps * truth.abs().max()
        assert (result - truth).abs().max().item() <= (2 * (plain - truth).abs().max() + floor).item()

    return check
