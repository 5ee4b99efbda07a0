"""The linear probe against scikit-learn's own pipeline, and nearest neighbours against a loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import Tensor

from interlude_fast.errors import DataError
from interlude_fast.training import probe
from interlude_fast.training.probe import DEFAULT_STRENGTH, STRENGTHS, fit_linear_probe, knn_predict


def cloud(n: int, size: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Embeddings as networks give them: not negative, many near zero, of different scales."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centers = torch.randn(classes, size, generator=generator)
    scales = torch.rand(size, generator=generator) * 3
    return ((centers[labels] + torch.randn(n, size, generator=generator)) * scales).relu(), labels


@pytest.mark.parametrize(("n", "size"), [(40, 90), (90, 12)], ids=["wide", "long"])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_as_scikit_learn(n: int, size: int, classes: int, strength: float) -> None:
    x, y = cloud(n, size, classes)
    mean, scale = x.double().mean(0).numpy(), x.double().var(0, unbiased=False).mean().sqrt().item()
    theirs = make_pipeline(
        FunctionTransformer(lambda rows: (rows - mean) / scale),
        LogisticRegression(C=strength, tol=1e-9, max_iter=10_000),
    ).fit(x.double().numpy(), y.numpy())
    new = cloud(30, size, classes, seed=1)[0]
    logits = fit_linear_probe(x, y, classes, strength=strength).logits(new)
    wanted = theirs.decision_function(new.double().numpy())
    found = (logits[:, 1] - logits[:, 0]).numpy() if classes == 2 else logits.numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(logits.softmax(1), theirs.predict_proba(new.double().numpy()), atol=1e-5)


def test_two_classes_have_two_rows_and_one_number_takes_the_scale_back() -> None:
    x, y = cloud(20, 50, 2)
    found = fit_linear_probe(x, y, 2)
    assert found.weight.shape == (2, 50)
    assert found.bias.shape == (2,)
    assert found.weight.dtype == found.bias.dtype == torch.float32
    torch.testing.assert_close(found.weight[0], -found.weight[1])
    torch.testing.assert_close(found.logits(x), torch.nn.functional.linear(x, found.weight, found.bias))
    moved = fit_linear_probe(1000 * x + 300, y, 2, strength=found.strength)
    torch.testing.assert_close(moved.logits(1000 * x + 300), found.logits(x), atol=1e-2, rtol=1e-2)


def test_constant_features_do_no_harm() -> None:
    x, y = cloud(30, 40, 3)
    with_constants = torch.cat([x, torch.full((30, 3), 7.0), torch.zeros(30, 2)], 1)
    found = fit_linear_probe(with_constants, y, 3)
    assert found.weight.isfinite().all()
    assert found.weight[:, 40:].abs().max() < 1e-6


def test_views_of_an_image_are_never_split(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cloud(24, 30, 3)
    x, y, images = torch.cat([x, x + 0.1]), y.repeat(2), (torch.arange(24) * 5 - 7).repeat(2)
    seen, real = [], probe._folds

    def watched(*arguments: object) -> np.ndarray | None:
        seen.append(real(*arguments))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(probe, "_folds", watched)
    fit_linear_probe(x, y, 3, images)
    (folds,) = seen
    assert folds is not None
    assert (folds[:24] == folds[24:]).all()
    counts = np.array([[(folds[:24][y[:24] == k] == fold).sum() for k in range(3)] for fold in range(5)])
    assert counts.min() >= 1  # 8 images of every class in 5 folds
    assert counts.max() <= 2
    assert np.ptp(counts.sum(1)) <= 1


def test_an_image_counts_once_however_many_views_it_has() -> None:
    x, y = cloud(24, 30, 3)
    once, thrice = (
        fit_linear_probe(x, y, 3),
        fit_linear_probe(x.repeat(3, 1), y.repeat(3), 3, torch.arange(24).repeat(3)),
    )
    assert once.strength == thrice.strength
    torch.testing.assert_close(once.logits(x), thrice.logits(x), atol=1e-4, rtol=1e-4)


def test_a_class_with_one_image_takes_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = cloud(13, 30, 3)  # 5, 4, 4 of them
    assert fit_linear_probe(x, y, 3).strength in STRENGTHS
    monkeypatch.setattr(probe, "_choose", lambda *_: pytest.fail("there is nothing to choose by"))
    one = torch.tensor([0, 1, 2, 3, 4, 6])
    assert (y[one] == 2).sum() == 1
    found = fit_linear_probe(x[one], y[one], 3)
    assert found.strength == DEFAULT_STRENGTH
    assert (found.logits(x[one]).argmax(1) == y[one]).all()
    # Three views of one image are one image.
    views = torch.tensor([0, 1, 2, 0, 1, 2])
    assert fit_linear_probe(x[:6], y[:6], 3, views).strength == DEFAULT_STRENGTH


def test_it_is_good_and_the_same_every_time() -> None:
    images, truth = (torch.tensor(a) for a in load_digits(return_X_y=True))
    images, truth = images.float(), truth.long()
    rows = torch.cat([(truth == k).nonzero()[::18, 0][:10] for k in range(10)])
    first = fit_linear_probe(images[rows], truth[rows], 10, seed=1)
    again = fit_linear_probe(images[rows], truth[rows], 10, seed=1)
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    assert (first.logits(images).argmax(1) != truth).float().mean() < 0.13
    assert (knn_predict(images[rows], truth[rows], images, 10).argmax(1) != truth).float().mean() < 0.13


def test_neighbours_by_a_loop() -> None:
    (bank, labels), (queries, _) = cloud(30, 8, 4), cloud(9, 8, 4, seed=1)
    for k in (None, 1, 7):
        votes = torch.zeros(9, 4, dtype=torch.float64)
        for i, query in enumerate(queries.double()):
            near = [
                (float(torch.cosine_similarity(query, row.double(), 0)), int(c))
                for row, c in zip(bank, labels, strict=True)
            ]
            for similarity, c in sorted(near, reverse=True)[: k or 20]:
                votes[i, c] += math.exp(similarity / 0.07)
        found = knn_predict(bank, labels, queries, 4, k)
        torch.testing.assert_close(found.double(), votes / votes.sum(1, keepdim=True), atol=1e-5, rtol=1e-4)
    assert knn_predict(bank[:4], labels[:4], queries, 4).shape == (9, 4)  # as many neighbours as there are rows


X, Y = cloud(12, 5, 3)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: fit_linear_probe(X, torch.zeros(12, dtype=torch.long), 3), "fewer than two classes"),
        (lambda: fit_linear_probe(X, Y, 4), "class 3 of 4 has no labeled image"),
        (lambda: fit_linear_probe(X, Y, 2), "labels from 0 to 2, but there are 2 classes"),
        (lambda: fit_linear_probe(X[:, :0] + 1, Y[:3], 3), "do not belong together"),
        (
            lambda: fit_linear_probe(torch.where(X > 1, torch.nan, X), Y, 3),
            "of 12 embeddings are not finite",
        ),
        (lambda: fit_linear_probe(torch.ones(12, 5), Y, 3), "all 12 embeddings are the same"),
        (lambda: fit_linear_probe(X, Y, 3, torch.zeros(12)), "has another label than other views of its image"),
        (lambda: fit_linear_probe(X, Y, 3, torch.zeros(3)), "one for every row"),
        (lambda: knn_predict(X, Y, X, 3, 13), "k = 13, but there are 12"),
        (lambda: knn_predict(X, Y, X * torch.inf, 3), "are not finite"),
        (lambda: knn_predict(X, Y, X, 4), "class 3 of 4"),
    ],
)
def test_what_does_not_fit_gets_one_line(call: Callable[[], object], line: str) -> None:
    with pytest.raises(DataError, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)
