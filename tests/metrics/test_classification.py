"""Every score against scikit-learn or a direct computation, and where it is not defined."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn import metrics
from torch import Tensor
from torchmetrics.functional.classification import multiclass_auroc

from interlude_fast.metrics import detail, score
from interlude_fast.metrics.detail import LEVEL, bootstrap


def example(n: int = 300, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that lean towards the right class."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=g)
    logits = torch.randn(n, classes, generator=g)
    logits[torch.arange(n), labels] += 1
    return logits, labels


def direct_calibration_error(logits: Tensor, labels: Tensor, bins: int) -> float:
    confidence, predicted = logits.double().softmax(1).max(1)
    right, total = (predicted == labels).numpy(), 0.0
    for i in range(bins):
        inside = ((confidence > i / bins) & (confidence <= (i + 1) / bins)).numpy()
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - float(confidence[torch.from_numpy(inside)].mean()))
    return total


def test_scores_are_those_of_scikit_learn() -> None:
    logits, labels = example()
    y, p = labels.numpy(), logits.double().softmax(1).numpy()
    found, predicted = score(logits, labels), p.argmax(1)
    expected = {
        "error": (predicted != y).mean(),
        "accuracy": metrics.accuracy_score(y, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, predicted),
        "n": 300,
        "top5_accuracy": metrics.top_k_accuracy_score(y, p, k=5),
        "macro_f1": metrics.f1_score(y, predicted, average="macro"),
        "auroc": metrics.roc_auc_score(y, p, multi_class="ovr", average="macro"),
        "calibration_error": direct_calibration_error(logits, labels, 15),
    }
    assert found.as_dict() == pytest.approx(expected, abs=1e-6)
    assert 0.3 < found.accuracy < 0.9
    assert found.auroc == pytest.approx(float(multiclass_auroc(logits.softmax(1), labels, 7)), abs=1e-6)


def test_a_case_by_hand() -> None:
    # Classes 0, 0, 1, 2 predicted as 0, 1, 1, 1; nobody is predicted as 2.
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.1, 0.5, 0.4]]).log()
    found = score(logits, torch.tensor([0, 0, 1, 2]))
    assert found.accuracy == 0.5
    assert found.balanced_accuracy == pytest.approx((0.5 + 1 + 0) / 3)
    assert found.macro_f1 == pytest.approx((2 / 3 + 0.5 + 0) / 3)
    assert found.auroc == pytest.approx((1 + 1 + 1) / 3)
    # Bins of a fifteenth: 0.5, 0.6 and twice 0.7 (right both times).
    assert found.calibration_error == pytest.approx((0.5 + 0.6 + 2 * 0.3) / 4)
    assert found.top5_accuracy is None


def test_classes_that_do_not_occur_count_for_nothing_but_in_f1() -> None:
    logits, labels = example()
    kept = labels < 4
    found, y, p = score(logits[kept], labels[kept]), labels[kept].numpy(), logits[kept].argmax(1).numpy()
    assert set(p) == set(range(7))  # they are predicted, wrongly
    recalls = [float((p[y == k] == k).mean()) for k in range(4)]
    assert found.balanced_accuracy == pytest.approx(np.mean(recalls), abs=1e-6)
    assert found.macro_f1 == pytest.approx(metrics.f1_score(y, p, average="macro"), abs=1e-6)
    probabilities = logits[kept].double().softmax(1).numpy()
    areas = [metrics.roc_auc_score(y == k, probabilities[:, k]) for k in range(4)]
    assert found.auroc == pytest.approx(np.mean(areas), abs=1e-6)


def test_tied_scores_count_half() -> None:
    rows = torch.tensor([[0.6, 0.4], [0.5, 0.5], [0.2, 0.8]]).log()
    which, labels = torch.tensor([0, 0, 1, 1, 2, 1]), torch.tensor([0, 1, 0, 1, 1, 1])
    p = rows.softmax(1)[which, 1].numpy()
    assert score(rows[which], labels).auroc == pytest.approx(metrics.roc_auc_score(labels, p))


def test_what_is_not_defined_is_none() -> None:
    logits, labels = example(classes=6)
    one = score(logits[labels == 2], labels[labels == 2])
    assert one.auroc is None
    assert one.balanced_accuracy == pytest.approx(one.accuracy, abs=1e-6)
    logits[0] = float("nan")
    broken = score(logits, labels)
    assert (broken.auroc, broken.calibration_error) == (None, None)
    json.dumps(broken.as_dict(), allow_nan=False)


def test_confusion_and_recall() -> None:
    logits, labels = example()
    kept = labels != 3
    found = detail(logits[kept], labels[kept], tuple("abcdefg"))
    expected = metrics.confusion_matrix(labels[kept], logits[kept].argmax(1), labels=range(7))
    assert found.confusion == expected.tolist()
    assert found.recall["d"] is None
    assert found.recall["b"] == expected[1, 1] / expected[1].sum()
    json.dumps(found.as_dict(), allow_nan=False)


def test_intervals_are_those_of_a_bootstrap_over_images() -> None:
    logits, labels = example(n=400, classes=3)
    y, p = labels.numpy(), logits.argmax(1).numpy()
    total = np.bincount(y)
    hits = np.bincount(y[y == p], minlength=3)
    found = bootstrap(hits, total, seed=0)
    measures = {
        "error": lambda t, q: float((t != q).mean()),
        "balanced_accuracy": lambda t, q: float(np.mean([(q[t == k] == k).mean() for k in range(3)])),
    }
    for name, measure in measures.items():
        theirs = scipy_bootstrap(
            (y, p),
            measure,
            paired=True,
            vectorized=False,
            n_resamples=2000,
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval
        assert found[name] == pytest.approx((theirs.low, theirs.high), abs=0.01)
        assert found[name][0] < measure(y, p) < found[name][1]
    assert found == bootstrap(hits, total, seed=0) != bootstrap(hits, total, seed=1)


def test_intervals_where_nothing_varies_or_a_class_is_rare() -> None:
    assert bootstrap(np.array([5, 0]), np.array([5, 0])) == {"error": (0, 0), "balanced_accuracy": (1, 1)}
    rare = bootstrap(np.array([50, 1]), np.array([50, 1]))  # a third of the resamples lacks the second class
    assert rare["balanced_accuracy"] == (1, 1)
