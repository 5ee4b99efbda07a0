"""The DALI pipeline on the CPU: `resident`'s batches by another implementation, and files that DALI decodes."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from interlude_fast.data.augment import Policy
from interlude_fast.data.batch import RowOrder, View
from interlude_fast.data.datasets import Dataset, Files, from_arrays
from interlude_fast.data.pipelines import Pipeline, build_pipeline
from interlude_fast.data.pipelines.dali import _decodes
from interlude_fast.data.split import draw_split
from interlude_fast.errors import ConfigError, DataError
from interlude_fast.experiment.run import train_run
from interlude_fast.ops import randaugment_tables
from interlude_fast.reference.augment import GEOMETRIC, OPS, Drawn, apply_ops
from tests.data.test_augment import sample_images
from tests.data.test_batches import BOTH, NO_CHANGE, tiny_source
from tests.helpers import data_config, small_config

pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

CPU = torch.device("cpu")
WEAK: tuple[View, ...] = ("weak",)
STRONG: tuple[View, ...] = ("strong",)
INTERDIGITATED = RowOrder(4, 3, BOTH, BOTH, "interdigitated")


def make(
    name: str,
    dataset: Dataset,
    order: RowOrder,
    policy: Policy,
    seed: int = 0,
    labels: int | None = 6,
    **more: Any,
) -> Pipeline:
    """A pipeline over a dataset with a few labels (None: all); two threads for DALI."""
    split = draw_split(dataset, data_config(labels=labels), seed)
    arguments = {"seed": seed, "device": CPU, "workers": 2, **more}
    return build_pipeline(name, dataset, split, order, policy, **arguments)


def scenes(n: int, side: int = 32, channels: int = 3) -> np.ndarray:
    """Smooth images with some noise: uint8 [n, side, side, channels]."""
    rng = np.random.default_rng(n)
    y, x = np.mgrid[0:side, 0:side] / side
    wave, phase = rng.uniform(1, 7, (2, n, 1, 1, channels)), rng.uniform(0, 6, (n, 1, 1, channels))
    images = np.sin(wave[0] * x[..., None] + wave[1] * y[..., None] + phase)
    images = 255 * (0.5 + 0.4 * images) + rng.normal(0, 4, images.shape)
    return np.clip(images, 0, 255).astype(np.uint8)


def array_source(images: np.ndarray) -> Dataset:
    """Whose normalization leaves pixel values as they are."""
    channels = images.shape[-1]
    pair = (images, np.arange(len(images)) % 3)
    return from_arrays("scenes", pair, None, "abc", mean=(0.0,) * channels, std=(1 / 255,) * channels)


def pixels(images: Tensor) -> Tensor:
    """int64 pixel values, which the batch holds as floats."""
    values = images.round()
    assert (images - values).abs().max() < 1e-3
    return values.long()


@pytest.mark.parametrize("channels", [1, 3])
def test_weak_views_are_the_reference_s_bytes(channels: int) -> None:
    dataset, order = array_source(scenes(200, 33, channels)), RowOrder(40, 3, WEAK, WEAK)
    ours, theirs = (make(name, dataset, order, Policy(flip=True), seed=3) for name in ("dali", "resident"))
    for step in range(3):
        a, b = ours.batch(step), theirs.batch(step)
        assert torch.equal(pixels(a.images), pixels(b.images))
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.unlabeled_items, b.unlabeled_items)
        assert a.images.is_contiguous(memory_format=torch.channels_last)
    ours.close()


def given(op: Tensor, level: Tensor, mirrored: Tensor) -> Drawn:
    """Views of these operations [N] and nothing else."""
    n = len(op)
    zero, box = torch.zeros(n, dtype=torch.int64), torch.tensor([0, 0, -1, -1]).expand(n, 4)
    return Drawn(0, zero > 0, zero, zero, op[:, None], level[:, None], mirrored[:, None], box)


# Largest difference of a pixel and share of pixels that differ. Here only Equalize differs at all; the room is for
# processors that round a product and a sum at once.
TOLERANCE = {
    **dict.fromkeys(OPS, (1, 0.01)),
    **dict.fromkeys(("Identity", "Posterize", "Solarize"), (0, 0.0)),
    **dict.fromkeys(GEOMETRIC, (255, 0.02)),
    "Equalize": (1, 0.5),
}


@pytest.mark.parametrize(("side", "channels", "form"), [(16, 1, "fixmatch"), (32, 3, "fixmatch"), (33, 3, "usb")])
def test_operations_equal_the_reference_at_every_level(
    side: int, channels: int, form: Literal["fixmatch", "usb"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every level of FixMatch's form, and every 89th of USB's."""
    policy = Policy(flip=False, crop=0, n=1, form=form)
    levels = torch.arange(0, len(policy.resolve().magnitudes), 1 if form == "fixmatch" else 89)
    kinds = torch.cartesian_prod(torch.arange(len(OPS)), levels, torch.arange(2))
    op, level, mirrored = kinds.repeat_interleave(5, 0).unbind(1)
    dataset = array_source(np.concatenate([sample_images(side, channels), scenes(5, side, channels)]))
    p = make("dali", dataset, RowOrder(len(op), 1, STRONG, ()), policy, labels=None)
    monkeypatch.setattr(p.feeder.maker, "draw", lambda *_: given(op, level, mirrored > 0))
    ours = pixels(p.batch(0).images)
    p.close()
    images = torch.from_numpy(dataset.images[p.sampler.plan(0).items]).permute(0, 3, 1, 2)
    theirs = apply_ops(images, op, level, mirrored > 0, *randaugment_tables(side, policy.resolve(), CPU)).long()
    for k, name in enumerate(OPS):
        difference = (ours[op == k] - theirs[op == k]).abs()
        most, share = TOLERANCE[name]
        assert int(difference.max()) <= most, name
        assert float((difference > 0).float().mean()) <= share, name


