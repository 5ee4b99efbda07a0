"""Batch norms over the rows of all processes of a job (train.sync_batch_norm)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from interlude_fast.errors import ConfigError

from .sharding import OfAllRanks

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """torch.nn.SyncBatchNorm, which knows GPUs only, for the CPU. Every rank has as many rows."""

    def _check_input_dim(self, x: Tensor) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, ...] -> the same."""
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        every = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        variance, mean = torch.var_mean(wide, every, correction=0)
        means, variances = OfAllRanks.apply(torch.stack([mean, variance])).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        if self.track_running_stats:
            count = len(means) * x.numel() / x.shape[1]
            self._track(mean.detach(), variance.detach() * (count / (count - 1)))
        scaled = (wide - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


def synchronize_batch_norms(network: Any, device: torch.device) -> None:
    """Replaces the batch norms inside `network`; parameters and buffers stay the same tensors.

    Raises:
        ConfigError: a batch norm that is not one of torch's own.
    """
    cls = nn.SyncBatchNorm if device.type == "cuda" else SyncBatchNorm
    for name, norm in list(network.named_modules()):
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        if type(norm) not in PLAIN:
            raise ConfigError(
                f"train.sync_batch_norm: layer {name} is a {type(norm).__name__}, which cannot be synchronized; "
                "set it to false, or choose another network"
            )
        other = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        other._parameters, other._buffers, other.training = norm._parameters, norm._buffers, norm.training
        network.set_submodule(name, other)
