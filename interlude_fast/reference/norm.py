"""Training-mode batch norm and leaky ReLU: torch's own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
    """images [N, C, H, W], all else [C] -> [N, C, H, W]; running statistics move in place."""
    y = F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
    return F.leaky_relu(y, slope, inplace=True)
