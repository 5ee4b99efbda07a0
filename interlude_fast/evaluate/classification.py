"""Accuracy and its relatives over a test set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

Normalize = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Scores:
    """Shares in [0, 1] over n test images."""

    error: float
    accuracy: float
    balanced_accuracy: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@torch.inference_mode()
def predict_logits(model: nn.Module, images: Tensor, normalize: Normalize, batch: int) -> Tensor:
    """Logits [N, K] of uint8 images [N, H, W, C], in eval mode; the model's mode is restored."""
    was_training = model.training
    model.eval()
    try:
        return torch.cat([model(normalize(part)) for part in images.split(batch)])
    finally:
        model.train(was_training)


def evaluate(model: nn.Module, images: Tensor, labels: Tensor, normalize: Normalize, batch: int) -> Scores:
    """Scores of a network on uint8 images [N, H, W, C] and int64 labels [N].

    balanced_accuracy: mean of the classes' recalls, over the classes that occur.
    """
    from torchmetrics.functional.classification import multiclass_accuracy

    logits = predict_logits(model, images, normalize, batch).float()
    classes = logits.shape[1]
    correct = round(float(multiclass_accuracy(logits, labels, classes, average="micro")) * len(labels))
    balanced = float(multiclass_accuracy(logits, labels, classes, average="macro"))
    return Scores(
        error=1 - correct / len(labels), accuracy=correct / len(labels), balanced_accuracy=balanced, n=len(labels)
    )
