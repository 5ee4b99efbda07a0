"""A linear probe and nearest neighbours on embeddings of a frozen network: what its features are worth."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits
from torch import Tensor

from interlude_fast.errors import DataError

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # of C; the smaller, the stronger the regularization
DEFAULT_STRENGTH = (
    1.0  # where a class has one image, so that none can be held out; errors hardly depend on it then
)
FOLDS = 5
TOLERANCE = 1e-3  # of the solver's gradient, in a fold
EXACT = 1e-7  # and in the last fit
ITERATIONS = 1000
NEIGHBOURS = 20
TEMPERATURE = 0.07


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of embeddings as the network gives them: nothing has to be scaled before.

    Attributes:
        weight: float32 [K, D]. bias: float32 [K]. Both on the CPU.
        strength: the C of the logistic regression; the smaller, the stronger its L2 penalty.
    """

    weight: Tensor
    bias: Tensor
    strength: float

    def logits(self, embeddings: Tensor) -> Tensor:
        """embeddings, float [n, D] -> logits, float32 [n, K], on the device of the embeddings."""
        where = embeddings.device
        return embeddings.float() @ self.weight.to(where).T + self.bias.to(where)


def fit_linear_probe(
    embeddings: Tensor,
    labels: Tensor,
    num_classes: int,
    groups: Tensor | None = None,
    seed: int = 0,
    strength: float | None = None,
) -> LinearProbe:
    """Multinomial logistic regression with an L2 penalty, whose strength is chosen by cross-validation.

    The embeddings are centered and divided by one number, the root of their features' mean variance; weight and
    bias take both back. Features are not scaled one by one: with few labeled images that raises those that hardly
    any image shows. On photographs of hand signs it cost 4 points of error with 10 labels a class, 12 with two.

    An image counts once, however many rows it has: the weight of a row is one over the rows of its image, so that
    C means the same with and without views. C is the one of STRENGTHS with the lowest held-out log loss, of equals
    the smallest. Accuracy would choose another C in every draw of the labels, as it moves in steps of one image.
    The images of every class are spread over min(5, images of the smallest class) folds. Where a class has one
    image, there is nothing to choose by, and C is DEFAULT_STRENGTH.

    Args:
        embeddings: float [n, D]. labels: int64 [n], from 0 to num_classes - 1.
        groups: int64 [n], a number for every image: rows with the same number are views of one image, and are held
            out together. None: every row is an image of its own.
        seed: of the folds. strength: the C to take, instead of choosing one.

    Raises:
        DataError: embeddings that are not finite or all the same, fewer than two classes, a class without a row,
            or an image whose views have several labels.
    """
    rows, y = _checked(embeddings, labels, num_classes)
    if groups is not None and groups.shape != labels.shape:
        raise DataError(
            f"groups {list(groups.shape)} and labels {list(labels.shape)}: wanted is one for every row"
        )
    images = np.arange(len(y)) if groups is None else np.unique(groups.cpu().numpy(), return_inverse=True)[1]
    with threadpool_limits(1):  # products this small take several threads many times as long
        weight, bias, strength = _fit(rows, y, images, num_classes, seed, strength)
    return LinearProbe(
        torch.from_numpy(weight.astype(np.float32)), torch.from_numpy(bias.astype(np.float32)), strength
    )


def knn_predict(bank: Tensor, labels: Tensor, queries: Tensor, num_classes: int, k: int | None = None) -> Tensor:
    """Shares of the votes of the k nearest rows by cosine similarity s, each with weight exp(s / 0.07).

    Args:
        bank: float [n, D]. labels: int64 [n], of its rows. queries: float [m, D].
        k: neighbours; None: 20, or n where there are fewer.

    Returns:
        float32 [m, K], on the device of the queries; every row sums to 1.

    Raises:
        DataError: as fit_linear_probe; a k outside 1..n; or queries that are not finite.
    """
    _checked(bank, labels, num_classes)
    k = min(NEIGHBOURS, len(bank)) if k is None else k
    if not 1 <= k <= len(bank):
        raise DataError(f"nearest neighbours: k = {k}, but there are {len(bank)} labeled rows; use 1 to that many")
    _refuse_non_finite(queries)
    near = torch.nn.functional.normalize(bank.to(queries.device).float())
    votes = torch.zeros(len(queries), num_classes, device=queries.device)
    for start in range(0, len(queries), 4096):  # rows of similarities in memory at a time
        part = torch.nn.functional.normalize(queries[start : start + 4096].float())
        similarity, index = (part @ near.T).topk(k)
        share = (similarity / TEMPERATURE).softmax(1)  # the votes over their sum
        votes[start : start + 4096].scatter_add_(1, labels.to(queries.device)[index], share)
    return votes


