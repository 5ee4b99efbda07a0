"""What the faces demand of their arguments, by name. csrc/checks.h guards the same for direct callers of
torch.ops; these also stand in front of the torch reference, so that bad input reads the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def floating(x: Tensor, name: str) -> None:
    if x.dtype not in FLOATING:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {x.dtype}")


def shape(x: Tensor, name: str, expected: Sequence[int]) -> None:
    if tuple(x.shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {list(expected)}, got {list(x.shape)}")


def same_device(x: Tensor, name: str, like: Tensor, like_name: str) -> None:
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device} but {like_name} is on {like.device}")


def per_class(x: Tensor | None, name: str, logits: Tensor) -> None:
    """Optional [K] tensors that stand beside logits [..., K]."""
    if x is None:
        return
    floating(x, name)
    shape(x, name, logits.shape[-1:])
    same_device(x, name, logits, "logits")


def label_values(labels: Tensor, classes: int) -> None:
    """In front of the torch reference, which would skip a label of -100. On a GPU looking would wait for it."""
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    for i in ((labels < 0) | (labels >= classes)).nonzero().flatten()[:1].tolist():
        raise IndexError(f"labels[{i}] = {int(labels[i])} is outside [0, {classes})")


def positive(value: float, name: str) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be > 0, got {value}")
