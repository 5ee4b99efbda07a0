"""The processes of a job, as torchrun starts them: who is first, who speaks, how all end (docs/distributed.md)."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from interlude_fast.errors import ConfigError, InterludeError, RunError

from .device import resolve_device

TIMEOUT = timedelta(minutes=30)  # of a collective: the slowest rank may be writing a checkpoint
PATIENCE = timedelta(days=7)  # while another rank prepares data
SIGNS_OF_LOSS = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")  # in torch's messages
GONE = "ended or does not answer"
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
            if device.index is not None:  # streams, events and recordings are of the current GPU
                torch.cuda.set_device(device)
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
        raise RunError(f"another process of the job {GONE}; {_go_on(checkpoint)} ({text[:120]})") from None


def _go_on(checkpoint: Path | None) -> str:
    if checkpoint is None or not checkpoint.exists():
        return "start the run anew"
    return f"go on with --run-dir {shlex.quote(str(checkpoint.parent.parent))} --resume"


@contextlib.contextmanager
def end_in_time(world: World, checkpoint: Path | None, seconds: float = 20) -> Iterator[None]:
    """Ends this process, exit code 2, where it was asked to stop and has not left in `seconds`. When a process is
    gone torchrun asks the others to stop, but they may be waiting for their GPUs, and these for the process that
    is gone, and Python's handlers of signals wait with them. torchrun kills after 30 seconds, without a word."""
    if world.size == 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    left = threading.Event()
    read, write = os.pipe()
    os.set_blocking(write, False)

    def watch() -> None:
        while number := os.read(read, 1):  # b"" when `write` is closed
            if number[0] in (signal.SIGINT, signal.SIGTERM) and not left.wait(seconds):
                line = f"interlude-fast: error: another process of the job {GONE}; {_go_on(checkpoint)}\n"
                if _is_first_to_say():
                    os.write(2, line.encode())
                os._exit(2)

    watcher = threading.Thread(target=watch, daemon=True)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(write)
        watcher.join()
        os.close(read)


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
