"""Images that do not fit on the device stay on the host, in memory or mapped from a file; those of the next steps
are read and copied in the background, each once, and the fused op makes the views on the device."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle

import numpy as np
import torch

from interlude_fast.data.augment import ViewMaker
from interlude_fast.data.batch import Batch
from interlude_fast.data.sampler import Sampler

from .base import Ingredients

AHEAD = 2  # steps; each takes one step's images of memory on either side
PART = 1 << 20  # bytes below which another thread costs more than it brings
CPU = torch.device("cpu")


class Staging:
    """Room for one step's images, uint8 [M, S, S, C]: pinned on the host, and on the device. On the CPU both are
    the same."""

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.host = torch.empty(shape, dtype=torch.uint8, pin_memory=cuda)
        self.images = torch.empty(shape, dtype=torch.uint8, device=device) if cuda else self.host
        # When the copy to the device, and the views made of it, are done: until then nothing is overwritten.
        self.copied = torch.cuda.Event(blocking=True) if cuda else None
        self.read = torch.cuda.Event() if cuda else None
        if self.read is not None:  # the memory may be that of tensors whose work is still queued
            self.read.record(torch.cuda.current_stream(device))


class HostPipeline:
    """Batches from images on the host.

    Args:
        sampler: its store's index tensors are on the device, its images on the host.
        workers: threads that read a step's images. 0: everything is done when the batch is asked for.
        ahead: steps that are prepared before they are asked for.
    """

    recordable = False
    # Made by _start:
    readers: ThreadPoolExecutor
    ring: cycle[Staging]
    stream: torch.cuda.Stream | None

    def __init__(self, sampler: Sampler, make_views: ViewMaker, workers: int, ahead: int = AHEAD) -> None:
        self.sampler, self.make_views, self.workers, self.ahead = sampler, make_views, workers, ahead
        self.device = sampler.store.device
        self.plans = sampler.on(CPU)
        self.images = sampler.store.images.numpy()
        # Views of one slot read one copy: `first` is a row of each slot, `items` each row's place among them.
        slots, items = self.plans.slots.unique(return_inverse=True)
        self.first = torch.empty_like(slots).scatter_(0, items, torch.arange(len(items)))
        self.items = items.to(self.device)
        self.pending: deque[tuple[int, Staging, Future[None]]] = deque()
        self.conductor: ThreadPoolExecutor | None = None

    def batch(self, step: int) -> Batch:
        """As ResidentPipeline's, to the byte; whatever stopped the preparation of the step is raised here."""
        if not self.workers:
            self._start()
            staging = next(self.ring)
            self._prepare(step, staging)
            return self._views(step, staging)
        if not self.pending or self.pending[0][0] != step:
            self._begin_at(step)
        _, staging, prepared = self.pending.popleft()
        try:
            prepared.result()
        except BaseException:
            self._drop_pending()  # they may have met the same; a later batch begins anew
            raise
        batch = self._views(step, staging)
        self._submit(step + self.ahead)
        return batch

    def close(self) -> None:
        """Ends the threads and frees the staging memory."""
        if self.conductor is None:
            return
        self.pending.clear()
        self.conductor.shutdown(cancel_futures=True)
        self.readers.shutdown()
        if self.stream is not None:  # nothing may still be writing what is freed below
            torch.cuda.synchronize(self.device)
        del self.ring, self.readers
        self.conductor = None

    def _start(self) -> None:
        if self.conductor is not None:
            return
        shape = (len(self.first), *self.images.shape[1:])
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.ring = cycle([Staging(shape, self.device) for _ in range(self.ahead)])
        self.readers = ThreadPoolExecutor(max(1, self.workers), "interlude-fast-read")  # threads come with work
        self.conductor = ThreadPoolExecutor(1, "interlude-fast-host")

    def _begin_at(self, step: int) -> None:
        self._start()
        self._drop_pending()
        for k in range(self.ahead):
            self._submit(step + k)

    def _drop_pending(self) -> None:
        for _, _, prepared in self.pending:
            prepared.cancel()
        self.pending.clear()

    def _submit(self, step: int) -> None:
        """One thread takes the steps in turn, so a staging area is never filled twice at a time."""
        assert self.conductor is not None
        staging = next(self.ring)
        self.pending.append((step, staging, self.conductor.submit(self._prepare, step, staging)))

    def _prepare(self, step: int, staging: Staging) -> None:
        """Read a step's images and start their copy to the device."""
        wanted = self.plans.plan(step).items[self.first].numpy()
        if staging.copied is not None:
            staging.copied.synchronize()
        room = staging.host.numpy()
        threads = min(self.workers, room.nbytes // PART)
        if threads > 1:
            list(self.readers.map(self._read, np.array_split(wanted, threads), np.array_split(room, threads)))
        else:
            self._read(wanted, room)
        if self.stream is not None and staging.read is not None and staging.copied is not None:
            with torch.cuda.stream(self.stream):
                self.stream.wait_event(staging.read)
                staging.images.copy_(staging.host, non_blocking=True)
                staging.copied.record(self.stream)

    def _read(self, wanted: np.ndarray, room: np.ndarray) -> None:
        # "clip" writes without a copy in between; every index is inside.
        np.take(self.images, wanted, axis=0, out=room, mode="clip")

    def _views(self, step: int, staging: Staging) -> Batch:
        plan = self.sampler.plan(step)
        if staging.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(staging.copied)
        images = self.make_views(staging.images, self.items, plan.keys, plan.views, plan.step)
        if staging.read is not None:
            staging.read.record(torch.cuda.current_stream(self.device))
        return plan.batch(images)


def build(made_of: Ingredients) -> HostPipeline:
    return HostPipeline(made_of.sampler, made_of.view_maker(), made_of.worker_count)
