"""Exponential moving average of a network's parameters (docs/equations.md)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """shadow <- decay * shadow + (1 - decay) * parameter after every step, from the initial weights on, of every
    parameter that is trained; buffers (running statistics) are copied. `model` is a network of its own, in eval
    mode.

    Args:
        warmup: the decay of step k = 0, 1, ... is min(decay, (1 + k) / (10 + k)). It then lies on the device,
            where `set_step` writes it, so that a captured CUDA graph may be replayed.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False) -> None:
        self.decay, self.warmup = decay, warmup
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        both = zip(self.model.parameters(), model.parameters(), strict=True)
        averages, trained = zip(*((mine, now) for mine, now in both if now.requires_grad), strict=True)
        self._parameters = _pairs(averages, trained)
        self._of = dict(zip(trained, self._parameters[0], strict=True))
        self._buffers = [_pairs(*_of_kind(self.model, model, floating)) for floating in (True, False)]
        like = self._parameters[0][0]  # torch's fast routes want a factor of the tensors' dtype
        self._old, self._new = (torch.empty((), dtype=like.dtype, device=like.device) for _ in range(2))
        self.set_step(0)

    def shadow(self, parameter: nn.Parameter) -> Tensor:
        """The average of a parameter of the network."""
        return self._of[parameter]

    def decay_of(self, step: int) -> float:
        """That of step k = 0, 1, ... of a run."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    def set_step(self, step: int) -> None:
        """Writes the coming step's decay to where `update_parameters` reads it."""
        decay = self.decay_of(step)
        self._old.fill_(decay)
        self._new.fill_(1 - decay)

    def update(self, found_inf: Tensor | None = None) -> None:
        """After a step; found_inf: as for update_parameters."""
        self.update_parameters(found_inf)
        self.update_buffers()

    @torch.no_grad()
    def update_parameters(self, found_inf: Tensor | None = None) -> None:
        """The part of `update` that is the parameters'.

        Args:
            found_inf: one value on the device; where it is not 0 no average moves.
        """
        shadow, now = self._parameters
        if not self.warmup and found_inf is None:
            torch._foreach_mul_(shadow, self.decay)
            torch._foreach_add_(shadow, now, alpha=1 - self.decay)
            return
        old, new = self._old, self._new
        if found_inf is not None:
            overflowed = found_inf.reshape(()) != 0
            old, new = old.masked_fill(overflowed, 1), new.masked_fill(overflowed, 0)
        torch._foreach_mul_(shadow, old)
        torch._foreach_add_(shadow, torch._foreach_mul(now, new))

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
