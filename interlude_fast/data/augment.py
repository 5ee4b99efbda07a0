"""What weak and strong views are (docs/equations.md), prepared for the fused op once per run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interlude_fast.ops import augment_views, randaugment_tables


@dataclass(frozen=True)
class Policy:
    """How views are drawn; fields as in config.AugmentConfig."""

    flip: bool
    crop: float = 0.125
    n: int = 2
    m: int = 10
    cutout: float = 0.5
    paired: bool = False


def normalization_table(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[C, 256]: (value / 255 - mean) / std of every channel and pixel value, computed in float32."""
    value = torch.arange(256, dtype=torch.float32, device=device) / 255
    centre, scale = (torch.tensor(t, device=device)[:, None] for t in (mean, std))
    return ((value - centre) / scale).to(dtype)


class ViewMaker:
    """Makes the views of a batch's rows from a uint8 store.

    Args:
        side: of the square images. table: [C, 256], see normalization_table; its dtype is the views'.
    """

    def __init__(self, policy: Policy, side: int, seed: int, table: Tensor) -> None:
        self.seed, self.table, self.flip, self.n = seed, table, policy.flip, policy.n
        self.pad, self.square = int(side * policy.crop), int(side * policy.cutout)
        magnitudes = tuple(float(v) for v in range(1, policy.m))
        self.affine, self.values = randaugment_tables(side, magnitudes, table.device)

    def __call__(self, store: Tensor, items: Tensor, rows: Tensor, views: Tensor, step: Tensor) -> Tensor:
        """Views [N, C, H, W] of store[items]; rows key the draws, views are 0 (weak) or 1 (strong)."""
        return augment_views(
            store,
            items,
            rows,
            views,
            step,
            seed=self.seed,
            flip=self.flip,
            pad=self.pad,
            ops=self.n,
            square=self.square,
            affine=self.affine,
            values=self.values,
            table=self.table,
        )
