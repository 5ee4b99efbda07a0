"""Pipelines: the same bytes from each, in any order of steps; nothing left behind; errors that surface."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interlude_fast.data import pipelines
from interlude_fast.data.augment import Policy
from interlude_fast.data.batch import RowOrder
from interlude_fast.data.datasets import Dataset, from_arrays
from interlude_fast.data.pipelines import Pipeline, build_pipeline, choose_pipeline
from interlude_fast.data.pipelines.host import HostPipeline
from interlude_fast.data.split import draw_split
from interlude_fast.errors import ConfigError, DataError
from interlude_fast.training.checkpoint import load_tensors
from tests.helpers import data_config, small_config

BOTH = ("weak", "strong")
CPU = torch.device("cpu")
IN_ORDER, MIXED = range(4), (3, 4, 1, 1, 2, 9, 10, 0)
ORDERS = {
    "interdigitated": RowOrder(3, 4, BOTH, BOTH, "interdigitated"),
    "separate": RowOrder(3, 4, BOTH, BOTH, "separate"),
    "strong unlabeled": RowOrder(2, 3, ("weak",), ("strong",)),
    "labeled only": RowOrder(5, 4, ("weak",), ()),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def dataset(channels: int = 3, side: int = 12) -> Dataset:
    images = np.random.default_rng(channels).integers(0, 256, (60, side, side, channels), dtype=np.uint8)
    pair = (images, np.arange(60) % 3)
    return from_arrays("noise", pair, pair, ["a", "b", "c"], mean=(0.4,) * channels, std=(0.3,) * channels)


def build(
    name: str, order: RowOrder = ORDERS["interdigitated"], of: Dataset | None = None, **given: Any
) -> Pipeline:
    of = of or dataset()
    policy = Policy(flip=True, **{name: given.pop(name) for name in ("paired", "form") if name in given})
    where = {"seed": 3, "device": CPU, **given}
    split = draw_split(of, data_config(labels=6), 3)
    return build_pipeline(name, of, split, order, policy, **where)


def assert_equal_batches(ours: Pipeline, theirs: Pipeline, steps: Any) -> None:
    for step in steps:
        a, b = ours.batch(step), theirs.batch(step)
        assert torch.equal(a.images, b.images), step
        assert a.images.dtype == b.images.dtype
        assert a.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.unlabeled_items, b.unlabeled_items)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Threads and processes that a test leaves behind fail it."""
    before = set(threading.enumerate())
    yield
    assert not [t for t in threading.enumerate() if t not in before and t.name.startswith("interlude")]
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("steps", [IN_ORDER, MIXED], ids=["in order", "mixed"])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_host_equals_resident(order: RowOrder, paired: bool, steps: Any) -> None:
    host = build("host", order, paired=paired)
    assert_equal_batches(host, build("resident", order, paired=paired), steps)
    host.close()


@pytest.mark.parametrize(("workers", "ahead"), [(0, 2), (1, 1), (1, 5), (3, 2)])
def test_host_with_any_number_of_threads_and_steps_ahead(
    workers: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.host, "PART", 100)
    made = build("host", of=dataset(1), workers=workers)
    assert isinstance(made, HostPipeline)
    made.ahead = ahead
    assert_equal_batches(made, build("resident", of=dataset(1)), [*IN_ORDER, *MIXED])
    made.close()
    assert_equal_batches(made, build("resident", of=dataset(1)), [7])  # another start
    made.close()


def test_host_reads_a_memory_map_and_copies_each_image_once(tmp_path: Path) -> None:
    of = dataset()
    np.save(tmp_path / "images.npy", of.images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="c")
    host = build("host", of=Dataset(**{**vars(of), "images": mapped}))
    assert_equal_batches(host, build("resident", of=of), IN_ORDER)
    assert isinstance(host, HostPipeline)
    order = ORDERS["interdigitated"]
    assert host.pending[0][1].images.shape[0] == order.batch * (1 + order.mu) == order.count // 2
    host.close()


def test_ranks_of_host_make_one_batch() -> None:
    whole = build("resident", RowOrder(4, 3, BOTH, BOTH, "interdigitated")).batch(5)
    parts = [build("host", RowOrder(4, 3, BOTH, BOTH, "interdigitated"), rank=r, world=2) for r in (0, 1)]
    assert torch.equal(torch.cat([p.batch(5).images for p in parts]), whole.images)
    for part in parts:
        part.close()


