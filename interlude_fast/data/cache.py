"""Prepared images of many files: decoded once, kept under their content, memory-mapped from then on.

    <cache>/index/<root>.npz        what survey learnt of the files below one folder
    <cache>/images/<key>/images.npy uint8 [M, size, size, C]
    <cache>/images/<key>/meta.npz   which files these are, per-image sums, checksums of images.npy
    <cache>/locks/<key>.lock        held while a key is built or removed

A key stands for the recipe and the files' bytes in their order, so renamed folders share it. An entry is built in
`<key>.<process>.<random>.partial` and renamed when complete; what a killed process left, the next builder removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import struct
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from filelock import Timeout

from interlude_fast.errors import DataError, nearest

from . import decode
from .decode import FileFacts, InspectJob, PrepareJob, PrepareResult
from .images import Recipe, shown
from .progress import Progress, RichProgress, Silent
from .storage import blob, default_cache, disk_errors, expanded, fsync, lock, locked, read_npz, write_npz

__all__ = [
    "CacheEntry",
    "FileFacts",
    "Prepared",
    "Progress",
    "RichProgress",
    "Silent",
    "default_cache",
    "entries",
    "expanded",
    "prepared_images",
    "remove",
    "survey",
]

# Another Pillow may decode otherwise, and may read what this one cannot: its images get other keys.
FORMAT = f"interlude-fast images 1, Pillow {PIL.__version__}"
CRC_CHUNK = 64 << 20
HEADER = 128  # bytes of images.npy before its pixels
RACY_NS = 2_000_000_000


@dataclass(frozen=True)
class Prepared:
    """The readable ones of N files.

    Attributes:
        images: uint8 [M, size, size, C], memory-mapped; writes stay in this process.
        kept: int64 [M], ascending: which files these are.
        skipped: (index, reason) of the other N - M.
        sums, squares: int64 [M, C], per image the sums of its values and of their squares.
        folder: where they lie.
    """

    images: np.ndarray
    kept: np.ndarray
    skipped: tuple[tuple[int, str], ...]
    sums: np.ndarray
    squares: np.ndarray
    folder: Path


@dataclass(frozen=True)
class CacheEntry:
    """Prepared images on disk; 0 images where they are damaged. last_used: seconds since 1970. kept: whether these
    are kept views (data/kept.py), of which only the bytes are told."""

    key: str
    bytes: int
    images: int
    size: int
    channels: int
    last_used: float
    kept: bool = False


# --- what the files hold ---


def survey(files: Sequence[Path], cache: Path, progress: Progress | None = None) -> list[FileFacts]:
    """Content hash, size and mode of every file in order, or why it is unreadable as far as its header shows.

    A file whose path and _stamp are those of an earlier survey is not read again.
    """
    progress = progress or Silent()
    paths = [os.path.abspath(file) for file in files]
    if not paths:
        return []
    began = time.time_ns()
    stamps = [_stamp(path) for path in paths]
    index = _Index(expanded(cache), os.path.commonpath([os.path.dirname(path) for path in paths]))
    known = index.read()
    facts = [known.get((path, stamp)) for path, stamp in zip(paths, stamps, strict=True)]
    missing = [number for number, fact in enumerate(facts) if fact is None]
    if missing:
        progress.start("reading files", len(missing))
        jobs = [InspectJob(b.start, tuple(paths[missing[n]] for n in b)) for b in _batches(len(missing), 256)]

        def collect(job: InspectJob, found: list[FileFacts]) -> None:
            for number, fact in enumerate(found, job.first):
                facts[missing[number]] = fact
            progress.advance(len(found))

        try:
            decode.for_each(decode.inspect_files, jobs, collect, len(missing) >= decode.PROCESSES_FROM)
        finally:
            progress.done()
    complete = [fact for fact in facts if fact is not None]
    if missing:
        # A file written within the clock's grain may change once more under the same time: not remembered.
        settled = {
            (path, stamp): fact
            for path, stamp, fact in zip(paths, stamps, complete, strict=True)
            if fact.digest and stamp[1] < began - RACY_NS
        }
        if settled.keys() - known.keys():
            index.write(known, settled, progress)
    return complete


Stamp = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode


def _stamp(path: str) -> Stamp:
    """What changes with a file, also where its copy kept size and modification time (rsync -t, cp -p)."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return (-1, -1, -1, -1)
    inode = found.st_ino & (2**63 - 1)  # as it is kept: int64
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, inode)


