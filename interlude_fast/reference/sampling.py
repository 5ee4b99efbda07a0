"""Counter-based random numbers, keyed permutations and the rows of a step in plain torch: the same integers as
csrc/math/philox.h and shuffle.h. 32-bit words are held in int64."""

from __future__ import annotations

import torch
from torch import Tensor

# Streams, as in philox.h:
LABELED_ORDER, UNLABELED_DRAW, AUGMENT, SPLIT, KEPT = range(5)
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
