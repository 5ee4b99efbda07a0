"""A run that is built and ready to train: its parts, and how its networks are evaluated."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interlude_fast.config import ExperimentConfig
from interlude_fast.data.datasets import Dataset
from interlude_fast.data.eval_set import EvalSet
from interlude_fast.data.kept import KeptViews
from interlude_fast.data.manifest import manifest
from interlude_fast.data.pipelines import Pipeline
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.split import Split
from interlude_fast.metrics import Scores, detail, evaluate, predict_logits, pseudo_label_scores
from interlude_fast.models import Network
from interlude_fast.options import Precision

from .device import float32_products
from .distributed import World
from .head import FrozenHead, embed_all
from .identity import what_counts
from .pace import BudgetPace, Pace
from .parallel import SharedPace
from .selection import Selection
from .state import TrainState
from .ways import Stepper

PSEUDO_LABELED = 2000  # images whose pseudo labels an evaluation looks at


@dataclass
class Run:
    """Everything that a configuration stands for, built and ready to train.

    Attributes:
        eval_sets: "test" and "validation" images, as far as there are some.
        head: what the classifier began as, of a fresh run that begins with a probe.
        kept: views that the network's frozen front has seen, where the pipeline gives their activations.
    """

    config: ExperimentConfig
    device: torch.device
    precision: Precision
    dataset: Dataset
    split: Split
    eval_sets: dict[str, EvalSet]
    pipeline: Pipeline
    pipeline_choice: str
    kept: KeptViews | None
    head: FrozenHead | None
    split_file: Path | None
    state: TrainState
    selection: Selection
    stepper: Stepper
    world: World
    began: float = field(default_factory=time.monotonic)

    def pace(self) -> Pace:
        """What times the run; under a budget, an evaluation's length is judged by one batch of images."""
        t = self.config.train
        if t.budget is None:
            return Pace(t, self.state)
        pace = BudgetPace(t, self.state, self.began, self.evaluation_seconds())
        return pace if self.world.size == 1 else SharedPace(pace)

    def evaluation_seconds(self) -> float:
        """About how long `evaluate` takes, judged by one batch of images; 0 where there are none."""
        sizes, seconds = [], []
        for inputs in itertools.islice(self._held_out_inputs(), 2):  # the first one may allocate
            began = time.perf_counter()
            predict_logits(self.state.ema.model, [inputs]).sum().item()
            sizes.append(len(inputs))
            seconds.append(time.perf_counter() - began)
        images_in_all = sum(map(len, self.eval_sets.values()))
        return len(self.networks()) * images_in_all * seconds[-1] / sizes[-1] if sizes else 0.0

    def _held_out_inputs(self) -> itertools.chain[Tensor]:
        size, normalize = self.config.train.eval_batch, self.normalize
        return itertools.chain.from_iterable(images.inputs(size, normalize) for images in self.eval_sets.values())

    @property
    def normalize(self) -> Callable[[Tensor], Tensor]:
        """uint8 [N, S, S, C] -> the network's input (Preprocessing.normalize)."""
        return Preprocessing.of(self.dataset).normalize

    def identity(self) -> dict[str, Any]:
        """The settings that a checkpoint is bound to."""
        return {**what_counts(self.config), "precision": self.precision}

    def manifest(self) -> dict[str, Any]:
        """The split as a file's content: that which was replayed, or this one."""
        return manifest(self.dataset, self.split, self.config.data, self.config.seed, self.split_file)

    def networks(self) -> dict[str, nn.Module]:
        return {"raw": self.state.model, "ema": self.state.ema.model}

    def evaluate(self) -> dict[str, dict[str, Scores]]:
        """Images, "test" and "validation" as far as there are some -> network, "raw" and "ema" -> scores."""
        size = self.config.train.eval_batch
        with float32_products(self.precision):
            return {
                part: {
                    name: evaluate(network, images.inputs(size, self.normalize), images.labels)
                    for name, network in self.networks().items()
                }
                for part, images in self.eval_sets.items()
            }

    def frozen_scores(self) -> dict[str, dict[str, Scores]]:
        """Images -> "probe" and "knn" -> scores in detail, of the features before a step was done; of a run that
        began with a probe."""
        assert self.head is not None
        classes, found = Preprocessing.of(self.dataset).classes, {}
        for part, images in self.eval_sets.items():
            inputs = images.inputs(self.config.train.eval_batch, self.normalize)
            assert isinstance(self.state.model, Network)
            embeddings = embed_all(self.state.model, inputs).to(images.labels.device)
            logits = {"probe": self.head.probe.logits(embeddings), "knn": self.head.neighbours(embeddings)}
            found[part] = {name: detail(z, images.labels, classes, self.config.seed) for name, z in logits.items()}
        return found

    def pseudo_labels(self) -> dict[str, float]:
        """How good the raw network's pseudo labels are (metrics/pseudo_labels.py), on a sample of the images seen
        without labels whose classes the dataset knows all the same; nothing where there are none."""
        store = self.pipeline.sampler.store
        hidden = store.unlabeled[
            (store.all_labels[store.unlabeled] >= 0) & ~torch.isin(store.unlabeled, store.labeled)
        ]
        if not len(hidden):
            return {}
        count = min(len(hidden), PSEUDO_LABELED)
        sample = hidden[torch.arange(count, device=hidden.device) * len(hidden) // count]  # over all of the pool
        size = self.config.train.eval_batch
        inputs = (
            map(self.kept.plain, sample.split(size))
            if self.kept
            else map(self.normalize, store.batches(sample, size))
        )
        logits = predict_logits(self.state.model, inputs)
        return pseudo_label_scores(logits, store.all_labels[sample])
