"""Splits, row order, sampling and the resident pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from interlude_fast.data.augment import Policy
from interlude_fast.data.batch import RowOrder
from interlude_fast.data.datasets import TEST, TRAIN, Dataset, from_arrays, load_dataset
from interlude_fast.data.pipelines import Pipeline, build_pipeline
from interlude_fast.data.split import draw_split
from interlude_fast.errors import ConfigError, DataError
from tests.helpers import data_config

BOTH = ("weak", "strong")


def tiny_source(n: int = 60, classes: int = 3) -> Dataset:
    """Image i is filled with the value i, so that a row tells where it came from."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 8, 8, 1)).copy()
    labels = np.arange(n) % classes
    pair = (images, labels)
    return from_arrays("tiny", pair, pair, [*map(str, range(classes))], mean=(0.0,), std=(1 / 255,), flip=False)


def pipeline(
    order: RowOrder, policy: Policy, seed: int = 0, rank: int = 0, world: int = 1, **data: bool
) -> Pipeline:
    dataset = tiny_source()
    split = draw_split(dataset, data_config(labels=6, **data), seed)
    where = {"seed": seed, "device": torch.device("cpu"), "rank": rank, "world": world}
    return build_pipeline("resident", dataset, split, order, policy, **where)


NO_CHANGE = Policy(flip=False, crop=0, n=0, cutout=0)


def test_interdigitated_rows_are_group_after_group() -> None:
    slot, view = RowOrder(2, 3, BOTH, BOTH, "interdigitated").rows
    assert slot.tolist() == [0, 2, 3, 4, 0, 2, 3, 4, 1, 5, 6, 7, 1, 5, 6, 7]
    assert view.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] * 2


def test_separate_rows_are_role_after_role() -> None:
    slot, view = RowOrder(2, 2, BOTH, BOTH, "separate").rows
    assert slot.tolist() == [0, 1, 0, 1, 2, 3, 4, 5, 2, 3, 4, 5]
    assert view.tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]


def test_interdigitated_wants_the_same_views() -> None:
    with pytest.raises(ValueError, match="same views"):
        RowOrder(2, 2, ("weak",), BOTH, "interdigitated")


@pytest.mark.parametrize("layout", ["interdigitated", "separate"])
def test_rows_hold_what_the_order_says(layout: str) -> None:
    order = RowOrder(4, 3, BOTH, BOTH, layout)
    p = pipeline(order, NO_CHANGE)
    batch = p.batch(7)
    assert batch.images.shape == (order.count, 1, 8, 8)
    value = batch.images[:, 0, 0, 0].round().long()
    slot, _ = order.rows
    labeled = value[[int((slot == i).nonzero()[0]) for i in range(4)]]
    assert torch.equal(batch.labels, labeled % 3)  # tiny_source: class = image number mod 3
    assert set(labeled.tolist()) <= set(p.sampler.store.labeled.tolist())
    for s in range(order.batch * (1 + order.mu)):  # both views show the same image
        assert len(set(value[slot == s].tolist())) == 1
    unlabeled = value[[int((slot == s).nonzero()[0]) for s in range(4, 16)]].reshape(4, 3)
    assert torch.equal(p.sampler.store.unlabeled[batch.unlabeled_items], unlabeled)


@pytest.mark.parametrize("form", ["fixmatch", "usb"])
def test_a_batch_depends_on_seed_and_step_alone(form: Any) -> None:
    order, policy = RowOrder(4, 3, BOTH, BOTH, "interdigitated"), Policy(flip=True, form=form)
    a = pipeline(order, policy)
    for step in (3, 1, 2):
        a.batch(step)
    assert torch.equal(a.batch(5).images, pipeline(order, policy).batch(5).images)
    assert not torch.equal(a.batch(5).images, a.batch(6).images)


def test_paired_views_share_their_parameters() -> None:
    order = RowOrder(4, 3, BOTH, BOTH, "interdigitated")
    p = pipeline(order, Policy(flip=True, paired=True))
    group = p.sampler.keys.reshape(4, 2, 4)
    assert torch.equal(group, torch.arange(4)[:, None, None].expand(4, 2, 4))


def test_batch_larger_than_the_labeled_set_and_labeled_only() -> None:
    order = RowOrder(20, 5, ("weak",), ())
    batch = pipeline(order, Policy(flip=False)).batch(0)
    assert batch.images.shape[0] == 20
    assert torch.bincount(batch.labels, minlength=3).min() >= 6


def test_labeled_images_can_be_kept_out_of_the_unlabeled_set() -> None:
    store = pipeline(RowOrder(2, 2, BOTH, BOTH), NO_CHANGE, unlabeled_includes_labeled=False).sampler.store
    assert not set(store.unlabeled.tolist()) & set(store.labeled.tolist())
    assert len(store.unlabeled) == 54


@pytest.mark.parametrize("layout", ["interdigitated", "separate"])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_take_their_rows_of_one_global_batch(world: int, layout: str) -> None:
    order, policy = RowOrder(4, 3, BOTH, BOTH, layout), Policy(flip=True)
    whole = pipeline(order, policy).batch(5)
    parts = [pipeline(order, policy, rank=r, world=world).batch(5) for r in range(world)]
    assert torch.equal(torch.cat([p.images for p in parts]), whole.images)
    assert {len(p.images) for p in parts} == {order.count // world}
    for part in parts:  # what is not pixels is of the whole step
        assert torch.equal(part.labels, whole.labels)
        assert torch.equal(part.unlabeled_items, whole.unlabeled_items)
        assert part.order == order


def test_mu_beyond_the_unlabeled_set() -> None:
    with pytest.raises(DataError, match="mu = 61"):
        pipeline(RowOrder(2, 61, BOTH, BOTH), NO_CHANGE)


def test_digits_are_real_scans_with_a_fixed_test_split() -> None:
    dataset = load_dataset(data_config(dataset="digits"))
    assert dataset.images.shape == (1797, 16, 16, 1)
    assert len(dataset.indices(TRAIN)) == 1437
    assert not dataset.flip
    assert np.bincount(dataset.labels[dataset.indices(TEST)]).tolist() == [36] * 10


def test_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown dataset 'cifar-10'; did you mean 'cifar10'"):
        load_dataset(data_config(dataset="cifar-10"))
