"""A finished run's networks evaluated again: in full, against FGSM, and on test sets from elsewhere."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interlude_fast.data.labeled import labeled_images
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import Progress
from interlude_fast.errors import ConfigError, DataError
from interlude_fast.experiment.full_report import PARTS, details
from interlude_fast.experiment.run import open_run
from interlude_fast.experiment.run_directory import RunDirectory, load_weights, to_json
from interlude_fast.metrics import Detail, detail, fgsm_errors
from interlude_fast.train.checkpoint import load_tensors, write_atomically
from interlude_fast.train.device import float32_products
from interlude_fast.train.loop import Run
from interlude_fast.train.selection import BY_VALIDATION

from .predict import predict_images

FGSM_UNITS = "step in pixel units of 0 to 255, before normalization"


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate_in_full` found.

    Attributes:
        details: images -> network -> what can be said there; images are "test", "validation" and the names of
            the transfer sets.
        fgsm: network -> step size -> error. fgsm_on: the images that were attacked.
        skipped: transfer set -> (path, reason) of files that could not be read.
        selected: of the weights that validation kept: network, step, selected_by.
    """

    run: Path
    classes: tuple[str, ...]
    details: dict[str, dict[str, Detail]]
    fgsm: dict[str, dict[int, float]] = field(default_factory=dict)
    fgsm_on: str = "test"
    skipped: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    selected: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {
            "run": str(self.run),
            "classes": list(self.classes),
            BY_VALIDATION: self.selected,
            "report": {part: {n: d.as_dict() for n, d in found.items()} for part, found in self.details.items()},
            "fgsm": {"units": FGSM_UNITS, "images": self.fgsm_on, "error": self.fgsm} if self.fgsm else None,
            "skipped": self.skipped,
        }

    def save(self, path: Path) -> None:
        """Everything as JSON, or the confusion matrices as CSV where the name ends so; written atomically."""
        text = self.confusion_csv() if path.suffix.lower() == ".csv" else to_json(self.as_dict()) + "\n"
        write_atomically(path, text.encode("utf-8", "surrogateescape"))

    def confusion_csv(self) -> str:
        """A row for every true class of every network on every set of images, a column for every predicted one."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["images", "network", "true class", *(f"predicted {name}" for name in self.classes)])
        for part, found in self.details.items():
            for network, d in found.items():
                rows.writerows([part, network, c, *row] for c, row in zip(self.classes, d.confusion, strict=True))
        return text.getvalue()


def evaluate_in_full(
    path: Path,
    overrides: list[dict[str, Any]] | None = None,
    *,
    networks: Sequence[str] = (),
    fgsm: Sequence[int] = (),
    transfer: dict[str, Path] | None = None,
    progress: Progress | None = None,
) -> Evaluated:
    """Evaluate a finished run's networks on its test and validation images and on test sets from elsewhere.

    Args:
        overrides: nested settings, such as another device or place of the data.
        networks: names of those to evaluate; none names all that the run kept.
        fgsm: step sizes, of the test images, or of the validation images where there are no test images.
        transfer: name -> folder, table or arrays (data/labeled.py), whose classes are matched by name.

    Raises:
        CheckpointError: the folder is not a finished run's. DataError: a transfer set that does not fit.
    """
    _check_names(transfer or {})
    folder, run = open_run(path, overrides)
    chosen = _networks(folder, run, networks)
    how = Preprocessing.of(run.dataset)
    found = details(run, chosen)
    on = next((part for part in PARTS if part in found), "")
    if fgsm and not on:
        raise ConfigError(f"{path} has neither test nor validation images to attack")
    skipped = {}
    with float32_products(run.precision):
        errors = {name: _attack(run, network, on, fgsm) for name, network in chosen.items()} if fgsm else {}
        for name, place in (transfer or {}).items():
            found[name], skipped[name] = _transfer(name, place, chosen, how, run, progress)
    file = folder.weights(BY_VALIDATION)
    about = load_tensors(file)[1] if file.exists() else {}
    return Evaluated(path, how.classes, found, errors, on, skipped, about)


def _check_names(transfer: dict[str, Path]) -> None:
    for name in transfer:
        if name in PARTS:
            raise ConfigError(
                f"--transfer {name}=...: '{name}' is the name of the run's own images; choose another"
            )


def _networks(folder: RunDirectory, run: Run, names: Sequence[str]) -> dict[str, nn.Module]:
    """Those that are named, or all that there are, in the order of the report."""
    wanted = BY_VALIDATION in names or (not names and folder.weights(BY_VALIDATION).exists())
    networks = run.networks()
    if wanted:
        networks[BY_VALIDATION] = copy.deepcopy(run.state.ema.model)
        load_weights(networks[BY_VALIDATION], folder, BY_VALIDATION)
    order = [name for name in ("ema", "raw", BY_VALIDATION) if name in networks]
    return {name: networks[name] for name in order if not names or name in names}


def _attack(run: Run, network: nn.Module, part: str, steps: Sequence[int]) -> dict[int, float]:
    normalize = Preprocessing.of(run.dataset).normalize
    return fgsm_errors(network, run.held_out_batches(part), run.held_out_labels(part), normalize, steps)


def _transfer(
    name: str, place: Path, networks: dict[str, Any], how: Preprocessing, run: Run, progress: Progress | None
) -> tuple[dict[str, Detail], list[tuple[str, str]]]:
    """(network -> what can be said of it there, files that could not be read)."""
    try:
        images = labeled_images(place)
        labels = images.labels(how.classes)
        predicted = predict_images(networks, images.images, how, run.device, progress)
    except DataError as error:
        raise DataError(f"transfer set '{name}', {place}: {error}") from None
    truth = torch.tensor(labels)[predicted.read]
    found = {n: detail(logits, truth, how.classes, run.config.seed) for n, logits in predicted.logits.items()}
    return found, [(str(images.images[i]), reason) for i, reason in predicted.skipped]
