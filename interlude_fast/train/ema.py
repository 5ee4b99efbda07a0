"""Exponential moving average of a network's parameters (docs/equations.md)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """shadow <- decay * shadow + (1 - decay) * parameter after every step, from the initial weights on;
    buffers (running statistics) are copied. `model` is a network of its own, in eval mode."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._parameters = _pairs(self.model.parameters(), model.parameters())
        self._of = dict(zip(model.parameters(), self._parameters[0], strict=True))
        self._buffers = [_pairs(*_of_kind(self.model, model, floating)) for floating in (True, False)]

    def shadow(self, parameter: nn.Parameter) -> Tensor:
        """The average of a parameter of the network."""
        return self._of[parameter]

    @torch.no_grad()
    def update(self) -> None:
        shadow, now = self._parameters
        torch._foreach_mul_(shadow, self.decay)
        torch._foreach_add_(shadow, now, alpha=1 - self.decay)
        self.update_buffers()

    @torch.no_grad()
    def update_buffers(self) -> None:
        """The part of `update` that is not the parameters'."""
        for shadow, now in self._buffers:
            if shadow:
                torch._foreach_copy_(shadow, now)


def _of_kind(shadow: nn.Module, now: nn.Module, floating: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Buffers that are floating, or that are not: lists of one dtype are copied in one launch."""
    mine, theirs = ([b for b in m.buffers() if b.is_floating_point() == floating] for m in (shadow, now))
    return mine, theirs


def _pairs(shadow: object, now: object) -> tuple[list[Tensor], list[Tensor]]:
    return [t.data for t in shadow], [t.data for t in now]  # type: ignore[attr-defined]
