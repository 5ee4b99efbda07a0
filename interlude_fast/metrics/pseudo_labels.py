"""How good pseudo labels are, where the true ones are known and were hidden from training."""

from __future__ import annotations

from torch import Tensor

# Largest probability from which a prediction counts as confident, whatever the method's threshold.
CONFIDENT = 0.95


def pseudo_label_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Of logits [N, K] and true int64 labels [N], N > 0: the share of right predictions, that of confident ones,
    and of these the share of right ones, which is left out where there are none."""
    confidence, predicted = logits.float().softmax(1).max(1)
    right, confident = predicted == labels, confidence >= CONFIDENT
    count = int(confident.sum())
    found = {"pseudo_labels/accuracy": float(right.float().mean()), "pseudo_labels/confident": count / len(labels)}
    return found | ({"pseudo_labels/confident_accuracy": int((right & confident).sum()) / count} if count else {})
