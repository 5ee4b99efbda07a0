"""Settings judged as early as what they depend on is known: this machine, the classes, the images' shape."""

from __future__ import annotations

import torch

from interlude_fast.config import ExperimentConfig
from interlude_fast.data.batch import RowOrder
from interlude_fast.data.datasets import Listing
from interlude_fast.data.pipelines import check_pipeline
from interlude_fast.data.progress import Progress, Silent
from interlude_fast.data.sampler import check_unlabeled
from interlude_fast.data.split import draw_split
from interlude_fast.methods import METHODS, Method, TaskInfo, build_method
from interlude_fast.models import Network, Shape, check_weights

from .device import resolve_precision
from .distributed import World
from .network import build_network, check_single_rows
from .optim import parameter_groups
from .ways import choose


def check_machine(config: ExperimentConfig, world: World, fresh: bool) -> torch.device:
    """The device, after everything that a configuration asks of this machine is looked at: precision, execution
    mode, pipeline, files of weights.

    Raises:
        ConfigError: something that is asked for is not there.
    """
    t, method = config.train, METHODS.find(config.method.name)
    world.refuse_uneven(t.batch)
    device = world.device(t.device)
    if t.precision != "auto":
        resolve_precision(t.precision, device)
    choose(t, device.type, method.cannot_compile, alone=world.size == 1)
    check_pipeline(config.data.pipeline, (*method.labeled_views, *method.unlabeled_views))
    if fresh:
        check_weights(config.model.name, config.model.options)
    return device


class SettingChecks:
    """Settings judged as soon as what they depend on is known: nothing is decoded for a run that cannot be.

    Attributes:
        replayed: whether the split is one of a file, which is judged when the images' hashes are known.
    """

    replayed = False

    def __init__(self, config: ExperimentConfig) -> None:
        self.config = config

    def with_classes(self, listing: Listing) -> None:
        """Before an image is opened: the split that is asked for.

        Raises:
            ConfigError, DataError: it cannot be drawn.
        """
        if not self.replayed:
            draw_split(listing, self.config.data, self.config.seed)

    def with_shape(self, listing: Listing, side: int, channels: int) -> None:
        """Before an image is decoded."""


class TrainingChecks(SettingChecks):
    """The same for a run that is going to train: method, network and batch too.

    Args:
        fresh: whether the network starts from the weights that the configuration names.
        progress: is told of weights that are downloaded or left out in part.

    Attributes:
        network: as it was built for the images' shape, which is `shape`; None before that is known.
    """

    def __init__(
        self, config: ExperimentConfig, world: World, fresh: bool, progress: Progress | None = None
    ) -> None:
        super().__init__(config)
        self.world, self.fresh, self.progress = world, fresh, progress or Silent()
        self.shape: Shape | None = None
        self.network: Network | None = None

    def with_classes(self, listing: Listing) -> None:
        config, method = self.config, METHODS.find(self.config.method.name)
        method.check_classes(config.method.options, len(listing.classes))
        if not self.replayed:
            split = draw_split(listing, config.data, config.seed)
            check_unlabeled(len(split.unlabeled), config.train.mu if method.unlabeled_views else 0)

    def with_shape(self, listing: Listing, side: int, channels: int) -> None:
        shape = Shape(len(listing.classes), channels, side)
        if shape == self.shape:
            return
        config = self.config
        method = build_method(config.method.name, config.method.options, TaskInfo(shape.classes))
        network = build_network(config, method, shape, fresh=self.fresh, note=self.progress.note)
        parameter_groups(network, config.optim)
        check_single_rows(config, method, network, row_order(config, method).count, self.world.size)
        self.shape, self.network = shape, network


def row_order(config: ExperimentConfig, method: Method) -> RowOrder:
    """What the rows of a step are."""
    t, labeled = config.train, method.labeled_views
    joined = config.augment.label_strong and "strong" not in labeled
    if joined:
        labeled = (*labeled, "strong")
    return RowOrder(t.batch, t.mu, labeled, method.unlabeled_views, method.layout, joined)


def shows_strong(config: ExperimentConfig, method: Method) -> bool:
    """Whether a step has rows of strong views."""
    order = row_order(config, method)
    return any(view.startswith("strong") for view in (*order.labeled_views, *order.unlabeled_views))
