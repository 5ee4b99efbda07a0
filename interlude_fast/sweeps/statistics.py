"""Errors of several seeds as figures."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any


def summary(errors: list[float]) -> dict[str, Any]:
    """mean, None for no error at all; std, the sample's (n - 1), None for fewer than two."""
    return {
        "mean": mean(errors) if errors else None,
        "std": stdev(errors) if len(errors) > 1 else None,
    }


def show_errors(errors: list[float]) -> str:
    """`"3.20% ± 1.60%"`, `"3.20%"` for one, `""` for none."""
    spread = f" ± {stdev(errors):.2%}" if len(errors) > 1 else ""
    return f"{mean(errors):.2%}{spread}" if errors else ""
