"""NVIDIA DALI: its operators read and decode files and make the views, two steps ahead.

DALI draws nothing: the sampler's plan and draw_views' numbers are fed to it, so the batch of a step is a function
of seed and step here too. An image is decoded once for all its rows. Views of arrays have `resident`'s pixels,
but for Equalize, which may be off by one level.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from interlude_fast.data.augment import ViewMaker, normalization_table
from interlude_fast.data.batch import VIEWS, Batch, View
from interlude_fast.data.datasets import Dataset
from interlude_fast.data.sampler import Plan, Sampler
from interlude_fast.errors import ConfigError, DataError
from interlude_fast.reference.augment import FIXED, OPS

from .base import Ingredients

DEPTH = 2  # steps in work
# Files that DALI decodes as Pillow does; images of others are fed as the dataset prepared them.
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".ppm", ".pgm")
MODES = ("L", "RGB")
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "PPM")


class Feeder:
    """Gives DALI the numbers of one step after the other. A sample is a distinct image, with all its views.

    Args:
        decoded: bool [N], which of the dataset's images DALI reads from files.
        branches: int32 [14], DALI's number of each of OPS.
    """

    def __init__(
        self, dataset: Dataset, sampler: Sampler, maker: ViewMaker, decoded: np.ndarray, branches: np.ndarray
    ) -> None:
        self.dataset, self.sampler, self.maker = dataset, sampler.on(torch.device("cpu")), maker
        self.decoded, self.branches = decoded, branches
        self.next = 0
        self.ahead: deque[tuple[int, Plan]] = deque()  # fed, and not yet taken
        views = self.sampler.kinds
        present, self.sample_of_row = self.sampler.slots.unique(return_inverse=True)
        self.samples = len(present)
        # For each view of a step its rows, which may all be another rank's, and for each sample one of them, -1
        # where it has none.
        self.rows = {int(v): (views == v).nonzero().flatten() for v in sampler.order.rows[1].unique()}
        self.row_of_sample = {
            v: torch.full((self.samples,), -1).index_copy(0, self.sample_of_row[rows], rows)
            for v, rows in self.rows.items()
        }
        self.shown_by = torch.stack([*self.row_of_sample.values()]).amax(0)
        # DALI's maps are of pixel corners, Pillow's of centres; the numbers are exact in float32.
        maps = maker.affine.double().unflatten(-1, (2, 3)) / FIXED
        maps[..., 2] -= maps[..., :2].sum(-1) / 2
        self.maps, self.values = maps.float(), maker.values.clone()
        bits = maker.values[OPS.index("Posterize")]
        self.values[OPS.index("Posterize")] = 256 - 2 ** (8 - bits)  # the mask that keeps them

    def __call__(self) -> dict[str, Any]:
        """What dali_graph.Spec.inputs() names, of step `next`; [samples, ...] each."""
        plan = self.sampler.plan(self.next)
        drawn = self.maker.draw(plan.keys, plan.views, plan.step)
        fed = self._images(plan.items[self.shown_by].numpy())
        corner = torch.stack([drawn.top, drawn.left], 1) - drawn.pad
        for v, row in self.row_of_sample.items():
            fed[f"wanted{v}"] = (row >= 0).numpy()
            row = row.clamp(min=0)
            fed[f"flip{v}"], fed[f"corner{v}"] = drawn.flip[row].int().numpy(), corner[row].int().numpy()
        if 1 in self.row_of_sample:
            row = self.row_of_sample[1].clamp(min=0)
            x0, y0, x1, y1 = drawn.box[row].clamp(max=self.dataset.size - 1).float().unbind(1)
            fed["square_corner"] = torch.stack([y0, x0], 1).numpy()
            fed["square_sides"] = torch.stack([y1 - y0 + 1, x1 - x0 + 1], 1).clamp(min=0).numpy()
            for i in range(drawn.op.shape[1]):
                op, level, mirrored = drawn.op[row, i], drawn.level[row, i], drawn.mirrored[row, i].long()
                fed[f"op{i}"] = self.branches[op.numpy()]
                fed[f"value{i}"] = self.values[op, level].numpy()
                fed[f"map{i}"] = self.maps[op, level, mirrored].numpy()
        self.ahead.append((self.next, plan))
        self.next += 1
        return fed

    def _images(self, items: np.ndarray) -> dict[str, Any]:
        images, files = self.dataset.images, self.dataset.files
        if files is None or not self.decoded.any():
            return {"pixels": images[items]}
        none = np.zeros((0, 0, self.dataset.channels), dtype=np.uint8)
        chosen = [(int(i), bool(self.decoded[i])) for i in items]
        return {
            "decoded": self.decoded[items],
            "path": [_bytes(os.path.join(files.root, files.paths[i]) if yes else "") for i, yes in chosen],
            "pixels": [none if yes else images[i] for i, yes in chosen],
        }

    def bad_file(self, plan: Plan) -> str | None:
        """The first file of a step that is not what DALI decodes; for the error that says so."""
        files = self.dataset.files
        if files is None:
            return None
        for i in plan.items.unique().tolist():
            path = os.path.join(files.root, files.paths[i])
            try:
                with Image.open(path) as image:
                    image.load()
                    good = image.format in FORMATS
            except Exception:  # whatever damaged bytes raise
                good = False
            if self.decoded[i] and not good:
                return path
        return None


class DaliPipeline:
    """Batches from a graph that works ahead; another step than the next one starts it anew there.

    Args:
        start: builds the graph; called here, and again where a batch is asked for after close().
    """

    recordable = False

    def __init__(self, sampler: Sampler, feeder: Feeder, start: Callable[[], Any], dtype: torch.dtype) -> None:
        self.sampler, self.feeder, self.start, self.dtype = sampler, feeder, start, dtype
        self.graph = start()
        device = sampler.store.device
        self.places = [(rows.to(device), feeder.sample_of_row[rows].to(device)) for rows in feeder.rows.values()]

    def batch(self, step: int) -> Batch:
        """Images come in channels-last memory format.

        Raises:
            DataError: a file that DALI does not decode.
        """
        ahead = self.feeder.ahead
        if self.graph is None:
            self.graph = self.start()
        if not ahead or ahead[0][0] != step:
            while ahead:
                self._take()
            self.feeder.next = step
        self._work_ahead()
        plan, views = self._take()
        device, order = self.sampler.store.device, self.sampler.order
        images = torch.empty((len(self.sampler.slots), *views[0].shape[1:]), dtype=self.dtype, device=device)
        for (rows, samples), view in zip(self.places, views, strict=True):
            images.index_copy_(0, rows, view[samples].to(self.dtype))
        del views
        self._work_ahead()
        labels, unlabeled = (t.to(device, non_blocking=True) for t in (plan.labels, plan.unlabeled_items))
        at = plan.step.to(device, non_blocking=True)
        return Batch(images.permute(0, 3, 1, 2), labels, order, unlabeled, at)

    def _work_ahead(self) -> None:
        while len(self.feeder.ahead) < DEPTH:
            self.graph.schedule_run()  # calls the feeder; the first time as often as DALI prefetches

    def _take(self) -> tuple[Plan, list[Tensor]]:
        """The oldest scheduled step: its plan, and of every view float32 [samples, S, S, C]."""
        step, plan = self.feeder.ahead.popleft()
        device = self.sampler.store.device
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        try:
            made = self.graph.share_outputs(stream)
        except RuntimeError as error:
            file = self.feeder.bad_file(plan)
            if file is None:
                raise
            raise DataError(f"pipeline dali, step {step}: DALI cannot decode {file} ({_reason(error)})") from None
        views = [torch.from_dlpack(view.as_tensor()) for view in made]
        self.graph.release_outputs()  # the tensors keep their memory
        return plan, views

    def close(self) -> None:
        """Ends DALI's threads and frees its memory."""
        self.feeder.ahead.clear()
        self.graph = None


