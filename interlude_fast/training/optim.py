"""Optimizers and learning-rate schedules (docs/equations.md)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from interlude_fast.errors import ConfigError
from interlude_fast.models import Network
from interlude_fast.ops import sgd_ema_
from interlude_fast.options import OptimConfig, in_steps

from .ema import EMA


def cosine_7_16(step: float, steps: float) -> float:
    """cos(7 pi k / (16 K)) of step k = 0..K-1: from 1 down to about 0.195."""
    return max(0.0, math.cos(7 * math.pi * step / (16 * steps)))


def cosine(step: float, steps: float) -> float:
    """(1 + cos(pi k / K)) / 2: from 1 down to 0."""
    return (1 + math.cos(math.pi * step / steps)) / 2


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "cosine_7_16": cosine_7_16,
    "cosine": cosine,
    "constant": lambda step, steps: 1.0,
    "steps": lambda step, steps: 1.0,
}


def learning_rate_factor(config: OptimConfig, step: float, steps: int) -> float:
    """Share of config.lr in step k = 0..K-1, or between two: k / warmup while it rises, then the schedule over the
    rest; that of "steps" falls to a tenth after every milestone it has passed."""
    warmup = in_steps(config.warmup, steps)
    if step < warmup:
        return step / warmup
    if config.schedule == "steps":
        return 0.1 ** sum(step > in_steps(milestone, steps) for milestone in config.milestones)
    return SCHEDULES[config.schedule](step - warmup, steps - warmup)


class SGD(torch.optim.Optimizer):
    """torch.optim.SGD and the moving average of the weights in one pass over them (ops.sgd_ema_). The learning
    rate `lr` lies on the device; groups take their `scale` of it. Under a loss scale a step that overflows changes
    nothing. An average whose decay warms up moves in passes of its own, as the op takes one number for all steps.

    Args:
        groups: as parameter_groups gives them.
    """

    _step_supports_amp_scaling = True  # GradScaler then leaves unscaling and skipping to `step`

    def __init__(self, groups: list[dict[str, Any]], config: OptimConfig, ema: EMA) -> None:
        super().__init__(groups, {"weight_decay": 0.0, "scale": 1.0})
        self.config, self.ema = config, ema
        each = [(p, group) for group in self.param_groups for p in group["params"]]
        self.parameters = [p for p, _ in each]
        self.shadows = [ema.shadow(p) for p in self.parameters]
        self.momenta = [torch.zeros_like(p) for p in self.parameters] if config.momentum else []
        for p, velocity in zip(self.parameters, self.momenta, strict=False):
            self.state[p]["momentum_buffer"] = velocity
        self.numbers: dict[str, Any] = {
            "scales": [group["scale"] for _, group in each],
            "weight_decays": [group["weight_decay"] for _, group in each],
            "momentum": config.momentum,
            "nesterov": config.nesterov and config.momentum > 0,
            "ema_decay": ema.decay,
            "shrink": config.lr * config.shrink,
        }
        self.lr = torch.full((), config.lr, dtype=torch.float64, device=self.parameters[0].device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Consumes nothing: gradients stay as they are."""
        gradients = [p.grad for p in self.parameters]
        numbers = {
            **self.numbers,
            "gradient_scale": getattr(self, "grad_scale", None),
            "found_inf": getattr(self, "found_inf", None),
        }
        if not self.ema.warmup:
            sgd_ema_(self.parameters, gradients, self.momenta, self.shadows, self.lr, **numbers)
            return
        # At decay 1 the op leaves the averages as they are; without gradients it shrinks, and nothing else.
        still = {**numbers, "ema_decay": 1.0}
        sgd_ema_(self.parameters, gradients, self.momenta, self.shadows, self.lr, **{**still, "shrink": 0.0})
        self.ema.update_parameters(numbers["found_inf"])
        if numbers["shrink"]:
            none = [None] * len(gradients)
            sgd_ema_(self.parameters, none, self.momenta, self.shadows, self.lr, **still)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Trained parameters by layer and by weight decay; a group's `scale` is its share of the learning rate.

    Raises:
        ConfigError: layer_decay for a network whose layers have no order.
    """
    scales = _layer_scales(model, config.layer_decay)
    spared = model.without_decay() if isinstance(model, Network) else set()
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # a frozen front
            continue
        decays = config.decay_all or (parameter.ndim > 1 and name not in spared)
        groups.setdefault((scales(name), decays), []).append(parameter)
    return [
        {"params": parameters, "scale": scale, "weight_decay": config.weight_decay if decays else 0.0}
        for (scale, decays), parameters in groups.items()
    ]


def build_optimizer(model: nn.Module, config: OptimConfig, ema: EMA) -> torch.optim.Optimizer:
    """The optimizer of a network and of its average; SGD moves the average itself.

    Raises:
        ConfigError: as parameter_groups.
    """
    groups = parameter_groups(model, config)
    if config.name == "sgd":
        return SGD(groups, config, ema)
    cls = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    device = next(model.parameters()).device
    if device.type != "cuda":
        return cls(groups, lr=config.lr, foreach=True)
    for group in groups:  # a CUDA graph reads it from the device
        group["lr"] = torch.full((), config.lr, dtype=torch.float32, device=device)
    return cls(groups, lr=config.lr, fused=True, capturable=True)


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
    """Of every group its share; numbers on the device are overwritten there."""
    if isinstance(optimizer, SGD):
        optimizer.lr.fill_(lr)
        return
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr * group["scale"])
        else:
            group["lr"] = lr * group["scale"]
