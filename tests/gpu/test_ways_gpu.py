"""What only a GPU can show of the ways to run a step: CUDA graphs, alone and with compiled kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from interlude_fast.methods import Losses
from interlude_fast.training.captured import CapturedStep
from interlude_fast.training.compiled import compiled_losses
from interlude_fast.training.device import float32_products
from interlude_fast.training.loop import train
from interlude_fast.training.run import Run
from interlude_fast.training.setup import prepare
from interlude_fast.training.step import EagerStep
from tests.helpers import TRAINED, small_config
from tests.training.test_ways import CALM, losses_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def made(method: str = "interlude", **over: Any) -> Run:
    train = {"device": "cuda", "precision": "fp32", **over.pop("train", {})}
    return prepare(small_config(**{"method": {"name": method}, "optim": CALM, **over}, train=train))


def steps_of(run: Run, kind: type[EagerStep], steps: int = 30, compiled: bool = False) -> torch.Tensor:
    """Losses and metrics of a run's steps, its products in its precision."""
    compute = compiled_losses(run.state) if compiled else None
    with float32_products(run.precision):
        return losses_of(kind(run.state, run.pipeline, run.precision, compute), steps)


def weights(run: Run) -> torch.Tensor:
    networks = (run.state.model, run.state.ema.model)
    return torch.cat([p.detach().flatten() for network in networks for p in network.parameters()])


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """From `set_sync_debug_mode` on, whatever waits for the device raises."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", TRAINED)
def test_captured_steps_are_the_eager_ones(method: str) -> None:
    """The same kernels on the same numbers, draws included; libraries may still choose other algorithms."""
    a, b, again = made(method), made(method), made(method)
    eager, captured, second = steps_of(a, EagerStep), steps_of(b, CapturedStep), steps_of(again, EagerStep)
    off = (second - eager).abs().max()  # what atomic additions alone do
    assert (captured - eager).abs().max() <= 10 * off + 1e-4
    off = (weights(again) - weights(a)).abs().max()
    assert (weights(b) - weights(a)).abs().max() <= 10 * off + 1e-4
    assert (b.state.step, b.state.position) == (30, 30)


@pytest.mark.parametrize(
    "over",
    [
        {"train": {"precision": "bf16"}},
        {"train": {"precision": "fp16"}},
        {"train": {"precision": "tf32"}},
        {"data": {"pipeline": "host"}},
        {"optim": {"name": "adam", "lr": 0.001}},
        {"optim": {"name": "adamw", "lr": 0.001, "warmup": 2}},
        {"optim": {**CALM, "ema_warmup": True}},
        {"optim": {**CALM, "ema_warmup": True}, "train": {"precision": "fp16"}},
        {"optim": {"name": "adam", "lr": 0.001, "ema_warmup": True}, "train": {"precision": "fp16"}},
    ],
    ids=str,
)
def test_captured_steps_in_other_settings(over: dict) -> None:
    a, b = made(**over), made(**over)
    eager, captured = steps_of(a, EagerStep), steps_of(b, CapturedStep)
    torch.testing.assert_close(captured[:, 0], eager[:, 0], rtol=0.03, atol=0.03)
    torch.testing.assert_close(weights(b), weights(a), rtol=0.03, atol=3e-3)
    for run in (a, b):
        run.pipeline.close()


def test_compiled_and_captured_steps() -> None:
    a, b = made(), made()
    eager, both = steps_of(a, EagerStep), steps_of(b, CapturedStep, compiled=True)
    torch.testing.assert_close(both, eager, rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("pipeline", ["resident", "host"])
def test_replays_never_wait_for_the_device(pipeline: str) -> None:
    run = made(data={"pipeline": pipeline})
    step = CapturedStep(run.state, run.pipeline, run.precision)
    for k in range(8):
        if k == 3:
            torch.cuda.set_sync_debug_mode("error")
        losses = step()
    torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(losses.total)
    run.pipeline.close()


class Quiet:
    lines: list[str]

    def __init__(self) -> None:
        self.lines = []

    def stepped(self, step: int) -> None: ...

    def logged(self, step: int, metrics: dict[str, float]) -> None: ...

    def evaluated(self, step: int, scores: dict) -> None: ...

    def noted(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("capture", [True, False])
def test_the_loop_never_waits_between_two_logging_points(capture: bool) -> None:
    class Watching(Quiet):
        def stepped(self, step: int) -> None:  # from the step after this one on
            torch.cuda.set_sync_debug_mode("error" if 4 <= step % 20 < 19 else "default")

    run = made(train={"steps": 60, "log_every": 20, "capture": capture})
    train(run, Watching())
    assert run.state.step == 60


def test_a_run_is_captured_by_default_and_evaluates_on_the_way() -> None:
    runs = [made(train={"steps": 12, "eval_every": 4, "capture": capture}) for capture in (None, False)]
    scores = [train(run, Quiet()) for run in runs]
    assert runs[0].stepper.choice.startswith("captured")
    assert abs(scores[0]["raw"].accuracy - scores[1]["raw"].accuracy) < 0.05


@pytest.mark.parametrize("where", ["in the warm-up", "in the recording"])
@pytest.mark.parametrize("method", ["interlude", "mixmatch"])  # the latter draws
def test_a_capture_that_fails_goes_on_eager_with_one_line(method: str, where: str) -> None:
    run, other = (made(method, train={"steps": 6, "capture": capture}) for capture in (None, False))
    real, recorder = run.state.method.forward, Quiet()

    def waiting(*arguments: Any) -> Losses:
        losses = real(*arguments)
        if where == "in the warm-up" or torch.cuda.is_current_stream_capturing():
            losses.total.item()
        return losses

    run.state.method.forward = waiting
    train(run, recorder)
    train(other, Quiet())
    assert len(recorder.lines) == 1
    assert "going on eager" in recorder.lines[0]
    assert run.stepper.choice == "eager (captured failed)"
    torch.testing.assert_close(weights(run), weights(other), rtol=1e-3, atol=1e-4)


def test_memory_is_flat_over_replays() -> None:
    run = made()
    step = CapturedStep(run.state, run.pipeline, run.precision)
    for k in range(200):
        step()
        if k == 20:
            torch.cuda.synchronize()
            before, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
    assert torch.cuda.memory_reserved() <= reserved
