"""Second views of an image, and how the rows of a batch come apart."""

from __future__ import annotations

import pytest
import torch

from interlude_fast.data.batch import RowOrder
from interlude_fast.data.sampler import Sampler
from interlude_fast.data.store import build_store
from interlude_fast.errors import ConfigError
from interlude_fast.training.setup import load_data, prepare
from tests.helpers import small_config


def plans(labeled: tuple, unlabeled: tuple, **more):
    dataset, split = load_data(small_config())
    store = build_store(dataset, split, torch.device("cpu"))
    order = RowOrder(4, 2, labeled, unlabeled)
    return order, Sampler(store, order, 0, **more).plan(3)


def test_second_views_show_the_same_images_by_draws_of_their_own() -> None:
    order, plan = plans(("weak",), ("weak", "strong", "strong2", "weak2"))
    _, weak, strong, strong2, weak2 = order.split(torch.arange(order.count))
    for other in (strong, strong2, weak2):
        assert torch.equal(plan.items[weak], plan.items[other])
    assert plan.views[torch.cat([weak, weak2])].eq(0).all()
    assert plan.views[torch.cat([strong, strong2])].eq(1).all()
    assert torch.equal(plan.keys[weak], plan.keys[strong])  # views of a kind that differ are told apart by kind
    draws = {(int(k), int(v)) for k, v in zip(plan.keys, plan.views, strict=True)}
    assert len(draws) == order.count


def test_first_views_do_not_depend_on_second_ones() -> None:
    order, plan = plans(("weak",), ("weak", "strong"))
    _, with_second = plans(("weak",), ("weak", "strong", "strong2"))
    n = order.count
    assert torch.equal(plan.keys, with_second.keys[:n])
    assert torch.equal(plan.items, with_second.items[:n])


def test_ranks_share_the_draws_of_second_views() -> None:
    order, plan = plans(("weak", "weak2"), ("weak", "weak2"))
    dataset, split = load_data(small_config())
    store = build_store(dataset, split, torch.device("cpu"))
    ranks = [Sampler(store, order, 0, rank=r, world=3).plan(3) for r in range(3)]
    assert torch.equal(plan.keys, torch.cat([p.keys for p in ranks]))
    assert torch.equal(plan.items, torch.cat([p.items for p in ranks]))


@pytest.mark.parametrize("layout", ["interdigitated", "separate"])
def test_rows_split_by_role(layout: str) -> None:
    order = RowOrder(3, 2, ("weak", "strong"), ("weak", "strong"), layout)
    slot, view = order.rows
    parts = order.split(torch.stack([slot, view], 1))
    expected = [(range(3), 0), (range(3), 1), (range(3, 9), 0), (range(3, 9), 1)]
    assert [(part[:, 0].tolist(), part[:, 1].tolist()) for part in parts] == [
        (list(slots), [v] * len(slots)) for slots, v in expected
    ]


@pytest.mark.parametrize("pipeline", ["resident", "host", "torchvision"])
def test_pipelines_make_second_views(pipeline: str) -> None:
    from interlude_fast.data.pipelines import build_pipeline
    from interlude_fast.training.setup import view_policy

    config = small_config()
    dataset, split = load_data(config)
    order = RowOrder(4, 2, ("weak",), ("weak", "weak2", "strong", "strong2"))
    made = build_pipeline(
        pipeline,
        dataset,
        split,
        order,
        view_policy(config, dataset),
        seed=0,
        device=torch.device("cpu"),
        workers=0,
    )
    _, weak, weak2, strong, strong2 = made.batch(0).split(made.batch(0).images)
    made.close()
    assert not torch.equal(weak, weak2)
    assert not torch.equal(strong, strong2)


def test_the_dali_pipeline_names_the_views_it_does_not_make(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvidia.dali")
    from interlude_fast.methods import METHODS

    monkeypatch.setattr(METHODS["supervised"], "labeled_views", ("weak", "strong2"))
    with pytest.raises(ConfigError, match="this method wants strong2 too"):
        prepare(small_config(method={"name": "supervised"}, data={"pipeline": "dali"}))
