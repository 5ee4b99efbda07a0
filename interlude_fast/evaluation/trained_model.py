"""A trained network with everything that it takes to use it: no optimizer, no sampler, no training data."""

from __future__ import annotations

from pathlib import Path

import torch

from interlude_fast.config import ExperimentConfig
from interlude_fast.data.datasets import Dataset
from interlude_fast.data.eval_set import EvalSet, held_out_sets
from interlude_fast.data.labeled import LabeledImages, labeled_images
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import Progress
from interlude_fast.data.split import Split
from interlude_fast.errors import unknown
from interlude_fast.experiment.run_directory import RunDirectory, load_weights
from interlude_fast.metrics import Scores, detail
from interlude_fast.models import Network
from interlude_fast.options import Precision
from interlude_fast.training.device import resolve_device, resolve_precision
from interlude_fast.training.evaluate import evaluate_networks
from interlude_fast.training.network import empty_network
from interlude_fast.training.selection import BY_VALIDATION

from .frozen import FrozenNetwork, Given, Images, Outputs, given_images, image_names
from .predict import Predictions

NETWORKS = ("ema", "raw", BY_VALIDATION)


class TrainedModel(FrozenNetwork):
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
        super().__init__(network, name, preprocessing, device)
        self.config = config

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
        source = given_images(images)
        outputs = self.logits(source, progress)
        names = image_names(source)
        return Predictions(
            tuple(names[i] for i in outputs.read),
            outputs.values.softmax(1).numpy(),
            self.classes,
            tuple((names[i], reason) for i, reason in outputs.skipped),
        )

    def logits(self, images: Images, progress: Progress | None = None) -> Outputs:
        """Logits of files, or of uint8 images [N, H, W, C], prepared as the run's own images were.

        Raises:
            DataError: no image can be read.
        """
        return self._outputs(images, self.network, progress, "predicting")

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
