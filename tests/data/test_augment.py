"""Views: equal to Pillow's pixels, drawn from counters alone."""

from __future__ import annotations

import contextlib
import hashlib
import time
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor

from interlude_fast import ops
from interlude_fast.data.augment import Policy, ViewMaker
from interlude_fast.ops import randaugment_tables
from interlude_fast.reference.augment import (
    MAX_BIAS,
    OPS,
    USB_FORM,
    Drawn,
    apply_ops,
    augment,
    draw_views,
    fixmatch_form,
)
from interlude_fast.reference.sampling import AUGMENT, draw

MAGNITUDES = tuple(range(1, 10))
CPU = torch.device("cpu")
UNITS = 1 << 16  # of the square's side in a pixel


def pillow_op(name: str, image: Image.Image, level: int, mirrored: bool) -> Image.Image:
    """RandAugment's table (docs/equations.md) in Pillow."""
    most, bias = MAX_BIAS.get(name, (0, 0))
    value, whole = level * most / 10 + bias, int(level * most / 10) + bias
    signed = -value if mirrored else value
    side = image.size[0]
    affine = {
        "ShearX": (1, signed, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, signed, 1, 0),
        "TranslateX": (1, 0, int(signed * side), 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, int(signed * side)),
    }
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name])
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return getattr(ImageEnhance, name)(image).enhance(value)
    return {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Identity": lambda: image,
        "Posterize": lambda: ImageOps.posterize(image, whole),
        "Rotate": lambda: image.rotate(-whole if mirrored else whole),
        "Solarize": lambda: ImageOps.solarize(image, 256 - whole),
    }[name]()


def sample_images(side: int, channels: int) -> np.ndarray:
    """Noise, dark noise, one value, few values, a bell curve."""
    rng = np.random.default_rng(side * 10 + channels)
    images = rng.integers(0, 256, (5, side, side, channels), dtype=np.uint8)
    images[1] //= 3
    images[2] = 77
    images[3] = images[3] // 64 * 64
    images[4] = np.clip(rng.normal(128, 20, images[4].shape), 0, 255)
    return images


def to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image if image.shape[2] == 3 else image[..., 0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 16, 32, 33])
@pytest.mark.parametrize("name", OPS)
def test_operations_equal_pillow_at_every_level(name: str, side: int, channels: int) -> None:
    images = sample_images(side, channels)
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    tables = randaugment_tables(side, fixmatch_form(), CPU)
    for level, magnitude in enumerate(MAGNITUDES):
        for mirrored in (False, True):
            n = len(images)
            op, at, sign = torch.full((n,), OPS.index(name)), torch.full((n,), level), torch.full((n,), mirrored)
            ours = apply_ops(x, op, at, sign, *tables)
            for image, out in zip(images, ours.permute(0, 2, 3, 1).numpy(), strict=True):
                theirs = np.asarray(pillow_op(name, to_pillow(image), magnitude, mirrored)).reshape(image.shape)
                np.testing.assert_array_equal(out, theirs, err_msg=f"magnitude {magnitude}, mirrored {mirrored}")


def crop(image: np.ndarray, d: Drawn, i: int) -> Image.Image:
    """Flip, then numpy's reflect pad and crop."""
    side = image.shape[0]
    x = image[:, ::-1] if d.flip[i] else image
    x = np.pad(x, ((d.pad, d.pad), (d.pad, d.pad), (0, 0)), mode="reflect")
    x = x[int(d.top[i]) :, int(d.left[i]) :][:side, :side]
    return to_pillow(np.ascontiguousarray(x))


def pillow_view(image: np.ndarray, d: Drawn, i: int) -> np.ndarray:
    """One view, a step at a time."""
    view = crop(image, d, i)
    for op, level, mirrored in zip(d.op[i].tolist(), d.level[i].tolist(), d.mirrored[i].tolist(), strict=True):
        view = pillow_op(OPS[op], view, MAGNITUDES[level], mirrored)
    out = np.array(view).reshape(image.shape)
    x0, y0, x1, y1 = d.box[i].tolist()
    out[y0 : y1 + 1, x0 : x1 + 1] = 127
    return out


