"""Functions run in several processes, as torchrun would: gloo, one thread each."""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.distributed as dist

from interlude_fast.train import distributed

MOST = 4


@functools.cache
def _pool() -> ProcessPoolExecutor:
    """Processes that have imported what they need, once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.ranks", "interlude_fast.train.loop"])
    pool = ProcessPoolExecutor(MOST, context)
    atexit.register(pool.shutdown)
    return pool


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process on one machine."""
    values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in values.items()}}


def _as_rank(rank: int, size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    os.environ |= environment(rank, size, port)
    try:
        with distributed.joined():
            return function(*arguments)
    finally:
        if dist.is_initialized():  # after an error: the others do not wait
            dist.destroy_process_group()
        for name in environment(0, 1, 0):
            del os.environ[name]


def in_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What function(*arguments) returns in each of `size` processes; the first error of any is raised."""
    port = free_port()
    futures = [_pool().submit(_as_rank, rank, size, port, function, arguments) for rank in range(size)]
    return [future.result(timeout=120) for future in futures]
