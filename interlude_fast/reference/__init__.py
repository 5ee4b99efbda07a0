"""Every op in plain torch, written from the papers and not from csrc/: what runs where no extension is built,
what the tests hold the kernels against, and the other side of every benchmark."""

from __future__ import annotations

from .augment import augment_views
from .conv import conv3x3
from .losses import circular_shift_fusion, delta_consistency_loss, interlude_loss, pseudo_labels, split_rows
from .optim import sgd_ema_
from .sampling import AUGMENT, LABELED_ORDER, SPLIT, UNLABELED_DRAW, draw, permute, philox4x32, sample_rows

__all__ = [
    "AUGMENT",
    "LABELED_ORDER",
    "SPLIT",
    "UNLABELED_DRAW",
    "augment_views",
    "circular_shift_fusion",
    "conv3x3",
    "delta_consistency_loss",
    "draw",
    "interlude_loss",
    "permute",
    "philox4x32",
    "pseudo_labels",
    "sample_rows",
    "sgd_ema_",
    "split_rows",
]
