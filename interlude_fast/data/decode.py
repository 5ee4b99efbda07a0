"""Many image files on all cores: what one batch of them needs, done in threads or in processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import numpy as np

from interlude_fast.errors import DataError

from .images import (
    Recipe,
    UnreadableImage,
    inspect_stream,
    open_regular,
    prepare,
    read_stream,
    shown,
    strict_pillow,
)
from .processes import start_process, take_output

# From so many files on, processes: Pillow decodes outside the interpreter's lock, but opening a small file is
# Python, and threads do that one at a time (bench/prepare.py). Fewer are done before processes have begun.
PROCESSES_FROM = 8000
READ = 1 << 20  # bytes read at a time


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a file holds.

    Attributes:
        digest: blake2b of its bytes, 32 hexadecimal digits; "" where they could not be read.
        width, height: pixels after EXIF orientation; mode: Pillow's. 0, 0 and "" where unreadable.
        reason: why it is unreadable as far as its header shows, or None.
    """

    digest: str
    width: int
    height: int
    mode: str
    reason: str | None = None


def digest_of(file: BinaryIO) -> str:
    """blake2b over a file from its beginning, 32 hexadecimal digits; the file stands at its beginning after."""
    digest = hashlib.blake2b(digest_size=16)
    while block := file.read(READ):
        digest.update(block)
    file.seek(0)
    return digest.hexdigest()


def inspect_file(path: str) -> FileFacts:
    """Hash and header of one file; never raises over its content."""
    digest = ""
    try:
        with open_regular(path) as file:
            try:
                digest = digest_of(file)
            except OSError as error:
                raise UnreadableImage((error.strerror or str(error)).lower()) from None
            info = inspect_stream(file)
    except UnreadableImage as error:
        return FileFacts(digest, 0, 0, "", error.reason)
    return FileFacts(digest, *info.size, info.mode)


@dataclass(frozen=True)
class InspectJob:
    """Files to inspect, of which the caller counts the first as `first`."""

    first: int
    paths: tuple[str, ...]


def inspect_files(job: InspectJob) -> list[FileFacts]:
    return [inspect_file(path) for path in job.paths]


@dataclass(frozen=True)
class PrepareJob:
    """Files to prepare into rows `first`, `first + 1`, ... of an .npy file whose pixels begin at byte `offset`."""

    target: str
    offset: int
    first: int
    paths: tuple[str, ...]
    digests: tuple[str, ...]
    recipe: Recipe


@dataclass(frozen=True)
class PrepareResult:
    """Per file: sums and squares int64 [n, C] over its prepared pixels; (number in the job, reason) of the bad."""

    sums: np.ndarray
    squares: np.ndarray
    skipped: list[tuple[int, str]]


def prepare_file(path: str, digest: str, recipe: Recipe) -> np.ndarray:
    """uint8 [size, size, channels].

    Raises:
        UnreadableImage: it does not decode.
        DataError: it is not the file that the digest was taken of.
    """
    try:
        file = open_regular(path)
    except UnreadableImage as error:
        raise DataError(
            f"{shown(path)} changed while images were being prepared ({error.reason}); start again"
        ) from None
    with file:
        try:
            same = digest_of(file) == digest
        except OSError as error:
            raise DataError(f"{shown(path)} cannot be read: {error.strerror or error}; start again") from None
        # Pixels are kept under the digest of their file: another file's would stay there for good.
        if not same:
            raise DataError(f"{shown(path)} changed while images were being prepared; start again later")
        return prepare(read_stream(file), recipe)


def prepare_files(job: PrepareJob) -> PrepareResult:
    """Prepares a batch and writes it into its rows; zeros where a file does not decode.

    Raises:
        OSError: the target cannot be written.
        DataError: a file changed since its digest was taken.
    """
    rows = np.zeros((len(job.paths), *job.recipe.shape), dtype=np.uint8)
    skipped = []
    for number, (path, digest) in enumerate(zip(job.paths, job.digests, strict=True)):
        try:
            rows[number] = prepare_file(path, digest, job.recipe)
        except UnreadableImage as error:
            skipped.append((number, error.reason))
    with open(job.target, "r+b", buffering=0) as target:
        write_at(target.fileno(), rows, job.offset + job.first * rows[0].nbytes)
    flat = rows.reshape(len(rows), -1, job.recipe.channels)
    sums = flat.sum(axis=1, dtype=np.int64)
    squares = np.stack([np.square(row, dtype=np.int64).sum(axis=0) for row in flat])
    return PrepareResult(sums, squares, skipped)


def write_at(target: int, rows: np.ndarray, position: int) -> None:
    """All bytes at a position. Not through a memory map: a full disk is then an error and no SIGBUS."""
    rest = rows.data.cast("B")
    while rest:
        written = os.pwrite(target, rest, position)
        rest, position = rest[written:], position + written


J = TypeVar("J", InspectJob, PrepareJob)
R = TypeVar("R")


def cores() -> int:
    """Cores that this process may use."""
    with contextlib.suppress(AttributeError):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def for_each(
    work: Callable[[J], R], jobs: Sequence[J], collect: Callable[[J, R], None], processes: bool = False
) -> None:
    """collect(job, work(job)) for all jobs, work on all cores, collect in this thread as they end.

    processes: work, a module's function, is done in other processes, which import no more than this module.

    Raises:
        What work and collect raise, when work that was under way has ended; jobs not begun are dropped.
        DataError: a process died.
    """
    workers: list[Callable[[Callable[[J], R], J], R]]
    workers = [_Process() if processes else _here for _ in range(max(1, min(cores(), len(jobs))))]
    idle: queue.SimpleQueue[Callable[[Callable[[J], R], J], R]] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def call(job: J) -> R:
        worker = idle.get()
        try:
            return worker(work, job)
        finally:
            idle.put(worker)

    executor = ThreadPoolExecutor(len(workers))
    try:
        with strict_pillow():
            futures = {executor.submit(call, job): job for job in jobs}
            for future in as_completed(futures):
                collect(futures.pop(future), future.result())
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        for worker in workers:
            if isinstance(worker, _Process):
                worker.close()


def _here(work: Callable[[J], R], job: J) -> R:
    return work(job)


class _Process:
    """A Python process that works jobs off, one after the other; it ends when this one does, however that is."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            try:  # one per core: numpy's own threads would only stand in the way
                self.process = start_process(__name__, threads=1)
            except OSError as error:
                raise DataError(f"no process to read images in: {error.strerror or error}") from None
        return self.process

    def __call__(self, work: Callable[[Any], Any], job: Any) -> Any:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((work, job), process.stdin)
            process.stdin.flush()
            worked, answer = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            raise DataError(
                f"a process that reads images died (exit code {process.wait()}): not enough memory, or a file "
                f"that crashes Pillow between {shown(job.paths[0])} and {shown(job.paths[-1])}"
            ) from None
        if not worked:
            raise answer
        return answer

    def close(self) -> None:
        if self.process is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.communicate()


def serve() -> None:
    """The other end of a _Process: jobs from standard input until it closes, answers to standard output."""
    answers = take_output()
    with strict_pillow():
        while True:
            try:
                work, job = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            try:
                answer = (True, work(job))
            except Exception as error:
                answer = (False, error)
            with contextlib.suppress(BrokenPipeError):
                pickle.dump(answer, answers)
                answers.flush()
