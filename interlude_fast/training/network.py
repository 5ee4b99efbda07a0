"""Method and network of a configuration, as training, evaluation and prediction build them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from interlude_fast.config import ExperimentConfig
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.errors import ConfigError
from interlude_fast.methods import Method, TaskInfo, build_method
from interlude_fast.models import EmbeddingFusion, Network, NetworkOptions, Shape, build_model, divide


def build_network(
    config: ExperimentConfig,
    method: Method,
    shape: Shape,
    *,
    fresh: bool = True,
    whole: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> Network:
    """The network that `method` trains, its weights drawn from the seed alone, not from torch's generator.

    Args:
        fresh: False where a run's own weights are put into it: those that it once started from are not wanted.
        whole: True for the network as it is used: not cut, with its norms as layers of their own.
        note: as build_model takes it.

    Raises:
        ConfigError: the network does not take such images, or weights that do not fit it.
    """
    fusion = EmbeddingFusion(method.fusion_alpha, method.fusion_at_eval)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        options = config.model.options
        network = build_model(config.model.name, options, shape, fusion, fresh=fresh, note=note)
        if not whole:
            assert isinstance(options, NetworkOptions)
            divide(network, options, shape)
            network.kept = config.data.pipeline == "kept"
        return method.adapt(network)


def empty_network(config: ExperimentConfig, preprocessing: Preprocessing) -> Network:
    """The network of a configuration, for weights of a run that are put into it."""
    classes = len(preprocessing.classes)
    method = build_method(config.method.name, config.method.options, TaskInfo(classes))
    shape = Shape(classes, preprocessing.channels, preprocessing.size)
    return build_network(config, method, shape, fresh=False, whole=True)


def check_single_rows(
    config: ExperimentConfig, method: Method, network: nn.Module, rows: int, world: int = 1
) -> None:
    """Batch norms cannot learn from one image at a time.

    Args:
        rows: of a step. world: processes that share them.

    Raises:
        ConfigError: the network has some, and a forward pass of a step would hold one row.
    """
    fewest = rows if method.forwards == "together" else config.train.batch
    world = 1 if config.train.sync_batch_norm else world
    fewest //= world
    if fewest == 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
        raise ConfigError(
            f"train.batch = {config.train.batch}{f', {world} processes' if world > 1 else ''}: "
            f"{config.method.name} would show {config.model.name} one image at a time, and its "
            "batch norms need at least two; use a larger train.batch"
        )