@pytest.mark.parametrize("form", ["fixmatch", "usb"])
def test_strong_views_are_the_same_policy(form: Literal["fixmatch", "usb"]) -> None:
    """The draws are resident's, so statistics agree far within the sampling error, and most views to the byte."""
    dataset, order = array_source(scenes(500)), RowOrder(64, 7, BOTH, BOTH, "interdigitated")
    ours, theirs = (
        make(name, dataset, order, Policy(flip=True, form=form), seed=1) for name in ("dali", "resident")
    )
    a, b = (torch.cat([pixels(p.batch(k).images) for k in range(4)]) for p in (ours, theirs))
    plans = [ours.sampler.plan(k) for k in range(4)]
    drawn = [ours.feeder.maker.draw(plan.keys, plan.views, plan.step) for plan in plans]
    ours.close()
    views, op = torch.cat([plan.views for plan in plans]), torch.cat([d.op for d in drawn])
    assert torch.equal(a[views == 0], b[views == 0])
    strong, equalized = views == 1, (op == OPS.index("Equalize")).any(1)
    assert int(strong.sum()) == 2048
    different = (a != b).flatten(1).float().mean(1)
    assert float(different[~equalized].mean()) < 1e-3
    x, y = a[strong].double(), b[strong].double()
    error = y.mean((2, 3)).std(0) / len(y) ** 0.5  # sampling error of a channel's mean
    assert ((x.mean((0, 2, 3)) - y.mean((0, 2, 3))).abs() < 0.1 * error).all()
    assert ((x.std((0, 2, 3)) / y.std((0, 2, 3)) - 1).abs() < 1e-3).all()
    histograms = [torch.bincount(t.long().flatten(), minlength=256) / t.numel() for t in (x, y)]
    assert float((histograms[0] - histograms[1]).abs().sum()) < 0.02
    fill = torch.tensor(Policy(flip=True, form=form).resolve().fill_of(3))[:, None, None]
    filled = [float((t == fill).all(1).double().mean()) for t in (x, y)]
    assert filled[0] == pytest.approx(filled[1], abs=1e-4)
    assert filled[0] > (0.15 if form == "fixmatch" else 0.05)