def check(views: Sequence[View]) -> Any:
    """The module of the graph, where DALI is there and makes these views.

    Raises:
        ConfigError: a method wants two views of a kind, or DALI is not installed or does not load.
    """
    if second := [view for view in dict.fromkeys(views) if VIEWS.index(view) > 1]:
        raise ConfigError(
            "pipeline dali makes one weak and one strong view of an image, and this method wants "
            f"{' and '.join(second)} too: use --pipeline resident, host or torchvision"
        )
    try:
        from . import dali_graph
    except ModuleNotFoundError:
        raise ConfigError("pipeline dali needs NVIDIA DALI: pip install 'interlude-fast[dali]'") from None
    except (ImportError, OSError) as error:  # its libraries
        raise ConfigError(f"pipeline dali: NVIDIA DALI does not load: {error}") from None
    return dali_graph


def build(made_of: Ingredients) -> DaliPipeline:
    """The pipeline on the store's device.

    Raises:
        ConfigError: the method wants two views of a kind; DALI is not installed, or does not start on the device.
    """
    dali_graph = check((*made_of.sampler.order.labeled_views, *made_of.sampler.order.unlabeled_views))
    dataset, sampler = made_of.dataset, made_of.sampler
    device = sampler.store.device
    # Draws and tables are the host's: only its C channels and device count of this table.
    maker = made_of.view_maker(normalization_table(dataset.mean, dataset.std, torch.float32, torch.device("cpu")))
    decoded = _decoded_by_dali(dataset)
    feeder = Feeder(dataset, sampler, maker, decoded, dali_graph.BRANCH_OF)
    spec = dali_graph.Spec(
        side=dataset.size,
        channels=dataset.channels,
        mean=tuple(255 * m for m in dataset.mean),
        std=tuple(255 * s for s in dataset.std),
        fill=maker.fill,
        pad=maker.pad,
        ops=maker.form.ops,
        views=tuple(feeder.rows),
        partial=tuple(v for v, row in feeder.row_of_sample.items() if int(row.min()) < 0),
        files=bool(decoded.any()),
        pixels=not decoded.all(),
        resize=dataset.files is not None and bool((dataset.files.sizes[decoded] != dataset.size).any()),
        fit=dataset.fit,
        gpu=device.type == "cuda",
    )
    where = (torch.cuda.current_device() if device.index is None else device.index) if spec.gpu else None
    threads = made_of.worker_count
    names = tuple(spec.inputs())

    def feed() -> tuple[Any, ...]:
        fed = feeder()
        return tuple(fed[name] for name in names)

    def start() -> Any:
        try:
            return dali_graph.build_graph(
                spec, feed, batch=feeder.samples, threads=max(1, threads), device_id=where, depth=DEPTH
            )
        except RuntimeError as error:
            raise ConfigError(f"pipeline dali: NVIDIA DALI does not start on {device}: {_reason(error)}") from None

    return DaliPipeline(sampler, feeder, start, made_of.dtype)


