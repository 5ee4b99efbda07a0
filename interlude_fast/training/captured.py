"""The step as one CUDA graph: views, forward, losses, backward, optimizer and EMA in a single launch.

Whatever changes from step to step lies in tensors that the graph reads: the step number, the learning rate, the
seed (which a graph takes from torch's generator at every replay), and the batch where a pipeline makes it outside.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from interlude_fast.data.batch import Batch
from interlude_fast.data.pipelines import Pipeline
from interlude_fast.methods import Losses
from interlude_fast.options import Precision

from .state import TrainState
from .step import EagerStep, LossFunction, apply_gradients, losses_and_gradients, set_numbers

WARM_UP = 3  # steps; libraries choose algorithms and allocate workspaces in them


class StaticStep(EagerStep):
    """The same with all of its input in memory that stays where it is: `body` could be recorded and replayed. Runs
    on any device."""

    def __init__(
        self, state: TrainState, pipeline: Pipeline, precision: Precision, compute: LossFunction | None = None
    ) -> None:
        super().__init__(state, pipeline, precision, compute)
        device = pipeline.sampler.store.device
        self.step = torch.zeros((), dtype=torch.int64, device=device)
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        self.batch: Batch | None = None  # where the pipeline's work cannot be recorded

    def load(self) -> None:
        """The coming step's input, to where `body` reads it."""
        began = time.perf_counter()
        if not self.pipeline.recordable:
            self._keep(self.pipeline.batch(self.state.step))
        self.waited = time.perf_counter() - began
        self.step.fill_(self.state.step)
        self.position.fill_(int(self.state.position))
        set_numbers(self.state)

    def body(self) -> Losses:
        """The step, all of it on the device."""
        recordable: Any = self.pipeline
        batch = recordable.batch(self.step) if self.batch is None else self.batch
        batch = dataclasses.replace(batch, step=self.position)
        losses = losses_and_gradients(self.state, batch, self.precision, self.compute)
        apply_gradients(self.state)
        detached = {name: value.detach() for name, value in losses.metrics.items()}
        return Losses(losses.total.detach(), detached)

    def run(self) -> Losses:
        return self.body()

    def __call__(self) -> Losses:
        self.state.model.train()
        self.load()
        losses = self.run()
        self.state.advance()
        return losses

    def _keep(self, batch: Batch) -> None:
        if self.batch is None:
            copies: dict[str, Any] = {n: t.clone() for n, t in _tensors(batch).items()}
            self.batch = dataclasses.replace(batch, **copies)
        else:
            kept = _tensors(self.batch)
            for name, tensor in _tensors(batch).items():
                kept[name].copy_(tensor)


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {n: t for n, t in vars(batch).items() if isinstance(t, Tensor) and n != "step"}


@contextlib.contextmanager
def waiting_refused() -> Iterator[None]:
    """Whatever waits for the device raises, as it would in a recording, which it would leave in a bad state."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class CapturedStep(StaticStep):
    """The same, recorded at the first call and replayed from then on. The losses that it returns are overwritten
    by the next call."""

    graph: torch.cuda.CUDAGraph | None = None
    losses: Losses

    def run(self) -> Losses:
        if self.graph is None:
            self._record()
        assert self.graph is not None
        self.graph.replay()
        return self.losses

    def _record(self) -> None:
        state, device = self.state, self.step.device
        before = state.snapshot()
        current, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP - 1):
                    self.body()
                with waiting_refused():
                    self.body()
        finally:  # whoever restores the state must not be overtaken by steps that still run
            current.wait_stream(stream)
        state.restore(before)
        state.optimizer.zero_grad(set_to_none=True)
        del before
        gc.collect()  # nothing of an earlier recording may be freed in the middle of this one
        graph = torch.cuda.CUDAGraph()
        set_numbers(state)  # the warm-up has drawn
        # cuBLAS keeps a workspace for each stream; whoever clears these later must not free the graph's.
        torch._C._cuda_clearCublasWorkspaces()
        with recording(graph, stream):
            self.losses = self.body()
        torch._C._cuda_clearCublasWorkspaces()
        set_numbers(state)
        self.graph = graph


@contextlib.contextmanager
def recording(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> Iterator[None]:
    """What runs inside is recorded, and memory of its own kept for it. One that fails leaves nothing behind."""
    current, pool = torch.cuda.current_stream(stream.device), torch.cuda.graph_pool_handle()
    try:
        # Pipelines copy to the device in threads of their own; these are not recorded and may go on.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            yield
    except Exception:
        with contextlib.suppress(Exception):  # what failed first is what is to be told
            _after_failure(current, pool)
        raise


def _after_failure(current: torch.cuda.Stream, pool: Any) -> None:
    """A recording that fails leaves its stream, a generator that believes that it goes on, and an allocator that
    frees nothing while it does."""
    torch.cuda.set_stream(current)
    device = current.device
    generator = torch.cuda.default_generators[device.index]
    generator.graphsafe_set_state(torch.Generator(device).graphsafe_get_state())
    torch._C._cuda_clearCublasWorkspaces()
    with contextlib.suppress(RuntimeError):  # it was ended, only the recorded step failed
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
