"""SGD and the 7/16 cosine (docs/equations.md)."""

from __future__ import annotations

import math

import torch
from torch import nn

from interlude_fast.config import OptimConfig


def cosine_7_16(step: int, total_steps: int) -> float:
    """Learning-rate factor cos(7 pi k / (16 K)) of step k = 0..K-1: from 1 down to about 0.195."""
    return math.cos(7 * math.pi * step / (16 * total_steps))


def without_decay(name: str) -> bool:
    """Parameters that weight decay spares, by name, as in the released code."""
    return "bias" in name or "bn" in name


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.SGD:
    """Two groups: with weight decay, and without."""
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if not without_decay(n)], "weight_decay": config.weight_decay},
        {"params": [p for n, p in named if without_decay(n)], "weight_decay": 0.0},
    ]
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, foreach=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
