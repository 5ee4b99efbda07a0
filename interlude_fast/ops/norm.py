"""Batch norm and leaky ReLU in one pass, on CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from interlude_fast import reference

from .extension import compiled_for, status, transformed

LEAST_ELEMENTS = 1 << 14


def batch_norm_leaky_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    slope: float = 0.0,
) -> Tensor:
    """leaky_relu(batch_norm(x)) with the statistics of this batch, as torch computes it in training mode.

    Channels-last float32 images on a CPU are normalized and activated in one pass, and likewise backward. All else
    (other dtypes, layouts and devices, autocast, transforms of torch.func, few elements) is torch's functions.

    Args:
        x: images [N, C, H, W].
        weight, bias: [C].
        running_mean, running_var: [C], moved towards the batch's in place; None: not kept.
        momentum: the share of this batch, torch's convention.
        slope: of negative values, >= 0; 0 is ReLU.

    Returns:
        Tensor of x's shape and dtype, differentiable twice.
    """
    if not (_fits(x, weight, bias) and compiled_for(x)):
        return reference.batch_norm_leaky_relu(
            x, weight, bias, running_mean, running_var, momentum=momentum, eps=eps, slope=slope
        )
    y, mean, variance = torch.ops.interlude_fast.batch_norm_leaky_relu(x, weight, bias, eps, slope)
    if running_mean is not None and running_var is not None:
        count = x.numel() // x.shape[1]
        # As torch's function does: without a trace. An earlier pass of the same network, if it went through the
        # library, has these saved, and its backward pass would refuse.
        running_mean.data.lerp_(mean.detach(), momentum)
        running_var.data.lerp_(variance.detach() * (count / (count - 1)), momentum)
    return y


def _fits(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and x.dtype == weight.dtype == bias.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not transformed()
        and x.numel() >= LEAST_ELEMENTS
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, bias, ctx.eps, ctx.slope = inputs
    _, mean, variance = output
    ctx.mark_non_differentiable(mean, variance)
    ctx.save_for_backward(x, weight, bias, mean, variance)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, None, None]:
    op = torch.ops.interlude_fast.batch_norm_leaky_relu_backward
    return *op(grad, *ctx.saved_tensors, ctx.eps, ctx.slope), None, None


def _backward_setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.eps, ctx.slope = inputs
    ctx.save_for_backward(*tensors[:4])


@once_differentiable
def _backward_backward(ctx: Any, *directions: Tensor) -> tuple:
    """By torch's rules for its own functions; the statistics count as functions of x."""
    with torch.enable_grad():
        grad, x, weight, bias = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        y = reference.batch_norm_leaky_relu(x, weight, bias, None, None, eps=ctx.eps, slope=ctx.slope)
        first = torch.autograd.grad(y, (x, weight, bias), grad, create_graph=True)
    second = torch.autograd.grad(first, (grad, x, weight, bias), directions, allow_unused=True)
    return *second, None, None, None, None


if status().loaded:

    @torch.library.register_fake("interlude_fast::batch_norm_leaky_relu")
    def _fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> tuple[Tensor, ...]:
        y = torch.empty_like(x, memory_format=torch.channels_last)
        return y, weight.new_empty(weight.shape), weight.new_empty(weight.shape)

    @torch.library.register_fake("interlude_fast::batch_norm_leaky_relu_backward")
    def _backward_fake(
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        slope: float,
    ) -> tuple[Tensor, ...]:
        grad_x = torch.empty_like(x, memory_format=torch.channels_last)
        return grad_x, weight.new_empty(weight.shape), weight.new_empty(weight.shape)

    torch.library.register_autograd(
        "interlude_fast::batch_norm_leaky_relu", _backward, setup_context=_setup_context
    )
    torch.library.register_autograd(
        "interlude_fast::batch_norm_leaky_relu_backward",
        _backward_backward,
        setup_context=_backward_setup_context,
    )
