"""Batch norm followed by leaky ReLU, with the package's kernels where they fit."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from interlude_fast import ops


class BatchNorm2d(nn.BatchNorm2d):
    """torch's layer. Called with a slope, leaky ReLU follows: in training mode by `ops.batch_norm_leaky_relu`."""

    def forward(self, x: Tensor, slope: float | None = None) -> Tensor:
        if slope is None:
            return super().forward(x)
        if not self.training or self.momentum is None:
            return F.leaky_relu(super().forward(x), slope, inplace=True)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return ops.batch_norm_leaky_relu(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            momentum=self.momentum,
            eps=self.eps,
            slope=slope,
        )


def normalize_and_activate(norm: nn.Module, x: Tensor, slope: float) -> Tensor:
    """leaky_relu(norm(x)), also of layers that took the place of BatchNorm2d (torch.nn.SyncBatchNorm)."""
    return norm(x, slope) if isinstance(norm, BatchNorm2d) else F.leaky_relu(norm(x), slope, inplace=True)