class _Index:
    """Facts of files below one folder, remembered. It may be missing or damaged: then files are read again."""

    def __init__(self, cache: Path, root: str) -> None:
        self.root = root
        name = hashlib.blake2b(os.fsencode(root), digest_size=16).hexdigest()
        self.path = cache / "index" / f"{name}.npz"

    def read(self) -> dict[tuple[str, Stamp], FileFacts]:
        arrays = read_npz(self.path)
        try:
            return self._facts(arrays) if arrays else {}
        except (KeyError, ValueError, UnicodeDecodeError):  # whole, but of another version
            return {}

    def _facts(self, arrays: dict[str, np.ndarray]) -> dict[tuple[str, Stamp], FileFacts]:
        header = json.loads(arrays["header"].tobytes())
        if header["root"] != self.root:
            return {}
        names, modes, reasons = (arrays[key].tobytes().split(b"\0") for key in ("paths", "modes", "reasons"))
        digests = arrays["digests"].tobytes().hex()
        rows = zip(names, arrays["numbers"].tolist(), modes, reasons, strict=True)
        known = {}
        for row, (name, (size, mtime, ctime, inode, width, height), mode, reason) in enumerate(rows):
            if reason and header["format"] != FORMAT:
                continue  # another Pillow may read it
            fact = FileFacts(
                digests[32 * row : 32 * row + 32], width, height, mode.decode(), reason.decode() or None
            )
            known[(self.root + os.fsdecode(name), (size, mtime, ctime, inode))] = fact
        return known

    def write(
        self,
        old: dict[tuple[str, Stamp], FileFacts],
        new: dict[tuple[str, Stamp], FileFacts],
        progress: Progress,
    ) -> None:
        # Earlier files stay (a survey may be of some of them), until they are mostly files long gone.
        rows = {**old, **new} if len(old) <= 2 * len(new) + 1000 else new
        arrays = {
            "header": blob(json.dumps({"root": self.root, "format": FORMAT}).encode()),
            "paths": blob(b"\0".join(os.fsencode(path.removeprefix(self.root)) for path, _ in rows)),
            "numbers": np.array([(*stamp, f.width, f.height) for (_, stamp), f in rows.items()], dtype=np.int64),
            "digests": blob(bytes.fromhex("".join(fact.digest for fact in rows.values()))),
            "modes": blob(b"\0".join(fact.mode.encode() for fact in rows.values())),
            "reasons": blob(
                b"\0".join(
                    (fact.reason or "").replace("\0", " ").encode("utf-8", "replace") for fact in rows.values()
                )
            ),
        }
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_npz(beside, arrays)
            os.replace(beside, self.path)
        except OSError as error:  # a convenience, not a condition
            progress.note(
                f"{self.path.parent} cannot be written ({error.strerror}): files are read again next time"
            )
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


# --- prepared images ---


def prepared_images(
    files: Sequence[Path],
    facts: Sequence[FileFacts],
    recipe: Recipe,
    cache: Path,
    progress: Progress | None = None,
) -> Prepared:
    """The images of `files` by the recipe: from the cache, where they are put first if they are not there.

    facts: what survey(files) says.

    Raises:
        DataError: the cache's disk is full, or may not be read or written, or a file changed since the survey.
    """
    progress = progress or Silent()
    build = _Build(files, facts, recipe, expanded(cache), progress)
    with disk_errors(build.cache, build.needed, "read"):
        found = build.open()
    if isinstance(found, Prepared):
        return found
    with disk_errors(build.cache, build.needed), locked(build.cache, build.key, progress):
        found = build.open()  # another process may have been here meanwhile
        if isinstance(found, Prepared):
            return found
        if found is not None:
            progress.note(f"cache {build.folder} is damaged ({found}): rebuilt")
            _discard(build.folder)
        return build.run()