def draws(
    policy: Policy, row: Tensor, view: Tensor | int = 1, seed: int = 0, step: int = 0, side: int = 32
) -> Drawn:
    """Parameters of the views of square images."""
    view, form = torch.as_tensor(view).expand(len(row)), policy.resolve()
    pad, square = int(side * policy.crop), int(side * policy.cutout * UNITS)
    how = (policy.flip, pad, form.ops, form.always, square, form.random_square, len(form.magnitudes))
    return draw_views(torch.tensor(step), row, view, seed, side, *how)


@pytest.mark.parametrize("channels", [1, 3])
def test_whole_views_equal_pillow(channels: int) -> None:
    n, side = 64, 32
    images = np.random.default_rng(0).integers(0, 256, (n, side, side, channels), dtype=np.uint8)
    view = torch.arange(n) % 2
    d = draws(Policy(flip=True), torch.arange(n), view, seed=3, step=5)
    ours = augment(
        torch.from_numpy(images), d, (127,) * channels, *randaugment_tables(side, fixmatch_form(), CPU)
    ).numpy()
    # An unflipped crop offset refers to the image after the flip: the gather reads it mirrored.
    for i in range(n):
        np.testing.assert_array_equal(ours[i], pillow_view(images[i], d, i), err_msg=f"view {i}")


# ---- USB's form: real magnitudes, a square of random side ----------------------------------------------

RANGES = {
    **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0.05, 0.95)),
    **dict.fromkeys(("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"), (0.0, 1.0)),  # of |v|
    "Posterize": (4.0, 8.0),
    "Solarize": (0.0, 256.0),
}
SIGNED = {"Rotate": 30.0, **dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY"), 0.3)}


def usb_value(name: str, level: int, mirrored: bool) -> float:
    """The midpoint of the level-th of 1024 parts of the operation's range."""
    low, high = RANGES.get(name, (0.0, 0.0))
    v = low + (high - low) * (level + 0.5) / 1024
    return v * SIGNED.get(name, 1.0) * (-1 if mirrored and name in SIGNED else 1)


def pillow_usb(name: str, image: Image.Image, v: float) -> Image.Image:
    """TorchSSL's operations, as USB has them."""
    side = image.size[0]
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return getattr(ImageEnhance, name)(image).enhance(v)
    affine = {
        "ShearX": (1, v, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, v, 1, 0),
        "TranslateX": (1, 0, v * side, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, v * side),
    }
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name])
    return {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Identity": lambda: image,
        "Posterize": lambda: ImageOps.posterize(image, int(v)),
        "Rotate": lambda: image.rotate(v),
        "Solarize": lambda: ImageOps.solarize(image, v),
    }[name]()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "stride"), [(16, 3), (32, 1), (33, 3), (96, 33), (224, 341)])
@pytest.mark.parametrize("name", OPS)
def test_usb_operations_equal_pillow_at_every_level(name: str, side: int, stride: int, channels: int) -> None:
    """Strides meet the lowest and the highest level, 0 and 1023."""
    images = sample_images(side, channels)[[0, 4] if name in RANGES else slice(None)]
    levels = range(0, 1024, stride) if name in RANGES else (0,)
    signs = (False, True) if name in SIGNED else (False,)
    cases = [(i, level, sign) for i in range(len(images)) for level in levels for sign in signs]
    item, level, sign = (torch.tensor(column) for column in zip(*cases, strict=True))
    x = torch.from_numpy(images).permute(0, 3, 1, 2)[item]
    op = torch.full_like(item, OPS.index(name))
    ours = apply_ops(x, op, level, sign, *randaugment_tables(side, USB_FORM, CPU)).permute(0, 2, 3, 1).numpy()
    pillow = [to_pillow(image) for image in images]
    for k, (i, at, mirrored) in enumerate(cases):
        theirs = np.asarray(pillow_usb(name, pillow[i], usb_value(name, at, mirrored))).reshape(images[i].shape)
        if not np.array_equal(ours[k], theirs):
            np.testing.assert_array_equal(ours[k], theirs, err_msg=f"level {at}, mirrored {mirrored}")


