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
from torch import Tensor

from interlude_fast.data.decode import cores
from interlude_fast.data.files import image_paths
from interlude_fast.data.images import UnreadableImage, from_array, prepare, read_image, shown
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import Progress, Silent
from interlude_fast.errors import DataError
from interlude_fast.experiment.run_directory import RunDirectory, load_weights
from interlude_fast.methods import Problem, build_method
from interlude_fast.metrics import predict_logits
from interlude_fast.models import Network, Shape
from interlude_fast.train.build import build_network
from interlude_fast.train.device import resolve_device

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
    run: Path,
    images: Sequence[Path],
    device: str | None = None,
    *,
    network: str = "ema",
    progress: Progress | None = None,
) -> Predictions:
    """Predict with a network of a run directory. A prediction depends on its image alone.

    Args:
        images: files and folders. device: auto, cpu, cuda or cuda:<i>; None: auto.
        network: "ema", "raw" or "best_on_validation".

    Raises:
        CheckpointError: the folder is not that of a finished run, or is damaged.
        DataError: a path does not exist, or no image can be read.
    """
    folder = RunDirectory.open(run)
    config, how = folder.config(), Preprocessing.from_dict(folder.read_json("preprocessing.json"))
    where = resolve_device(device or "auto")
    method = build_method(config.method.name, config.method.options(), Problem(len(how.classes)))
    model = build_network(config, method, Shape(len(how.classes), how.channels, how.size), fresh=False)
    load_weights(model, folder, network)
    model = model.to(where).to(memory_format=torch.channels_last)
    paths = find_images(images)
    found = predict_images({network: model}, paths, how, where, progress)
    return Predictions(
        tuple(str(paths[i]) for i in found.read),
        found.logits[network].softmax(1).numpy(),
        how.classes,
        tuple((str(paths[i]), reason) for i, reason in found.skipped),
    )


@dataclass(frozen=True)
class Predicted:
    """What networks say of images.

    Attributes:
        read: [N], the numbers of the images that could be read; skipped: (number, reason) of the others.
        logits: of each network, float32 [N, K] on the CPU.
    """

    read: list[int]
    logits: dict[str, Tensor]
    skipped: list[tuple[int, str]]


def predict_images(
    networks: dict[str, Network],
    images: Sequence[Path] | np.ndarray,
    how: Preprocessing,
    device: torch.device,
    progress: Progress | None = None,
) -> Predicted:
    """Logits of files, or of uint8 images [N, H, W, C], prepared as a run's own images were. Every prediction
    depends on its image alone: from here on the networks fuse no rows in eval mode.

    Raises:
        DataError: no image can be read.
    """
    done, progress = Predicted([], {}, []), progress or Silent()
    found: dict[str, list[Tensor]] = {name: [] for name in networks}
    try:
        for numbers, pixels, bad in _read(images, how, progress):
            done.read.extend(numbers)
            done.skipped.extend(bad)
            for name, network in networks.items() if numbers else ():
                network.fusion.at_eval = False
                logits = predict_logits(network, [torch.from_numpy(pixels).to(device)], how.normalize)
                found[name].append(logits.float().cpu())
    finally:  # here: an error would leave the generator waiting, and the bar standing
        progress.done()
    if not done.read:
        number, reason = done.skipped[0]
        raise DataError(
            f"none of the {len(done.skipped)} images can be read, e.g. {shown(str(images[number]))}: {reason}"
        )
    done.logits.update({name: torch.cat(parts) for name, parts in found.items()})
    return done


def _read(
    images: Sequence[Path] | np.ndarray, how: Preprocessing, progress: Progress
) -> Iterator[tuple[list[int], np.ndarray, list[tuple[int, str]]]]:
    """(numbers, uint8 [n, S, S, C], (number, reason) of unreadable ones), CHUNK images at a time, by all cores."""
    recipe = how.recipe

    def one(image: Path | np.ndarray) -> np.ndarray | str:
        try:
            return prepare(read_image(image) if isinstance(image, Path) else from_array(image), recipe)
        except UnreadableImage as error:
            return error.reason

    progress.start("predicting", len(images))
    with ThreadPoolExecutor(cores()) as threads:
        for start in range(0, len(images), CHUNK):
            part = images[start : start + CHUNK]
            results = list(enumerate(threads.map(one, part), start))
            good = [(i, image) for i, image in results if not isinstance(image, str)]
            bad = [(i, reason) for i, reason in results if isinstance(reason, str)]
            yield [i for i, _ in good], np.array([image for _, image in good], dtype=np.uint8), bad
            progress.advance(len(part))