def _checked(embeddings: Tensor, labels: Tensor, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(float64 [n, D], int64 [n]). Raises DataError where no classifier can be made of them."""
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        shapes = f"embeddings {list(embeddings.shape)} and labels {list(labels.shape)}"
        raise DataError(f"{shapes} do not belong together; wanted are [n, D] and [n]")
    _refuse_non_finite(embeddings)
    y = labels.cpu().numpy().astype(np.int64)
    if num_classes < 2 or len(np.unique(y)) < 2:
        raise DataError("embeddings of fewer than two classes cannot be told apart; label images of another class")
    if y.min() < 0 or y.max() >= num_classes:
        raise DataError(f"labels from {y.min()} to {y.max()}, but there are {num_classes} classes from 0 on")
    missing = np.flatnonzero(np.bincount(y, minlength=num_classes) == 0)
    if len(missing):
        raise DataError(f"class {missing[0]} of {num_classes} has no labeled image; label one, or leave it out")
    return embeddings.detach().cpu().double().numpy(), y


def _refuse_non_finite(embeddings: Tensor) -> None:
    bad = (~embeddings.isfinite()).any(1)
    if bad.any():
        raise DataError(
            f"{int(bad.sum())} of {len(bad)} embeddings are not finite, first row {int(bad.nonzero()[0])}; "
            "use other weights, or float32"
        )


def _fit(
    rows: np.ndarray, y: np.ndarray, images: np.ndarray, num_classes: int, seed: int, strength: float | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """(weight [K, D], bias [K], C), as fit_linear_probe says; images: int [n], the image of every row."""
    weights = 1 / np.bincount(images)[images]
    mean = np.average(rows, axis=0, weights=weights)
    scale = np.sqrt(np.average((rows - mean) ** 2, axis=0, weights=weights).mean())
    if np.ptp(rows, axis=0).max() == 0 or scale == 0:
        raise DataError(
            f"all {len(rows)} embeddings are the same: no classifier tells them apart; use other weights"
        )
    centered = (rows - mean) / scale
    # With an L2 penalty the weights lie in the span of the rows: n coordinates instead of D say the same.
    basis = np.linalg.qr(centered.T)[0] if len(rows) < rows.shape[1] else None
    inside = centered if basis is None else centered @ basis
    folds = _folds(images, y, num_classes, seed)
    if strength is None:
        strength = DEFAULT_STRENGTH if folds is None else _choose(inside, y, weights, folds)
    coefficients, bias = _regress(inside, y, weights, strength, EXACT)
    weight = (coefficients if basis is None else coefficients @ basis.T) / scale
    return weight, bias - weight @ mean, strength


def _folds(images: np.ndarray, y: np.ndarray, num_classes: int, seed: int) -> np.ndarray | None:
    """int [n], the fold that holds a row out; rows of an image share it, and so do about as many images of every
    class. None where a class has one image.

    Raises:
        DataError: rows of one image with several labels.
    """
    label = np.zeros(images.max() + 1, np.int64)
    label[images] = y
    if (label[images] != y).any():
        row = int(np.flatnonzero(label[images] != y)[0])
        raise DataError(
            f"row {row} has another label than other views of its image; give views their image's label"
        )
    count = min(FOLDS, int(np.bincount(label, minlength=num_classes).min()))
    if count < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]  # by class, shuffled within it
    fold = np.empty(len(label), np.int64)
    fold[order] = np.arange(len(label)) % count  # at most one class image more in a fold than in another
    return fold[images]


def _choose(rows: np.ndarray, y: np.ndarray, weights: np.ndarray, folds: np.ndarray) -> float:
    """The C with the lowest held-out log loss; of equals the smallest."""
    losses = np.zeros(len(STRENGTHS))
    for fold in range(folds.max() + 1):
        held, rest = folds == fold, folds != fold
        for i, strength in enumerate(STRENGTHS):
            coefficients, bias = _regress(rows[rest], y[rest], weights[rest], strength, TOLERANCE)
            logits = rows[held] @ coefficients.T + bias
            losses[i] += weights[held] @ (logsumexp(logits, axis=1) - logits[np.arange(len(logits)), y[held]])
    return STRENGTHS[int(losses.argmin())]


def _regress(
    rows: np.ndarray, y: np.ndarray, weights: np.ndarray, strength: float, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """(coefficients [K, D], intercepts [K]); of two classes the second's logit is split between both."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, tol=tolerance, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(rows, y, sample_weight=weights)
    if len(model.coef_) == 1:
        return np.concatenate([-model.coef_, model.coef_]) / 2, np.concatenate(
            [-model.intercept_, model.intercept_]
        ) / 2
    return model.coef_, model.intercept_
