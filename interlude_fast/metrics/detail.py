"""Scores in detail: with confusion matrix, recalls and bootstrap intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from .classification import LEVEL, RESAMPLES, Scores, score


def detail(logits: Tensor, labels: Tensor, classes: tuple[str, ...], seed: int = 0) -> Scores:
    """Scores in detail of logits [N, K] against int64 labels [N], N > 0.

    Args:
        classes: the K class names. seed: of the resamples.
    """
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    confusion = multiclass_confusion_matrix(logits.float(), labels, len(classes)).cpu().numpy()
    total, hits = confusion.sum(1), confusion.diagonal()
    recall = {name: float(h / n) if n else None for name, h, n in zip(classes, hits, total, strict=True)}
    return replace(
        score(logits, labels),
        confusion=confusion.tolist(),
        recall=recall,
        intervals=bootstrap(hits, total, seed),
    )


def bootstrap(hits: np.ndarray, total: np.ndarray, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Percentile intervals of error and balanced accuracy over resamples of the images, with replacement.

    Both depend on how many images of every class are right and wrong, and nothing else. Those 2K counts of a
    resample are one multinomial draw, so that the images themselves need not be drawn.

    Args:
        hits, total: int [K], images of every class that were classified right, and in all; some image there is.
    """
    count = int(total.sum())
    shares = np.concatenate([hits, total - hits]) / count
    drawn = np.random.default_rng(seed).multinomial(count, shares, size=RESAMPLES)
    right, wrong = np.split(drawn, 2, axis=1)
    occurs = right + wrong > 0  # in a resample, as in the images, the classes that occur count
    recall = np.divide(right, right + wrong, out=np.zeros(right.shape), where=occurs)
    return {
        "error": _percentiles(wrong.sum(1) / count),
        "balanced_accuracy": _percentiles(recall.sum(1) / occurs.sum(1)),
    }


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
