"""The steps of a run shared by the processes of a job: rows, gradients, statistics, pace (docs/distributed.md)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from interlude_fast.data.batch import Batch
from interlude_fast.methods import Losses
from interlude_fast.models.sharding import Shards
from interlude_fast.models.sync_batch_norm import SyncBatchNorm

from .distributed import World
from .pace import Pace
from .state import TrainState


class SharedPace(Pace):
    """A pace by wall time in a job: the first process' clock counts for all."""

    def __init__(self, pace: Pace) -> None:
        super().__init__(pace.t, pace.state)
        self.pace, self.due = pace, [False, False, False]

    def stepped(self) -> None:
        pace, state = self.pace, self.state
        pace.stepped()
        here = [state.position, state.seconds, pace.logs(), pace.evaluates(), pace.saves()]
        there = torch.tensor(here, dtype=torch.float64)
        dist.broadcast(there, 0)
        state.position, state.seconds, *due = there.tolist()
        self.due = [bool(d) for d in due]

    def paused(self, seconds: float, *, evaluating: bool = False) -> None:
        self.pace.paused(seconds, evaluating=evaluating)

    def logs(self) -> bool:
        return self.due[0]

    def evaluates(self) -> bool:
        return self.due[1]

    def saves(self) -> bool:
        return self.due[2]

    def metrics(self) -> dict[str, float]:
        return self.pace.metrics()

    def remarks(self) -> list[str]:
        return self.pace.remarks()


class Parallel(nn.Module):
    """A step's forward pass and losses on this process' share of the rows; its parameters are the network's."""

    def __init__(self, state: TrainState, shards: Shards) -> None:
        super().__init__()
        self.model, self.shards = state.model, shards
        self.others = state.method, state.ema.model  # not submodules: DDP is to leave them alone

    def forward(self, batch: Batch) -> Losses:
        method, ema = self.others
        self.shards.given = method.forwards == "together"
        try:
            losses: Losses = method(self.model, batch, ema)
            return losses
        finally:
            self.shards.given = False


class DataParallel:
    """How the processes of a job share the steps of `state`: TrainState.parallel."""

    def __init__(self, state: TrainState, world: World) -> None:
        self.shards = Shards(world.rank, world.size)
        with warnings.catch_warnings():
            # The newer name of broadcast_buffers is not in torch 2.11.
            warnings.simplefilter("ignore", FutureWarning)
            # Of a static graph DDP knows which parameters are never used, and may be without gradient.
            self.step = DistributedDataParallel(
                Parallel(state, self.shards), broadcast_buffers=False, static_graph=True
            )
        norms = [m for m in state.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.statistics = [
            buffer
            for norm in norms
            if not isinstance(norm, SyncBatchNorm | nn.SyncBatchNorm)
            for buffer in norm.buffers()
            if buffer.is_floating_point()
        ]

    def __call__(self, model: nn.Module, batch: Batch, ema: nn.Module) -> Losses:
        """The state's method on its networks: losses of the whole batch, on every rank. After backward() the
        gradients are the whole batch's too."""
        losses: Losses = self.step(batch)
        return losses

    def average_statistics(self) -> None:
        """Running statistics become their means over ranks, so that all processes hold the same network."""
        if self.statistics:
            torch._foreach_copy_(self.statistics, self.shards.mean(self.statistics))


@contextlib.contextmanager
def shared_steps(state: TrainState, world: World) -> Iterator[None]:
    """While it lasts, the processes of the job share every batch that the state's networks see."""
    if world.size == 1:
        yield
        return
    networks: Any = state.model, state.ema.model
    state.parallel = shared = DataParallel(state, world)
    for network in networks:
        network.shards = shared.shards
    try:
        yield
    finally:
        state.parallel = None
        for network in networks:
            network.shards = None
