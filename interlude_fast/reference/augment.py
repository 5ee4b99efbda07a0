"""Weak and strong views in plain torch (docs/equations.md): drawn from counters, computed on uint8 with
Pillow's integer arithmetic, a batch at a time. csrc/math/augment.h is the same for the fused op.

weak: flip, then a crop of the original size after reflect padding. strong: its own flip and crop, RandAugment,
a filled square. The published forms of the last two are FixMatch's and USB's (Form)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from .sampling import AUGMENT, draw

OPS = (
    *("AutoContrast", "Brightness", "Color", "Contrast", "Equalize", "Identity", "Posterize"),
    *("Rotate", "Sharpness", "ShearX", "ShearY", "Solarize", "TranslateX", "TranslateY"),
)
IDENTITY = OPS.index("Identity")
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
ENHANCE = ("Brightness", "Color", "Contrast", "Sharpness")
# The value of magnitude v is v * max / 10 + bias.
MAX_BIAS = {
    **dict.fromkeys(ENHANCE, (0.9, 0.05)),
    **dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY"), (0.3, 0.0)),
    "Posterize": (4, 4),
    "Rotate": (30, 0),
    "Solarize": (256, 0),
}
FIXED = 1 << 16  # Pillow's nearest-neighbour affine map is 16.16 fixed point, and so is the square's side here
USB_LEVELS = 1024


@dataclass(frozen=True)
class Form:
    """What a published form of RandAugment does, with the filled square that follows it.

    magnitudes: of each level, 0 to 10; an operation's value is magnitude * max / 10 + bias (MAX_BIAS).
    whole: degrees, pixels and Solarize's threshold are cut to integers, the last counted from 256.
    ops: operations per view, unless the user says otherwise.
    always: every operation is applied, not each with probability 0.5.
    random_square: the square's side is uniform between 0 and the given one. fill: its RGB value.
    """

    magnitudes: tuple[float, ...] = field(repr=False)
    whole: bool
    ops: int
    always: bool
    random_square: bool
    fill: tuple[int, int, int]

    def fill_of(self, channels: int) -> tuple[int, ...]:
        """The square's value for images of 1 or 3 channels; a grey image takes the luma."""
        r, g, b = self.fill
        return self.fill if channels == 3 else ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16,)


def fixmatch_form(m: int = 10) -> Form:
    """FixMatch's released code, as InterLUDE runs it: magnitudes 1..m-1."""
    return Form(tuple(map(float, range(1, m))), True, 2, False, False, (127, 127, 127))


# TorchSSL's and USB's: magnitudes uniform over the whole range, here the midpoints of 1024 equal parts.
USB_FORM = Form(
    tuple(10 * (level + 0.5) / USB_LEVELS for level in range(USB_LEVELS)), False, 3, True, True, (125, 123, 114)
)


@dataclass(frozen=True)
class Drawn:
    """The parameters of N views: flip bool [N]; top, left int64 [N] (crop offsets, 0..2*pad); op, level int64
    and mirrored bool [N, n]; box int64 [N, 4] = x0, y0, x1, y1 of the square, bounds included."""

    pad: int
    flip: Tensor
    top: Tensor
    left: Tensor
    op: Tensor
    level: Tensor
    mirrored: Tensor
    box: Tensor


def _below(word: Tensor, count: int) -> Tensor:
    """A 32-bit word -> an integer uniform in 0..count-1."""
    return (word * count) >> 32


