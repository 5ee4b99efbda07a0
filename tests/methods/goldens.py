"""Numbers recorded from the methods' released code (tests/golden/), as tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def golden(name: str, prefix: str = "") -> dict[str, Any]:
    """Arrays of tests/golden/<name>.npz as tensors, single values as numbers; those of a prefix, without it."""
    with np.load(Path(__file__).parents[1] / "golden" / f"{name}.npz") as file:
        arrays = {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}
    return {key: torch.from_numpy(a) if a.ndim else a.item() for key, a in arrays.items()}


def recorded_mlp(values: dict[str, Any]) -> nn.Sequential:
    """The network of the recordings: W2 tanh(W1 flat(x) + b1) + b2."""
    hidden, inputs = values["W1"].shape
    net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, len(values["W2"])))
    net.double()
    with torch.no_grad():
        for parameter, name in zip(net.parameters(), ("W1", "b1", "W2", "b2"), strict=True):
            parameter.copy_(values[name])
    return net


def assert_gradients(loss: Tensor, net: nn.Module, values: dict[str, Any], prefix: str) -> None:
    """The loss's gradients of recorded_mlp's weights are those recorded."""
    got = torch.autograd.grad(loss, list(net.parameters()))
    for gradient, name in zip(got, ("W1", "b1", "W2", "b2"), strict=True):
        torch.testing.assert_close(gradient, values[prefix + name], **CLOSE)
