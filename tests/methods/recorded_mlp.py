"""The network of recordings that hold weights W1, b1, W2, b2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .golden import close

NAMES = ("W1", "b1", "W2", "b2")


def recorded_mlp(values: dict[str, Tensor]) -> nn.Sequential:
    """W2 tanh(W1 flat(x) + b1) + b2 in float64."""
    hidden, inputs = values["W1"].shape
    net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, len(values["W2"])))
    net.double()
    with torch.no_grad():
        for parameter, name in zip(net.parameters(), NAMES, strict=True):
            parameter.copy_(values[name])
    return net


def assert_gradients(loss: Tensor, net: nn.Module, values: dict[str, Tensor], prefix: str) -> None:
    """The loss's gradients with respect to recorded_mlp's weights are those recorded."""
    for got, name in zip(torch.autograd.grad(loss, list(net.parameters())), NAMES, strict=True):
        close(got, values[prefix + name])
