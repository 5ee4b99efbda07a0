"""Ways to make a batch behind one interface, `batch(step) -> Batch`: a file each, and a line each below."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch

from interlude_fast.data.augment import Policy
from interlude_fast.data.batch import RowOrder, View
from interlude_fast.data.datasets import Dataset
from interlude_fast.data.kept import KeptViews
from interlude_fast.data.sampler import Sampler
from interlude_fast.data.split import Split
from interlude_fast.data.store import build_store
from interlude_fast.errors import unknown

from .base import Ingredients, Pipeline

# name -> module with `build(Ingredients) -> Pipeline`; imported when asked for.
PIPELINES: dict[str, str] = {
    "dali": "interlude_fast.data.pipelines.dali",
    "host": "interlude_fast.data.pipelines.host",
    "kept": "interlude_fast.data.pipelines.kept",
    "resident": "interlude_fast.data.pipelines.resident",
    "torchvision": "interlude_fast.data.pipelines.torchvision",
}


def choose_pipeline(wish: str, dataset: Dataset, device: torch.device) -> tuple[str, str]:
    """(pipeline, why): `auto` keeps the images on the device where they take at most half of its free memory.

    Args:
        wish: `auto`, or a pipeline's name, which is taken as it is.
    """
    if wish != "auto":
        return wish, "asked for"
    needed = dataset.images.nbytes
    if device.type == "cpu":
        return "resident", f"{needed / 1e6:,.0f} MB of images in memory or mapped"
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    free, _ = torch.cuda.mem_get_info(device)
    fits = needed <= free / 2
    what = f"{needed / 1e9:.2f} GB of images, {free / 1e9:.1f} GB free on {device}"
    return ("resident", what) if fits else ("host", f"{what}: prefetched from the host")


def check_pipeline(name: str, views: Sequence[View]) -> None:
    """Raises ConfigError where a pipeline's package is not installed, or it does not make one of these views."""
    if name != "auto":
        check = getattr(importlib.import_module(PIPELINES[name]), "check", None)
        if check is not None:
            check(views)


def build_pipeline(
    name: str,
    dataset: Dataset,
    split: Split,
    order: RowOrder,
    policy: Policy,
    *,
    seed: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    workers: int | None = None,
    rank: int = 0,
    world: int = 1,
    kept: KeptViews | None = None,
) -> Pipeline:
    """The pipeline `name` over a dataset's images; its store is `pipeline.sampler.store`.

    Raises:
        ConfigError: no such pipeline, its package is not installed, or it cannot do what the policy asks.
        DataError: mu exceeds the number of unlabeled images.
    """
    if name not in PIPELINES:
        raise unknown("pipeline", name, PIPELINES)
    store = build_store(dataset, split, device, on_host=name != "resident")
    sampler = Sampler(store, order, seed, paired=policy.paired, rank=rank, world=world)
    module = importlib.import_module(PIPELINES[name])
    pipeline: Pipeline = module.build(Ingredients(dataset, sampler, policy, seed, dtype, workers, kept))
    return pipeline


__all__ = ["PIPELINES", "Ingredients", "Pipeline", "build_pipeline", "check_pipeline", "choose_pipeline"]
