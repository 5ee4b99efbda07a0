"""A frozen network with its preprocessing: of images it makes embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from interlude_fast.data.decode import cores
from interlude_fast.data.images import UnreadableImage, from_array, prepare, read_image, shown
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import Progress, Silent
from interlude_fast.errors import DataError
from interlude_fast.models import Network
from interlude_fast.options import Precision
from interlude_fast.training.device import float32_products, resolve_precision

from .embeddings import Embeddings
from .predict import find_images

CHUNK = 256  # images in memory at a time, before and after they are resized

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


class FrozenNetwork:
    """A network in eval mode, with the preprocessing that its weights want.

    Attributes:
        network: on `device`. name: what it is called where its embeddings are kept.
        preprocessing: how images enter the network; `classes` is empty where its classifier means nothing.
    """

    def __init__(self, network: Network, name: str, preprocessing: Preprocessing, device: torch.device) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last).eval()
        self.name, self.preprocessing, self.device = name, preprocessing, device

    @property
    def classes(self) -> tuple[str, ...]:
        return self.preprocessing.classes

    @property
    def precision(self) -> Precision:
        """Of float32 products: what this device is best at."""
        return resolve_precision("auto", self.device, self.preprocessing.size)

    def embed(self, images: Given, progress: Progress | None = None) -> np.ndarray:
        """Embeddings float32 [N, D]: what the classifier sees of every image.

        Args:
            images: as predict takes them.

        Raises:
            DataError: a path does not exist, or an image cannot be read.
        """
        source = given_images(images)
        outputs = self._outputs(source, self.network.embedding, progress, "embedding")
        if outputs.skipped:
            number, reason = outputs.skipped[0]
            raise DataError(f"{shown(str(source[number]))} cannot be read: {reason}; leave it out")
        return outputs.values.numpy()

    def embeddings(self, images: Given, progress: Progress | None = None) -> Embeddings:
        """Embeddings, and where the network has classes their probabilities, of the images that can be read.

        Args:
            images: as embed takes them.

        Raises:
            DataError: a path does not exist, other arrays, or no image can be read.
        """
        source = given_images(images)
        outputs = self._outputs(
            source, self._both if self.classes else self.network.embedding, progress, "embedding"
        )
        names = image_names(source)
        values, logits = outputs.values.split_with_sizes(
            [outputs.values.shape[1] - len(self.classes), len(self.classes)], 1
        )
        return Embeddings(
            tuple(names[i] for i in outputs.read),
            values.numpy(),
            self.name,
            self.classes,
            logits.softmax(1).numpy() if self.classes else None,
            tuple((names[i], reason) for i, reason in outputs.skipped),
        )

    def _both(self, inputs: Tensor) -> Tensor:
        """[n, D + K], the embedding and behind it the logits."""
        embedding = self.network.embedding(inputs)
        return torch.cat([embedding, self.network.classify(embedding)], 1)

    def _outputs(
        self, images: Images, compute: Callable[[Tensor], Tensor], progress: Progress | None, doing: str
    ) -> Outputs:
        read, values, skipped, progress = [], [], [], progress or Silent()
        try:
            with torch.inference_mode(), float32_products(self.precision), self.network.fusion.off_at_eval():
                for numbers, pixels, bad in _prepared(images, self.preprocessing, progress, doing):
                    read.extend(numbers)
                    skipped.extend(bad)
                    if numbers:
                        inputs = self.preprocessing.normalize(torch.from_numpy(pixels).to(self.device))
                        values.append(compute(inputs).float().cpu())
        finally:  # here: an error would leave the generator waiting, and the bar standing
            progress.done()
        if not read:
            number, reason = skipped[0] if skipped else (0, "there is none")
            name = (
                shown(str(images[number])) if skipped and not isinstance(images, np.ndarray) else f"image {number}"
            )
            raise DataError(f"none of the {len(skipped)} images can be read, e.g. {name}: {reason}")
        return Outputs(torch.cat(values), read, skipped)


def given_images(given: Given) -> Images:
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


def image_names(images: Images) -> list[str]:
    """The paths of files, the numbers of arrays."""
    return [str(i) for i in range(len(images))] if isinstance(images, np.ndarray) else list(map(str, images))


def _prepared(
    images: Images, how: Preprocessing, progress: Progress, doing: str
) -> Iterator[tuple[list[int], np.ndarray, list[tuple[int, str]]]]:
    """(numbers, uint8 [n, S, S, C], (number, reason) of unreadable ones), CHUNK images at a time, by all cores."""
    recipe = how.recipe

    def one(image: Path | np.ndarray) -> np.ndarray | str:
        try:
            return prepare(read_image(image) if isinstance(image, Path) else from_array(image), recipe)
        except UnreadableImage as error:
            return error.reason

    progress.start(doing, len(images))
    with ThreadPoolExecutor(cores()) as threads:
        for start in range(0, len(images), CHUNK):
            part = images[start : start + CHUNK]
            results = list(enumerate(threads.map(one, part), start))
            good = [(i, image) for i, image in results if not isinstance(image, str)]
            bad = [(i, reason) for i, reason in results if isinstance(reason, str)]
            yield [i for i, _ in good], np.array([image for _, image in good], dtype=np.uint8), bad
            progress.advance(len(part))
