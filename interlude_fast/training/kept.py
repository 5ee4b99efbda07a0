"""Kept views of a run: its network's front, and the precision in which that is fastest here."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interlude_fast.config import ExperimentConfig, merge_config
from interlude_fast.data.augment import Policy, ViewMaker, normalization_table
from interlude_fast.data.cache import FORMAT, default_cache
from interlude_fast.data.datasets import Dataset
from interlude_fast.data.kept import Front, KeptViews
from interlude_fast.data.kept_rows import AT_A_TIME
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.data.progress import Progress
from interlude_fast.models import Network
from interlude_fast.options import FilesConfig, KeptConfig, Precision

from .device import autocast, computes_in_bf16
from .distributed import World

TRIALS = 3
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def keep_views(
    config: ExperimentConfig,
    dataset: Dataset,
    policy: Policy,
    network: Network,
    device: torch.device,
    world: World,
    progress: Progress | None,
    *,
    strong: bool,
) -> tuple[KeptViews, ExperimentConfig]:
    """The kept views of a run, not yet made, and its configuration with the front's precision written out.

    Args:
        strong: whether the method wants strong views.
        network: cut, on `device`. Its weights may still be loaded: they are read when the views are wanted.

    Raises:
        DataError: too few views fit into data.kept.most_gb.
    """
    build = _Builder(config, dataset, policy, network, device, progress, strong)
    if config.data.kept.precision != "auto":
        return build(config.data.kept), config
    preprocessing = Preprocessing.of(dataset)
    chosen = world.from_first(
        lambda: build.precision_before() or fastest_precision(network, preprocessing, device)
    )
    config = merge_config(config, [{"data": {"kept": {"precision": chosen}}}])
    return build(config.data.kept), config


@dataclass(frozen=True)
class _Builder:
    """KeptViews of everything but the precision."""

    config: ExperimentConfig
    dataset: Dataset
    policy: Policy
    network: Network
    device: torch.device
    progress: Progress | None
    strong: bool

    def __call__(self, options: KeptConfig) -> KeptViews:
        dataset, network, device = self.dataset, self.network, self.device
        preprocessing = Preprocessing.of(dataset)
        told = {k: v for k, v in preprocessing.as_dict().items() if k != "classes"}
        data, cut, precision = self.config.data, network.cut, options.precision
        assert cut is not None
        assert precision != "auto"
        return KeptViews(
            dataset,
            # The views' draws do not depend on the run's seed: runs of several seeds share them.
            ViewMaker(self.policy, dataset.size, 0, _table(dataset, device)),
            preprocessing.normalize,
            json.dumps([FORMAT, told], sort_keys=True),
            lambda: Front(
                activations(network, precision, device),
                activations(network, "fp32", device),
                fingerprint(network),
                device,
            ),
            cut,
            options,
            (data.cache if isinstance(data, FilesConfig) else None) or default_cache(),
            self.progress,
            self.strong,
        )

    def precision_before(self) -> str:
        """The front's precision of views that an earlier run has kept; "" where there are none."""
        for precision in PRECISIONS:
            if self(self.config.data.kept.model_copy(update={"precision": precision})).begun:
                return precision
        return ""


def _table(dataset: Dataset, device: torch.device) -> Tensor:
    return normalization_table(dataset.mean, dataset.std, torch.float32, device)


def activations(network: Network, precision: Precision, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The front of a network: images [n, C, S, S] -> activations [n, ...]."""

    def front(images: Tensor) -> Tensor:
        assert network.cut is not None
        with autocast(precision, device):
            return network.cut.activations(network, images)

    return front


def fingerprint(network: Network) -> str:
    """Of all that the front computes with: the place of the cut, and every tensor of the front, by its bytes."""
    assert network.cut is not None
    found = hashlib.sha256(f"{type(network).__name__} {getattr(network, 'name', '')} {network.cut.place}".encode())
    for name, value in network.state_dict().items():
        if network.cut.holds(name):
            found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def fastest_precision(network: Network, preprocessing: Preprocessing, device: torch.device) -> str:
    """ "bf16" where the device computes in it and the front is faster so, measured; else "fp32"."""
    if not computes_in_bf16(device):
        return "fp32"
    side, channels = preprocessing.size, preprocessing.channels
    images = torch.zeros(AT_A_TIME, side, side, channels, dtype=torch.uint8, device=device)
    inputs = preprocessing.normalize(images)
    seconds = {}
    for precision in PRECISIONS:
        front, taken = activations(network, precision, device), []
        for _ in range(TRIALS + 1):
            began = time.perf_counter()
            front(inputs).float().sum().item()
            taken.append(time.perf_counter() - began)
        seconds[precision] = statistics.median(taken[1:])
    return min(seconds, key=lambda name: seconds[name])
