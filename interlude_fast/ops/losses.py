"""The InterLUDE loss head and its delta-consistency term (InterLUDE, section 4)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from interlude_fast import reference

from . import checks
from .extension import compiled_for, status

Delta = Literal["mean", "per_class"]
Layout = Literal["interdigitated", "separate"]


class InterludeLoss(NamedTuple):
    """Scalars of arithmetic dtype (float64 for float64 logits, else float32). Only `total` has a gradient.

    targets: int32 [B, mu], the pseudo labels that are learned, -1 below the threshold.
    """

    total: Tensor
    labeled: Tensor
    unlabeled: Tensor
    delta: Tensor
    mask_rate: Tensor
    targets: Tensor


def interlude_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    mu: int,
    thresholds: float | Tensor = 0.95,
    lambda_u: float = 1.0,
    lambda_dc: float = 1.0,
    temperature: float = 1.0,
    delta: Delta = "mean",
    layout: Layout = "interdigitated",
    class_weights: Tensor | None = None,
    pseudo_label_bias: Tensor | None = None,
    ramps: Tensor | None = None,
) -> InterludeLoss:
    """L = L_sup + lambda_u L_u + lambda_dc L_dc and its gradient, from one read of the logits.

    Args:
        logits: [2B(1+mu), K] in the row order that `layout` names; float64, float32, bfloat16 or float16.
        labels: [B] int64 in [0, K).
        mu: unlabeled rows per labeled row, >= 1.
        thresholds: tau, the least confidence of a pseudo label that is learned: one number, or [K] by class.
        lambda_u, lambda_dc: weights of the pseudo-label and the delta-consistency loss.
        temperature: T > 0, sharpens the pseudo label's distribution q.
        delta: "mean" averages all mu unlabeled changes; "per_class" those whose pseudo label is the label.
        layout: "interdigitated" (section 2) or "separate": all labeled weak, labeled strong, unlabeled weak,
            unlabeled strong rows, one role after another.
        class_weights: [K], weighted mean in L_sup, as torch's cross_entropy.
        pseudo_label_bias: [K], added to unlabeled weak logits / temperature before q is taken; distribution
            alignment (section 6) passes log(p_target / p_model).
        ramps: [2], factors on lambda_u and lambda_dc, for weights that change from step to step; None for 1.

    Returns:
        InterludeLoss; the gradient of `total` with respect to logits is first order only.

    Raises:
        TypeError: a dtype other than the above.
        ValueError: shapes or devices that do not fit, mu < 1, temperature <= 0, an unknown delta or layout.
        IndexError: a label outside [0, K) (on the CPU; on a GPU the kernel's assertion fails).
    """
    checks.positive(temperature, "temperature")
    if delta not in ("mean", "per_class"):
        raise ValueError(f"delta must be 'mean' or 'per_class', got {delta!r}")
    if layout not in ("interdigitated", "separate"):
        raise ValueError(f"layout must be 'interdigitated' or 'separate', got {layout!r}")
    tau, by_class = (0.0, thresholds) if isinstance(thresholds, Tensor) else (thresholds, None)
    if by_class is not None and by_class.numel() == 1 and logits.dim() == 2 and by_class.shape != logits.shape[1:]:
        by_class = by_class.reshape(1).expand(logits.shape[1])
    numbers = (tau, by_class, lambda_u, lambda_dc, temperature, delta == "per_class", layout == "interdigitated")
    if compiled_for(logits):  # whose own checks of shapes and dtypes cost less than Python's
        for name, x in (("labels", labels), ("thresholds", by_class), ("class_weights", class_weights),
                        ("pseudo_label_bias", pseudo_label_bias), ("ramps", ramps)):  # fmt: skip
            if x is not None:
                checks.same_device(x, name, logits, "logits")
        total, parts, _, targets = torch.ops.interlude_fast.interlude_loss.default(
            logits, labels, mu, *numbers, class_weights, pseudo_label_bias, ramps
        )
        return InterludeLoss._make((total, *parts.unbind(), targets))
    _check_head(logits, labels, mu)
    checks.per_class(by_class, "thresholds", logits)
    checks.per_class(class_weights, "class_weights", logits)
    checks.per_class(pseudo_label_bias, "pseudo_label_bias", logits)
    if ramps is not None:
        checks.floating(ramps, "ramps")
        checks.shape(ramps, "ramps", (2,))
        checks.same_device(ramps, "ramps", logits, "logits")
    checks.label_values(labels, logits.shape[1])
    return InterludeLoss(
        *reference.interlude_loss(logits, labels, mu, *numbers, class_weights, pseudo_label_bias, ramps)
    )


def _check_head(logits: Tensor, labels: Tensor, mu: int) -> None:
    checks.floating(logits, "logits")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if logits.dim() != 2:
        raise ValueError(f"logits must be [2B(1+mu), K], got {list(logits.shape)}")
    if labels.dim() != 1 or labels.shape[0] < 1:
        raise ValueError(f"labels must be [B] with B >= 1, got {list(labels.shape)}")
    if mu < 1:
        raise ValueError(f"mu must be >= 1, got {mu}")
    rows = 2 * labels.shape[0] * (1 + mu)
    if logits.shape[0] != rows:
        raise ValueError(
            f"logits must have 2B(1+mu) = {rows} rows for B = {labels.shape[0]} and mu = {mu}, "
            f"got {logits.shape[0]}"
        )
    checks.same_device(labels, "labels", logits, "logits")


def delta_consistency_loss(
    labeled_weak: Tensor,
    labeled_strong: Tensor,
    unlabeled_weak: Tensor,
    unlabeled_strong: Tensor,
    match: Tensor | None = None,
) -> Tensor:
    """L_dc alone, for other methods: the weak-to-strong change of the unlabeled predictions is drawn to that
    of the labeled image beside them.

    Args:
        labeled_weak, labeled_strong: logits [B, K], used without gradient.
        unlabeled_weak, unlabeled_strong: logits [B, mu, K], same dtype; the gradient flows to both.
        match: bool [B, mu], or None for the mean over all mu. Where given, only matching rows are averaged
            and the loss is scaled by the share of labeled rows with a match (delta "per_class").

    Returns:
        Scalar, float64 for float64 logits, else float32. First-order gradient only.

    Raises:
        TypeError: a dtype other than the above.
        ValueError: shapes or devices that do not fit.
    """
    checks.floating(unlabeled_weak, "unlabeled_weak")
    if unlabeled_weak.dim() != 3 or unlabeled_weak.numel() == 0:
        raise ValueError(f"unlabeled_weak must be [B, mu, K] and not empty, got {list(unlabeled_weak.shape)}")
    batch, mu, classes = unlabeled_weak.shape
    logits = {
        "unlabeled_strong": (unlabeled_strong, (batch, mu, classes)),
        "labeled_weak": (labeled_weak, (batch, classes)),
        "labeled_strong": (labeled_strong, (batch, classes)),
    }
    for name, (x, expected) in logits.items():
        checks.shape(x, name, expected)
        checks.same_device(x, name, unlabeled_weak, "unlabeled_weak")
        if x.dtype != unlabeled_weak.dtype:
            raise TypeError(f"{name} is {x.dtype} but unlabeled_weak is {unlabeled_weak.dtype}")
    if match is not None:
        if match.dtype != torch.bool:
            raise TypeError(f"match must be bool, got {match.dtype}")
        checks.shape(match, "match", (batch, mu))
        checks.same_device(match, "match", unlabeled_weak, "unlabeled_weak")
    tensors = (labeled_weak.detach(), labeled_strong.detach(), unlabeled_weak, unlabeled_strong)
    if compiled_for(unlabeled_weak):
        return torch.ops.interlude_fast.delta_consistency_loss(*tensors, match)[0]
    if unlabeled_weak.dtype in (torch.float16, torch.bfloat16):
        tensors = tuple(t.float() for t in tensors)  # type: ignore[assignment]
    return reference.delta_consistency_loss(*tensors, match)


def _arithmetic(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _fake_outputs(*logits: Tensor) -> tuple[Tensor, ...]:
    """The loss, and gradients in arithmetic dtype: a loss scale comes before any rounding."""
    dtype = _arithmetic(logits[0])
    gradients = (torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format) for x in logits)
    return logits[0].new_empty((), dtype=dtype), *gradients


if status().loaded:

    @torch.library.register_fake("interlude_fast::interlude_loss")
    def _head_fake(logits: Tensor, labels: Tensor, mu: int, *_: Any) -> tuple[Tensor, ...]:
        loss, gradient = _fake_outputs(logits)
        return loss, loss.new_empty(4), gradient, labels.new_empty((labels.shape[0], mu), dtype=torch.int32)

    @torch.library.register_fake("interlude_fast::delta_consistency_loss")
    def _delta_fake(weak: Tensor, strong: Tensor, *unlabeled: Any) -> tuple[Tensor, ...]:
        return _fake_outputs(*unlabeled[:2])
