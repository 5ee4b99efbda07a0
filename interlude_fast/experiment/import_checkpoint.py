"""Checkpoints of the released programs as run directories of ours: weights only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from interlude_fast.config import ExperimentConfig, load
from interlude_fast.data.datasets import Listing
from interlude_fast.data.manifest import manifest
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import Progress
from interlude_fast.errors import CheckpointError
from interlude_fast.models.foreign import foreign_networks, refuse_non_finite
from interlude_fast.models.released import Released, from_released, identify
from interlude_fast.training.checkpoint import save_tensors
from interlude_fast.training.checks import SettingChecks
from interlude_fast.training.network import empty_network
from interlude_fast.training.setup import load_data

from .result import NETWORKS
from .run import write_environment
from .run_directory import RunDirectory

# What a released program normalizes with where it is not what the data set has here.
MEAN_STD = {("usb", "cifar10"): ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])}


@dataclass(frozen=True)
class Imported:
    """directory: of the run. released: what was found. networks: "raw", "ema", as far as the file has them."""

    directory: Path
    released: Released
    networks: tuple[str, ...]


def import_checkpoint(
    file: Path,
    overrides: list[dict[str, Any]],
    directory: Path,
    *,
    config_file: Path | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Put the networks of a released InterLUDE, TorchSSL, USB, Mixup-LR or SemiMeta checkpoint into a new run
    directory, which eval and predict then take. Nothing in the file is executed.

    Args:
        overrides: nested settings, as config.load takes them: the data set, and what the weights do not tell.

    Raises:
        CheckpointError: not such a file, or weights that are not finite or do not fit the data set or each other.
        ConfigError, DataError: as prepare.
    """
    RunDirectory.refuse_existing(directory)
    found = foreign_networks(file)
    for state in found.values():
        refuse_non_finite(file, state)
    try:
        released = identify(next(iter(found.values())))
        weights = {n: from_released(state, released.source, released.network) for n, state in found.items()}
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    config = _config(released, config_file, overrides)
    dataset, split = load_data(config, progress, checks=_SameClasses(config, file, released.classes))
    preprocessing = Preprocessing.of(dataset)
    network, tensors = empty_network(config, preprocessing), {}
    for name in NETWORKS:
        _put(file, network, weights.get(name) or next(iter(weights.values())))
        tensors[name] = {key: value.clone() for key, value in network.state_dict().items()}
    folder = RunDirectory.create(directory)
    split_content = manifest(dataset, split, config.data, config.seed, config.data.split.file)
    write_environment(folder, config, split_content, preprocessing)
    for name, state in tensors.items():
        save_tensors(folder.weights(name), state, {"network": name})
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    folder.write(folder.imported.name, {"file": str(file.absolute()), "sha256": digest, "networks": list(found)})
    return Imported(directory, released, tuple(found))


class _SameClasses(SettingChecks):
    """Before images are opened: a dataset of as many classes as the file tells apart."""

    def __init__(self, config: ExperimentConfig, file: Path, classes: int) -> None:
        super().__init__(config)
        self.file, self.classes = file, classes

    def with_classes(self, listing: Listing) -> None:
        super().with_classes(listing)
        if len(listing.classes) != self.classes:
            raise CheckpointError(
                f"{self.file} tells {self.classes} classes apart, but {listing.name} has {len(listing.classes)}"
            )


def _config(released: Released, file: Path | None, overrides: list[dict[str, Any]]) -> ExperimentConfig:
    """The data set's settings with the network that was found, then what the user says."""
    config = load(file, [{"method": {"name": "supervised"}}, *overrides])
    statistics = MEAN_STD.get((released.source, config.data.dataset))
    data = dict(zip(("mean", "std"), statistics, strict=True)) if statistics else {}
    model = {"name": released.network, **released.options}
    return load(file, [{"method": {"name": "supervised"}, "model": model, "data": data}, *overrides])


def _put(file: Path, network: nn.Module, weights: dict[str, Tensor]) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{file}: the weights do not fit the network: {detail}") from None
