"""Kept views: rows by an image's content, made once, checked, bounded; a batch is a function of seed and step."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interlude_fast.data import kept_rows
from interlude_fast.data.augment import Policy, ViewMaker, normalization_table
from interlude_fast.data.batch import RowOrder
from interlude_fast.data.cache import entries, remove
from interlude_fast.data.datasets import TEST, TRAIN, Dataset, from_parts
from interlude_fast.data.kept import Front, KeptViews, plan_views
from interlude_fast.data.pipelines import build_pipeline
from interlude_fast.data.pipelines.kept import KeptPipeline
from interlude_fast.data.split import draw_split
from interlude_fast.errors import ConfigError, DataError
from interlude_fast.options import DataConfig, KeptConfig

SIDE, CLASSES = 8, 3
OPTIONS = KeptConfig(weak=3, strong=4)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def dataset(train: np.ndarray, test: np.ndarray | None = None) -> Dataset:
    parts = [(TRAIN, train, np.arange(len(train)) % CLASSES)]
    parts += [(TEST, test, np.arange(len(test)) % CLASSES)] if test is not None else []
    return from_parts("noise", parts, "abc", mean=(0.5,) * 3, std=(0.5,) * 3)


class Counting:
    """A front that counts what passes it: it halves the images' sides and doubles their values."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return 2 * torch.nn.functional.avg_pool2d(x, 2)


