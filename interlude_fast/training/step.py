"""One training step: its one definition, and how it is run eagerly. compiled.py and captured.py run the same."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from interlude_fast.data.batch import Batch
from interlude_fast.data.pipelines import Pipeline
from interlude_fast.methods import Losses
from interlude_fast.options import Precision

from .device import autocast
from .optim import SGD, learning_rate_factor, set_learning_rate
from .state import TrainState

LossFunction = Callable[[nn.Module, Batch, nn.Module], Losses]  # as Method.forward


def step_seed(seed: int, step: int) -> int:
    """Seed of what dropout, mixup and the like draw in a step, all bits mixed: torch's CPU generator reads 32."""
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def set_numbers(state: TrainState) -> None:
    """What the host decides of a step: torch's seed, and the numbers that the device reads, which are the learning
    rate and the decay of the average."""
    torch.manual_seed(step_seed(state.seed, state.step))
    factor = learning_rate_factor(state.optim, state.position, state.steps)
    set_learning_rate(state.optimizer, state.optim.lr * factor)
    if state.ema.warmup:
        state.ema.set_step(state.step)


def losses_and_gradients(
    state: TrainState, batch: Batch, precision: Precision = "fp32", compute: LossFunction | None = None
) -> Losses:
    """Forward, losses, backward; the gradients, times the loss scale of fp16, are left on the parameters.

    Args:
        compute: the method's forward, or what does the same.
    """
    state.optimizer.zero_grad(set_to_none=True)
    with autocast(precision, batch.images.device):
        losses = (state.parallel or compute or state.method)(state.model, batch, state.ema.model)
    state.scaler.scale(losses.total).backward()
    if state.parallel is not None:
        state.parallel.average_statistics()
    return losses


def apply_gradients(state: TrainState) -> None:
    """Optimizer and EMA; consumes the gradients. Under fp16 a step whose gradients overflow changes no weight and
    no average, and lowers the loss scale."""
    state.scaler.step(state.optimizer)
    if isinstance(state.optimizer, SGD):  # which has moved the averages, and shrunk the weights
        state.scaler.update()
        state.ema.update_buffers()
        return
    state.ema.update(_found_inf(state))
    state.scaler.update()
    if state.optim.shrink:
        with torch.no_grad():
            kept = 1 - state.optim.lr * state.optim.shrink
            torch._foreach_mul_([p.data for p in state.model.parameters() if p.requires_grad], kept)


def _found_inf(state: TrainState) -> Tensor | None:
    """Between the loss scaler's step and its update: whether gradients overflowed. None without a loss scale."""
    if not state.scaler.is_enabled():
        return None
    (found,) = state.scaler._found_inf_per_device(state.optimizer).values()
    return found


def compute_gradients(state: TrainState, batch: Batch, precision: Precision = "fp32") -> Losses:
    """The first half of train_step, up to the gradients."""
    set_numbers(state)
    state.model.train()
    return losses_and_gradients(state, batch, precision)


def update(state: TrainState) -> None:
    """The second half of train_step."""
    apply_gradients(state)
    state.advance()


def train_step(state: TrainState, batch: Batch, precision: Precision = "fp32") -> Losses:
    """One step, whole: forward, losses, backward, optimizer, EMA; adds 1 to state.step."""
    losses = compute_gradients(state, batch, precision)
    update(state)
    return losses


class EagerStep:
    """A step of a run at every call, operation by operation.

    Args:
        compute: as for losses_and_gradients.

    Attributes:
        waited: seconds that the last call waited for its batch.
    """

    def __init__(
        self, state: TrainState, pipeline: Pipeline, precision: Precision, compute: LossFunction | None = None
    ) -> None:
        self.state, self.pipeline, self.precision, self.compute = state, pipeline, precision, compute
        self.waited = 0.0

    def __call__(self) -> Losses:
        state, began = self.state, time.perf_counter()
        batch = self.pipeline.batch(state.step)
        self.waited = time.perf_counter() - began
        if state.position != state.step:  # methods follow the schedule
            batch = dataclasses.replace(batch, step=torch.full_like(batch.step, int(state.position)))
        set_numbers(state)
        state.model.train()
        losses = losses_and_gradients(state, batch, self.precision, self.compute)
        update(state)
        return losses
