"""Batch norms of a trained network: learning on, frozen at their statistics, or folded into the convolutions."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .base import Network, Shape
from .tracing import BatchNorm, convolutions_before_norms


class FoldedNorm(nn.Module):
    """What is left of a batch norm whose scale and shift are the convolution's before it: the activation that timm
    keeps in it, if any.

    Args:
        convolution: its name in the network. had_bias: whether it had one before.
    """

    def __init__(self, norm: nn.Module, convolution: str, had_bias: bool) -> None:
        super().__init__()
        self.convolution, self.had_bias, self.eps = convolution, had_bias, float(norm.eps)  # type: ignore[arg-type]
        kept = [getattr(norm, name, None) for name in ("drop", "act")]
        self.after = nn.Sequential(*(m for m in kept if isinstance(m, nn.Module)))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x)


@torch.no_grad()
def fold_norms(network: Network, shape: Shape) -> str:
    """Fold every batch norm that is all that reads a convolution into it, by its running statistics; the others
    stay, to be frozen. In eval mode the network computes what it computed before.

    Returns:
        What was not folded and why, in words; "" where nothing is left.
    """
    network.eval()
    images = torch.linspace(-1, 1, 2 * shape.channels * shape.side**2)
    images = images.reshape(2, shape.channels, shape.side, shape.side)
    expected = network.embed(images)
    try:
        pairs = convolutions_before_norms(network)
    except Exception as error:  # whatever a network's code does with a value that is none yet
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        return f"its batch norms are frozen, not folded: the network cannot be traced ({reason})"
    unfolded = copy.deepcopy(network)
    for convolution, norm in pairs:
        _fold(network, convolution, norm)
    scale = float(expected.abs().max())
    if not torch.allclose(network.embed(images), expected, rtol=1e-3, atol=1e-3 * scale):
        for convolution, norm in pairs:
            for name in (convolution, norm):
                network.set_submodule(name, unfolded.get_submodule(name))
        return "its batch norms are frozen, not folded: it uses a convolution in more than one way"
    left = sum(isinstance(module, BatchNorm) for module in network.modules())
    return f"{left} of its batch norms follow no convolution: they are frozen, not folded" if left else ""


def _fold(network: nn.Module, convolution: str, norm: str) -> None:
    conv: Any = network.get_submodule(convolution)
    bn: Any = network.get_submodule(norm)
    scale, had_bias = (bn.running_var + bn.eps).rsqrt() * bn.weight, conv.bias is not None
    shift = bn.bias - bn.running_mean * scale
    conv.weight.mul_(scale[:, None, None, None])
    conv.bias = nn.Parameter(shift + conv.bias * scale if had_bias else shift)
    network.set_submodule(norm, FoldedNorm(bn, convolution, had_bias))


def plain_state_dict(module: nn.Module, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors of a network under the names of the network before norms were folded: a folded norm is written
    as one that only adds the convolution's bias.

    Args:
        state: the module's state_dict, or another of the same names; None: its own.
    """
    found = dict(module.state_dict() if state is None else state)
    for prefix, network in module.named_modules():
        if not isinstance(network, Network) or network.norm_mode != "folded":
            continue
        path = f"{prefix}." if prefix else ""
        for name, norm in network.named_modules():
            if isinstance(norm, FoldedNorm):
                bias = found.pop(f"{path}{norm.convolution}.bias")
                found |= _as_norm(f"{path}{name}", bias, norm.eps)
                if norm.had_bias:
                    found[f"{path}{norm.convolution}.bias"] = torch.zeros_like(bias)
    return found


def _as_norm(name: str, bias: Tensor, eps: float) -> dict[str, Tensor]:
    return {
        f"{name}.weight": torch.ones_like(bias),
        f"{name}.bias": bias,
        f"{name}.running_mean": torch.zeros_like(bias),
        f"{name}.running_var": torch.full_like(bias, 1 - eps),
        f"{name}.num_batches_tracked": torch.zeros((), dtype=torch.int64, device=bias.device),
    }
