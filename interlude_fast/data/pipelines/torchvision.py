"""Views made the usual way: Pillow and torchvision, one image at a time, in worker processes. The pixels are those
of the other pipelines, which are tested and measured against it."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from interlude_fast.data.augment import Policy, ViewMaker
from interlude_fast.data.batch import Batch
from interlude_fast.data.pillow_views import View, pillow_views
from interlude_fast.data.sampler import Sampler
from interlude_fast.errors import ConfigError, DataError

from .base import Ingredients

try:
    from torchvision.transforms import functional
except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
    raise ConfigError(
        f"data.pipeline torchvision needs torchvision: pip install 'interlude-fast[vision]' ({error})"
    ) from None

PREFETCHED = 2  # steps
CPU = torch.device("cpu")


def flip_and_crop(image: Image.Image, view: View) -> Image.Image:
    """As pillow_views.flip_and_crop, with torchvision's functions."""
    if view.flip:
        image = functional.hflip(image)
    padded = functional.pad(image, view.pad, padding_mode="reflect")
    return functional.crop(padded, view.top, view.left, *image.size)


class Views(Dataset[Tensor]):
    """Pixels of (step, shard): `shards` equal parts of a step's rows, weak and strong ones evenly.

    Args:
        sampler, make_views: with their tensors on the CPU: a worker process must not touch CUDA.
    """

    def __init__(self, sampler: Sampler, make_views: ViewMaker, images: np.ndarray, shards: int) -> None:
        self.sampler, self.make_views, self.images = sampler, make_views, images
        evenly = sampler.views.argsort(stable=True)
        self.rows = [evenly[shard::shards] for shard in range(shards)]

    def __getitem__(self, task: tuple[int, int]) -> Tensor:
        """uint8 [rows of the shard, S, S, C]."""
        step, shard = task
        plan, rows = self.sampler.plan(step), self.rows[shard]
        drawn = self.make_views.draw(plan.keys[rows], plan.views[rows], plan.step)
        images = (self.images[item] for item in plan.items[rows].tolist())
        return torch.from_numpy(pillow_views(images, drawn, self.make_views.form, flip_and_crop))


class Tasks:
    """(step, shard) without end, from step `first` on."""

    def __init__(self, shards: int) -> None:
        self.shards, self.first = shards, 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, shard) for step in count(self.first) for shard in range(self.shards))


class TorchvisionPipeline:
    """Batches from Pillow.

    Args:
        views: of one shard a worker. normalize: makes rows of the pixels, with a policy that changes nothing.
        workers: processes; 0: this one.
    """

    recordable = False

    def __init__(self, sampler: Sampler, views: Views, normalize: ViewMaker, workers: int) -> None:
        self.sampler, self.views, self.normalize, self.workers = sampler, views, normalize, workers
        self.device = sampler.store.device
        self.place = torch.cat(views.rows).argsort().to(self.device)  # of each row among the shards' pixels
        self.weak = torch.zeros_like(self.place)
        self.tasks = Tasks(len(views.rows))
        self.loader: DataLoader[Tensor] | None = None
        self.results: Iterator[Tensor] | None = None
        self.next: int | None = None

    def batch(self, step: int) -> Batch:
        """As ResidentPipeline's, to the byte.

        Raises:
            DataError: a worker process ended (noticed within five seconds).
        """
        if self.workers:
            if self.results is None or step != self.next:
                self._begin_at(step)
            self.next = None  # after an error the next batch begins anew
            parts = [self._receive() for _ in self.views.rows]
            self.next = step + 1
        else:
            parts = [self.views[step, 0]]
        plan = self.sampler.plan(step)
        pixels = torch.cat([part.to(self.device, non_blocking=True) for part in parts])
        return plan.batch(self.normalize(pixels, self.place, plan.keys, self.weak, plan.step))

    def close(self) -> None:
        """Ends the worker processes."""
        results, self.results, self.loader = self.results, None, None
        if results is not None:
            results._shutdown_workers()  # type: ignore[attr-defined]  # `del` leaves the time of it open

    def _begin_at(self, step: int) -> None:
        """Starts the workers, or lets those there are begin again at `step`."""
        self.tasks.first = step
        if self.loader is None:
            forks = "fork" in multiprocessing.get_all_start_methods()  # the images are shared, not copied
            self.loader = DataLoader(
                self.views,
                batch_size=None,
                sampler=self.tasks,
                num_workers=self.workers,
                prefetch_factor=PREFETCHED,
                persistent_workers=True,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=_ignore_interrupts,
                multiprocessing_context="fork" if forks else None,
            )
        with _no_handler_of_torch():
            self.results = iter(self.loader)

    def _receive(self) -> Tensor:
        assert self.results is not None
        try:
            return next(self.results)
        except (RuntimeError, OSError, EOFError) as error:  # the last two: it ended while handing over a result
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            if "in DataLoader worker process" in reason:
                raise  # an error of the worker's, with its traceback
            self.close()
            raise DataError(
                f"the torchvision pipeline lost a worker ({reason}); with too little memory: fewer data.workers"
            ) from None


@contextlib.contextmanager
def _no_handler_of_torch() -> Iterator[None]:
    """Takes back the handler with which DataLoader raises, wherever the main thread is, when a worker ends: it
    also looks after its workers while it waits for them, and there the error can be caught."""
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C is the main process' to answer, after the step and its checkpoint."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def build(made_of: Ingredients) -> TorchvisionPipeline:
    dataset, sampler, workers = made_of.dataset, made_of.sampler, made_of.worker_count
    pixels = torch.arange(256, dtype=torch.uint8).repeat(dataset.channels, 1)
    shards = max(1, min(workers, len(sampler.views)))
    views = Views(sampler.on(CPU), made_of.view_maker(pixels), dataset.images, shards)
    table = made_of.view_maker().table
    normalize = ViewMaker(Policy(flip=False, crop=0, n=0, cutout=0), dataset.size, 0, table)
    return TorchvisionPipeline(sampler, views, normalize, workers)
