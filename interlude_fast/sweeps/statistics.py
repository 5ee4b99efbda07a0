"""Errors of several seeds as figures."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean, stdev
from typing import Any

from interlude_fast.experiment.result import Result


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


def frozen_features(results: Iterable[Result], part: str = "test") -> str | None:
    """What a linear head on frozen features was worth in those runs that began with one, as a line below a table;
    None where none did."""
    scores = [result.scores.get(part, {}).get("probe") for result in results]
    errors = [found.error for found in scores if found is not None]
    return f"a linear head on frozen features: {show_errors(errors)}" if errors else None