def test_usb_translations_are_whole_pixels_for_large_images() -> None:
    """At 2048 px some levels fall on half a pixel exactly; Pillow decides in double."""
    side, image = 2048, Image.fromarray((np.arange(2048 * 2) % 251).astype(np.uint8).reshape(2, 2048))
    maps = randaugment_tables(side, USB_FORM, CPU)[0][OPS.index("TranslateX")]
    for level in range(2, 1024, 5):  # 3 (2 level + 1) / 10 is an integer and a half
        for mirrored in (False, True):
            v = usb_value("TranslateX", level, mirrored) * side
            moved = image.transform(image.size, Image.Transform.AFFINE, (1, 0, v, 0, 1, 0))
            dataset = np.arange(side) + int(maps[level, int(mirrored), 2] >> 16)
            inside = (dataset >= 0) & (dataset < side)
            expected = np.where(inside, np.asarray(image)[1, dataset.clip(0, side - 1)], 0)
            np.testing.assert_array_equal(np.asarray(moved)[1], expected, err_msg=f"level {level}")


def usb_cutout(image: Image.Image, centre_x: float, centre_y: float, v: float) -> None:
    """TorchSSL's CutoutAbs with its draws given; a grey image takes the fill's luma."""
    side = image.size[0]
    x0, y0 = int(max(0, centre_x - v / 2.0)), int(max(0, centre_y - v / 2.0))
    box = (x0, y0, min(side, x0 + v), min(side, y0 + v))
    ImageDraw.Draw(image).rectangle(box, (125, 123, 114) if image.mode == "RGB" else 123)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "n"), [(32, 400), (33, 400), (96, 40), (224, 16)])
def test_whole_usb_views_equal_pillow(side: int, n: int, channels: int) -> None:
    rows, policy = torch.arange(n), Policy(flip=True, form="usb")
    images = np.random.default_rng(side).integers(0, 256, (n, side, side, channels), dtype=np.uint8)
    table = torch.arange(256, dtype=torch.uint8).repeat(channels, 1)
    make = ViewMaker(policy, side, seed=3, table=table)
    views = make(torch.from_numpy(images), rows, rows, rows % 2, torch.tensor(5))
    ours = views.permute(0, 2, 3, 1).numpy()
    d = draws(policy, rows, rows % 2, seed=3, step=5, side=side)
    words = draw(3, torch.tensor(5), rows, AUGMENT, view=1, index=4)
    for i in range(n):
        view = crop(images[i], d, i)
        if i % 2:
            for op, level, mirrored in zip(
                d.op[i].tolist(), d.level[i].tolist(), d.mirrored[i].tolist(), strict=True
            ):
                view = pillow_usb(OPS[op], view, usb_value(OPS[op], level, mirrored)).copy()
            x, y, z = (int(word[i]) / 2**32 for word in words[:3])
            usb_cutout(view, x * side, y * side, int(z * side / 2 * UNITS) / UNITS)
        np.testing.assert_array_equal(ours[i], np.asarray(view).reshape(images[i].shape), err_msg=f"view {i}")


def test_usb_draws_follow_the_policy() -> None:
    d = draws(Policy(flip=True, form="usb"), torch.arange(8000))
    counts = torch.bincount(d.op.flatten(), minlength=14)
    assert d.op.shape == (8000, 3)
    assert (counts - 24_000 / 14).abs().max() < 5 * (24_000 / 14) ** 0.5  # all 14 alike: always applied
    assert (int(d.level.min()), int(d.level.max())) == (0, 1023)
    assert abs(d.level.float().mean() - 511.5) < 10
    assert abs(d.mirrored.float().mean() - 0.5) < 0.02
    size = (d.box[:, 2:] - d.box[:, :2]).numpy()
    whole = d.box[:, 2:].amax(1).numpy() < 32  # not cut by the image's edge
    np.testing.assert_array_equal(size[whole, 0], size[whole, 1])
    sides = np.bincount(size[:, 0].clip(0), minlength=16)
    assert len(sides) == 16  # from nothing to below half of the image
    assert sides.min() > 300
    assert abs(size.max(1).mean() - 7.5) < 0.3
    assert (int(d.box.min()), int(d.box.max())) == (0, 32)
    weak = draws(Policy(flip=True, form="usb"), torch.arange(100), view=0)
    assert (weak.op == OPS.index("Identity")).all()
    assert (weak.box[:, 2] < weak.box[:, 0]).all()


