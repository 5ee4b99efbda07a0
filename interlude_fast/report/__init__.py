"""What a run leaves behind and shows while it lasts."""

from __future__ import annotations

from .ablate import Ablation, ablate
from .bench import Bench, bench
from .compare import Comparison, compare
from .evaluation import Evaluated, evaluate_in_full
from .run import RunResult, evaluate_run, train_run
from .seeds import Seeds, seed_configs, train_seeds

__all__ = [
    "Ablation",
    "Bench",
    "Comparison",
    "Evaluated",
    "RunResult",
    "Seeds",
    "ablate",
    "bench",
    "compare",
    "evaluate_in_full",
    "evaluate_run",
    "seed_configs",
    "train_run",
    "train_seeds",
]
