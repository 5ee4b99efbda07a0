"""Recorded numbers of the papers' released code (tests/golden), and what replays them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interlude_fast.data.batch import Batch, RowOrder
from interlude_fast.methods import Method, TaskInfo, build_method

FOLDER = Path(__file__).parent.parent / "golden"


@cache
def golden(name: str) -> dict[str, Tensor]:
    """An .npz as tensors, without the `meta` that says in some how they were recorded."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file if key != "meta"}


def close(actual: Tensor, expected: Tensor | float) -> None:
    expected = torch.as_tensor(expected).detach()
    actual = actual.detach().to(torch.float64 if expected.is_floating_point() else expected.dtype)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def exact_method(
    name: str, options: dict[str, Any] | None = None, num_classes: int = 10, **problem: Any
) -> Method:
    """A method with its state in float64 from the first."""
    return build_method(name, options or {}, TaskInfo(num_classes, **problem), dtype=torch.float64)


def make_batch(
    method: Method, labels: Tensor, images: Tensor, step: int = 0, items: Tensor | None = None
) -> Batch:
    """`images`: rows in the order of the method's views, as many unlabeled ones as there are."""
    b, lv, uv = len(labels), len(method.labeled_views), len(method.unlabeled_views)
    mu = (len(images) - b * lv) // (b * uv) if uv else 1
    order = RowOrder(b, mu, method.labeled_views, method.unlabeled_views, method.layout)
    items = torch.arange(b * mu) if items is None else items
    return Batch(images, labels, order, items.reshape(b, mu), torch.tensor(step))


def replay_logits(
    method: Method, labels: Tensor, *logits: Tensor, step: int = 0, items: Tensor | None = None
) -> tuple[Any, tuple[Tensor, ...]]:
    """The method's losses with the identity as its network and recorded logits as its images, and the gradients of
    the total with respect to them."""
    images = [x.clone().requires_grad_() for x in logits]
    batch = make_batch(method, labels, torch.cat(images), step, items)
    losses = method(nn.Identity(), batch, nn.Identity())
    return losses, torch.autograd.grad(losses.total, images, allow_unused=True, materialize_grads=True)


def pick(values: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
