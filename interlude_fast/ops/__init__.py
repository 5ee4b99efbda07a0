"""The project's ops: public faces, shape rules and gradient rules.

One op is three hops: the face here -> its schema in csrc/ops.cpp -> csrc/cpu/<op>.cpp or csrc/cuda/<op>.cu,
whose arithmetic stands in csrc/math/. Without the compiled extension the faces call
`interlude_fast.reference`, after one warning.
"""

from __future__ import annotations

from .augment import augment_views, randaugment_tables
from .conv import conv3x3
from .extension import ExtensionStatus, status, use_reference
from .fusion import circular_shift_fusion
from .losses import InterludeLoss, delta_consistency_loss, interlude_loss
from .optim import sgd_ema_
from .sampling import sample_rows

__all__ = [
    "ExtensionStatus",
    "InterludeLoss",
    "augment_views",
    "circular_shift_fusion",
    "conv3x3",
    "delta_consistency_loss",
    "interlude_loss",
    "randaugment_tables",
    "sample_rows",
    "sgd_ema_",
    "status",
    "use_reference",
]