def draw_views(
    step: Tensor,
    row: Tensor,
    view: Tensor,
    seed: int,
    side: int,
    flip: bool,
    pad: int,
    ops: int,
    always: bool,
    square: int,
    random_square: bool,
    levels: int,
) -> Drawn:
    """Parameters of the views `view` (0 weak, 1 strong; int64 [N]) of rows `row` (int64 [N]) in `step`; the
    policy as for ops.augment_views.

    Philox draws of (seed, step, row, view): index 0 flip and crop, 1..ops the operations, ops + 1 the square.
    """
    n = ops
    index = torch.arange(n + 2, device=row.device)
    use = (view[:, None] << 16) | index  # view and index of reference.draw, one a row and column
    x, y, z, _ = draw(seed, step, row[:, None].expand_as(use), AUGMENT, 0, use)
    strong = view == 1
    chosen = slice(1, n + 1)
    applied = strong[:, None] & ((z[:, chosen] >> 31 == 1) | always)
    # The centre is a real number in [0, side), in units of 2^-32 pixels, the square's side in those of 2^-16.
    centre = torch.stack([x[:, n + 1], y[:, n + 1]], 1) * side
    width = _below(z[:, n + 1 :], square) if random_square else torch.full_like(z[:, n + 1 :], square)
    low = (centre - (width << 15)).clamp(min=0) >> 32
    high = (low + (width >> 16)).clamp(max=side)
    filled = strong[:, None] & (square > 0)
    box = torch.cat([low, torch.where(filled, high, low - 1)], 1)
    return Drawn(
        pad=pad,
        flip=(x[:, 0] >> 31 == 1) & flip,
        top=_below(y[:, 0], 2 * pad + 1),
        left=_below(z[:, 0], 2 * pad + 1),
        op=torch.where(applied, _below(x[:, chosen], len(OPS)), IDENTITY),
        level=_below(y[:, chosen], levels),
        mirrored=(z[:, chosen] >> 30) & 1 == 1,
        box=box,
    )


def augment(images: Tensor, drawn: Drawn, fill: Sequence[int], affine_maps: Tensor, values: Tensor) -> Tensor:
    """uint8 [N, H, W, C] -> the drawn views, uint8 [N, H, W, C]; fill and tables as for ops.augment_views."""
    x = _flip_and_crop(images.permute(0, 3, 1, 2), drawn)
    for i in range(drawn.op.shape[1]):
        x = apply_ops(x, drawn.op[:, i], drawn.level[:, i], drawn.mirrored[:, i], affine_maps, values)
    return _cutout(x, drawn.box, fill).permute(0, 2, 3, 1)


def augment_views(
    store: Tensor,
    items: Tensor,
    rows: Tensor,
    views: Tensor,
    step: Tensor,
    seed: int,
    flip: bool,
    pad: int,
    ops: int,
    always: bool,
    square: int,
    random_square: bool,
    fill: Sequence[int],
    affine_maps: Tensor,
    values: Tensor,
    table: Tensor,
) -> Tensor:
    """Gather, draw, augment and look up the normalized value: what the fused op does in one launch."""
    side, levels = store.shape[1], values.shape[1]
    policy = (flip, pad, ops, always, square, random_square, levels)
    drawn = draw_views(step.reshape(()), rows, views, seed, side, *policy)
    return look_up_values(augment(store[items], drawn, fill, affine_maps, values), table)