class _Build:
    """One key: opened, or made."""

    def __init__(
        self,
        files: Sequence[Path],
        facts: Sequence[FileFacts],
        recipe: Recipe,
        cache: Path,
        progress: Progress,
    ) -> None:
        if len(files) != len(facts):
            raise ValueError(f"{len(files)} files, but facts of {len(facts)}")
        self.files, self.facts, self.recipe, self.cache, self.progress = files, facts, recipe, cache, progress
        self.candidates = np.array([n for n, fact in enumerate(facts) if fact.reason is None], dtype=np.int64)
        self.key = _key(facts, recipe)
        self.folder = cache / "images" / self.key
        self.image_bytes = int(np.prod(recipe.shape))
        per_image = self.image_bytes + 8 * (1 + 2 * recipe.channels)
        self.needed = HEADER + len(self.candidates) * per_image + (1 << 20)

    def open(self, check: bool = True) -> Prepared | str | None:
        """The finished entry, what is wrong with it, or None where there is none. check: read all bytes."""
        if not self.folder.is_dir():
            return None
        meta = read_npz(self.folder / "meta.npz")
        if meta is None:
            return "meta.npz"
        try:
            header = json.loads(meta["header"].tobytes())
            kept, bad, sums, squares, crcs = (meta[k] for k in ("kept", "skipped", "sums", "squares", "crcs"))
        except (KeyError, ValueError):
            return "meta.npz"
        if header.get("format") != FORMAT or header.get("key") != self.key:
            return f"made by {header.get('format')}"
        whole = np.array_equal(np.sort(np.concatenate([kept, bad])), self.candidates)
        if not whole or sums.shape != (len(kept), self.recipe.channels) or squares.shape != sums.shape:
            return "meta.npz"
        images = self.folder / "images.npy"
        shape = (len(kept), *self.recipe.shape)
        try:
            if images.stat().st_size != HEADER + len(kept) * self.image_bytes:
                return "images.npy has another length"
            with images.open("rb") as file:
                if file.read(HEADER) != _npy_header(shape):
                    return "images.npy has another header"
            if check and not np.array_equal(_crcs(images), crcs):
                return "images.npy has other bytes"
            pixels = np.load(images, mmap_mode="c", allow_pickle=False)
        except OSError as error:
            return f"images.npy: {error.strerror or error}"
        with contextlib.suppress(OSError):  # somebody else's cache can be read, too
            os.utime(self.folder)
        reasons = {n: fact.reason for n, fact in enumerate(self.facts) if fact.reason is not None}
        reasons |= dict(zip(bad.tolist(), header["reasons"], strict=True))
        return Prepared(pixels, kept, tuple(sorted(reasons.items())), sums, squares, self.folder)

    def run(self) -> Prepared:
        """Makes the entry; the key's lock is held."""
        began = time.monotonic()
        _sweep(self.cache, self.key)
        free = shutil.disk_usage(self.cache).free
        if free < self.needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        partial = self.folder.with_name(f"{self.key}.{os.getpid()}.{secrets.token_hex(4)}.partial")
        try:
            partial.mkdir(parents=True)
            self._fill(partial)
            for path in (partial / "images.npy", partial / "meta.npz", partial):
                fsync(path)
            os.rename(partial, self.folder)
            fsync(self.folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        made = self.open(check=False)
        if not isinstance(made, Prepared):
            raise DataError(f"{self.folder} does not read back as it was written ({made}): check the disk")
        skipped = f", {len(made.skipped):,} skipped" if made.skipped else ""
        self.progress.note(
            f"prepared {len(made.kept):,} images at {self.recipe.size} px in {time.monotonic() - began:.1f} s"
            f"{skipped}; cache {self.cache}"
        )
        return made

    def _fill(self, partial: Path) -> None:
        images = partial / "images.npy"
        count, channels = len(self.candidates), self.recipe.channels
        sums, squares = (np.zeros((count, channels), dtype=np.int64) for _ in range(2))
        reasons: dict[int, str] = {}  # by row

        def collect(job: PrepareJob, result: PrepareResult) -> None:
            rows = slice(job.first, job.first + len(job.paths))
            sums[rows], squares[rows] = result.sums, result.squares
            reasons.update((job.first + number, reason) for number, reason in result.skipped)
            self.progress.advance(len(job.paths))

        _reserve(images, HEADER + count * self.image_bytes)
        self.progress.start(f"preparing images at {self.recipe.size} px", count)
        try:
            decode.for_each(decode.prepare_files, self._jobs(images), collect, count >= decode.PROCESSES_FROM)
        finally:
            self.progress.done()
        bad = np.array(sorted(reasons), dtype=np.int64)
        good = np.setdiff1d(np.arange(count), bad)
        _compact(images, good, self.image_bytes)
        with images.open("r+b") as file:
            file.write(_npy_header((len(good), *self.recipe.shape)))
        header = {"format": FORMAT, "key": self.key, "reasons": [reasons[row] for row in bad.tolist()]}
        arrays = {
            "header": blob(json.dumps(header).encode()),
            "kept": self.candidates[good],
            "skipped": self.candidates[bad],
            "sums": sums[good],
            "squares": squares[good],
            "crcs": _crcs(images),
        }
        write_npz(partial / "meta.npz", arrays)

    def _jobs(self, images: Path) -> list[PrepareJob]:
        jobs = []
        for batch in _batches(len(self.candidates), max(1, min(256, (4 << 20) // self.image_bytes))):
            chosen = self.candidates[batch.start : batch.stop].tolist()
            paths = tuple(os.path.abspath(self.files[n]) for n in chosen)
            digests = tuple(self.facts[n].digest for n in chosen)
            jobs.append(PrepareJob(str(images), HEADER, batch.start, paths, digests, self.recipe))
        return jobs


def _key(facts: Sequence[FileFacts], recipe: Recipe) -> str:
    # Bilinear images keep the key that they had before there was a choice.
    by = "" if recipe.interpolation == "bilinear" else f" {recipe.interpolation}"
    digest = hashlib.sha256(f"{FORMAT}\n{recipe.size} {recipe.channels} {recipe.fit}{by}\n".encode())
    for fact in facts:
        digest.update((fact.digest if fact.reason is None else "unreadable").encode() + b"\n")
    return digest.hexdigest()


def _batches(count: int, largest: int) -> list[range]:
    """0..count in runs, at least four per core where there are enough."""
    step = max(1, min(largest, count // (4 * decode.cores())))
    return [range(first, min(first + step, count)) for first in range(0, count, step)]


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The first HEADER bytes of an .npy file, whatever the number of images: it is written twice."""
    text = repr({"descr": "|u1", "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", HEADER - 10) + text.ljust(HEADER - 11).encode() + b"\n"


def _reserve(path: Path, size: int) -> None:
    """A file of that size whose bytes the disk has promised."""
    with path.open("wb") as file:
        reserve = getattr(os, "posix_fallocate", None)  # not on macOS
        try:
            if reserve is not None:
                reserve(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # a file system without it
                raise
        file.truncate(size)


def _compact(path: Path, good: np.ndarray, image_bytes: int) -> None:
    """Moves the good rows down over the bad ones, in their order, and cuts the file after them."""
    with path.open("r+b", buffering=0) as file:
        moved = np.flatnonzero(good != np.arange(len(good)))
        if len(moved):
            rows = np.empty((max(1, (4 << 20) // image_bytes), image_bytes), dtype=np.uint8)
            runs = np.split(moved, np.flatnonzero(np.diff(good[moved]) != 1) + 1)
            for run in runs:
                for first in range(0, len(run), len(rows)):
                    part = run[first : first + len(rows)]
                    block = rows[: len(part)]
                    file.seek(HEADER + int(good[part[0]]) * image_bytes)
                    view = block.data.cast("B")
                    while view:
                        view = view[file.readinto(view) or 0 :]
                    decode.write_at(file.fileno(), block, HEADER + int(part[0]) * image_bytes)
        file.truncate(HEADER + len(good) * image_bytes)


def _crcs(path: Path) -> np.ndarray:
    """CRC32 of every CRC_CHUNK bytes of a file, uint32."""

    def of_chunk(start: int) -> int:
        crc = 0
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            for _ in range(CRC_CHUNK // decode.READ):
                crc = zlib.crc32(file.read(decode.READ), crc)
        return crc

    with ThreadPoolExecutor(decode.cores()) as threads:
        return np.array([*threads.map(of_chunk, range(0, path.stat().st_size, CRC_CHUNK))], dtype=np.uint32)


# --- house-keeping ---


def _discard(folder: Path) -> None:
    """Gone at once for others; its lock is held."""
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _sweep(cache: Path, held: str) -> None:
    """Removes what killed builders left: of the key whose lock is held, and of those that nobody builds."""
    for partial in (cache / "images").glob("*.partial"):
        key = partial.name.partition(".")[0]
        with contextlib.suppress(Timeout), contextlib.ExitStack() as stack:
            if key != held:
                stack.enter_context(lock(cache, key).acquire(timeout=0))
            shutil.rmtree(partial, ignore_errors=True)


def entries(cache: Path) -> list[CacheEntry]:
    """What the cache holds, last used first.

    Raises:
        DataError: it cannot be read.
    """
    cache = expanded(cache)
    with disk_errors(cache, done="read"):
        found = [*_entries(cache / "images"), *_kept_entries(cache / "kept")]
        return sorted(found, key=lambda entry: (-entry.last_used, entry.key))


def _entries(images: Path) -> list[CacheEntry]:
    found = []
    for folder in images.iterdir() if images.is_dir() else ():  # unlike glob, not silent where it may not read
        if not folder.is_dir() or "." in folder.name:
            continue
        used, size = 0.0, 0
        try:
            used = folder.stat().st_mtime
            size = sum(file.stat().st_size for file in folder.iterdir())
            shape = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False).shape
        except FileNotFoundError:
            continue  # another process removes it
        except (OSError, ValueError, EOFError):
            shape = (0, 0, 0, 0)
        count, side, _, channels = shape if len(shape) == 4 else (0, 0, 0, 0)
        found.append(CacheEntry(folder.name, size, count, side, channels, used))
    return found


def _kept_entries(kept: Path) -> list[CacheEntry]:
    found = []
    for folder in kept.iterdir() if kept.is_dir() else ():
        if "." not in folder.name:
            with contextlib.suppress(FileNotFoundError):  # another process removes it
                size = sum(file.stat().st_size for file in folder.iterdir())
                found.append(CacheEntry(folder.name, size, 0, 0, 0, folder.stat().st_mtime, kept=True))
    return found


def remove(cache: Path, key: str | None = None) -> list[CacheEntry]:
    """Removes one entry, named by its key or its beginning, or all of them with all that surveys remember.

    Processes that have an entry open keep it.

    Raises:
        DataError: no such entry, more than one, one that is being built, or a cache that cannot be written.
    """
    cache = expanded(cache)
    known = entries(cache)
    chosen = [entry for entry in known if key is None or (key and entry.key.startswith(key))]
    if key is not None and len(chosen) != 1:
        what = f"{len(chosen)} entries" if chosen else "no entry"
        near = nearest(key, [entry.key[:16] for entry in known]) if known else ""
        raise DataError(f"cache {shown(cache)} has {what} '{shown(key)}'{near}")
    with disk_errors(cache):
        for entry in chosen:
            try:
                name = f"kept-{entry.key}" if entry.kept else entry.key
                with lock(cache, name).acquire(timeout=0):
                    _discard(cache / ("kept" if entry.kept else "images") / entry.key)
            except Timeout:
                raise DataError(f"cache entry {entry.key} is being built: remove it when that is done") from None
        if key is None and cache.is_dir():
            _sweep(cache, held="")
            shutil.rmtree(cache / "index", ignore_errors=True)
    return chosen
