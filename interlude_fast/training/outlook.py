"""What a run on kept views is going to do, and how long it will take: one line, measured before it begins."""

from __future__ import annotations

import copy
import statistics
import time

import torch
from torch import nn

from interlude_fast.config import ExperimentConfig
from interlude_fast.data.batch import Batch, RowOrder
from interlude_fast.data.kept import KeptViews
from interlude_fast.data.kept_rows import AT_A_TIME
from interlude_fast.methods import Method
from interlude_fast.options import Precision

from .device import autocast, image_dtype

TRIALS = 3


def outlook(
    config: ExperimentConfig,
    method: Method,
    network: nn.Module,
    kept: KeptViews,
    order: RowOrder,
    precision: Precision,
    classes: int,
) -> str:
    """The network, its cut, the views and the steps, with their seconds on this device."""
    cut, missing = kept.cut, kept.missing()
    told = [f"{config.model.name}: trained from {cut.place} on, {cut.number} of {len(cut.places)} stages frozen"]
    if cut.place == "classifier":
        told = [f"{config.model.name}: frozen but for its classifier"]
    if kept.plan.why:
        told.append(kept.plan.why)
    if missing:
        views = f"{missing:,} views to keep ({kept.plan.nbytes / 1e6:,.0f} MB in all)"
        told.append(f"{views}, about {_time(missing / AT_A_TIME * _front_seconds(kept))}")
    else:
        told.append("its views are kept from an earlier run")
    steps = config.train.steps
    if method.fitted:
        told.append(f"{config.method.name} takes no steps")
    elif config.train.budget is not None:
        told.append(f"{config.method.name}, as many steps as the budget of {config.train.budget:.0f} s allows")
    else:
        seconds = _step_seconds(config, method, network, kept, order, precision, classes)
        told.append(f"{config.method.name}, {steps:,} steps, about {_time(steps * seconds)}")
    return "; ".join(told)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _front_seconds(kept: KeptViews) -> float:
    """Of AT_A_TIME views."""
    front, taken = kept.front(), []
    inputs = torch.zeros(AT_A_TIME, *kept.dataset.images.shape[1:], dtype=torch.uint8, device=front.device)
    for _ in range(TRIALS):
        began = time.perf_counter()
        front.activations(kept.normalize(inputs)).float().sum().item()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def _step_seconds(
    config: ExperimentConfig,
    method: Method,
    network: nn.Module,
    kept: KeptViews,
    order: RowOrder,
    precision: Precision,
    classes: int,
) -> float:
    """Forward and backward of copies, on activations of ones; what a step leaves out, it does not know."""
    device, t = next(network.parameters()).device, config.train
    method, network = copy.deepcopy((method, network))
    average = copy.deepcopy(network).requires_grad_(False).eval()
    rows = torch.ones(order.count, *kept.shape, dtype=image_dtype(precision), device=device)
    labels = torch.arange(t.batch, device=device).remainder(classes).repeat(order.labeled_parts)
    items = torch.arange(t.batch * t.mu, device=device).reshape(t.batch, t.mu)
    batch = Batch(rows, labels, order, items, torch.zeros((), dtype=torch.int64, device=device))
    network.train()
    taken = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        with autocast(precision, device):
            losses = method(network, batch, average)
        losses.total.backward()
        losses.total.item()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])
