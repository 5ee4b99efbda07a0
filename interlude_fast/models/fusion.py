"""Embedding fusion as a layer: every network puts one at its fusion point (InterLUDE, section 3)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from interlude_fast import reference
from interlude_fast.ops import circular_shift_fusion


class EmbeddingFusion(nn.Module):
    """Y_r = (1 - alpha) X_r + alpha X_{r+1} over the rows of a batch while training.

    alpha: fusion strength, 0 <= alpha < 1; 0 is the identity.
    at_eval: fuse in eval mode too, as the released code does: a prediction then depends on its neighbour.

    Attributes:
        alpha_range: (low, high), where every forward pass while training draws its strength uniformly from it, on
            the device and unknown to the host, instead of alpha.
    """

    def __init__(self, alpha: float = 0.0, at_eval: bool = False) -> None:
        super().__init__()
        self.alpha, self.at_eval = alpha, at_eval
        self._suspended = False
        self.alpha_range: tuple[float, float] | None = None
        self._next_row: Callable[[Tensor], Tensor] | None = None
        self._drawn: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.alpha == 0 or self._suspended or not (self.training or self.at_eval):
            return x
        if self._next_row is None:
            return self._blend(x)
        return self._blend(torch.cat([x, self._next_row(x[:1])]))[:-1]

    def _blend(self, x: Tensor) -> Tensor:
        if self.training and self.alpha_range is not None:
            strength = self._drawn
            if strength is None:
                strength = torch.empty((), device=x.device).uniform_(*self.alpha_range)
            return reference.circular_shift_fusion(x, strength)  # the op wants a number of the host
        return circular_shift_fusion(x, self.alpha)

    @contextlib.contextmanager
    def continued(self, next_row: Callable[[Tensor], Tensor], device: torch.device) -> Iterator[None]:
        """Rows are followed by those of another process: next_row gives the first of these, [1, ...], for the
        first of ours. A strength is drawn on entering."""
        self._next_row = next_row
        if self.training and self.alpha_range is not None:
            self._drawn = torch.empty((), device=device).uniform_(*self.alpha_range)
        try:
            yield
        finally:
            self._next_row = self._drawn = None

    @contextlib.contextmanager
    def off_at_eval(self) -> Iterator[None]:
        """In eval mode no row is fused with another meanwhile: a prediction then depends on its image alone."""
        before, self.at_eval = self.at_eval, False
        try:
            yield
        finally:
            self.at_eval = before

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """No row is fused with another meanwhile, in train mode either."""
        before, self._suspended = self._suspended, True
        try:
            yield
        finally:
            self._suspended = before

    def attach(self, module: nn.Module) -> None:
        """Fuse the first argument of `module`'s forward, in networks whose forward is not ours."""
        module.register_forward_pre_hook(self._fuse_first)  # a bound method: a copied network fuses by its own

    def _fuse_first(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return self(arguments[0]), *arguments[1:]

    def extra_repr(self) -> str:
        return f"alpha={self.alpha_range or self.alpha}, at_eval={self.at_eval}"