def look_up_values(images: Tensor, table: Tensor) -> Tensor:
    """uint8 [N, H, W, C] and a table [C, 256] -> [N, C, H, W], channels-last in memory, of the table's dtype."""
    channel = torch.arange(table.shape[0], device=images.device)
    return table[channel, images.long()].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _flip_and_crop(x: Tensor, d: Drawn) -> Tensor:
    """Flip, reflect-pad, crop: one gather."""
    n, _, height, width = x.shape
    row = _reflect(torch.arange(height, device=x.device) + d.top[:, None] - d.pad, height)
    column = _reflect(torch.arange(width, device=x.device) + d.left[:, None] - d.pad, width)
    column = torch.where(d.flip[:, None], width - 1 - column, column)
    item = torch.arange(n, device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[item, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _reflect(i: Tensor, size: int) -> Tensor:
    i = i.abs()
    return torch.where(i >= size, 2 * (size - 1) - i, i)


def _cutout(x: Tensor, box: Tensor, fill: Sequence[int]) -> Tensor:
    x0, y0, x1, y1 = box.T[:, :, None]
    column, row = (torch.arange(s, device=x.device) for s in (x.shape[3], x.shape[2]))
    inside = ((row >= y0) & (row <= y1))[:, :, None] & ((column >= x0) & (column <= x1))[:, None, :]
    value = torch.tensor(fill, dtype=x.dtype, device=x.device)[:, None, None]
    return torch.where(inside[:, None], value, x)


def apply_ops(
    x: Tensor, op: Tensor, level: Tensor, mirrored: Tensor, affine_maps: Tensor, values: Tensor
) -> Tensor:
    """One RandAugment operation per image of uint8 [N, C, H, W], images grouped by operation."""
    x = x.clone()
    geometric = torch.tensor([name in GEOMETRIC for name in OPS], device=op.device)[op]
    chosen = geometric.nonzero().flatten()
    if len(chosen):
        x[chosen] = affine(x[chosen], affine_maps[op[chosen], level[chosen], mirrored[chosen].long()])
    for k, function in POINTWISE.items():
        chosen = (op == k).nonzero().flatten()
        if len(chosen):
            x[chosen] = function(x[chosen], values[k, level[chosen]][:, None, None, None])
    return x


# ---- Geometric operations ----------------------------------------------------------------------------


def affine(x: Tensor, fixed: Tensor) -> Tensor:
    """Nearest neighbour with fill 0; output (x, y) reads (a x + b y + c, d x + e y + f) >> 16, as Pillow."""
    n, channels, height, width = x.shape
    a, b, c, d, e, f = (v[:, None, None] for v in fixed.T)
    row, column = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
    source_x, source_y = (a * column + b * row + c) >> 16, (d * column + e * row + f) >> 16
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    source = (source_y.clamp(0, height - 1) * width + source_x.clamp(0, width - 1)).reshape(n, 1, -1)
    out = x.reshape(n, channels, -1).gather(2, source.expand(-1, channels, -1)).reshape(x.shape)
    return out.masked_fill(~inside[:, None], 0)


@lru_cache(maxsize=16)
def affine_table(side: int, form: Form) -> Tensor:
    """Fixed-point maps int64 [op, level, mirrored, 6] of the geometric operations."""
    table = torch.zeros(len(OPS), len(form.magnitudes), 2, 6, dtype=torch.int64)
    for name in GEOMETRIC:
        maps = [
            [_map(name, _value(name, v) * sign, side, form.whole) for sign in (1, -1)] for v in form.magnitudes
        ]
        table[OPS.index(name)] = torch.tensor(maps)
    return table


@lru_cache(maxsize=16)
def value_table(form: Form) -> Tensor:
    """float32 [op, level]: enhance factors, bits kept by Posterize, Solarize's threshold; 0 elsewhere."""
    table = torch.zeros(len(OPS), len(form.magnitudes))
    for name in (*ENHANCE, "Posterize", "Solarize"):
        values: list[float] = [_value(name, v) for v in form.magnitudes]
        if name == "Posterize":
            values = [int(v) for v in values]
        if name == "Solarize":  # Pillow keeps values < threshold: a real one is as good as the next integer
            values = [256 - int(v) if form.whole else math.ceil(v) for v in values]
        table[OPS.index(name)] = torch.tensor(values)
    return table


def _value(name: str, magnitude: float) -> float:
    most, bias = MAX_BIAS[name]
    return magnitude * most / 10 + bias


def _map(name: str, value: float, side: int, whole: bool) -> list[int]:
    """Output to input map of one geometric operation in 16.16 fixed point, from what Pillow is given in double."""
    if name == "Rotate":
        return _to_fixed(_rotation(int(value) if whole else value, side))
    if name == "ShearX":
        return _to_fixed([1, value, 0, 0, 1, 0])
    if name == "ShearY":
        return _to_fixed([1, 0, 0, value, 1, 0])
    # Without shear Pillow cuts doubles at pixel centres: a translation is by the nearest whole pixel.
    shift = math.floor((int(value * side) if whole else value * side) + 0.5)
    return _to_fixed([1, 0, shift, 0, 1, 0] if name == "TranslateX" else [1, 0, 0, 0, 1, shift])


def _rotation(degrees: float, side: int) -> list[float]:
    """About the image's centre; Pillow rounds the coefficients to 15 digits."""
    angle = -math.radians(degrees % 360)
    a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
    d, e = round(-math.sin(angle), 15), round(math.cos(angle), 15)
    x = y = side / 2
    return [a, b, a * -x + b * -y + x, d, e, d * -x + e * -y + y]


def _to_fixed(m: list[float]) -> list[int]:
    """16.16 coefficients; the offsets point at pixel centres."""
    a, b, c, d, e, f = m
    return [math.floor(v * FIXED + 0.5) for v in (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)]


# ---- Operations on pixel values ----------------------------------------------------------------------


def _blend(degenerate: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """degenerate + factor * (x - degenerate) in float32, cut to an integer (Image.blend, factors in [0, 1])."""
    base = degenerate.to(torch.float32)
    return (base + factor * (x.to(torch.float32) - base)).to(torch.uint8)


def _grey(x: Tensor) -> Tensor:
    """Pillow's luma of RGB, [N, 1, H, W]; a grey image is its own."""
    if x.shape[1] == 1:
        return x
    r, g, b = x.to(torch.int32).split(1, 1)
    return ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16).to(torch.uint8)


def _brightness(x: Tensor, value: Tensor) -> Tensor:
    return _blend(torch.zeros_like(x), x, value)


def _color(x: Tensor, value: Tensor) -> Tensor:
    return _blend(_grey(x).expand_as(x), x, value)


def _contrast(x: Tensor, value: Tensor) -> Tensor:
    total, pixels = _grey(x).to(torch.int64).sum((1, 2, 3)), x.shape[2] * x.shape[3]
    mean = (2 * total + pixels) // (2 * pixels)  # rounded; on a GPU total / pixels would be by the inverse
    return _blend(mean.to(torch.uint8)[:, None, None, None].expand_as(x), x, value)


def _sharpness(x: Tensor, value: Tensor) -> Tensor:
    """Pillow's SMOOTH kernel (5 in the middle, 1 around, over 13) inside, the border as it is."""
    smooth = x.clone()
    if min(x.shape[2:]) >= 3:
        wide = x.to(torch.int32)
        rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
        total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
        smooth[:, :, 1:-1, 1:-1] = ((2 * total + 13) // 26).to(torch.uint8)
    return _blend(smooth, x, value)


def _posterize(x: Tensor, value: Tensor) -> Tensor:
    return x & (256 - (1 << (8 - value.long()))).to(torch.uint8)


def _solarize(x: Tensor, value: Tensor) -> Tensor:
    return torch.where(x < value, x, 255 - x)


def _look_up(x: Tensor, table: Tensor) -> Tensor:
    """table [N, C, 256] of every channel's values."""
    return table.gather(2, x.flatten(2).to(torch.int64)).to(torch.uint8).reshape(x.shape)


def _autocontrast(x: Tensor, value: Tensor) -> Tensor:
    flat = x.flatten(2).to(torch.float64)
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    scale = torch.full_like(low, 255.0) / (high - low).clamp(min=1)  # 255 / x would take a reciprocal
    values = torch.arange(256, dtype=torch.float64, device=x.device)
    table = (values * scale + -low * scale).clamp(0, 255).to(torch.int64)
    return _look_up(x, torch.where(high > low, table, values.to(torch.int64)))


def _equalize(x: Tensor, value: Tensor) -> Tensor:
    flat = x.flatten(2).to(torch.int64)
    histogram = torch.zeros(*flat.shape[:2], 256, dtype=torch.int64, device=x.device)
    histogram.scatter_add_(2, flat, torch.ones_like(flat))
    last = histogram.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - last) // 255
    before = histogram.cumsum(2) - histogram
    table = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    return _look_up(x, torch.where(step > 0, table, torch.arange(256, device=x.device)))


POINTWISE: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    OPS.index("AutoContrast"): _autocontrast,
    OPS.index("Brightness"): _brightness,
    OPS.index("Color"): _color,
    OPS.index("Contrast"): _contrast,
    OPS.index("Equalize"): _equalize,
    OPS.index("Posterize"): _posterize,
    OPS.index("Sharpness"): _sharpness,
    OPS.index("Solarize"): _solarize,
}