def _decoded_by_dali(dataset: Dataset) -> np.ndarray:
    """bool [N]: images that DALI reads from their files. Says how many it does not, where it does others."""
    files = dataset.files
    if files is None:
        return np.zeros(len(dataset.images), dtype=bool)
    pairs = zip(files.paths, files.modes, strict=True)
    found = np.array([mode in MODES and _decodes(files.root / path) for path, mode in pairs])
    if dataset.interpolation != "bilinear":  # the only filter of its graph
        found &= (files.sizes == dataset.size).all(1)
    if not found.all():
        warnings.warn(
            f"pipeline dali decodes {found.sum():,} of {len(found):,} files; the others' pixels come prepared, "
            f"as the data set's cache has them (formats {' '.join(SUFFIXES)}, modes {' '.join(MODES)}, resized "
            "bilinearly)",
            stacklevel=2,
        )
    return found


def _decodes(path: Path) -> bool:
    """By its suffix; a PNG with a transparent colour or 16 bits a channel is decoded otherwise than by Pillow."""
    suffix = path.suffix.lower()
    if suffix != ".png":
        return suffix in SUFFIXES
    with path.open("rb") as file:
        header, pixels, _ = file.read(1 << 16).partition(b"IDAT")
    return bool(pixels) and header[24] <= 8 and b"tRNS" not in header  # byte 24: bits a channel


def _bytes(path: str) -> np.ndarray:
    """A path as fn.io.file.read takes it."""
    return np.frombuffer(os.fsencode(path), dtype=np.uint8)


def _reason(error: RuntimeError) -> str:
    """What DALI says, without where in the graph and in C++ it says it."""
    _, _, told = str(error).rpartition("encountered:")
    return next((line.strip() for line in told.splitlines() if line.strip()), "no reason given")
