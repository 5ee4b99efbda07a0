"""How good a network is on images it was not trained on."""

from __future__ import annotations

from .classification import Scores, evaluate, heading, predict_logits, score
from .detail import Detail, detail
from .pseudo_labels import pseudo_label_scores
from .robustness import fgsm_errors

__all__ = [
    "Detail",
    "Scores",
    "detail",
    "evaluate",
    "fgsm_errors",
    "heading",
    "predict_logits",
    "pseudo_label_scores",
    "score",
]
