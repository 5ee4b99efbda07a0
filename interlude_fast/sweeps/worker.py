"""Several runs, one after the other or several at a time in processes of their own."""

from __future__ import annotations

import _thread
import contextlib
import importlib
import os
import pickle
import selectors
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from rich.console import Console

from interlude_fast.config import ExperimentConfig
from interlude_fast.data.datasets import DATASETS
from interlude_fast.data.decode import cores
from interlude_fast.data.processes import start_process, take_output
from interlude_fast.errors import ConfigError, RunError
from interlude_fast.methods import METHODS
from interlude_fast.models import NETWORKS
from interlude_fast.registry import Registry
from interlude_fast.training.device import resolve_device

from .jobs import Failure, Job, Outcome, run_job, tell

REGISTRIES: tuple[Registry[Any], ...] = (METHODS, NETWORKS, DATASETS)
Process = subprocess.Popen[bytes]


def run_jobs(
    jobs: Sequence[Job], processes: int = 1, console: Console | None = None
) -> Generator[tuple[Job, Outcome], None, None]:
    """Do runs and give each with what became of it, as they end. Close the generator (contextlib.closing): runs
    that are under way in other processes then stop after a checkpoint.

    Args:
        processes: runs at a time. One is done in this process; several in processes of their own, each with its
            share of the cores.
        console: where the progress of single runs is shown.
    """
    if processes == 1:
        yield from ((job, run_job(job, console)) for job in jobs)
        return
    if console and any(resolve_device(job.config.train.device).type == "cuda" for job in jobs):
        tell(console, f"{processes} runs at a time share the GPU: its memory must hold them all")
    threads = max(1, min(torch.get_num_threads(), cores() // processes))
    yield from run_in_processes(jobs, processes, threads)


def with_share(config: ExperimentConfig, processes: int) -> ExperimentConfig:
    """A configuration whose workers are the share of one run of several at a time; none stay none."""
    workers = cores() if config.data.workers is None else config.data.workers
    share = max(1, workers // processes) if workers else 0
    return config.model_copy(update={"data": config.data.model_copy(update={"workers": share})})


def run_in_processes(jobs: Sequence[Job], count: int, threads: int) -> Generator[tuple[Job, Outcome], None, None]:
    """Jobs with what became of them, as they end, `count` at a time with `threads` torch threads each. Closed or
    interrupted, it lets the runs under way stop after a checkpoint; a second interrupt ends them at once.

    Raises:
        ConfigError: a method, network or dataset that another process could not import.
    """
    for job in jobs:
        for _, name, part in registered_parts(job.config):
            if getattr(part, "__module__", "") == "__main__":
                raise ConfigError(f"{name} stands in the script itself; put it into a module, or use --jobs 1")
    waiting, running = list(jobs), dict[Process, Job]()
    try:
        with selectors.DefaultSelector() as ready:
            while waiting or running:
                while waiting and len(running) < count:
                    process = _begin(waiting[0], threads, count)
                    running[process] = waiting.pop(0)
                    assert process.stdout is not None
                    ready.register(process.stdout, selectors.EVENT_READ, process)
                for key, _ in ready.select():
                    ready.unregister(key.fileobj)
                    outcome = _answer(key.data)
                    yield running.pop(key.data), outcome
    finally:
        _stop(list(running))


def registered_parts(config: ExperimentConfig) -> list[tuple[int, str, Any]]:
    """(number in REGISTRIES, name, part) of what this process alone knows of a run; a module by its name."""
    names = (config.method.name, config.model.name, config.data.dataset)
    found = [(i, name, REGISTRIES[i].registered(name)) for i, name in enumerate(names)]
    return [
        (i, name, part.__name__ if isinstance(part, ModuleType) else part)
        for i, name, part in found
        if part is not None
    ]


def _begin(job: Job, threads: int, count: int) -> Process:
    try:
        process = start_process(__name__, threads)
    except OSError as error:
        raise RunError(f"no process to train {job.name} in: {error.strerror or error}") from None
    assert process.stdin is not None
    job = replace(job, config=with_share(job.config, count))
    with contextlib.suppress(BrokenPipeError):  # it died; _answer says so
        pickle.dump((threads, registered_parts(job.config), pickle.dumps(job)), process.stdin)
        process.stdin.flush()
    return process


def _answer(process: Process) -> Outcome:
    """What a process has to say when its run has ended, however it did."""
    assert process.stdout is not None
    try:
        outcome: Outcome = pickle.load(process.stdout)
    except (EOFError, pickle.UnpicklingError):
        code = process.wait()
        outcome = Failure(RunError(f"its process died (exit code {code}); too little memory for so many?"), "")
    process.wait()
    _close(process)
    return outcome


def _stop(processes: list[Process]) -> None:
    try:
        for process in processes:
            _close(process)
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
        raise


def _close(process: Process) -> None:
    """A process whose standard input ends stops after a checkpoint."""
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):
            pipe.close()


def serve() -> None:
    """The other end: one job from standard input, its outcome to standard output."""
    answers = take_output()
    threads, parts, content = pickle.load(sys.stdin.buffer)
    for number, name, part in parts:
        REGISTRIES[number].register(name, importlib.import_module(part) if isinstance(part, str) else part)
    job = pickle.loads(content)  # its options are of the registered parts' classes
    torch.set_num_threads(threads)
    try:
        threading.Thread(target=_watch_parent, daemon=True).start()
        outcome = run_job(job)
        with contextlib.suppress(BrokenPipeError), answers:
            answers.write(_pickled(outcome))
    except KeyboardInterrupt:
        sys.exit(130)


def _watch_parent() -> None:
    """Interrupts the run when standard input ends: the parent is interrupted, or gone. Not through sys.stdin,
    whose lock a thread must not hold when Python ends."""
    os.read(0, 1)
    _thread.interrupt_main()


def _pickled(outcome: Outcome) -> bytes:
    """Errors that cannot be sent as they are become RuntimeErrors of the same text."""
    try:
        content = pickle.dumps(outcome)
        pickle.loads(content)
        return content
    except Exception:
        assert isinstance(outcome, Failure)
        return pickle.dumps(Failure(RuntimeError(outcome.line), outcome.traceback))
