"""Runs on random images: what a step costs hardly depends on the picture."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from interlude_fast.config import load as load_config
from interlude_fast.data.datasets import Dataset, LoadContext, from_arrays, register_dataset
from interlude_fast.options import RootConfig
from interlude_fast.training.run import Run
from interlude_fast.training.setup import prepare

Options = RootConfig
NETWORKS: dict[str, dict[str, Any]] = {
    "WRN-10-1": {"depth": 10, "width": 1},
    "WRN-28-2": {"depth": 28, "width": 2},
    "WRN-28-8": {"depth": 28, "width": 8},
    "WRN-37-2": {"depth": 37, "width": 2, "stages": 4, "first_stride": 2},  # of 96 px
}


def noise(count: int, side: int, classes: int = 10) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    pair = (images, np.arange(count) % classes)
    return from_arrays("noise", pair, None, [*map(str, range(classes))], mean=(0.45,) * 3, std=(0.25,) * 3)


def load(options: RootConfig, context: LoadContext | None = None) -> Dataset:
    """The data set "noise", whose root says what it holds: <images>x<side>x<classes>."""
    assert options.root is not None
    return noise(*map(int, options.root.name.split("x")))


register_dataset("noise", sys.modules[__name__])


def noise_run(
    network: str, device: torch.device, *, images: int = 4096, classes: int = 10, **settings: Any
) -> Run:
    """A run on `images` random images, with nested settings on top."""
    side = 96 if network == "WRN-37-2" else 32
    data = {"dataset": "noise", "root": f"{images}x{side}x{classes}", "labels": 4 * classes}
    base = {"data": data, "model": {"name": "wideresnet", **NETWORKS[network]}, "train": {"device": str(device)}}
    return prepare(load_config(None, [base, settings]))


def default_networks(device: torch.device, quick: bool) -> list[str]:
    if quick:
        return ["WRN-10-1"]
    return ["WRN-28-2", "WRN-28-8", "WRN-37-2"] if device.type == "cuda" else ["WRN-28-2"]
