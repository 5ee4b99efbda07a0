"""What a run leaves behind and shows while it lasts."""

from __future__ import annotations

from .ablate import Ablation, ablate
from .compare import Comparison, compare
from .evaluation import Evaluated, evaluate_in_full
from .run import RunResult, evaluate_run, train_run

__all__ = [
    "Ablation",
    "Comparison",
    "Evaluated",
    "RunResult",
    "ablate",
    "compare",
    "evaluate_in_full",
    "evaluate_run",
    "train_run",
]
