"""SGD and the moving average of the weights in one pass over them (docs/equations.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interlude_fast import reference

from . import checks
from .extension import compiled_for, status

FLOATS = (torch.float64, torch.float32)


def sgd_ema_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    momenta: Sequence[Tensor],
    shadows: Sequence[Tensor],
    lr: Tensor,
    *,
    scales: Sequence[float],
    weight_decays: Sequence[float],
    momentum: float,
    nesterov: bool,
    ema_decay: float,
    shrink: float = 0.0,
    gradient_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One step of torch.optim.SGD and of the moving average, in place, for every tensor p of the lists:

        g = gradient / gradient_scale + weight_decay p
        v = momentum v + g
        p = p - lr scale (g + momentum v if nesterov else v)
        shadow = ema_decay shadow + (1 - ema_decay) p
        p = (1 - shrink) p

    The numbers that change from step to step are read on the device, so that a captured CUDA graph may be
    replayed. Gradients are left as they are. A velocity v that begins as zeros is torch's first step.

    Args:
        parameters: float32 or float64, all of one dtype, any shape, dense in memory in any order of dimensions.
        gradients: beside each parameter its gradient; None where it has none: only its average moves (and its
            shrink applies), as SGD passes such parameters over.
        momenta: velocities; may be empty where momentum = 0.
        shadows: the averages. Gradients, momenta and shadows have their parameter's dtype and strides.
        lr: one float64 or float32 value on the parameters' device.
        scales, weight_decays: a number for each parameter; the learning rate of tensor i is lr * scales[i].
        momentum: >= 0.
        ema_decay: in [0, 1].
        shrink: in [0, 1), taken off the weights after the average: optim.lr * optim.shrink of a configuration.
        gradient_scale: one float64 or float32 value on the device, of a scaled loss; None for 1.
        found_inf: one float64 or float32 value on the device; where it is not 0 nothing changes at all.

    Raises:
        TypeError, ValueError: a dtype, length, layout, device or number other than the above.
    """
    settings = (scales, weight_decays, momentum, nesterov, ema_decay, shrink, gradient_scale, found_inf)
    if compiled_for(lr):  # whose own checks walk the tensors faster than Python does
        with torch.no_grad():
            torch.ops.interlude_fast.sgd_ema_(parameters, gradients, momenta, shadows, lr, *settings)
        return
    _check_numbers(momentum, ema_decay, shrink)
    _check_lists(parameters, gradients, momenta if momenta or momentum else None, shadows, scales, weight_decays)
    _check_device_number(lr, "lr", parameters[0] if parameters else lr, "parameters[0]")
    for name, x in (("gradient_scale", gradient_scale), ("found_inf", found_inf)):
        if x is not None:
            _check_device_number(x, name, lr, "lr")
    reference.sgd_ema_(parameters, gradients, momenta, shadows, lr, *settings)


def _check_numbers(momentum: float, ema_decay: float, shrink: float) -> None:
    if not momentum >= 0:
        raise ValueError(f"momentum must be >= 0, got {momentum}")
    if not 0 <= ema_decay <= 1:
        raise ValueError(f"ema_decay must lie in [0, 1], got {ema_decay}")
    if not 0 <= shrink < 1:
        raise ValueError(f"shrink must lie in [0, 1), got {shrink}")


def _check_device_number(x: Tensor, name: str, like: Tensor, like_name: str) -> None:
    if x.numel() != 1 or x.dtype not in FLOATS:
        raise TypeError(f"{name} must be one float32 or float64 value, got {x.dtype} {list(x.shape)}")
    checks.same_device(x, name, like, like_name)


def _check_lists(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    momenta: Sequence[Tensor] | None,
    shadows: Sequence[Tensor],
    scales: Sequence[float],
    weight_decays: Sequence[float],
) -> None:
    beside: dict[str, Sequence[Tensor | None]] = {"gradients": gradients, "shadows": shadows}
    if momenta is not None:
        beside["momenta"] = momenta
    lists: dict[str, Sequence] = beside | {"scales": scales, "weight_decays": weight_decays}
    for name, entries in lists.items():
        if len(entries) != len(parameters):
            raise ValueError(
                f"{name} must hold an entry for each of {len(parameters)} parameters, got {len(entries)}"
            )
    for i, p in enumerate(parameters):
        if p.dtype not in FLOATS:
            raise TypeError(f"parameters[{i}] must be float32 or float64, got {p.dtype}")
        if not torch.ops.aten.is_non_overlapping_and_dense(p):
            raise ValueError(
                f"parameters[{i}] must be dense in memory, got shape {list(p.shape)}, strides {p.stride()}"
            )
        _check_beside(p, f"parameters[{i}]", parameters[0], "parameters[0]")
        for name, tensors in beside.items():
            if (x := tensors[i]) is not None:
                _check_beside(x, f"{name}[{i}]", p, f"parameters[{i}]")
                _check_layout(x, f"{name}[{i}]", p, f"parameters[{i}]")


def _check_beside(x: Tensor, name: str, p: Tensor, p_name: str) -> None:
    if x.dtype != p.dtype:
        raise TypeError(f"{name} is {x.dtype} but {p_name} is {p.dtype}")
    checks.same_device(x, name, p, p_name)


def _check_layout(x: Tensor, name: str, p: Tensor, p_name: str) -> None:
    """The stride of a side of 1 says nothing."""
    strides = zip(x.shape, x.stride(), p.stride(), strict=False)
    if x.shape != p.shape or (x.numel() and any(size != 1 and a != b for size, a, b in strides)):
        raise ValueError(
            f"{name} must lie in memory as {p_name} does: shape {list(p.shape)}, strides {list(p.stride())}; "
            f"got {list(x.shape)}, {list(x.stride())}"
        )


if status().loaded:

    @torch.library.register_fake("interlude_fast::sgd_ema_")
    def _fake(*_: object) -> None:
        return None
