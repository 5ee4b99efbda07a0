"""Functions run in several processes, as torchrun would: gloo, one thread each."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from interlude_fast.training import distributed

MOST = 4


@functools.cache
def _processes() -> list[Connection]:
    """A connection to each of MOST processes that have imported what they need, once."""
    context = multiprocessing.get_context("forkserver")
    late = ["torch._dynamo", "sklearn.datasets"]  # imported by DDP and by the digits when they are first used
    context.set_forkserver_preload(["tests.training.ranks", "interlude_fast.training.loop", *late])
    ours = []
    for _ in range(MOST):
        here, there = context.Pipe()
        context.Process(target=_serve, args=(there,), daemon=True).start()
        ours.append(here)
    return ours


def _serve(tasks: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            answer = _as_rank(*tasks.recv())
        except EOFError:
            return
        except BaseException as error:
            answer = error.with_traceback(None)
            answer.__context__ = None
        gc.collect()  # what an error's frames held of the job: its connections are closed, as where a process ends
        tasks.send(answer)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process on one machine."""
    values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in values.items()}}


def _as_rank(rank: int, size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ |= environment(rank, size, port)
    try:
        with distributed.joined():
            return function(*arguments)
    finally:
        if dist.is_initialized():  # after an error: the others do not wait
            dist.destroy_process_group()
        for name in environment(0, 1, 0):
            del os.environ[name]


def answers_of_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What function(*arguments) returns or raises in each of `size` processes."""
    port, processes = free_port(), _processes()[:size]
    for rank, process in enumerate(processes):
        process.send((rank, size, port, function, arguments))
    answers = []
    for process in processes:
        assert process.poll(240), "a process does not answer"
        answers.append(process.recv())
    return answers


def in_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What function(*arguments) returns in each of `size` processes; an error of any is raised."""
    answers = answers_of_ranks(size, function, *arguments)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers
