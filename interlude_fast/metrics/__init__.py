"""How good a network is on images it was not trained on."""

from __future__ import annotations

from .classification import LEVEL, Scores, evaluate, predict_logits, score
from .detail import detail
from .pseudo_labels import pseudo_label_scores
from .robustness import fgsm_errors

__all__ = [
    "LEVEL",
    "Scores",
    "detail",
    "evaluate",
    "fgsm_errors",
    "predict_logits",
    "pseudo_label_scores",
    "score",
]
