"""Which way a run's steps are run, and what happens where that way fails."""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from interlude_fast.data.pipelines import Pipeline
from interlude_fast.errors import ConfigError, InterludeError
from interlude_fast.methods import Losses
from interlude_fast.options import Precision, TrainConfig

from .captured import CapturedStep
from .compiled import compiled_losses
from .state import TrainState
from .step import EagerStep

# Steps, and seconds of a budget, below which compiling, about a minute, may not be won back.
WORTH_COMPILING, WORTH_SECONDS = 10_000, 600.0


class Step(Protocol):
    """See EagerStep."""

    waited: float

    def __call__(self) -> Losses: ...


@dataclass(frozen=True)
class Way:
    """compiled: forward, losses and backward by torch.compile. captured: the step as one CUDA graph."""

    compiled: bool
    captured: bool

    def __str__(self) -> str:
        names = [name for name in ("compiled", "captured") if getattr(self, name)]
        return " and ".join(names) or "eager"


@dataclass(frozen=True)
class Choice:
    """ways: to be tried in this order, the first that works stays. why: of the first."""

    ways: tuple[Way, ...]
    why: str


def choose(t: TrainConfig, device_type: str, cannot_compile: str = "", alone: bool = True) -> Choice:
    """The fastest ways first, as far as `train.compile` and `train.capture` leave it open.

    Args:
        cannot_compile: why the method's forward cannot be compiled; empty where it can.
        alone: whether this process trains by itself, not as one of several.

    Raises:
        ConfigError: a way that is asked for and that there is not.
    """
    cuda = device_type == "cuda"
    if t.capture and not cuda:
        raise ConfigError("train.capture: a CUDA graph wants a GPU, this run is on the CPU; use --no-capture")
    if not alone:
        return _shared_steps(t)
    if t.compile and cannot_compile:
        raise ConfigError(f"train.compile: {cannot_compile}; use --no-compile")
    capture = cuda if t.capture is None else t.capture
    compile, why_not = _compiling(t, cuda, cannot_compile) if t.compile is None else (t.compile, "")
    ways = dict.fromkeys([Way(compile, capture), Way(False, capture), Way(compile, False), Way(False, False)])
    asked = [f"train.{name} = {wish}" for name in ("compile", "capture") if (wish := getattr(t, name)) is not None]
    said = f"as {' and '.join(asked)} ask" if asked else f"the default on {device_type}"
    return Choice(tuple(ways), "; ".join(filter(None, [said, why_not])))


def _shared_steps(t: TrainConfig) -> Choice:
    """Networks that wait for other processes halfway are neither one graph of the compiler's nor one of CUDA's."""
    for name in ("compile", "capture"):
        if getattr(t, name):
            raise ConfigError(f"train.{name}: steps that several processes share run eagerly; use --no-{name}")
    return Choice((Way(False, False),), "several processes share each step")


def _compiling(t: TrainConfig, cuda: bool, cannot: str) -> tuple[bool, str]:
    """Whether `auto` compiles, and why not."""
    if cannot:
        return False, f"not compiled: {cannot}"
    if cuda and importlib.util.find_spec("triton") is None:
        return False, "not compiled: triton is not installed"
    if not cuda and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        return False, "not compiled: there is no C++ compiler"
    short = t.steps < WORTH_COMPILING if t.budget is None else t.budget < WORTH_SECONDS
    return not short, "not compiled: a short run" if short else ""


class Stepper:
    """A run's steps in the first way that works. A way that fails in its first step is given up for the next one:
    the state is as before.

    Attributes:
        choice: which way it is, and why. tell: hears of a way that failed, in one line.
    """

    def __init__(self, state: TrainState, choice: Choice, build: Callable[[Way], Step]) -> None:
        self.state, self.build, self.why = state, build, choice.why
        self.ways = list(choice.ways)
        self.tell: Callable[[str], None] = warnings.warn
        self.current: Step | None = None

    @property
    def choice(self) -> str:
        return f"{self.ways[0]} ({self.why})"

    @property
    def waited(self) -> float:
        """Seconds that the last step waited for its batch."""
        return self.current.waited if self.current else 0.0

    def __call__(self) -> Losses:
        if self.current is not None:
            return self.current()
        while len(self.ways) > 1:
            before, numbers = self.state.snapshot(), (self.state.step, self.state.position)
            try:
                return self._first()
            except (InterludeError, torch.OutOfMemoryError):  # another way would need as much
                raise
            except Exception as error:
                failed = self.ways.pop(0)
                if failed.compiled and _is_of_the_compiler(error):
                    self.ways = [way for way in self.ways if not way.compiled]
                elif failed.captured:  # a recording that failed is not tried once more
                    self.ways = [way for way in self.ways if not way.captured]
                self.state.restore(before)
                self.state.step, self.state.position = numbers
                self.current, reason = None, " ".join(str(error).split())[:200] or type(error).__name__
                self.why = f"{failed} failed"
                self.tell(f"{failed} steps do not work here ({reason}); going on {self.ways[0]}")
            gc.collect()  # a graph of the failed step would tie the next recording to its stream
        return self._first()

    def _first(self) -> Losses:
        self.current = self.build(self.ways[0])
        return self.current()


def _is_of_the_compiler(error: Exception) -> bool:
    """Whether torch.compile failed, before anything was recorded."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def build_stepper(
    state: TrainState, pipeline: Pipeline, t: TrainConfig, precision: Precision, *, alone: bool = True
) -> Stepper:
    """What runs the steps of a run; `t` says how, as `choose` reads it."""
    device = pipeline.sampler.store.device
    choice = choose(t, device.type, state.method.cannot_compile, alone)

    def build(way: Way) -> Step:
        step = CapturedStep if way.captured else EagerStep
        return step(state, pipeline, precision, compiled_losses(state) if way.compiled else None)

    return Stepper(state, choice, build)
