"""Classes of new images, by a trained run's own network and preprocessing."""

from __future__ import annotations

import csv
import io
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from interlude_fast.data.decode import cores
from interlude_fast.data.files import image_paths
from interlude_fast.data.images import UnreadableImage, prepare, read_image, shown
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import Progress, Silent
from interlude_fast.errors import DataError
from interlude_fast.evaluate import predict_logits
from interlude_fast.methods import Problem, build_method
from interlude_fast.models import Shape
from interlude_fast.train.build import build_network
from interlude_fast.train.step import resolve_device

from .run import load_weights
from .run_directory import RunDirectory

CHUNK = 256  # images in memory at a time, before and after they are resized


@dataclass(frozen=True)
class Predictions:
    """probabilities: float32 [N, K] of `paths` [N]; skipped: (path, reason) of images that cannot be read."""

    paths: tuple[str, ...]
    probabilities: np.ndarray
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    def to_csv(self) -> str:
        """A row an image: path, class, its probability, and p_<class> of every class."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["path", "class", "probability", *(f"p_{name}" for name in self.classes)])
        for path, p in zip(self.paths, self.probabilities, strict=True):
            best = int(p.argmax())
            rows.writerow([path, self.classes[best], f"{p[best]:.6f}", *(f"{value:.6f}" for value in p)])
        return text.getvalue()


def find_images(arguments: Sequence[Path]) -> list[Path]:
    """Files as they are, folders as the images in them at any depth.

    Raises:
        DataError: a path does not exist or cannot be looked at, or a folder holds no image.
    """
    found: list[Path] = []
    for path in arguments:
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{shown(path)} does not exist") from None
        except OSError as error:
            raise DataError(f"{shown(path)} cannot be read: {error.strerror or error}") from None
        inside = [path / name for name in image_paths(path)] if is_folder else [path]
        if not inside:
            raise DataError(f"{shown(path)} holds no image")
        found += inside
    return found


def predict(
    run: Path, images: Sequence[Path], device: str | None = None, *, progress: Progress | None = None
) -> Predictions:
    """Predict with the EMA network of a run directory. A prediction depends on its image alone.

    Args:
        images: files and folders. device: auto, cpu, cuda or cuda:<i>; None: auto.

    Raises:
        CheckpointError: the folder is not that of a finished run, or is damaged.
        DataError: a path does not exist, or no image can be read.
    """
    folder = RunDirectory.open(run)
    config, how = folder.config(), Preprocessing.from_dict(folder.read_json("preprocessing.json"))
    where = resolve_device(device or "auto")
    method = build_method(config.method.name, config.method.options(), Problem(len(how.classes)))
    network = build_network(config, method, Shape(len(how.classes), how.channels, how.size), fresh=False)
    network.fusion.at_eval = False
    load_weights(network, folder, "ema")
    network = network.to(where).to(memory_format=torch.channels_last)
    paths, skipped, found = [], [], []
    progress = progress or Silent()
    try:
        for names, pixels, bad in _read(find_images(images), how, progress):
            paths += names
            skipped += bad
            if names:
                logits = predict_logits(network, [torch.from_numpy(pixels).to(where)], how.normalize)
                found.append(logits.float().softmax(1).cpu().numpy())
    finally:  # here: an error would leave the generator waiting, and the bar standing
        progress.done()
    if not found:
        path, reason = skipped[0]
        raise DataError(f"none of the {len(skipped)} images can be read, e.g. {shown(path)}: {reason}")
    return Predictions(tuple(paths), np.concatenate(found), how.classes, tuple(skipped))


def _read(
    paths: list[Path], how: Preprocessing, progress: Progress
) -> Iterator[tuple[list[str], np.ndarray, list[tuple[str, str]]]]:
    """(paths, uint8 [n, S, S, C], (path, reason) of unreadable ones), CHUNK files at a time, by all cores."""
    recipe = how.recipe

    def one(path: Path) -> np.ndarray | str:
        try:
            return prepare(read_image(path), recipe)
        except UnreadableImage as error:
            return error.reason

    progress.start("predicting", len(paths))
    with ThreadPoolExecutor(cores()) as threads:
        for start in range(0, len(paths), CHUNK):
            part = paths[start : start + CHUNK]
            results = list(zip(part, threads.map(one, part), strict=True))
            good = [(str(path), image) for path, image in results if not isinstance(image, str)]
            bad = [(str(path), reason) for path, reason in results if isinstance(reason, str)]
            yield [path for path, _ in good], np.array([image for _, image in good], dtype=np.uint8), bad
            progress.advance(len(part))
