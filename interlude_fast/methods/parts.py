"""What two methods share."""

from __future__ import annotations

import torch
from torch import Tensor

from interlude_fast.errors import ConfigError


def class_weight_tensor(weights: list[float] | None, num_classes: int) -> Tensor | None:
    """Option `class_weights` as a tensor [K].

    Raises:
        ConfigError: their number is not the number of classes, or one is not positive.
    """
    if weights is None:
        return None
    if len(weights) != num_classes or min(weights) <= 0:
        raise ConfigError(
            f"method.class_weights must be {num_classes} positive numbers, one per class, got {weights}"
        )
    return torch.tensor(weights, dtype=torch.float64)