@pytest.mark.parametrize(
    "order",
    [
        RowOrder(4, 3, BOTH, BOTH, "interdigitated"),
        RowOrder(4, 3, BOTH, BOTH, "separate"),
        RowOrder(4, 3, WEAK, BOTH, "separate"),
        RowOrder(20, 5, WEAK, ()),
    ],
    ids=["interdigitated", "separate", "labeled weak only", "labeled only"],
)
def test_rows_hold_what_the_order_says(order: RowOrder) -> None:
    p = make("dali", tiny_source(), order, NO_CHANGE)
    batch = p.batch(7)
    p.close()
    assert batch.images.shape == (order.count, 1, 8, 8)
    plan = p.sampler.plan(7)
    assert torch.equal(pixels(batch.images)[:, 0, -1, -1] * (plan.views == 0), plan.items * (plan.views == 0))
    assert torch.equal(batch.labels, plan.labels)
    theirs = make("resident", tiny_source(), order, NO_CHANGE).batch(7)
    assert torch.equal(pixels(batch.images), pixels(theirs.images))


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    dataset, policy = array_source(scenes(60)), Policy(flip=True)
    a, b = (make("dali", dataset, INTERDIGITATED, policy) for _ in range(2))
    first = [a.batch(step).images for step in (5, 6, 7, 8)]
    for step in (3, 6, 2, 8, 5):  # back, ahead by more than what is in work, and within it
        again = a.batch(step).images
        if step >= 5:
            assert torch.equal(again, first[step - 5])
    assert torch.equal(b.batch(7).images, first[2])
    assert not torch.equal(first[0], first[1])
    for p in (a, b):
        p.close()


def test_ranks_take_their_rows_of_one_global_batch() -> None:
    dataset, policy = array_source(scenes(60)), Policy(flip=True)
    whole = make("dali", dataset, INTERDIGITATED, policy)
    halves = [make("dali", dataset, INTERDIGITATED, policy, rank=rank, world=2) for rank in (0, 1)]
    for p in halves:  # a rank makes its own samples only
        assert p.feeder.samples == whole.feeder.samples // 2
    expected, parts = whole.batch(5), [p.batch(5) for p in halves]
    for p in (whole, *halves):
        p.close()
    assert torch.equal(torch.cat([p.images for p in parts]), expected.images)
    assert all(torch.equal(p.labels, expected.labels) for p in parts)


