"""One training step."""

from __future__ import annotations

import contextlib

import torch

from interlude_fast.config import Precision
from interlude_fast.data.batch import Batch
from interlude_fast.errors import ConfigError
from interlude_fast.methods import Losses

from .optim import learning_rate_factor, set_learning_rate
from .state import TrainState


def resolve_device(wish: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        ConfigError: a GPU is asked for that this machine or this torch does not have.
    """
    if wish == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wish)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(
                f"device '{wish}': torch {torch.__version__} sees {count} GPUs here; use --device cpu"
            )
    return device


def resolve_precision(wish: Precision, device: torch.device) -> Precision:
    """`auto` is bf16 on GPUs that compute in it, else fp32."""
    if wish != "auto":
        return wish
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager:
    """The context in which the network runs."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def step_seed(seed: int, step: int) -> int:
    """Seed of what dropout, mixup and the like draw in a step, all bits mixed: torch's CPU generator reads 32."""
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def compute_gradients(state: TrainState, batch: Batch, precision: Precision = "fp32") -> Losses:
    """Forward, losses, backward; the gradients are left on the parameters. Seeds torch's generators."""
    torch.manual_seed(step_seed(state.seed, state.step))
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    with autocast(precision, batch.images.device):
        losses = state.method(state.model, batch, state.ema.model)
    losses.total.backward()
    return losses


def update(state: TrainState) -> None:
    """Optimizer and EMA; consumes the gradients and adds 1 to state.step."""
    optim = state.optim
    set_learning_rate(state.optimizer, optim.lr * learning_rate_factor(optim, state.step, state.steps))
    state.optimizer.step()
    state.ema.update()
    if optim.shrink:
        with torch.no_grad():
            torch._foreach_mul_([p.data for p in state.model.parameters()], 1 - optim.lr * optim.shrink)
    state.step += 1


def train_step(state: TrainState, batch: Batch, precision: Precision = "fp32") -> Losses:
    """One step, whole."""
    losses = compute_gradients(state, batch, precision)
    update(state)
    return losses
