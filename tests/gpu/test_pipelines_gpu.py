"""Pipelines on a GPU: equal bytes while copies and kernels run ahead of the host, and behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interlude_fast import ops
from interlude_fast.data.augment import Policy
from interlude_fast.data.batch import RowOrder
from interlude_fast.data.datasets import Dataset, from_arrays
from interlude_fast.data.pipelines import Pipeline, build_pipeline, choose_pipeline
from interlude_fast.data.pipelines.host import HostPipeline
from interlude_fast.data.split import draw_split
from tests.helpers import data_config

CUDA = torch.device("cuda")
STEPS = 20

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not ops.status().runs_on(CUDA), reason=f"no CUDA kernels: {ops.status().why_not}"),
]


def dataset(side: int = 96) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (1500, side, side, 3), dtype=np.uint8)
    pair = (images, np.arange(len(images)) % 10)
    return from_arrays("noise", pair, None, [*map(str, range(10))], mean=(0.4,) * 3, std=(0.3,) * 3)


def build(name: str, of: Dataset, device: torch.device = CUDA, workers: int | None = 2) -> Pipeline:
    order = RowOrder(32, 7, ("weak", "strong"), ("weak", "strong"), "interdigitated")
    split = draw_split(of, data_config(labels=100), 0)
    return build_pipeline(name, of, split, order, Policy(flip=True), seed=1, device=device, workers=workers)


def spin() -> None:
    """Keeps the device busy for some milliseconds."""
    torch.cuda._sleep(20_000_000)


@pytest.mark.parametrize("lagging", ["device", "host", "neither"])
def test_host_equals_resident_on_a_gpu(lagging: str) -> None:
    of = dataset()
    host, resident = build("host", of), build("resident", of)
    expected = [resident.batch(step) for step in range(STEPS)]
    torch.cuda.synchronize()
    made = []
    for step in range(STEPS):
        made.append(host.batch(step))
        if lagging == "device":  # copies for later steps are asked for while the views of this one still wait
            spin()
        if lagging == "host":
            torch.cuda.synchronize()
    for ours, theirs in zip(made, expected, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.unlabeled_items, theirs.unlabeled_items)
    host.close()


def test_host_out_of_order_on_a_gpu() -> None:
    of = dataset()
    host, resident = build("host", of), build("resident", of)
    for step in (5, 6, 2, 2, 3, 11, 0):
        spin()
        assert torch.equal(host.batch(step).images, resident.batch(step).images)
    host.close()


def test_a_consumer_on_another_stream() -> None:
    of = dataset()
    host, resident = build("host", of), build("resident", of)
    expected = [resident.batch(step).images for step in range(STEPS)]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        made = []
        for step in range(STEPS):
            made.append(host.batch(step).images)
            spin()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    host.close()


def test_images_are_staged_in_pinned_memory_and_batch_does_not_wait_for_the_device() -> None:
    host = build("host", dataset())
    assert isinstance(host, HostPipeline)
    host.batch(0)
    assert all(staging.host.is_pinned() for _, staging, _ in host.pending)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        host.batch(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    host.close()


def test_a_gpu_and_a_cpu_make_the_same_batches() -> None:
    of = dataset(32)
    made = build("resident", of, torch.device("cpu"))
    for name, workers in (("host", 0), ("host", 2), ("torchvision", 2)):
        if name == "torchvision":
            pytest.importorskip("torchvision")
        pipeline = build(name, of, workers=workers)
        for step in (0, 1, 7):
            assert torch.equal(pipeline.batch(step).images.cpu(), made.batch(step).images)
        pipeline.close()


def test_auto_names_the_device_and_what_is_free_there() -> None:
    name, why = choose_pipeline("auto", dataset(32), CUDA)
    assert name == "resident"
    assert "free on cuda:0" in why