CUT = SimpleNamespace(place="stage", number=1, places=("stage",), shape=(3, SIDE // 2, SIDE // 2))


def keep(data: Dataset, cache: Path, front: Counting, options: KeptConfig = OPTIONS, **more: Any) -> KeptViews:
    table = normalization_table(data.mean, data.std, torch.float32, torch.device("cpu"))
    maker = ViewMaker(Policy(flip=True), data.size, 0, table)

    def normalize(pixels: Tensor) -> Tensor:
        return (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5

    fingerprint = more.pop("fingerprint", "front")
    made = Front(front, front, fingerprint, torch.device("cpu"))
    return KeptViews(data, maker, normalize, "noise", lambda: made, CUT, options, cache, **more)


def test_rows_are_those_of_the_front(tmp_path: Path) -> None:
    data, front = dataset(images(20), images(6, 1)), Counting()
    kept = keep(data, tmp_path, front)
    items = torch.tensor([3, 25, 0])
    expected = front(kept.normalize(torch.from_numpy(data.images[items.numpy()])))
    assert torch.equal(kept.plain(items), expected)
    assert kept.plain(items).is_contiguous(memory_format=torch.channels_last)
    for kind, take in enumerate((kept.weak, kept.strong)):
        for n in range((3, 4)[kind]):
            keys = torch.tensor([int(data.hashes[i][:8], 16) >> 1 for i in (3, 0)])
            where, view = torch.tensor([3, 0]), torch.full((2,), kind)
            drawn = kept.maker(torch.from_numpy(data.images), where, keys, view, torch.tensor(n))
            assert torch.equal(take(where, torch.full((2,), n)), front(drawn).bfloat16())


def test_they_are_made_once_and_read_by_the_next(tmp_path: Path) -> None:
    data, front = dataset(images(20), images(6, 1)), Counting()
    first = keep(data, tmp_path, front)
    assert first.missing() == 26 + 20 * 7
    rows = first.strong(torch.arange(20), torch.full((20,), 3))
    assert front.rows == 26 + 20 * 7
    assert first.missing() == 0
    again = keep(data, tmp_path, front)
    assert again.missing() == 0
    assert torch.equal(again.strong(torch.arange(20), torch.full((20,), 3)), rows)
    assert front.rows == 26 + 20 * 7


def test_more_images_cost_what_they_are(tmp_path: Path) -> None:
    few, many, front = images(20), np.concatenate([images(5, 7), images(20)]), Counting()
    old = keep(dataset(few), tmp_path, front).weak(torch.tensor([4]), torch.tensor([2]))
    before = front.rows
    grown = keep(dataset(many), tmp_path, front)
    assert torch.equal(grown.weak(torch.tensor([9]), torch.tensor([2])), old)  # the same image, elsewhere
    assert front.rows == before + 5 * 8


def test_equal_images_are_kept_once(tmp_path: Path) -> None:
    data, front = dataset(np.concatenate([images(6), images(6)])), Counting()
    kept = keep(data, tmp_path, front)
    assert torch.equal(kept.plain(torch.tensor([2])), kept.plain(torch.tensor([8])))
    assert front.rows == 6 * 8


def test_without_strong_views(tmp_path: Path) -> None:
    front, data = Counting(), dataset(images(10))
    keep(data, tmp_path, front, strong=False).weak(torch.tensor([1]), torch.tensor([1]))
    assert front.rows == 10 * 4
    keep(data, tmp_path, front).strong(torch.tensor([1]), torch.tensor([1]))
    assert front.rows == 10 * 8  # the plain and the weak ones are shared


@pytest.mark.parametrize("change", ["front", "views"])
def test_another_front_or_other_views_have_files_of_their_own(change: str, tmp_path: Path) -> None:
    data, front = dataset(images(10)), Counting()
    keep(data, tmp_path, front).opened()
    other = keep(data, tmp_path, front, fingerprint="another" if change == "front" else "front")
    if change == "views":
        other.maker = ViewMaker(Policy(flip=False), SIDE, 0, other.maker.table)
    assert other.missing() == 10 * 8


def test_what_a_killed_process_left_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, front = dataset(images(40)), Counting()
    monkeypatch.setattr(kept_rows, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(kept_rows, "AT_A_TIME", 8)

    def dies(x: Tensor) -> Tensor:
        if front.rows > 100:
            raise KeyboardInterrupt
        return front(x)

    with pytest.raises(KeyboardInterrupt):
        keep(data, tmp_path, dies).opened()  # type: ignore[arg-type]
    reached = front.rows
    whole = keep(data, tmp_path / "other", Counting())
    again = keep(data, tmp_path, front)
    items, numbers = torch.arange(40), torch.full((40,), 3)
    assert torch.equal(again.strong(items, numbers), whole.strong(items, numbers))
    assert front.rows - reached < 40 * 8


def test_damaged_rows_are_made_again(tmp_path: Path) -> None:
    data, front, said = dataset(images(20)), Counting(), []
    kept = keep(data, tmp_path, front)
    items, numbers = torch.arange(20), torch.full((20,), 1)
    expected = kept.strong(items, numbers).clone()
    (file,) = (tmp_path / "kept").glob("*/strong4.bin")
    with file.open("r+b") as bytes_of:
        bytes_of.seek(file.stat().st_size // 2)
        bytes_of.write(b"\xff" * 64)
    progress = SimpleNamespace(start=lambda *_: None, advance=lambda _: None, done=lambda: None, note=said.append)
    again = keep(data, tmp_path, front, progress=progress)
    assert torch.equal(again.strong(items, numbers), expected)
    assert "is damaged from image 10 on" in said[0]
    (tmp_path / "kept" / file.parent.name / "index.npz").write_bytes(b"nothing")
    assert torch.equal(keep(data, tmp_path, front).strong(items, numbers), expected)


def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, front = dataset(images(20)), Counting()
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda path: free)
        with pytest.raises(DataError, match=r"has no room: .* needed"):
            keep(data, tmp_path, front).opened()
    assert front.rows == 0
    assert len(keep(data, tmp_path, front).plain(torch.arange(20))) == 20


def test_activations_that_are_not_finite_name_the_image(tmp_path: Path) -> None:
    data = dataset(images(20))
    kept = keep(data, tmp_path, lambda x: Counting()(x) / 0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="activations of image 0 are NaN or infinite"):
        kept.opened()


def test_the_cache_lists_and_removes_them(tmp_path: Path) -> None:
    keep(dataset(images(10)), tmp_path, Counting()).opened()
    (entry,) = entries(tmp_path)
    assert entry.kept
    assert entry.bytes > 10 * (4 + 2 * 7) * 48
    assert remove(tmp_path, entry.key[:8]) == [entry]
    assert entries(tmp_path) == []


def test_bytes_are_bounded() -> None:
    row = 2 * 100
    all_of_them = plan_views(KeptConfig(), (100,), 1000, 0)
    assert (all_of_them.weak, all_of_them.strong, all_of_them.why) == (4, 12, "")
    assert all_of_them.nbytes == 1000 * (400 + 16 * row)
    fewer = plan_views(KeptConfig(most_gb=(400 + 8 * row) * 1000 / 1e9), (100,), 1000, 0)
    assert (fewer.weak, fewer.strong) == (2, 6)
    assert "8 views an image, not 16" in fewer.why
    assert fewer.nbytes <= (400 + 8 * row) * 1000
    weak = plan_views(KeptConfig(most_gb=(400 + 2 * row) * 1000 / 1e9), (100,), 1000, 0, strong=False)
    assert (weak.weak, weak.strong) == (2, 0)
    with pytest.raises(DataError, match=r"take 0\.0 GB at least.*raise it, lower data.size, cut later"):
        plan_views(KeptConfig(most_gb=0.0001), (100,), 1000, 0)


def pipeline(tmp_path: Path, seed: int = 0, views: tuple = ("weak", "strong"), **more: Any) -> KeptPipeline:
    data = dataset(images(30))
    split = draw_split(data, DataConfig(labels=6), 0)
    order = RowOrder(6, 3, ("weak", "strong"), views, **more)
    made = build_pipeline(
        "kept",
        data,
        split,
        order,
        Policy(flip=True),
        seed=seed,
        device=torch.device("cpu"),
        kept=keep(data, tmp_path, Counting()),
    )
    assert isinstance(made, KeptPipeline)
    return made


def test_a_batch_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    one = [pipeline(tmp_path).batch(k).images for k in (0, 1, 2, 50)]
    other = pipeline(tmp_path)
    assert all(torch.equal(other.batch(k).images, x) for k, x in zip((50, 2, 1, 0), reversed(one), strict=True))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(pipeline(tmp_path, seed=1).batch(0).images, one[0])
    assert one[0].is_contiguous(memory_format=torch.channels_last)


def test_rows_show_the_images_of_the_plan_in_their_kind_of_view(tmp_path: Path) -> None:
    made = pipeline(tmp_path)
    plan, batch = made.sampler.plan(7), made.batch(7)
    numbers = made.numbers(plan)
    for row in range(len(numbers)):
        take = made.kept.strong if plan.views[row] else made.kept.weak
        assert torch.equal(batch.images[row], take(plan.items[row : row + 1], numbers[row : row + 1])[0].float())


def test_every_view_is_shown_and_second_views_are_others(tmp_path: Path) -> None:
    made = pipeline(tmp_path, views=("weak", "strong", "weak2", "strong2"))
    shown: dict[int, set[int]] = {0: set(), 1: set()}
    for step in range(30):
        plan = made.sampler.plan(step)
        numbers = made.numbers(plan)
        parts = made.sampler.order.split(numbers)
        assert not (parts[2] == parts[4]).any()
        assert not (parts[3] == parts[5]).any()
        for kind in (0, 1):
            shown[kind] |= set(numbers[plan.views == kind].tolist())
    assert shown == {0: {0, 1, 2}, 1: {0, 1, 2, 3}}


def test_joined_labels_repeat(tmp_path: Path) -> None:
    made = pipeline(tmp_path, joined=True)
    batch = made.batch(3)
    labeled, weak, strong = batch.split(batch.images)
    assert len(labeled) == len(batch.labels) == 12
    assert len(weak) == len(strong) == 18
    assert torch.equal(batch.labels[:6], batch.labels[6:])


def test_it_wants_a_front() -> None:
    data = dataset(images(30))
    split = draw_split(data, DataConfig(labels=6), 0)
    order = RowOrder(6, 3, ("weak",), ("weak",))
    with pytest.raises(ConfigError, match="wants a network with a frozen front"):
        build_pipeline("kept", data, split, order, Policy(flip=True), seed=0, device=torch.device("cpu"))


def test_the_split_does_not_enter_the_key(tmp_path: Path) -> None:
    data, front = dataset(images(30)), Counting()
    keep(data, tmp_path, front).opened()
    relabeled = replace(data, labels=np.where(np.arange(30) < 10, -1, data.labels))
    assert keep(relabeled, tmp_path, front).missing() == 0