@pytest.mark.parametrize(("form", "expected"), [("fixmatch", 2), ("usb", 3)])
def test_number_of_operations(form: Any, expected: int) -> None:
    assert Policy(flip=True, form=form).resolve().ops == expected
    assert Policy(flip=True, form=form, n=5).resolve().ops == 5


def test_tables_are_made_at_once() -> None:
    """15,360 maps and values in Python, cached: far less than a second."""
    began = time.process_time()
    affine, values = randaugment_tables(41, USB_FORM, CPU)
    assert time.process_time() - began < 1
    assert affine.shape == (14, 1024, 2, 6)
    assert values.shape == (14, 1024)


# ---- What is drawn ------------------------------------------------------------------------------------


def test_draws_follow_the_policy() -> None:
    d = draws(Policy(flip=True), torch.arange(4000))
    assert 0.45 < d.flip.float().mean() < 0.55
    assert (int(d.top.min()), int(d.top.max())) == (0, 2 * d.pad) == (0, 8)
    assert (int(d.level.min()), int(d.level.max())) == (0, 8)
    share = (d.op == OPS.index("Identity")).float().mean()
    assert abs(share - (0.5 + 0.5 / 14)) < 0.03  # not applied, or Identity drawn
    width = d.box[:, 2] - d.box[:, 0]
    assert int(width.max()) == 16
    assert int(d.box.min()) == 0
    assert int(d.box.max()) == 32


def test_digits_are_not_flipped_and_weak_views_are_only_cropped() -> None:
    assert not draws(Policy(flip=False), torch.arange(100)).flip.any()
    weak = draws(Policy(flip=True), torch.arange(100), view=0)
    assert (weak.op == OPS.index("Identity")).all()
    assert (weak.box[:, 2] < weak.box[:, 0]).all()


def test_draws_are_a_function_of_seed_step_row_and_view() -> None:
    policy, rows = Policy(flip=True), torch.arange(1000)
    same = draws(policy, rows)
    assert torch.equal(draws(policy, rows).top, same.top)
    for other in ({"step": 1}, {"seed": 1}, {"view": 0}):
        assert not torch.equal(draws(policy, rows, **other).top, same.top)
    assert draws(policy, torch.tensor([17])).op.tolist() == same.op[17:18].tolist()


def patterned_store(side: int, channels: int) -> Tensor:
    """uint8 [16, side, side, channels] without a random generator: multiplicative hashing, half of it dark."""
    number = torch.arange(16 * side * side * channels)
    store = ((number * 2654435761) >> 13 & 255).to(torch.uint8).reshape(16, side, side, channels)
    store[1::2] //= 2
    return store


@pytest.mark.parametrize(
    ("channels", "digest"),
    [
        (1, "f161799c7c9ea0fd2e5b0f52484d97bc7b50d261b8a0e59e5f10fd319671f347"),
        (3, "fc5d8989176f65db014ae232702e1891d927401b9ec480f658ea9c34671c3f9f"),
    ],
)
@pytest.mark.parametrize("path", [ops.use_reference, contextlib.nullcontext], ids=["reference", "op"])
def test_bytes_of_the_first_form(path: Any, channels: int, digest: str) -> None:
    """FixMatch's, written down before there was another: 64 views a side, weak and strong in turn."""
    found = hashlib.sha256()
    rows = torch.arange(64)
    table = torch.arange(256, dtype=torch.uint8).repeat(channels, 1)
    for side in (8, 32, 33):
        make = ViewMaker(Policy(flip=True), side, seed=11, table=table)
        with path():
            views = make(patterned_store(side, channels), rows * 5 % 16, rows, rows % 2, torch.tensor(2**33 + 7))
        found.update(views.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    assert found.hexdigest() == digest
