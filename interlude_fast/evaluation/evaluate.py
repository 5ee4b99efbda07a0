"""A finished run's networks evaluated again: in detail, against FGSM, and on test sets from elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from interlude_fast.config import merge_config
from interlude_fast.data.eval_set import HELD_OUT, EvalSet
from interlude_fast.data.labeled import LabeledImages, labeled_images
from interlude_fast.data.progress import Progress
from interlude_fast.errors import ConfigError, DataError, unknown
from interlude_fast.experiment.result import Result
from interlude_fast.experiment.run_directory import RunDirectory
from interlude_fast.metrics import Scores, fgsm_errors
from interlude_fast.models.weights import load_tensors
from interlude_fast.training.device import float32_products
from interlude_fast.training.inputs import as_prepared
from interlude_fast.training.selection import BY_VALIDATION
from interlude_fast.training.setup import load_data

from .trained_model import NETWORKS, TrainedModel


def evaluate_run(
    path: Path,
    overrides: Iterable[dict[str, Any]] | None = None,
    *,
    networks: Sequence[str] = (),
    fgsm: Sequence[int] = (),
    transfer: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Evaluate a finished run's networks on its test and validation images and on test sets from elsewhere.

    Args:
        overrides: nested settings, such as another device or place of the data.
        networks: names of those to evaluate; none names all that the run kept.
        fgsm: step sizes, of the test images, or of the validation images where there are no test images.
        transfer: name -> folder, table or arrays (data/labeled.py), whose classes are matched by name.

    Raises:
        CheckpointError: the folder is not a finished run's.
        DataError: a transfer set that does not fit, or there is nothing to evaluate.
    """
    began, transfer = time.perf_counter(), transfer or {}
    _check_asked(networks, fgsm, transfer)
    elsewhere = {name: _labeled(name, place) for name, place in transfer.items()}
    folder = RunDirectory.open(path)
    config = merge_config(folder.config(), overrides or ())
    models = _models(path, folder, networks, config.train.device)
    first = next(iter(models.values()))
    dataset, split = load_data(as_prepared(config, first.preprocessing), progress, folder.split)
    eval_sets = first.held_out(dataset, split)
    on = next((part for part in HELD_OUT if part in eval_sets), "")
    if not eval_sets and fgsm:
        raise ConfigError(f"{path} has neither test nor validation images to attack")
    if not eval_sets and not transfer:
        raise DataError(
            f"{path} has neither test nor validation images: there is nothing to evaluate; name labeled images "
            "with --transfer NAME=FOLDER, or train with --set data.split.test=0.2"
        )
    scores = {
        part: {name: model.evaluate(images) for name, model in models.items()}
        for part, images in eval_sets.items()
    }
    errors = {name: _attack(model, eval_sets[on], fgsm) for name, model in models.items()} if fgsm else {}
    skipped = {}
    for name, images in elsewhere.items():
        scores[name], skipped[name] = _transfer(name, transfer[name], images, models, progress)
    file = folder.weights(BY_VALIDATION)
    return Result(
        directory=path,
        scores=scores,
        seconds=time.perf_counter() - began,
        classes=first.classes,
        fgsm=errors,
        fgsm_on=on,
        skipped=skipped,
        selected=load_tensors(file)[1] if file.exists() else {},
    )


def _check_asked(networks: Sequence[str], fgsm: Sequence[int], transfer: Mapping[str, Path]) -> None:
    for network in networks:
        if network not in NETWORKS:
            raise unknown("network of a run", network, NETWORKS)
    if not all(isinstance(step, int) and 1 <= step <= 255 for step in fgsm):
        raise ConfigError(f"FGSM steps are whole numbers from 1 to 255, got {list(fgsm)}")
    for name in transfer:
        if name in HELD_OUT:
            raise ConfigError(
                f"--transfer {name}=...: '{name}' is the name of the run's own images; choose another"
            )


def _models(path: Path, folder: RunDirectory, names: Sequence[str], device: str) -> dict[str, TrainedModel]:
    """Those that are named, or all that there are, in the order of the report."""
    kept = [name for name in NETWORKS if name != BY_VALIDATION or folder.weights(name).exists()]
    return {name: TrainedModel.load(path, name, device) for name in NETWORKS if name in (names or kept)}


def _attack(model: TrainedModel, images: EvalSet, steps: Sequence[int]) -> dict[int, float]:
    batches = images.batches(model.config.train.eval_batch)
    with float32_products(model.precision):
        return fgsm_errors(model.network, batches, images.labels, model.preprocessing.normalize, steps)


def _labeled(name: str, place: Path) -> LabeledImages:
    try:
        return labeled_images(place)
    except DataError as error:
        raise DataError(f"transfer set '{name}', {place}: {error}") from None


def _transfer(
    name: str,
    place: Path,
    images: LabeledImages,
    models: Mapping[str, TrainedModel],
    progress: Progress | None,
) -> tuple[dict[str, Scores], list[tuple[str, str]]]:
    """(network -> scores in detail, files that could not be read)."""
    try:
        found = {network: model.evaluate_files(images, progress) for network, model in models.items()}
    except DataError as error:
        raise DataError(f"transfer set '{name}', {place}: {error}") from None
    return {network: scores for network, (scores, _) in found.items()}, next(iter(found.values()))[1]
