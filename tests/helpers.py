"""What several test files build."""

from __future__ import annotations

from typing import Any

from interlude_fast.config import Config, load

# A whole run in about a second: the digits, the smallest network, a few rows.
SMALL = {
    "data": {"dataset": "digits", "labels": 20},
    "model": {"name": "wideresnet", "depth": 10, "width": 1, "first_stride": 2, "bn_momentum": 0.05},
    "train": {"steps": 8, "batch": 4, "mu": 2, "log_every": 2, "eval_every": 100, "checkpoint_every": 3},
}


def small_config(**overrides: Any) -> Config:
    """SMALL with nested settings on top, e.g. small_config(train={"steps": 3})."""
    return load(None, [SMALL, {"train": {"device": "cpu"}}, overrides])


def flags(config: dict[str, Any] = SMALL, prefix: str = "") -> list[str]:
    """Nested settings as `--set` arguments of the command line."""
    found: list[str] = []
    for key, value in config.items():
        found += (
            flags(value, f"{prefix}{key}.") if isinstance(value, dict) else ["--set", f"{prefix}{key}={value}"]
        )
    return found
