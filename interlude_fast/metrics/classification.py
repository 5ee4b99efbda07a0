"""Accuracy and its relatives over a test set (docs/evaluation.md has the definitions)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

Normalize = Callable[[Tensor], Tensor]
CALIBRATION_BINS = 15
RESAMPLES, LEVEL = 1000, 0.95  # of bootstrap intervals


@dataclass(frozen=True)
class Scores:
    """Shares in [0, 1] over n images; None where one is not defined.

    Attributes:
        balanced_accuracy: mean of the classes' recalls, over the classes that occur.
        top5_accuracy: None of five classes or fewer.
        macro_f1: mean F1 of the classes that occur or are predicted.
        auroc: mean over the classes that occur of each against the rest; None where fewer than two occur.
        calibration_error: expected calibration error in 15 bins of equal width.
        confusion: [K][K] counts, a row for every true class and a column for every predicted one; None, as recall
            and intervals, where scores are not computed in detail.
        recall: by class name; None of a class that does not occur.
        intervals: (low, high) of "error" and "balanced_accuracy", percentiles of LEVEL by bootstrap.
    """

    error: float
    accuracy: float
    balanced_accuracy: float
    n: int
    top5_accuracy: float | None = None
    macro_f1: float | None = None
    auroc: float | None = None
    calibration_error: float | None = None
    confusion: list[list[int]] | None = None
    recall: dict[str, float | None] | None = None
    intervals: dict[str, tuple[float, float]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """In JSON types; what was not computed in detail is left out, and intervals say how they were made."""
        values = asdict(self)
        details = {key: values.pop(key) for key in ("intervals", "recall", "confusion")}
        if self.intervals is not None:
            bounds = {name: {"low": low, "high": high} for name, (low, high) in self.intervals.items()}
            settings = {"level": LEVEL, "resamples": RESAMPLES, "method": "percentile bootstrap over images"}
            details["intervals"] = {**bounds, **settings}
        return {**values, **{key: value for key, value in details.items() if value is not None}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scores:
        """as_dict()'s, of this version or an earlier one; what else stands there is not read.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: they are not.
        """
        known = {key: value for key, value in values.items() if key in cls.__dataclass_fields__}
        if (bounds := known.get("intervals")) is not None:
            pairs = {name: entry for name, entry in bounds.items() if isinstance(entry, dict)}
            known["intervals"] = {name: (float(b["low"]), float(b["high"])) for name, b in pairs.items()}
        return cls(**known)


@torch.inference_mode()
def predict_logits(model: nn.Module, inputs: Iterable[Tensor]) -> Tensor:
    """Logits [N, K] of batches of the network's input, in eval mode; the model's mode is restored."""
    was_training = model.training
    model.eval()
    try:
        return torch.cat([model(part) for part in inputs])
    finally:
        model.train(was_training)


def evaluate(model: nn.Module, inputs: Iterable[Tensor], labels: Tensor) -> Scores:
    """Scores of a network on batches of its input, and their int64 labels [N]."""
    return score(predict_logits(model, inputs), labels)


def score(logits: Tensor, labels: Tensor) -> Scores:
    """Scores of logits [N, K] against int64 labels [N], N > 0. Logits that are not finite have no AUROC and no
    calibration error."""
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

    logits, classes, n = logits.float(), logits.shape[1], len(labels)
    correct = int((logits.argmax(1) == labels).sum())
    recalls = multiclass_accuracy(logits, labels, classes, average="none")
    top5 = multiclass_accuracy(logits, labels, classes, average="micro", top_k=5) if classes > 5 else None
    occurs = torch.bincount(labels, minlength=classes) > 0
    return Scores(
        error=1 - correct / n,
        accuracy=correct / n,
        balanced_accuracy=float(recalls[occurs].mean()),
        n=n,
        top5_accuracy=_defined(top5),
        macro_f1=_defined(multiclass_f1_score(logits, labels, classes, average="macro")),
        auroc=_defined(_auroc(logits, labels, occurs)),
        calibration_error=_defined(_calibration_error(logits, labels)),
    )


def _auroc(logits: Tensor, labels: Tensor, occurs: Tensor) -> Tensor | None:
    """By the ranks of the scores, ties at their middle: torchmetrics' curves take twice as long."""
    from scipy.stats import rankdata

    present = occurs.nonzero()[:, 0]
    if len(present) < 2 or not bool(logits.isfinite().all()):
        return None
    ranks = torch.from_numpy(rankdata(logits.softmax(1)[:, present].cpu().numpy(), axis=0))
    belongs = (labels[:, None] == present).cpu()
    count = belongs.sum(0)
    area = (ranks * belongs).sum(0) - count * (count + 1) / 2
    return (area / (count * (len(labels) - count))).mean()


def _calibration_error(logits: Tensor, labels: Tensor) -> Tensor | None:
    from torchmetrics.functional.classification import multiclass_calibration_error

    if not bool(logits.isfinite().all()):
        return None
    return multiclass_calibration_error(logits.softmax(1), labels, logits.shape[1], n_bins=CALIBRATION_BINS)


def _defined(value: Tensor | None) -> float | None:
    """A number that JSON knows."""
    return float(value) if value is not None and math.isfinite(value) else None