def test_bf16_is_the_same_rounded() -> None:
    dataset = array_source(scenes(60))
    single, half = (
        make("dali", dataset, INTERDIGITATED, Policy(flip=True), dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(single.batch(0).images.bfloat16(), half.batch(0).images)
    for p in (single, half):
        p.close()


# ---- Files -------------------------------------------------------------------------------------------


def squared(image: Image.Image, side: int, fit: str) -> Image.Image:
    """A square by Pillow (Dataset.fit)."""
    width, height = image.size
    linear = Image.Resampling.BILINEAR
    if fit == "stretch":
        return image.resize((side, side), linear)
    edge = max(width, height) if fit == "pad" else min(width, height)
    if fit == "crop":
        left, top = (width - edge) // 2, (height - edge) // 2
        return image.crop((left, top, left + edge, top + edge)).resize((side, side), linear)
    wide, high = ((2 * part * side + edge) // (2 * edge) for part in (width, height))
    square = Image.new(image.mode, (side, side))
    square.paste(image.resize((wide, high), linear), ((side - wide) // 2, (side - high) // 2))
    return square


def file_source(folder: Path, channels: int = 3, fit: str = "crop", side: int = 32) -> Dataset:
    """JPEG and PNG files of several sizes, some grey, and one with transparency, which is not DALI's."""
    sizes = [(32, 32), (64, 48), (33, 90), (20, 28), (100, 67), (31, 32)]
    paths, modes, found, images = [], [], [], []
    for i, picture in enumerate(scenes(24, 100)):
        mode, suffix = ("L" if i % 6 == 5 else "RGB"), ("png", "jpg")[i % 2]
        mode, suffix = ("RGBA", "png") if i == 20 else (mode, suffix)
        image = Image.fromarray(picture).resize(sizes[i % 4 + i % 3]).convert(mode)
        paths.append(f"bild ä {i}.{suffix}")
        image.save(folder / paths[-1])
        with Image.open(folder / paths[-1]) as stored:
            modes.append(stored.mode)
            found.append(stored.size)
            kind = "L" if channels == 1 else "RGB"
            images.append(np.asarray(squared(stored.convert(kind), side, fit)).reshape(side, side, channels))
    hashes = np.array([hashlib.blake2b(p.encode(), digest_size=8).hexdigest() for p in paths], dtype="S16")
    files = Files(folder, tuple(paths), hashes, np.array(found), tuple(modes))
    return replace(array_source(np.stack(images)), files=files, fit=fit)


@pytest.mark.filterwarnings("ignore:pipeline dali decodes")
@pytest.mark.parametrize(("channels", "fit"), [(3, "crop"), (3, "pad"), (3, "stretch"), (1, "crop")])
def test_files_are_decoded_and_fitted_as_the_source_prepares_them(tmp_path: Path, channels: int, fit: str) -> None:
    dataset = file_source(tmp_path, channels, fit)
    p = make("dali", dataset, RowOrder(24, 1, WEAK, ()), NO_CHANGE, labels=None)
    assert p.feeder.decoded.sum() == 23
    items, ours = p.sampler.plan(0).items, pixels(p.batch(0).images).permute(0, 2, 3, 1)
    p.close()
    assert len(items.unique()) == 24
    difference = (ours - torch.from_numpy(dataset.images)[items]).abs().double().mean((1, 2, 3))
    same = torch.from_numpy((dataset.files.sizes == 32).all(1))[items]
    assert float(difference.max()) < 1.0  # another resampling; grey of a colour PNG is cut, not rounded
    assert channels == 1 or not difference[same].any()  # one decoder's pixels


@pytest.mark.filterwarnings("ignore:pipeline dali decodes")
def test_views_of_files_and_prepared_pixels(tmp_path: Path) -> None:
    dataset = file_source(tmp_path)
    ours, theirs = (make(name, dataset, INTERDIGITATED, Policy(flip=True, n=0)) for name in ("dali", "resident"))
    difference = (ours.batch(2).images - theirs.batch(2).images).abs()
    ours.close()
    assert float(difference.mean()) < 0.5
    assert float(difference.max()) <= 8


def test_what_dali_does_not_decode_is_said_once(tmp_path: Path) -> None:
    dataset = file_source(tmp_path)
    with pytest.warns(UserWarning, match="decodes 23 of 24 files") as caught:
        make("dali", dataset, INTERDIGITATED, NO_CHANGE).close()
    assert len(caught) == 1


@pytest.mark.filterwarnings("ignore:pipeline dali decodes")
def test_png_files_that_dali_decodes_otherwise_come_prepared(tmp_path: Path) -> None:
    """A transparent colour is laid on black, and 16 bits a channel are cut, by Pillow's way alone."""
    image = Image.fromarray(scenes(1)[0])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=image.getpixel((3, 3)))
    (tmp_path / "deep.png").write_bytes((tmp_path / "plain.png").read_bytes()[:24] + b"\x10rest IDAT")
    (tmp_path / "photo.JPG").touch()
    (tmp_path / "scan.tiff").touch()
    names = ("plain.png", "clear.png", "deep.png", "photo.JPG", "scan.tiff")
    assert [_decodes(tmp_path / name) for name in names] == [True, False, False, True, False]


def test_a_file_that_is_damaged_later_is_one_line(tmp_path: Path) -> None:
    dataset = file_source(tmp_path)
    (tmp_path / "bild ä 3.jpg").write_bytes(b"no image")
    p = make("dali", dataset, RowOrder(24, 1, WEAK, ()), NO_CHANGE, labels=None)
    with pytest.raises(DataError, match=r"step 0: DALI cannot decode .*bild ä 3.jpg") as error:
        p.batch(0)
    assert "\n" not in str(error.value)
    p.close()


# ---- The rest ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_close_ends_the_threads() -> None:
    before = len(os.listdir("/proc/self/task"))
    p = make("dali", array_source(scenes(60)), INTERDIGITATED, Policy(flip=True), workers=3)
    first = p.batch(0).images
    assert len(os.listdir("/proc/self/task")) >= before + 3
    p.close()
    assert len(os.listdir("/proc/self/task")) <= before
    assert torch.equal(p.batch(0).images, first)  # starts anew
    p.close()


def test_missing_dali_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "interlude_fast.data.pipelines.dali_graph", raising=False)
    monkeypatch.delattr("interlude_fast.data.pipelines.dali_graph", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'interlude-fast\[dali\]'"):
        make("dali", tiny_source(), INTERDIGITATED, NO_CHANGE)


def test_a_run_trains_from_it(tmp_path: Path) -> None:
    config = small_config(train={"steps": 2, "log_every": 1}, data={"pipeline": "dali", "workers": 1})
    result = train_run(config, tmp_path / "run")
    assert 0 <= result.scores["test"]["ema"].error <= 100
