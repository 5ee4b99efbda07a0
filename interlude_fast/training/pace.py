"""When a run logs, evaluates, saves and ends: by its steps, or by the time that it has (`--budget`)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from interlude_fast.options import TrainConfig

from .state import TrainState

WINDOW = 50  # steps whose mean duration predicts the next ones'
EVALUATING = 0.05  # share of the time so far that evaluations on the way may take
FEW = 20  # steps in which no schedule can be followed
AHEAD = 16  # steps that the host may be ahead of the device where it looks at the clock


class Pace:
    """By steps."""

    def __init__(self, t: TrainConfig, state: TrainState) -> None:
        self.t, self.state = t, state

    def stepped(self) -> None:
        """A step is done."""

    def paused(self, seconds: float, *, evaluating: bool = False) -> None:
        """Time since the last step that was no step: an evaluation, a checkpoint."""

    def logs(self) -> bool:
        return self.state.finished or self.state.step % self.t.log_every == 0

    def evaluates(self) -> bool:
        return self.state.finished or self.state.step % self.t.eval_every == 0

    def saves(self) -> bool:
        return self.state.finished or self.state.step % self.t.checkpoint_every == 0

    def metrics(self) -> dict[str, float]:
        """What it adds to a line of metrics."""
        return {}

    def remarks(self) -> list[str]:
        """Lines for the user after the last step: whether there were too few for the average."""
        steps, optim = self.state.step, self.state.optim
        spans = round(1 / (1 - optim.ema_decay))
        if optim.ema_decay == 0 or optim.ema_warmup or steps >= spans:
            return []
        return [
            f"the EMA network averages over about {spans:,} steps and this run had {steps:,}: it still holds its "
            "initial weights; train with --set optim.ema_warmup=true, look at the raw network, or lower "
            "optim.ema_decay"
        ]


@dataclass
class Budget:
    """Leads through a schedule in the time that there is: with r seconds left for training and s seconds a step,
    each step advances by the share s / r of what is left of the schedule. Both end together, whatever the speed.

    Attributes:
        seconds: from the beginning of the run to its end. began: on the clock. used: before this process.
        reserved: seconds that the end takes: the last evaluation and files.
    """

    seconds: float
    began: float
    used: float = 0.0
    reserved: float = 0.0
    clock: Callable[[], float] = time.monotonic
    evaluating: float = 0.0
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    last: float | None = None  # end of the last step; None before the first, which compiles, records and allocates

    @property
    def elapsed(self) -> float:
        return self.used + self.clock() - self.began

    @property
    def left(self) -> float:
        """Seconds for training."""
        return self.seconds - self.reserved - self.elapsed

    def advance(self, position: float, end: float) -> float:
        """After a step: where the schedule is now, in [position, end]; `end` where no other step fits."""
        now = self.clock()
        if self.last is not None:
            self.durations.append(now - self.last)
        self.last = now
        if not self.durations:
            return end if self.left <= 0 else position
        steps_left = self.left / max(sum(self.durations) / len(self.durations), 1e-9)
        return end if steps_left < 1 else min(end, position + (end - position) / steps_left)

    def paused(self, seconds: float, evaluating: bool) -> None:
        if self.last is not None:
            self.last += seconds
        self.evaluating += seconds if evaluating else 0.0

    def affords(self, seconds: float) -> bool:
        """Whether another evaluation that takes so long leaves them their small share of the time."""
        return self.evaluating + seconds <= EVALUATING * self.elapsed


class BudgetPace(Pace):
    """By time.

    Args:
        began: when the run began, on time.monotonic().
        evaluation: seconds that an evaluation takes, as far as known; the first real one tells.
    """

    def __init__(self, t: TrainConfig, state: TrainState, began: float, evaluation: float) -> None:
        super().__init__(t, state)
        assert t.budget is not None
        self.evaluation = evaluation
        self.budget = Budget(t.budget, began, state.seconds, self._end())
        self.evaluated = int(state.position // t.eval_every)
        self.logged = self.saved = self.budget.elapsed
        self.queued: deque[torch.cuda.Event] = deque()

    def _end(self) -> float:
        """Seconds after the last step: an evaluation, the full report (as long again, and more), files."""
        return 2.5 * self.evaluation + 2

    def stepped(self) -> None:
        state = self.state
        self._stay_near()
        before = state.position - 1  # advance() has counted a step
        state.position = self.budget.advance(before, float(state.steps))
        state.seconds = self.budget.elapsed

    def _stay_near(self) -> None:
        """The host's clock tells of the device's work only where the host is not far ahead."""
        if self.state.device.type == "cuda":
            done = torch.cuda.Event()
            done.record(torch.cuda.current_stream(self.state.device))
            self.queued.append(done)
            if len(self.queued) > AHEAD:
                self.queued.popleft().synchronize()

    def paused(self, seconds: float, *, evaluating: bool = False) -> None:
        if evaluating:
            self.evaluation = seconds
            self.budget.reserved = self._end()
        self.budget.paused(seconds, evaluating)

    def logs(self) -> bool:
        due = super().logs() or self.budget.elapsed - self.logged >= max(1.0, self.budget.seconds / 100)
        self.logged = self.budget.elapsed if due else self.logged
        return due

    def evaluates(self) -> bool:
        """Where the schedule passes a multiple of eval_every, as often as the time allows."""
        passed = int(self.state.position // self.t.eval_every)
        due = self.state.finished or (passed > self.evaluated and self.budget.affords(self.evaluation))
        self.evaluated = passed if due else self.evaluated
        return due

    def saves(self) -> bool:
        due = super().saves() or self.budget.elapsed - self.saved >= max(30.0, self.budget.seconds / 10)
        self.saved = self.budget.elapsed if due else self.saved
        return due

    def metrics(self) -> dict[str, float]:
        return {"schedule": self.state.position / self.state.steps}

    def remarks(self) -> list[str]:
        """Whether the time was too short, for the schedule or for the average."""
        steps, b = self.state.step, self.budget
        lines = super().remarks()
        if steps < FEW:
            few = (
                f"a budget of {b.seconds:.0f} s was enough for {steps} steps only, as the end takes about "
                f"{b.reserved:.0f} s: the schedule was hardly followed; give it more time"
            )
            lines = [few, *lines]
        return lines
