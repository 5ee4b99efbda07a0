"""The same views as users make them today: Pillow, one image at a time, on one core."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from interlude_fast.reference.augment import GREY, MAX_BIAS, OPS, draw_views


def pillow_op(name: str, image: Image.Image, magnitude: int, mirrored: bool) -> Image.Image:
    """One operation of RandAugment's table (docs/equations.md)."""
    most, bias = MAX_BIAS.get(name, (0, 0))
    value, whole = magnitude * most / 10 + bias, int(magnitude * most / 10) + bias
    signed = -value if mirrored else value
    side = image.size[0]
    affine = Image.Transform.AFFINE
    operations = {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Identity": lambda: image,
        "Posterize": lambda: ImageOps.posterize(image, int(whole)),
        "Rotate": lambda: image.rotate(-whole if mirrored else whole),
        "ShearX": lambda: image.transform(image.size, affine, (1, signed, 0, 0, 1, 0)),
        "ShearY": lambda: image.transform(image.size, affine, (1, 0, 0, signed, 1, 0)),
        "Solarize": lambda: ImageOps.solarize(image, 256 - int(whole)),
        "TranslateX": lambda: image.transform(image.size, affine, (1, 0, int(signed * side), 0, 1, 0)),
        "TranslateY": lambda: image.transform(image.size, affine, (1, 0, 0, 0, 1, int(signed * side))),
    }
    if name in operations:
        return operations[name]()
    return getattr(ImageEnhance, name)(image).enhance(value)


def pillow_views(store: Tensor, items: Tensor, step: int, made: dict[str, Any]) -> Tensor:
    """What ops.augment_views makes of the same arguments, uint8 [N, C, H, W]."""
    pad, side = made["pad"], store.shape[1]
    d = draw_views(
        torch.tensor(step), made["rows"], made["views"], made["seed"], side, made["flip"], pad, made["ops"],
        made["square"], made["values"].shape[1],
    )  # fmt: skip
    flips, tops, lefts = d.flip.tolist(), d.top.tolist(), d.left.tolist()
    op_lists, levels, mirrored, boxes = d.op.tolist(), d.level.tolist(), d.mirrored.tolist(), d.box.tolist()
    views, images = [], store.numpy()
    for i, item in enumerate(items.tolist()):
        image = Image.fromarray(images[item])
        if flips[i]:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        padded = np.pad(np.asarray(image), ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
        image = Image.fromarray(padded).crop((lefts[i], tops[i], lefts[i] + side, tops[i] + side))
        for op, level, sign in zip(op_lists[i], levels[i], mirrored[i], strict=True):
            image = pillow_op(OPS[op], image, level + 1, sign)
        x0, y0, x1, y1 = boxes[i]
        if x1 >= x0:
            image = image.copy()
            ImageDraw.Draw(image).rectangle((x0, y0, x1, y1), (GREY, GREY, GREY))
        views.append(np.asarray(image))
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
