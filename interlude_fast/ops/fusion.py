"""Embedding fusion by circular shift (InterLUDE, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlude_fast import reference

from . import checks
from .extension import compiled_for, status


def circular_shift_fusion(x: Tensor, alpha: float) -> Tensor:
    """Blend every row with the next: Y_r = (1 - alpha) X_r + alpha X_{(r+1) mod N}.

    Args:
        x: embeddings [N, ...], any trailing shape; float64, float32, bfloat16 or float16 (16-bit types are
            blended in float32). Contiguous and channels-last inputs are read as they lie and keep their
            strides; other strides are made contiguous.
        alpha: fusion strength, 0 <= alpha < 1.

    Returns:
        Tensor of x's shape and dtype. Differentiable any number of times: the gradient is the same map with
        the shift reversed.

    Raises:
        TypeError: x is not of a floating dtype named above.
        ValueError: x has no dimension, or alpha lies outside [0, 1).
    """
    checks.floating(x, "x")
    if x.dim() == 0:
        raise ValueError("x must have a row dimension, got a scalar")
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must lie in [0, 1), got {alpha}")
    if compiled_for(x):
        return torch.ops.interlude_fast.circular_shift_fusion(x, alpha, 1)
    return reference.circular_shift_fusion(x, alpha)


def _rows_format(x: Tensor) -> torch.memory_format:
    """csrc/checks.h's dense_rows_format."""
    if x.is_contiguous():
        return torch.contiguous_format
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        return torch.channels_last_3d
    return torch.contiguous_format


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, ctx.alpha, ctx.shift = inputs


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return torch.ops.interlude_fast.circular_shift_fusion(grad, ctx.alpha, -ctx.shift), None, None


if status().loaded:

    @torch.library.register_fake("interlude_fast::circular_shift_fusion")
    def _fake(x: Tensor, alpha: float, shift: int) -> Tensor:
        return torch.empty_like(x, memory_format=_rows_format(x))

    torch.library.register_autograd(
        "interlude_fast::circular_shift_fusion", _backward, setup_context=_setup_context
    )
