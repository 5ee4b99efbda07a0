"""The 3x3 convolution of residual networks, faster on CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interlude_fast import reference

from .extension import compiled_for, status

LEAST_CHANNELS = 16  # the transforms of tiles cost by channel, the products by pairs of channels
LEAST_PIXELS = 1024  # of all images together, beside the transform of the weights


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution with a 3x3 kernel, stride 1 and padding 1, as torch.nn.functional.conv2d computes it.

    Channels-last float32 images on a CPU with AVX2 go through Winograd's F(4x4, 3x3): a quarter of the products,
    other rounding (tests/ops/test_conv3x3.py bounds its error by a multiple of that of torch's own float32
    convolution). Results do not depend on the number of threads. All else
    (other dtypes, layouts and devices, autocast, forward-mode differentiation and the other transforms of
    torch.func, fewer than 16 channels, channels that 8 does not divide, few pixels) is torch's convolution.

    Args:
        x: images [N, C, H, W].
        weight: [K, C, 3, 3].
        bias: [K].

    Returns:
        Tensor [N, K, H, W] of x's dtype, differentiable any number of times.
    """
    if winograd_runs(x, weight) and compiled_for(x):
        return torch.ops.interlude_fast.conv3x3(x, weight, bias)
    return reference.conv3x3(x, weight, bias)


def winograd_runs(x: Tensor, weight: Tensor) -> bool:
    """Whether this convolution is one that the kernels take and that they are faster at."""
    if x.device.type != "cpu" or x.dim() != 4 or not x.dtype == weight.dtype == torch.float32:
        return False
    if torch.is_autocast_enabled("cpu") or (status().loaded and not status().vector_unit) or _transformed():
        return False
    n, inputs, height, width = x.shape
    pixels, tiles = n * height * width, n * -(-height // 4) * -(-width // 4)
    return (
        min(inputs, len(weight)) >= LEAST_CHANNELS
        and inputs % 8 == len(weight) % 8 == 0
        and pixels >= max(LEAST_PIXELS, 8 * tiles)  # no more than half of what is computed lies outside
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work, which know no rule for the op."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _transposed(weight: Tensor) -> Tensor:
    """Weights [C, K, 3, 3] of the convolution that takes gradients of the output to those of the input."""
    return weight.flip(2, 3).transpose(0, 1)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    op, (x, weight) = torch.ops.interlude_fast, ctx.saved_tensors
    of_x, of_weight, of_bias = ctx.needs_input_grad
    return (
        op.conv3x3(grad, _transposed(weight), None) if of_x else None,
        op.conv3x3_weight(x, grad) if of_weight else None,
        grad.sum((0, 2, 3)) if of_bias else None,
    )


def _weight_setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _weight_backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, Tensor | None]:
    op, (x, grad) = torch.ops.interlude_fast, ctx.saved_tensors
    of_x, of_grad = ctx.needs_input_grad
    return (
        op.conv3x3(grad, _transposed(direction), None) if of_x else None,
        op.conv3x3(x, direction, None) if of_grad else None,
    )


if status().loaded:

    @torch.library.register_fake("interlude_fast::conv3x3")
    def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        n, _, height, width = x.shape
        return x.new_empty(n, weight.shape[0], height, width).to(memory_format=torch.channels_last)

    @torch.library.register_fake("interlude_fast::conv3x3_weight")
    def _weight_fake(x: Tensor, grad: Tensor) -> Tensor:
        return x.new_empty(grad.shape[1], x.shape[1], 3, 3)

    torch.library.register_autograd("interlude_fast::conv3x3", _backward, setup_context=_setup_context)
    torch.library.register_autograd(
        "interlude_fast::conv3x3_weight", _weight_backward, setup_context=_weight_setup_context
    )
