"""The 3x3 convolution: torch's own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """images [N, C, H, W], weight [K, C, 3, 3], bias [K] -> [N, K, H, W]; stride 1, padding 1."""
    return F.conv2d(x, weight, bias, padding=1)
