"""Optimizers and learning-rate schedules (docs/equations.md)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from interlude_fast.config import OptimConfig
from interlude_fast.errors import ConfigError
from interlude_fast.models import Network


def cosine_7_16(step: float, steps: int) -> float:
    """cos(7 pi k / (16 K)) of step k = 0..K-1: from 1 down to about 0.195."""
    return max(0.0, math.cos(7 * math.pi * step / (16 * steps)))


def cosine(step: float, steps: int) -> float:
    """(1 + cos(pi k / K)) / 2: from 1 down to 0."""
    return (1 + math.cos(math.pi * step / steps)) / 2


SCHEDULES: dict[str, Callable[[float, int], float]] = {
    "cosine_7_16": cosine_7_16,
    "cosine": cosine,
    "constant": lambda step, steps: 1.0,
    "steps": lambda step, steps: 1.0,
}


def learning_rate_factor(config: OptimConfig, step: float, steps: int) -> float:
    """Share of config.lr in step k = 0..K-1, or between two: k / warmup while it rises, then the schedule over the
    rest; that of "steps" falls to a tenth after every milestone it has passed."""
    if step < config.warmup:
        return step / config.warmup
    if config.schedule == "steps":
        return 0.1 ** sum(step > milestone for milestone in config.milestones)
    return SCHEDULES[config.schedule](step - config.warmup, steps - config.warmup)


def refuse_contradictions(config: OptimConfig, steps: int) -> None:
    """Raises ConfigError for a schedule without what it reads, or a warm-up that a run of `steps` never leaves."""
    if config.schedule == "steps" and not config.milestones:
        raise ConfigError("optim.schedule = steps wants optim.milestones, such as [300000, 350000]")
    if config.milestones and config.schedule != "steps":
        raise ConfigError(f"optim.milestones are read by optim.schedule = steps, not {config.schedule}; drop them")
    if config.warmup >= steps:
        raise ConfigError(
            f"optim.warmup = {config.warmup}: a run of {steps} steps never reaches optim.lr; set it below, or to 0"
        )


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Parameter groups by layer and by weight decay; a group's `scale` is its share of the learning rate.

    Raises:
        ConfigError: layer_decay for a network whose layers have no order.
    """
    scales = _layer_scales(model, config.layer_decay)
    spared = model.without_decay() if isinstance(model, Network) else set()
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decays = config.decay_all or (parameter.ndim > 1 and name not in spared)
        groups.setdefault((scales(name), decays), []).append(parameter)
    settings = [
        {"params": parameters, "scale": scale, "weight_decay": config.weight_decay if decays else 0.0}
        for (scale, decays), parameters in groups.items()
    ]
    if config.name == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(settings, lr=config.lr, momentum=config.momentum, nesterov=nesterov, foreach=True)
    cls = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    device = next(model.parameters()).device
    if device.type != "cuda":
        return cls(settings, lr=config.lr, foreach=True)
    for group in settings:  # a CUDA graph reads it from the device
        group["lr"] = torch.full((), config.lr, dtype=torch.float32, device=device)
    return cls(settings, lr=config.lr, fused=True, capturable=True)


def _layer_scales(model: nn.Module, decay: float) -> Callable[[str], float]:
    """decay ** (layers above) of the layer that a parameter's name belongs to."""
    if decay == 1:
        return lambda name: 1.0
    layers = model.layers() if isinstance(model, Network) else ()
    if not layers:
        raise ConfigError("optim.layer_decay: the layers of this network have no known order; set it to 1")

    def scale(name: str) -> float:
        depth = next((i for i, prefixes in enumerate(layers) if name.startswith(prefixes)), len(layers) - 1)
        return decay ** (len(layers) - 1 - depth)

    return scale


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr * group["scale"])
        else:
            group["lr"] = lr * group["scale"]
