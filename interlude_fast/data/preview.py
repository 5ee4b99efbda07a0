"""A picture of the views that a network is shown."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw

from .augment import Policy, ViewMaker
from .datasets import UNLABELED, Dataset
from .split import Split

GAP, MARGIN, LEAST_SIDE = 4, 90, 64


def choose_items(split: Split, count: int) -> list[int]:
    """At most `count` images, half of them labeled, spread over both sets."""
    only_unlabeled = np.setdiff1d(split.unlabeled, split.labeled)
    labeled = min(len(split.labeled), max(count - count // 2, count - len(only_unlabeled)))
    return [*_spread(split.labeled, labeled), *_spread(only_unlabeled, count - labeled)]


def _spread(indices: np.ndarray, count: int) -> list[int]:
    at = np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)
    return indices[at].tolist()


def preview(
    dataset: Dataset,
    items: list[int],
    policy: Policy,
    *,
    seed: int = 0,
    step: int = 0,
    weak: int = 2,
    strong: int = 4,
) -> Image.Image:
    """A row for each of `items`: class, image, `weak` weak and `strong` strong views, as the fused op draws them
    in steps `step`, `step` + 1, ...; pixels before normalization, small images enlarged."""
    pixels = torch.arange(256, dtype=torch.uint8).repeat(dataset.channels, 1)
    make = ViewMaker(policy, dataset.size, seed, pixels)
    store = torch.from_numpy(np.ascontiguousarray(dataset.images[items]))
    rows = torch.arange(len(items))
    columns = [store.permute(0, 3, 1, 2)]
    for view, count in ((0, weak), (1, strong)):
        for k in range(count):
            columns.append(make(store, rows, rows, torch.full_like(rows, view), torch.tensor(step + k)))
    grid = torch.stack(columns, 1).permute(0, 1, 3, 4, 2).numpy()
    zoom = max(1, -(-LEAST_SIDE // dataset.size))
    side = dataset.size * zoom + GAP
    sheet = Image.new("RGB", (MARGIN + side * grid.shape[1], side * len(items)), "white")
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(grid):
        label = dataset.labels[items[r]]
        draw.text(
            (GAP, r * side + GAP), "unlabeled" if label == UNLABELED else dataset.classes[label][:14], "black"
        )
        for c, image in enumerate(row):
            tile = Image.fromarray(image if dataset.channels == 3 else image[..., 0])
            tile = tile.resize((dataset.size * zoom, dataset.size * zoom), Image.Resampling.NEAREST)
            sheet.paste(tile, (MARGIN + c * side, r * side))
    return sheet
