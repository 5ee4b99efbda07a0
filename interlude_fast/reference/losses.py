"""Embedding fusion and the InterLUDE losses in plain torch.

Legend: B labeled images, mu unlabeled images per labeled one, K classes, N = 2B(1+mu) rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# ---- Embedding fusion (InterLUDE, section 3) ---------------------------------------------------------


def circular_shift_fusion(x: Tensor, alpha: float | Tensor, shift: int = 1) -> Tensor:
    """Y_r = (1 - alpha) X_r + alpha X_{(r + shift) mod N}; 16-bit inputs are blended in float32."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return ((1 - alpha) * wide + alpha * wide.roll(-shift, 0)).to(x.dtype)


# ---- Losses (InterLUDE, section 4) -------------------------------------------------------------------


def split_rows(rows: Tensor, batch: int, mu: int, interdigitated: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows [N, ...] -> labeled weak [B, ...], unlabeled weak [B, mu, ...], labeled strong, unlabeled strong."""
    tail = rows.shape[1:]
    if interdigitated:
        groups = rows.reshape(batch, 2, 1 + mu, *tail)
        return groups[:, 0, 0], groups[:, 0, 1:], groups[:, 1, 0], groups[:, 1, 1:]
    lw, ls, uw, us = rows.split([batch, batch, batch * mu, batch * mu])
    return lw, uw.reshape(batch, mu, *tail), ls, us.reshape(batch, mu, *tail)


def pseudo_labels(
    unlabeled_weak: Tensor, temperature: float = 1.0, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Confidence and class of q = softmax(logits / temperature + bias), without gradient."""
    scores = unlabeled_weak.detach() / temperature
    q = torch.softmax(scores if bias is None else scores + bias, -1)
    confidence, target = q.max(-1)
    return confidence, target


def delta_consistency_loss(
    labeled_weak: Tensor,
    labeled_strong: Tensor,
    unlabeled_weak: Tensor,
    unlabeled_strong: Tensor,
    match: Tensor | None = None,
) -> Tensor:
    """L_dc: mean squared difference of the unlabeled and the labeled weak-to-strong change.

    With `match` [B, mu] only matching unlabeled rows are averaged, and the loss is scaled by the share of
    labeled rows that have a match (the class-dependent form as released).
    """
    with torch.no_grad():
        delta_l = torch.softmax(labeled_weak, -1) - torch.softmax(labeled_strong, -1)
    change = torch.softmax(unlabeled_weak, -1) - torch.softmax(unlabeled_strong, -1)
    if match is None:
        return (change.mean(1) - delta_l).square().mean()
    weight = match.to(change.dtype)
    delta_u = (weight[..., None] * change).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
    return (delta_u - delta_l).square().mean() * match.any(1).to(change.dtype).mean()


def interlude_loss(
    logits: Tensor,
    labels: Tensor,
    mu: int,
    tau: float = 0.95,
    thresholds: Tensor | None = None,
    lambda_u: float = 1.0,
    lambda_dc: float = 1.0,
    temperature: float = 1.0,
    per_class: bool = False,
    interdigitated: bool = True,
    class_weights: Tensor | None = None,
    pseudo_label_bias: Tensor | None = None,
    ramps: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Total, L_sup, L_u, L_dc, mask rate and pseudo labels; the gradient flows through the total alone."""
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    lw, uw, ls, us = split_rows(wide, labels.shape[0], mu, interdigitated)
    weights = None if class_weights is None else class_weights.to(wide.dtype)
    labeled = F.cross_entropy(lw, labels, weight=weights)
    confidence, target = pseudo_labels(uw, temperature, pseudo_label_bias)
    mask = confidence >= (tau if thresholds is None else thresholds.to(wide.dtype)[target])
    ce = F.cross_entropy(us.flatten(0, 1), target.flatten(), reduction="none")
    unlabeled = (mask.flatten() * ce).mean()
    match = target == labels[:, None] if per_class else None
    delta = delta_consistency_loss(lw, ls, uw, us, match)
    ramp_u, ramp_dc = (1.0, 1.0) if ramps is None else ramps.to(wide.dtype)
    total = labeled + lambda_u * ramp_u * unlabeled + lambda_dc * ramp_dc * delta
    targets = torch.where(mask, target, -1).int()
    return total, labeled.detach(), unlabeled.detach(), delta.detach(), mask.to(wide.dtype).mean(), targets
