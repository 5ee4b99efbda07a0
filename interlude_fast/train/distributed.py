"""One run in several processes, as torchrun starts them (docs/distributed.md)."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from interlude_fast.data.batch import Batch
from interlude_fast.errors import ConfigError, InterludeError, RunError
from interlude_fast.methods import Losses
from interlude_fast.models.sharding import Shards
from interlude_fast.models.sync_batch_norm import SyncBatchNorm

from .device import resolve_device
from .pace import Pace
from .state import TrainState

TIMEOUT = timedelta(minutes=30)  # of a collective: the slowest rank may be writing a checkpoint
PATIENCE = timedelta(days=7)  # while another rank prepares data
SIGNS_OF_LOSS = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")  # in torch's messages
_store: dist.Store | None = None
_numbers = itertools.count()


@dataclass(frozen=True)
class World:
    """The processes of a job, and which of them this one is.

    Attributes:
        rank, size: in the job. local_rank, local_size: on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    @classmethod
    def of_environment(cls) -> World:
        """As torchrun sets WORLD_SIZE, RANK, LOCAL_RANK and LOCAL_WORLD_SIZE; one process without them.

        Raises:
            ConfigError: they are incomplete, or no numbers that fit.
        """
        size = _number("WORLD_SIZE", 1)
        if size <= 1:
            return cls()
        if missing := [n for n in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]:
            raise ConfigError(
                f"WORLD_SIZE = {size}, but {', '.join(missing)} not set: start the job with torchrun"
            )
        world = cls(_number("RANK"), size, _number("LOCAL_RANK"), _number("LOCAL_WORLD_SIZE", 1))
        if world.rank >= size or world.local_rank >= world.local_size:
            raise ConfigError(f"RANK or LOCAL_RANK of a job of {size} processes is out of range: {world}")
        return world

    @classmethod
    def current(cls) -> World:
        """The job that this process has joined, else this process alone."""
        return cls.of_environment() if dist.is_initialized() else cls()

    def device(self, wish: str) -> torch.device:
        """What resolve_device says; of several processes each takes the GPU of its local rank.

        Raises:
            ConfigError: there is no such GPU, or the wish names one for all.
        """
        device = resolve_device(wish)
        if self.size == 1 or device.type != "cuda":
            return device
        if device.index is not None:
            raise ConfigError(
                f"device '{wish}': each of {self.size} processes takes a GPU of its own; --device cuda"
            )
        if self.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"{self.local_size} processes on a machine where torch sees {torch.cuda.device_count()} GPUs; "
                "start as many as there are GPUs, or use --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def refuse_uneven(self, batch: int) -> None:
        """Raises ConfigError where the processes cannot share a step's labeled images equally."""
        if batch % self.size:
            raise ConfigError(
                f"train.batch = {batch} cannot be shared equally by WORLD_SIZE = {self.size} processes; "
                "choose a batch that is a multiple of it"
            )

    def from_first(self, make: Callable[[], str]) -> str:
        """What `make` returns in the first process, in all.

        Raises:
            EndedElsewhere: in the others, where it raises in the first.
        """
        if self.size == 1:
            return make()
        assert _store is not None
        key = f"from_first/{next(_numbers)}"
        if not self.first:
            _store.wait([key], PATIENCE)
            answer = _store.get(key).decode()
            if not answer:
                raise EndedElsewhere("the first process of the job ended with an error")
            return answer[1:]
        answer = ""
        try:
            answer = "=" + make()
        finally:
            _store.set(key, answer)
        return answer[1:]

    @contextlib.contextmanager
    def first_here_then_others(self) -> Iterator[None]:
        """The first process of each machine goes ahead, such as to prepare what all of them read."""
        if self.size == 1:
            yield
            return
        assert _store is not None
        key = f"ahead/{next(_numbers)}/{self.rank - self.local_rank}"
        if self.local_rank:
            _store.wait([key], PATIENCE)
        try:
            yield
        finally:
            if not self.local_rank:
                _store.set(key, "done")

    def after_first(self) -> None:
        """Returns when the first process, too, has come here."""
        self.from_first(str)

    def __str__(self) -> str:
        return f"{self.size} processes" if self.size > 1 else "one process"


class EndedElsewhere(InterludeError):
    """Another process has met the error, and says it."""


def _number(name: str, otherwise: int | None = None) -> int:
    text = os.environ.get(name, str(otherwise))
    if not text.isdigit():
        raise ConfigError(f"environment variable {name} = '{text}' is not a number")
    return int(text)


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """Joins the job that the environment tells of, if any, for as long as it lasts. An error that several
    processes meet is raised in one of them; the others end silently, with its exit code.

    Raises:
        ConfigError: see World.of_environment.
    """
    global _store, _numbers
    world = World.of_environment()
    if world.size == 1:
        yield world
        return
    _store, _, _ = next(dist.rendezvous("env://", world.rank, world.size, timeout=TIMEOUT))
    _numbers = itertools.count()  # of a job: processes that were in others before agree on them
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=dist.PrefixStore("job", _store), rank=world.rank, world_size=world.size, timeout=TIMEOUT
        )
        yield world
        dist.destroy_process_group()
    except (InterludeError, KeyboardInterrupt) as error:
        if isinstance(error, EndedElsewhere) or not _is_first_to_say():
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
        raise


def _is_first_to_say() -> bool:
    """Whether no process of the job has said why it ends; true where that cannot be known."""
    assert _store is not None
    try:
        return _store.add("said", 1) == 1
    except Exception:  # of whatever kind: the process that keeps the store is gone
        return True


@contextlib.contextmanager
def loss_of_a_process(world: World, checkpoint: Path | None) -> Iterator[None]:
    """What torch raises where another process of the job is gone, as RunError, which tells how to go on from the
    checkpoint."""
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        lost = isinstance(error, dist.DistError) or any(word in text for word in SIGNS_OF_LOSS)
        if world.size == 1 or isinstance(error, InterludeError) or not lost:
            raise
        go_on = "start the run anew"
        if checkpoint is not None and checkpoint.exists():
            go_on = f"go on with --run-dir {shlex.quote(str(checkpoint.parent.parent))} --resume"
        raise RunError(f"another process of the job ended or does not answer; {go_on} ({text[:120]})") from None


class Asked:
    """Whether any process was asked to stop: known to all of them at the same step, one after it was asked."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.pending: tuple[Any, Tensor] | None = None

    def everywhere(self, here: bool, at_once: bool = False) -> bool:
        """Called by every process at the same steps.

        Args:
            here: whether this process was asked. at_once: waits for the others' answers of this very step.
        """
        if self.world.size == 1:
            return here
        before = self._answer()
        flag = torch.tensor([int(here)])
        self.pending = dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True), flag
        return before or (at_once and self._answer())

    def _answer(self) -> bool:
        if self.pending is None:
            return False
        (work, flag), self.pending = self.pending, None
        work.wait()
        return bool(flag)


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
        # Of a static graph DDP knows which parameters are never used, and may be without gradient.
        self.step = DistributedDataParallel(
            Parallel(state, self.shards), broadcast_buffers=False, static_graph=True, gradient_as_bucket_view=False
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
    state.parallel = DataParallel(state, world)
    for network in networks:
        network.shards = state.parallel.shards
    try:
        yield
    finally:
        state.parallel = None
        for network in networks:
            network.shards = None
