"""Splits, row order, sampling and the resident pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interlude_fast.data.augment import Policy
from interlude_fast.data.batch import RowOrder
from interlude_fast.data.pipelines import ResidentPipeline
from interlude_fast.data.sources import Source, load_source
from interlude_fast.data.split import choose_labeled
from interlude_fast.data.store import build_store
from interlude_fast.errors import ConfigError, DataError

BOTH = ("weak", "strong")


def tiny_source(n: int = 60, classes: int = 3) -> Source:
    """Image i is filled with the value i, so that a row tells where it came from."""
    images = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 8, 8, 1)).copy()
    labels = np.arange(n) % classes
    names = tuple(map(str, range(classes)))
    return Source("tiny", images, labels, images, labels, names, (0.0,), (1 / 255,), flip=False)


def pipeline(order: RowOrder, policy: Policy, seed: int = 0, **store: bool) -> ResidentPipeline:
    source = tiny_source()
    built = build_store(source, 6, seed, store.get("unlabeled_includes_labeled", True), torch.device("cpu"))
    return ResidentPipeline(built, order, policy, source.mean, source.std, seed)


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
    assert set(labeled.tolist()) <= set(p.store.labeled.tolist())
    for s in range(order.batch * (1 + order.mu)):  # both views show the same image
        assert len(set(value[slot == s].tolist())) == 1
    unlabeled = value[[int((slot == s).nonzero()[0]) for s in range(4, 16)]].reshape(4, 3)
    assert torch.equal(p.store.unlabeled[batch.unlabeled_items], unlabeled)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    order, policy = RowOrder(4, 3, BOTH, BOTH, "interdigitated"), Policy(flip=True)
    a = pipeline(order, policy)
    for step in (3, 1, 2):
        a.batch(step)
    assert torch.equal(a.batch(5).images, pipeline(order, policy).batch(5).images)
    assert not torch.equal(a.batch(5).images, a.batch(6).images)


def test_paired_views_share_their_parameters() -> None:
    order = RowOrder(4, 3, BOTH, BOTH, "interdigitated")
    p = pipeline(order, Policy(flip=True, paired=True))
    group = p.draw_row.reshape(4, 2, 4)
    assert torch.equal(group, torch.arange(4)[:, None, None].expand(4, 2, 4))


def test_batch_larger_than_the_labeled_set_and_labeled_only() -> None:
    order = RowOrder(20, 5, ("weak",), ())
    batch = pipeline(order, Policy(flip=False)).batch(0)
    assert batch.images.shape[0] == 20
    assert torch.bincount(batch.labels, minlength=3).min() >= 6


def test_labeled_images_can_be_kept_out_of_the_unlabeled_set() -> None:
    store = pipeline(RowOrder(2, 2, BOTH, BOTH), NO_CHANGE, unlabeled_includes_labeled=False).store
    assert not set(store.unlabeled.tolist()) & set(store.labeled.tolist())
    assert len(store.unlabeled) == 54


def test_the_split_is_balanced_and_follows_the_seed() -> None:
    labels = torch.arange(60) % 3
    chosen = choose_labeled(labels, 12, 3, seed=0)
    assert torch.bincount(labels[chosen]).tolist() == [4, 4, 4]
    assert torch.equal(chosen, choose_labeled(labels, 12, 3, seed=0))
    assert not torch.equal(chosen, choose_labeled(labels, 12, 3, seed=1))


@pytest.mark.parametrize(
    ("count", "message"),
    [(2, "2 labels for 3 classes"), (10, "do not divide over 3 classes; 9 or 12 do"), (63, "only 60")],
)
def test_label_counts_that_do_not_fit(count: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose_labeled(torch.arange(60) % 3, count, 3, seed=0)


def test_a_class_with_too_few_images() -> None:
    with pytest.raises(DataError, match="class 1 has 2 training images"):
        choose_labeled(torch.tensor([0] * 20 + [1] * 2), 10, 2, seed=0)


def test_mu_beyond_the_unlabeled_set() -> None:
    with pytest.raises(DataError, match="mu = 61"):
        pipeline(RowOrder(2, 61, BOTH, BOTH), NO_CHANGE)


def test_digits_are_real_scans_with_a_fixed_test_split() -> None:
    source = load_source("digits")
    assert source.images.shape == (1437, 16, 16, 1)
    assert source.test_images.shape == (360, 16, 16, 1)
    assert not source.flip
    assert np.bincount(source.test_labels).tolist() == [36] * 10


def test_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown data set 'cifar-10'; did you mean 'cifar10'"):
        load_source("cifar-10")
