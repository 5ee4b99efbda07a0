"""Every op in plain torch, written from the papers and not from csrc/: what runs where no extension is
built, what the tests hold the kernels against, and the other side of every benchmark.

Legend: B labeled images, mu unlabeled images per labeled one, K classes, N = 2B(1+mu) rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# ---- Embedding fusion (InterLUDE, section 3) ---------------------------------------------------------


def circular_shift_fusion(x: Tensor, alpha: float, shift: int = 1) -> Tensor:
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Total, L_sup, L_u, L_dc and mask rate; the gradient flows through the total alone."""
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
    total = labeled + lambda_u * unlabeled + lambda_dc * delta
    return total, labeled.detach(), unlabeled.detach(), delta.detach(), mask.to(wide.dtype).mean()


# ---- Counter-based random numbers and keyed permutations (csrc/math/philox.h, shuffle.h) -------------
# 32-bit words are held in int64. Streams, as in philox.h:
LABELED_ORDER, UNLABELED_DRAW, AUGMENT, SPLIT = range(4)
_WORD = 0xFFFFFFFF
FEISTEL_ROUNDS, FEWEST_BITS = 8, 6


def _multiply(factor: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of factor * word, without leaving int64's range."""
    low_part = factor * (word & 0xFFFF)
    high_part = factor * (word >> 16) + (low_part >> 16)
    return high_part >> 16, ((high_part << 16) | (low_part & 0xFFFF)) & _WORD


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four 32-bit words from a counter of four words and a key of two."""
    x, y, z, w = counter
    key0, key1 = key
    for _ in range(10):
        even_high, even_low = _multiply(0xD2511F53, x)
        odd_high, odd_low = _multiply(0xCD9E8D57, z)
        x, y, z, w = odd_high ^ y ^ key0, odd_low, even_high ^ w ^ key1, even_low
        key0, key1 = (key0 + 0x9E3779B9) & _WORD, (key1 + 0xBB67AE85) & _WORD
    return x, y, z, w


def draw(
    seed: int, step: Tensor, row: Tensor, stream: int, view: int = 0, index: int | Tensor = 0
) -> tuple[Tensor, ...]:
    """The four words of (seed, step, row, stream, view, index); step and row broadcast."""
    step, row = torch.broadcast_tensors(step, row)
    use = torch.zeros_like(row) + ((stream << 24) | (view << 16) | index)
    return philox4x32((use, row, step & _WORD, (step >> 32) & _WORD), (seed & _WORD, (seed >> 32) & _WORD))


def _mix32(word: Tensor) -> Tensor:
    word = word ^ (word >> 16)
    word = _multiply(0x85EBCA6B, word)[1]
    word = word ^ (word >> 13)
    word = _multiply(0xC2B2AE35, word)[1]
    return word ^ (word >> 16)


def permute(position: Tensor, size: int, seed: int, epoch: Tensor, row: Tensor, stream: int) -> Tensor:
    """Image of each position under the permutation of {0..size-1} keyed by (seed, epoch, row, stream)."""
    bits = max(FEWEST_BITS, (size - 1).bit_length())
    high_bits, low_bits = bits // 2, bits - bits // 2
    keys = draw(seed, epoch, row, stream, 0, 0) + draw(seed, epoch, row, stream, 0, 1)

    def feistel(value: Tensor) -> Tensor:
        low, high = value & ((1 << low_bits) - 1), value >> low_bits
        for r in range(0, FEISTEL_ROUNDS, 2):
            high = high ^ (_mix32((low + keys[r]) & _WORD) & ((1 << high_bits) - 1))
            low = low ^ (_mix32((high + keys[r + 1]) & _WORD) & ((1 << low_bits) - 1))
        return (high << low_bits) | low

    value = feistel(position)
    while bool((value >= size).any()):
        value = torch.where(value >= size, feistel(value), value)
    return value


def sample_rows(
    step: Tensor, seed: int, labeled: int, unlabeled: int, batch: int, mu: int
) -> tuple[Tensor, Tensor]:
    """Items of one step (section 7): labeled [B], unlabeled [B, mu]."""
    row = torch.arange(batch, device=step.device)
    slot = step * batch + row
    labeled_items = permute(slot % labeled, labeled, seed, slot // labeled, torch.zeros_like(row), LABELED_ORDER)
    if mu == 0:
        return labeled_items, labeled_items.new_empty(batch, 0)
    position = torch.arange(mu, device=step.device).expand(batch, mu)
    unlabeled_items = permute(position, unlabeled, seed, step.expand(batch, 1), row[:, None], UNLABELED_DRAW)
    return labeled_items, unlabeled_items
