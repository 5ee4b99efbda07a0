"""What several test files build."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from interlude_fast.config import ExperimentConfig, load
from interlude_fast.data.datasets import dataset_options
from interlude_fast.methods import METHODS, Losses
from interlude_fast.options import DataConfig
from interlude_fast.training.state import TrainState
from interlude_fast.training.step import EagerStep

# A whole run in about a second: the digits, the smallest network, a few rows.
SMALL = {
    "data": {"dataset": "digits", "labels": 20},
    "model": {"name": "wideresnet", "depth": 10, "width": 1, "first_stride": 2, "bn_momentum": 0.05},
    "train": {"steps": 8, "batch": 4, "mu": 2, "log_every": 2, "eval_every": 100, "checkpoint_every": 3},
}


def small_config(**overrides: Any) -> ExperimentConfig:
    """SMALL with nested settings on top, e.g. small_config(train={"steps": 3})."""
    shared: dict[str, str] = {}  # what SMALL says of mu, some methods do not read
    return load(None, [SMALL, {"train": {"device": "cpu"}}, overrides], unread=shared)


def data_config(**values: Any) -> DataConfig:
    """The `data` section of a configuration, typed as its dataset wants it."""
    return dataset_options(values)


def flags(config: dict[str, Any] = SMALL, prefix: str = "") -> list[str]:
    """Nested settings as `--set` arguments of the command line."""
    found: list[str] = []
    for key, value in config.items():
        found += (
            flags(value, f"{prefix}{key}.") if isinstance(value, dict) else ["--set", f"{prefix}{key}={value}"]
        )
    return found


def before_steps(patch: pytest.MonkeyPatch, act: Callable[[TrainState], None]) -> None:
    """Calls `act` before every step of every run in this process."""
    real = EagerStep.__call__

    def acting(step: EagerStep) -> Losses:
        act(step.state)
        return real(step)

    patch.setattr(EagerStep, "__call__", acting)


def write_images(root: Path, names: Iterable[str], size: tuple[int, int] = (12, 12), mode: str = "RGB") -> None:
    """Image files that all differ, e.g. write_images(tmp_path, ["cat/1.png", "dog/2.png"])."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = zlib.crc32(f"{name} {number}".encode())
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)


def image_names(classes: Iterable[str], each: int, below: str = "") -> list[str]:
    """["cat/0.png", ...]: `each` files of every class."""
    return [f"{below}{name}/{i}.png" for name in classes for i in range(each)]


# Methods that take steps.
TRAINED = [name for name in METHODS if not METHODS[name].fitted]
