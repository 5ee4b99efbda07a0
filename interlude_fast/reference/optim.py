"""SGD and the moving average of the weights in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def sgd_ema_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    momenta: Sequence[Tensor],
    shadows: Sequence[Tensor],
    lr: Tensor,
    scales: Sequence[float],
    weight_decays: Sequence[float],
    momentum: float,
    nesterov: bool,
    ema_decay: float,
    shrink: float,
    gradient_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """ops.sgd_ema_ by torch's own operations, tensor by tensor."""
    keep = torch.zeros_like(lr, dtype=torch.bool) if found_inf is None else found_inf.reshape(()) != 0

    def write(old: Tensor, new: Tensor) -> None:
        old.copy_(torch.where(keep, old, new))

    for i, (p, g, shadow) in enumerate(zip(parameters, gradients, shadows, strict=True)):
        weight = p
        if g is not None:
            d = g if gradient_scale is None else g / gradient_scale.reshape(()).to(p.dtype)
            if weight_decays[i] != 0:
                d = d + weight_decays[i] * p
            if momentum != 0:
                velocity = momentum * momenta[i] + d
                write(momenta[i], velocity)
                d = d + momentum * velocity if nesterov else velocity
            weight = p - (lr.reshape(()).double() * scales[i]).to(p.dtype) * d
        write(shadow, ema_decay * shadow + (1 - ema_decay) * weight)
        write(p, weight * (1 - shrink))
