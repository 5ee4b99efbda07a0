"""What weak and strong views are (docs/equations.md), prepared for the fused op once per run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from interlude_fast.ops import augment_views, randaugment_tables
from interlude_fast.reference.augment import FIXED, USB_FORM, Drawn, Form, draw_views, fixmatch_form


@dataclass(frozen=True)
class Policy:
    """How views are drawn; fields as in config.AugmentConfig."""

    flip: bool
    crop: float = 0.125
    n: int | None = None
    m: int = 10
    cutout: float = 0.5
    paired: bool = False
    form: Literal["fixmatch", "usb"] = "fixmatch"

    def resolve(self) -> Form:
        """The published form; n replaces its number of operations."""
        form = USB_FORM if self.form == "usb" else fixmatch_form(self.m)
        return form if self.n is None else replace(form, ops=self.n)


def normalization_table(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[C, 256]: (value / 255 - mean) / std of every channel and pixel value, computed in float32.
    By the host: a GPU divides by a number as if it multiplied by its inverse, which rounds otherwise."""
    value = torch.arange(256, dtype=torch.float32) / 255
    centre, scale = (torch.tensor(t)[:, None] for t in (mean, std))
    return ((value - centre) / scale).to(device, dtype)


class ViewMaker:
    """Makes the views of a batch's rows from a uint8 store.

    Args:
        side: of the square images. table: [C, 256], see normalization_table; its dtype is the views'.
    """

    def __init__(self, policy: Policy, side: int, seed: int, table: Tensor) -> None:
        self.side, self.pad, self.form = side, int(side * policy.crop), policy.resolve()
        self.table, self.fill = table, self.form.fill_of(table.shape[0])
        square = side * policy.cutout
        self.settings: dict[str, Any] = {  # what draws and views have in common
            "seed": seed,
            "flip": policy.flip,
            "pad": self.pad,
            "ops": self.form.ops,
            "always": self.form.always,
            "square": int(square * FIXED) if self.form.random_square else int(square) * FIXED,
            "random_square": self.form.random_square,
        }
        self.affine, self.values = randaugment_tables(side, self.form, table.device)

    def __call__(self, store: Tensor, items: Tensor, rows: Tensor, views: Tensor, step: Tensor) -> Tensor:
        """Views [N, C, H, W] of store[items]; rows key the draws, views are 0 (weak) or 1 (strong)."""
        tables: dict[str, Any] = {
            "fill": self.fill,
            "affine": self.affine,
            "values": self.values,
            "table": self.table,
        }
        return augment_views(store, items, rows, views, step, **self.settings, **tables)

    def draw(self, rows: Tensor, views: Tensor, step: Tensor) -> Drawn:
        """What the call draws, for pipelines that make the views otherwise."""
        return draw_views(step, rows, views, side=self.side, levels=self.values.shape[1], **self.settings)
