"""A trained network with everything that it takes to use it: no optimizer, no sampler, no training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from interlude_fast.config import ExperimentConfig
from interlude_fast.data.datasets import Dataset
from interlude_fast.data.decode import cores
from interlude_fast.data.eval_set import EvalSet, held_out_sets
from interlude_fast.data.images import UnreadableImage, from_array, prepare, read_image, shown
from interlude_fast.data.labeled import LabeledImages, labeled_images
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import Progress, Silent
from interlude_fast.data.split import Split
from interlude_fast.errors import DataError, unknown
from interlude_fast.experiment.run_directory import RunDirectory, load_weights
from interlude_fast.metrics import Scores, detail
from interlude_fast.models import Network
from interlude_fast.options import Precision
from interlude_fast.training.device import float32_products, resolve_device, resolve_precision
from interlude_fast.training.evaluate import evaluate_networks
from interlude_fast.training.network import empty_network
from interlude_fast.training.selection import BY_VALIDATION

from .predict import Predictions, find_images

CHUNK = 256  # images in memory at a time, before and after they are resized
NETWORKS = ("ema", "raw", BY_VALIDATION)

Images = Sequence[Path] | np.ndarray
Given = str | Path | Sequence[str | Path] | np.ndarray


@dataclass(frozen=True)
class Outputs:
    """What a network says of images.

    Attributes:
        values: logits or embeddings, float32 [n, K or D] on the CPU, of the images that could be read.
        read: [n], their numbers. skipped: (number, reason) of the others.
    """

    values: Tensor
    read: list[int]
    skipped: list[tuple[int, str]]


class TrainedModel:
    """A network of a finished or imported run, in eval mode, with the run's own preprocessing.

    Attributes:
        network: on `device`. name: "ema", "raw" or "best_on_validation".
        preprocessing: how images enter the network, and the names of the classes.
        config: of the run.
    """

    def __init__(
        self,
        network: Network,
        name: str,
        preprocessing: Preprocessing,
        config: ExperimentConfig,
        device: torch.device,
    ) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last).eval()
        self.name, self.preprocessing, self.config, self.device = name, preprocessing, config, device

    @classmethod
    def load(cls, run: Path | str, network: str = "ema", device: str | None = None) -> TrainedModel:
        """The network of a run directory.

        Args:
            network: "ema", "raw" or "best_on_validation". device: auto, cpu, cuda or cuda:<i>; None: auto.

        Raises:
            CheckpointError: the folder is not that of a finished run, or is damaged.
            ConfigError: no such network or device.
        """
        if network not in NETWORKS:
            raise unknown("network of a run", network, NETWORKS)
        folder, where = RunDirectory.open(Path(run)), resolve_device(device or "auto")
        config = folder.config()
        preprocessing = Preprocessing.from_dict(folder.read_json("preprocessing.json"))
        model = empty_network(config, preprocessing)
        load_weights(model, folder, network)
        return cls(model, network, preprocessing, config, where)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.preprocessing.classes

    @property
    def precision(self) -> Precision:
        """Of float32 products: what the run asked for, as far as this device has it."""
        wish = self.config.train.precision
        wish = "auto" if wish == "tf32" and self.device.type == "cpu" else wish
        return resolve_precision(wish, self.device, self.preprocessing.size)

    def predict(self, images: Given, progress: Progress | None = None) -> Predictions:
        """Classes and probabilities. A prediction depends on its image alone.

        Args:
            images: a file or folder, several, or uint8 [N, H, W, C] with C = 1 or 3, [N, H, W] for grey ones.

        Raises:
            DataError: a path does not exist, other arrays, or no image can be read.
        """
        source = _images(images)
        outputs = self.logits(source, progress)
        names = [str(i) for i in range(len(source))] if isinstance(source, np.ndarray) else list(map(str, source))
        return Predictions(
            tuple(names[i] for i in outputs.read),
            outputs.values.softmax(1).numpy(),
            self.classes,
            tuple((names[i], reason) for i, reason in outputs.skipped),
        )

    def embed(self, images: Given, progress: Progress | None = None) -> np.ndarray:
        """Embeddings float32 [N, D]: what the classifier sees of every image.

        Args:
            images: as predict takes them.

        Raises:
            DataError: a path does not exist, or an image cannot be read.
        """
        source = _images(images)
        outputs = self._outputs(source, self.network.embedding, progress)
        if outputs.skipped:
            number, reason = outputs.skipped[0]
            raise DataError(f"{shown(str(source[number]))} cannot be read: {reason}; leave it out")
        return outputs.values.numpy()

    def logits(self, images: Images, progress: Progress | None = None) -> Outputs:
        """Logits of files, or of uint8 images [N, H, W, C], prepared as the run's own images were.

        Raises:
            DataError: no image can be read.
        """
        return self._outputs(images, self.network, progress)

    def evaluate(self, images: EvalSet | LabeledImages | Path | str, progress: Progress | None = None) -> Scores:
        """Scores in detail, with a confusion matrix and intervals.

        Args:
            images: held-out images of a dataset (held_out), or a folder of class folders, a .csv, .npz or .npy
                file, whose classes are matched by name.

        Raises:
            DataError: there is no such thing, a class that the run does not know, or no image can be read.
        """
        if isinstance(images, EvalSet):
            found = evaluate_networks(
                {self.name: self.network},
                {"images": images},
                self.preprocessing,
                batch=self.config.train.eval_batch,
                precision=self.precision,
                seed=self.config.seed,
            )
            return found["images"][self.name]
        return self.evaluate_files(images, progress)[0]

    def evaluate_files(
        self, images: LabeledImages | Path | str, progress: Progress | None = None
    ) -> tuple[Scores, list[tuple[str, str]]]:
        """(scores in detail, (path, reason) of files that could not be read); as evaluate."""
        labeled = images if isinstance(images, LabeledImages) else labeled_images(Path(images))
        labels = labeled.labels(self.classes)
        outputs = self.logits(labeled.images, progress)
        truth = torch.tensor(labels)[outputs.read]
        scores = detail(outputs.values, truth, self.classes, self.config.seed)
        return scores, [(str(labeled.images[i]), reason) for i, reason in outputs.skipped]

    def held_out(self, dataset: Dataset, split: Split) -> dict[str, EvalSet]:
        """The "test" and "validation" images of a dataset, as evaluate takes them."""
        return held_out_sets(dataset, split, self.device)

    def _outputs(self, images: Images, compute: torch.nn.Module | object, progress: Progress | None) -> Outputs:
        read, values, skipped, progress = [], [], [], progress or Silent()
        try:
            with torch.inference_mode(), float32_products(self.precision), self.network.fusion.off_at_eval():
                for numbers, pixels, bad in _prepared(images, self.preprocessing, progress):
                    read.extend(numbers)
                    skipped.extend(bad)
                    if numbers:
                        inputs = self.preprocessing.normalize(torch.from_numpy(pixels).to(self.device))
                        values.append(compute(inputs).float().cpu())  # type: ignore[operator]
        finally:  # here: an error would leave the generator waiting, and the bar standing
            progress.done()
        if not read:
            number, reason = skipped[0] if skipped else (0, "there is none")
            name = (
                shown(str(images[number])) if skipped and not isinstance(images, np.ndarray) else f"image {number}"
            )
            raise DataError(f"none of the {len(skipped)} images can be read, e.g. {name}: {reason}")
        return Outputs(torch.cat(values), read, skipped)


def _images(given: Given) -> Images:
    """Files of paths, or arrays as they are.

    Raises:
        DataError: a path does not exist, or arrays that are no images.
    """
    if isinstance(given, np.ndarray):
        if (
            given.dtype != np.uint8
            or given.ndim not in (3, 4)
            or (given.ndim == 4 and given.shape[3] not in (1, 3))
        ):
            shape = "x".join(map(str, given.shape))
            raise DataError(f"images are {given.dtype} {shape}; wanted is uint8 [N, H, W, C] with C = 1 or 3")
        return given
    several = [given] if isinstance(given, (str, Path)) else list(given)
    if not all(isinstance(path, (str, Path)) for path in several):
        raise DataError("images are paths, or one uint8 array [N, H, W, C]; stack several arrays by numpy.stack")
    return find_images([Path(path) for path in several])


def _prepared(
    images: Images, how: Preprocessing, progress: Progress
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
