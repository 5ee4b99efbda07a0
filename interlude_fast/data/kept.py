"""Kept views: what a frozen front makes of every image's views, computed once, and memory-mapped from then on.

    <cache>/kept/<key>/plain1.bin    float32 rows, one an image: the image as it is
    <cache>/kept/<key>/weak<W>.bin   bfloat16 rows, W weak views an image one after another
    <cache>/kept/<key>/strong<S>.bin the same of strong views
    <cache>/kept/<key>/index.npz     which images the rows are of, by the hash of their content, and checksums

A key stands for everything that the rows depend on but the images themselves: the front's weights, how images are
prepared and views are drawn. Views are keyed by an image's content, so images may be added, or change from
unlabeled to labeled, and only the new ones are computed. Rows are appended and the index is replaced when they are
complete: what a killed process left is overwritten by the next one (data/kept_rows.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from interlude_fast.errors import DataError
from interlude_fast.options import KeptConfig

from .augment import ViewMaker
from .datasets import TRAIN, Dataset
from .kept_rows import Files, KeptRows
from .progress import Progress, Silent

FORMAT = "interlude-fast kept views 1"


@dataclass(frozen=True)
class Front:
    """The frozen part of a network.

    Attributes:
        activations: images [n, C, S, S] -> [n, *shape], in the front's precision. exact: the same in fp32, for the
            images as they are, which networks are evaluated on.
        fingerprint: of its weights and of the place of the cut. device: where it runs.
    """

    activations: Callable[[Tensor], Tensor]
    exact: Callable[[Tensor], Tensor]
    fingerprint: str
    device: torch.device


class Cut(Protocol):
    """Where a network is cut (models/cut.py): the place and its number among the places, and what crosses it."""

    @property
    def place(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def places(self) -> tuple[str, ...]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Plan:
    """How many views of an image are kept, and how large they are.

    Attributes:
        weak, strong: views an image. nbytes: of all images. why: in words, where they are fewer than asked for.
    """

    weak: int
    strong: int
    nbytes: int
    why: str = ""


def plan_views(options: KeptConfig, shape: tuple[int, ...], train: int, others: int, strong: bool = True) -> Plan:
    """As many views as asked for, or as fit into options.most_gb: first the strong ones become fewer, then both.

    Args:
        shape: of activations. train, others: images with all views, and with the plain one alone. strong: whether
            strong views are wanted at all.

    Raises:
        DataError: not even one weak and two strong views fit.
    """
    row = int(np.prod(shape))
    plain = 4 * row * (train + others)
    fit = (int(options.most_gb * 1e9) - plain) // (2 * row * max(1, train))
    asked = (options.weak, options.strong if strong else 0)
    if fit >= sum(asked):
        return Plan(*asked, plain + 2 * row * train * sum(asked))
    weak = max(1, min(options.weak, fit // 4 if strong else fit))
    found = (weak, fit - weak if strong else 0)
    if fit < (3 if strong else 1):
        need = (plain + 2 * row * train * 3) / 1e9
        raise DataError(
            f"kept views of {train + others:,} images take {need:.1f} GB at least, and data.kept.most_gb = "
            f"{options.most_gb:g}; raise it, lower data.size, cut later (model.cut), or use --pipeline resident"
        )
    why = f"{sum(found)} views an image, not {sum(asked)}, fit into data.kept.most_gb = {options.most_gb:g}"
    return Plan(*found, plain + 2 * row * train * sum(found), why)


class KeptViews:
    """Kept views of a dataset's images, made when they are first asked for.

    Args:
        maker: of uint8 views, keyed as it keys rows. normalize: uint8 [n, S, S, C] -> the network's input.
        prepared: in words, how images were prepared and are normalized; part of the key.
        strong: whether strong views are wanted.
        front: called when the key is needed, so that weights may be loaded before.

    Attributes:
        plan: how many views there are.
    """

    def __init__(
        self,
        dataset: Dataset,
        maker: ViewMaker,
        normalize: Callable[[Tensor], Tensor],
        prepared: str,
        front: Callable[[], Front],
        cut: Cut,
        options: KeptConfig,
        cache: Path,
        progress: Progress | None = None,
        strong: bool = True,
    ) -> None:
        self.dataset, self.maker, self.normalize, self.prepared = dataset, maker, normalize, prepared
        self.front, self.cut, self.shape, self.options = front, cut, cut.shape, options
        self.cache, self.progress = cache, progress or Silent()
        self.hashes = np.asarray(dataset.hashes).astype("S16")
        count, train = len(np.unique(self.hashes)), len(np.unique(self.hashes[dataset.parts == TRAIN]))
        self.plan = plan_views(options, cut.shape, train, count - train, strong)
        self._opened: KeptRows | None = None

    def plain(self, items: Tensor) -> Tensor:
        """Activations of images as they are, float32 [n, *shape].

        Args:
            items: int64 [n], of the dataset.
        """
        return self.opened().take("plain", items)

    def weak(self, items: Tensor, numbers: Tensor) -> Tensor:
        """Activations of weak views, bfloat16 [n, *shape].

        Args:
            items: int64 [n], training images. numbers: int64 [n], in 0..W-1.
        """
        return self.opened().take("weak", items, numbers)

    def strong(self, items: Tensor, numbers: Tensor) -> Tensor:
        """Activations of strong views, as weak gives those of weak ones; numbers in 0..S-1."""
        return self.opened().take("strong", items, numbers)

    @property
    def begun(self) -> bool:
        """Whether some views of this kind are on the disk."""
        return (self.cache / "kept" / self._key(self.front()) / "index.npz").is_file()

    def missing(self) -> int:
        """Views that are still to be made."""
        return 0 if self._opened else self._rows(self.front()).missing()

    def opened(self) -> KeptRows:
        """The rows of all images; those that are not there are computed.

        Raises:
            DataError: no room on the disk, or activations that are not finite.
        """
        if self._opened is None:
            front = self.front()
            rows = self._rows(front)
            rows.complete(lambda file, items: self._computed(front, file, items))
            self._opened = rows
        return self._opened

    def _rows(self, front: Front) -> KeptRows:
        train = np.unique(self.hashes[self.dataset.parts == TRAIN])
        files = {"plain": Files(torch.float32, 1, np.unique(self.hashes))}
        files["weak"] = Files(torch.bfloat16, self.plan.weak, train)
        if self.plan.strong:
            files["strong"] = Files(torch.bfloat16, self.plan.strong, train)
        folder = self.cache / "kept" / self._key(front)
        return KeptRows(folder, self.cache, self.hashes, self.shape, files, front.device, self.progress)

    def _key(self, front: Front) -> str:
        told = {
            "format": FORMAT,
            "front": front.fingerprint,
            "images": self.prepared,
            "views": [repr(self.maker.settings), self.maker.fill, self.options.precision],
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]

    def _computed(self, front: Front, file: str, items: np.ndarray) -> Tensor:
        """Rows of some images, [n * views, numel]."""
        images = torch.from_numpy(self.dataset.images[items])
        if file == "plain":
            found = front.exact(self.normalize(images.to(front.device)))
        else:
            found = front.activations(self._drawn(front, images, items, file))
        self._refuse_non_finite(found, items)
        return (found.permute(0, 2, 3, 1) if found.ndim == 4 else found).flatten(1)

    def _drawn(self, front: Front, images: Tensor, items: np.ndarray, kind: str) -> Tensor:
        """The network's input for all views of a kind, drawn by an image's content and a view's number."""
        content = [int(self.hashes[item][:8], 16) >> 1 for item in items]
        keys, local = (torch.tensor(t, device=front.device) for t in (content, range(len(items))))
        kinds, images, made = torch.full_like(local, int(kind == "strong")), images.to(front.device), []
        for n in range(getattr(self.plan, kind)):
            made.append(self.maker(images, local, keys, kinds, torch.tensor(n, device=front.device)))
        return torch.stack(made, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)

    def _refuse_non_finite(self, found: Tensor, items: np.ndarray) -> None:
        if bool(found.isfinite().all()):
            return
        bad = int((~found.flatten(1).isfinite().all(1)).nonzero()[0]) // (len(found) // len(items))
        item, files = int(items[bad]), self.dataset.files
        name = files.paths[item] if files else f"image {item}"
        raise DataError(
            f"the network's activations of {name} are NaN or infinite; look at the image and at the weights, or "
            "set data.kept.precision=fp32"
        )
