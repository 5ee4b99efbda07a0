"""The files of kept views: rows by the hash of an image's content, appended, checked, memory-mapped."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .progress import Progress
from .storage import disk_errors, fsync, locked, read_npz, write_npz

SAVE_SECONDS = 20.0  # between two replacements of the index while rows are made
AT_A_TIME = 64  # rows that are computed at a time

# (name of the file, numbers of images int64 [n]) -> rows [n * per_image, numel] of any floating dtype
Compute = Callable[[str, np.ndarray], Tensor]


@dataclass(frozen=True)
class Files:
    """One file of rows.

    Attributes:
        dtype: of the rows. per_image: rows an image. wanted: hashes of the images, sorted, S16.
    """

    dtype: torch.dtype
    per_image: int
    wanted: np.ndarray


class KeptRows:
    """The files of one folder, and where in them a dataset's images are.

    Args:
        hashes: S16 [N], of the dataset's images. shape: of a row. device: where rows are wanted.
    """

    def __init__(
        self,
        folder: Path,
        cache: Path,
        hashes: np.ndarray,
        shape: tuple[int, ...],
        files: Mapping[str, Files],
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.folder, self.cache, self.hashes, self.shape = folder, cache, hashes, shape
        self.files, self.device, self.progress = files, device, progress
        self.numel = int(np.prod(shape))
        self.index = self._read_index()
        self.rows: dict[str, Tensor] = {}
        self.place: dict[str, Tensor] = {}

    # --- reading ---

    def take(self, file: str, items: Tensor, numbers: Tensor | int = 0) -> Tensor:
        """Rows [n, *shape] of images, int64 [n], by their number in [0, per_image) among an image's."""
        rows, place = self.rows[file], self.place[file]
        at = place[items.to(place.device)] * self.files[file].per_image + torch.as_tensor(numbers).to(place.device)
        found = rows.index_select(0, at).to(self.device, non_blocking=True)
        if len(self.shape) != 3:
            return found.view(-1, *self.shape)
        c, h, w = self.shape
        return found.view(-1, h, w, c).permute(0, 3, 1, 2)  # channels-last

    def missing(self) -> int:
        """Rows that are still to be computed."""
        return sum(len(self._missing(name)) * file.per_image for name, file in self.files.items())

    def _missing(self, name: str) -> np.ndarray:
        """Hashes, in the order of the dataset."""
        there = np.isin(self.hashes, self.index[f"{self._stem(name)}_hashes"]) | ~np.isin(
            self.hashes, self.files[name].wanted
        )
        first = np.sort(np.unique(self.hashes, return_index=True)[1])
        return self.hashes[first[~there[first]]]

    def _bytes(self, name: str) -> int:
        """An image's."""
        file = self.files[name]
        return file.dtype.itemsize * self.numel * file.per_image

    def _path(self, name: str) -> Path:
        return self.folder / f"{self._stem(name)}.bin"

    def _stem(self, name: str) -> str:
        return f"{name}{self.files[name].per_image}"

    def _read_index(self) -> dict[str, np.ndarray]:
        """What is there; nothing where the index is damaged or files are shorter than it says."""
        index = read_npz(self.folder / "index.npz") or {}  # also of files that are not asked for now
        for name in self.files:
            hashes, crcs = (index.get(f"{self._stem(name)}_{key}") for key in ("hashes", "crcs"))
            size = self._path(name).stat().st_size if self._path(name).exists() else 0
            if (
                hashes is None
                or crcs is None
                or len(hashes) != len(crcs)
                or len(hashes) * self._bytes(name) > size
            ):
                hashes, crcs = np.zeros(0, "S16"), np.zeros(0, np.uint32)
            index |= {f"{self._stem(name)}_hashes": hashes, f"{self._stem(name)}_crcs": crcs}
        return index

    # --- making ---

    def complete(self, compute: Compute) -> None:
        """Compute what is missing, and map everything. One process does it, others wait.

        Raises:
            DataError: the disk has no room, or cannot be written.
        """
        needed = sum(len(file.wanted) * self._bytes(name) for name, file in self.files.items())
        with disk_errors(self.cache, needed):
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.cache, f"kept-{self.folder.name}", self.progress, "keeps the same views"):
                self.index = self._read_index()
                for name in self.files:
                    self._drop_damaged(name)
                if self.missing():
                    self._make(compute)
            for name in self.files:
                self._map(name)
        with contextlib.suppress(OSError):  # somebody else's cache can be read, too
            os.utime(self.folder)

    def _drop_damaged(self, name: str) -> None:
        """Images whose bytes are not what was written are made again, with all behind them."""
        crcs = self.index[f"{self._stem(name)}_crcs"]
        found = _crcs(self._path(name), self._bytes(name), len(crcs))
        wrong = next((n for n, crc in enumerate(found) if crc != crcs[n]), None)
        if wrong is None:
            return
        self.progress.note(f"{self._path(name)} is damaged from image {wrong} on: these views are made again")
        for key in ("hashes", "crcs"):
            self.index[f"{self._stem(name)}_{key}"] = self.index[f"{self._stem(name)}_{key}"][:wrong]

    def _make(self, compute: Compute) -> None:
        began, total = time.monotonic(), self.missing()
        needed = sum(len(self._missing(name)) * self._bytes(name) for name in self.files)
        if shutil.disk_usage(self.folder).free < needed + (1 << 20):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        item_of = {content: item for item, content in reversed([*enumerate(self.hashes.tolist())])}
        self.progress.start("keeping views", total)
        saved, images = time.monotonic(), 0
        try:
            for name, file in self.files.items():
                missing = self._missing(name)
                images = max(images, len(missing))
                for part in np.array_split(missing, -(-len(missing) * file.per_image // AT_A_TIME) or 1):
                    if not len(part):
                        continue
                    items = np.array([item_of[content] for content in part.tolist()])
                    self._append(name, part, compute(name, items))
                    self.progress.advance(len(part) * file.per_image)
                    if time.monotonic() - saved > SAVE_SECONDS:
                        self._write_index()
                        saved = time.monotonic()
            self._write_index()
        finally:
            self.progress.done()
        seconds = time.monotonic() - began
        self.progress.note(f"kept {total:,} views of {images:,} images in {seconds:.1f} s; cache {self.cache}")

    def _append(self, name: str, hashes: np.ndarray, rows: Tensor) -> None:
        rows = rows.to(self.files[name].dtype).contiguous().cpu()
        block = rows.view(torch.uint8).reshape(len(hashes), -1).numpy()
        path, done = self._path(name), len(self.index[f"{self._stem(name)}_hashes"])
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.seek(done * self._bytes(name))
            file.write(block.data)
        crcs = np.array([zlib.crc32(row.data) for row in block], dtype=np.uint32)
        for key, more in (("hashes", hashes), ("crcs", crcs)):
            self.index[f"{self._stem(name)}_{key}"] = np.concatenate(
                [self.index[f"{self._stem(name)}_{key}"], more]
            )

    def _write_index(self) -> None:
        for name in self.files:
            if self._path(name).exists():
                fsync(self._path(name))
        beside = self.folder / f"index.{os.getpid()}.partial"
        try:
            write_npz(beside, self.index)
            fsync(beside)
            os.replace(beside, self.folder / "index.npz")
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)

    def _map(self, name: str) -> None:
        file, hashes = self.files[name], self.index[f"{self._stem(name)}_hashes"]
        count = len(hashes) * file.per_image
        rows = torch.empty(0, self.numel, dtype=file.dtype)
        if count:
            shape = (count * self.numel * file.dtype.itemsize,)
            whole = np.memmap(self._path(name), np.uint8, "c", shape=shape)
            rows = torch.from_numpy(whole).view(file.dtype).view(count, self.numel)
        order = np.argsort(hashes)
        nearest = np.searchsorted(hashes[order], self.hashes).clip(max=max(0, len(order) - 1))
        place = order[nearest] if len(order) else np.zeros(len(self.hashes), dtype=np.int64)
        place = np.where(np.isin(self.hashes, hashes), place, np.iinfo(np.int64).max // 2**20)
        self.rows[name] = self._on_device(rows)
        self.place[name] = torch.from_numpy(place.astype(np.int64)).to(self.rows[name].device)

    def _on_device(self, rows: Tensor) -> Tensor:
        """On a GPU where they take at most half of what is free there, else memory-mapped on the host."""
        if self.device.type != "cuda":
            return rows
        free, _ = torch.cuda.mem_get_info(self.device)
        return rows.to(self.device) if rows.nbytes <= free / 2 else rows


def _crcs(path: Path, size: int, count: int) -> Iterator[int]:
    """CRC32 of the first `count` blocks of a file."""
    if count:
        with path.open("rb", buffering=1 << 20) as file:
            for _ in range(count):
                yield zlib.crc32(file.read(size))
