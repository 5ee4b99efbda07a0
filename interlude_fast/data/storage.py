"""Files of the cache: where it lies, its locks, the disk's refusals as one line, arrays whose damage is seen."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from interlude_fast.errors import DataError

from .images import shown
from .progress import Progress

ELSEWHERE = "choose another folder with --set data.cache=DIR or INTERLUDE_FAST_CACHE=DIR"


def default_cache() -> Path:
    """$INTERLUDE_FAST_CACHE, else $XDG_CACHE_HOME/interlude-fast, else ~/.cache/interlude-fast.

    Raises:
        DataError: there is no home folder, or not the one that is named.
    """
    if own := os.environ.get("INTERLUDE_FAST_CACHE"):
        return expanded(Path(own))
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():  # the specification: ignore others
        return shared / "interlude-fast"
    try:
        return Path.home() / ".cache" / "interlude-fast"
    except RuntimeError:
        raise DataError(f"no home folder for the cache: {ELSEWHERE}") from None


def expanded(cache: Path) -> Path:
    """The absolute folder that a user means, `~` and `~name` expanded.

    Raises:
        DataError: there is no such home folder.
    """
    try:
        return Path(os.path.abspath(cache.expanduser()))
    except RuntimeError:
        raise DataError(f"cache folder {shown(cache)}: no such home folder; {ELSEWHERE}") from None


def blob(content: bytes) -> np.ndarray:
    return np.frombuffer(content, dtype=np.uint8)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # savez's own flag has another type
    path.write_bytes(content.getvalue())


def read_npz(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file whose checksums hold; None where there is no such file."""
    try:
        content = io.BytesIO(path.read_bytes())
        if zipfile.ZipFile(content).testzip() is not None:
            return None
        content.seek(0)
        with np.load(content, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception:  # zipfile meets damaged bytes with almost any exception
        return None


def fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def disk_errors(cache: Path, needed: int = 0, done: str = "written") -> Iterator[None]:
    """The disk's refusals as one line."""
    try:
        yield
    except NotImplementedError:  # filelock's word for it
        raise DataError(f"cache folder {shown(cache)} lies on a file system without locks; {ELSEWHERE}") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            why = error.strerror or error
            raise DataError(f"cache folder {shown(cache)} cannot be {done}: {why}; {ELSEWHERE}") from None
        free = "?"
        with contextlib.suppress(OSError):
            free = amount(shutil.disk_usage(cache).free)
        quota = ", and a quota is reached" if error.errno == errno.EDQUOT else ""
        raise DataError(
            f"cache folder {shown(cache)} has no room: {amount(needed)} needed, {free} free{quota}; {ELSEWHERE}"
        ) from None


def amount(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def lock(cache: Path, key: str) -> FileLock:
    # Lock files stay: who removes one lets two processes hold locks of one name.
    (cache / "locks").mkdir(parents=True, exist_ok=True)
    return FileLock(cache / "locks" / f"{key}.lock")


@contextlib.contextmanager
def locked(cache: Path, key: str, progress: Progress, doing: str = "prepares the same images") -> Iterator[None]:
    """Waits until no other process holds the key's lock, and holds it."""
    held = lock(cache, key)
    try:
        held.acquire(timeout=0)
    except Timeout:
        progress.note(f"waiting for another process that {doing}")
        held.acquire()
    try:
        yield
    finally:
        held.release()