@pytest.mark.parametrize("ahead", [1, 2, 4])
def test_what_stops_the_thread_is_raised_by_batch(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    """Also where the steps after it were tried in vain already."""
    host, resident = build("host"), build("resident")
    assert isinstance(host, HostPipeline)
    host.ahead = ahead
    read = host._read

    def unreadable(*arguments: Any) -> None:
        raise OSError("disk on fire")

    assert_equal_batches(host, resident, [0])
    for _, _, prepared in host.pending:
        prepared.result()
    monkeypatch.setattr(host, "_read", unreadable)
    assert_equal_batches(host, resident, range(1, 1 + ahead))
    for _, _, prepared in host.pending:
        prepared.exception()  # waits
    with pytest.raises(OSError, match="disk on fire"):
        host.batch(1 + ahead)
    monkeypatch.setattr(host, "_read", read)
    assert_equal_batches(host, resident, [2 + ahead, 3 + ahead])
    host.close()
    host.close()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_torchvision_equals_resident(workers: int, channels: int) -> None:
    pytest.importorskip("torchvision")
    of = dataset(channels, 16)
    pipeline = build("torchvision", of=of, workers=workers)
    assert_equal_batches(pipeline, build("resident", of=of), [*IN_ORDER, *MIXED])
    pipeline.close()
    assert not multiprocessing.active_children()
    assert_equal_batches(pipeline, build("resident", of=of), [2])
    pipeline.close()


@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_equals_resident_in_the_form_of_usb(channels: int) -> None:
    pytest.importorskip("torchvision")
    of = dataset(channels, 16)
    pipeline = build("torchvision", of=of, workers=0, form="usb")
    assert_equal_batches(pipeline, build("resident", of=of, form="usb"), IN_ORDER)


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("paired", [False, True])
def test_torchvision_equals_resident_for_every_order(order: RowOrder, paired: bool) -> None:
    pytest.importorskip("torchvision")
    pipeline = build("torchvision", order, workers=0, paired=paired)
    assert_equal_batches(pipeline, build("resident", order, paired=paired), IN_ORDER)


def test_torchvision_names_a_worker_that_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    waits = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(waits, "__defaults__", (0.2,))  # seconds between looks after the workers
    pipeline = build("torchvision", workers=2)
    pipeline.batch(0)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    with pytest.raises(DataError, match=r"lost a worker \(.*\).*fewer data\.workers") as caught:
        [pipeline.batch(step) for step in range(1, 20)]
    assert "\n" not in str(caught.value)
    assert_equal_batches(pipeline, build("resident"), [3])
    pipeline.close()


def test_what_goes_wrong_in_a_worker_is_raised_by_batch() -> None:
    pytest.importorskip("torchvision")
    pipeline = build("torchvision", workers=2)
    pipeline.views.images = pipeline.views.images[:1]
    with pytest.raises(IndexError, match="in DataLoader worker process"):
        pipeline.batch(0)
    pipeline.close()


def test_torchvision_that_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    monkeypatch.delitem(sys.modules, "interlude_fast.data.pipelines.torchvision", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'interlude-fast\[vision\]'"):
        build("torchvision")


def test_an_interpreter_that_forgets_close_ends() -> None:
    pytest.importorskip("torchvision")
    lines = "from tests.data.test_pipelines import build; made = [build(n, workers=2) for n in ('torchvision', "
    lines += "'host')]; [p.batch(0) for p in made]; print('made')"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "made\n"), done.stderr


def test_runs_on_any_pipeline_give_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    from interlude_fast.experiment.run import train_run  # here: the other tests need not wait for TensorBoard
    from interlude_fast.experiment.run_directory import RunDirectory

    weights = {}
    for name in ("resident", "host", "torchvision"):
        config = small_config(data={"pipeline": name, "workers": 1}, train={"steps": 2})
        train_run(config, tmp_path / name)
        weights[name] = load_tensors(RunDirectory(tmp_path / name).weights("raw"))[0]
        assert f"pipeline: {name} (asked for)" in (tmp_path / name / "log.txt").read_text()
        assert f'"pipeline": "{name} (asked for)"' in (tmp_path / name / "passport.json").read_text()
    for name in ("host", "torchvision"):
        assert all(torch.equal(v, weights[name][k]) for k, v in weights["resident"].items())


def test_auto_keeps_images_on_the_device_where_they_take_half_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = dataset()
    assert choose_pipeline("auto", of, CPU)[0] == "resident"
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for free, expected in ((2 * of.images.nbytes, "resident"), (2 * of.images.nbytes - 1, "host")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 0))
        name, why = choose_pipeline("auto", of, torch.device("cuda"))
        assert name == expected
        assert "GB of images" in why
        assert "free on cuda:0" in why


def test_unknown_pipelines() -> None:
    with pytest.raises(ConfigError, match=r"data\.pipeline.*'resident'"):
        small_config(data={"pipeline": "resdient"})
    with pytest.raises(ConfigError, match="unknown pipeline 'resdient'; did you mean 'resident'"):
        build("resdient")
