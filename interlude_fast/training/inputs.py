"""The images that a configuration's network is shown. What the user leaves open, pretrained weights decide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from interlude_fast.config import ExperimentConfig
from interlude_fast.data.datasets import Dataset, LoadContext, load_dataset
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.models import pretrained_input
from interlude_fast.options import DataConfig, FilesConfig


def data_settings(config: ExperimentConfig) -> DataConfig:
    """The `data` section, where the channels, size and interpolation of files that neither the user nor a preset
    names are those of the network's pretrained weights.

    Raises:
        ConfigError: the package that knows these weights is not installed.
    """
    data, wanted = config.data, pretrained_input(config.model.name, config.model.options)
    if wanted is None or not isinstance(data, FilesConfig):
        return data
    numbers = len(data.mean or data.std or ())  # statistics that are given tell the channels
    size = wanted.size if data.max_size is None else None
    filled = {"size": size, "channels": numbers or wanted.channels, "interpolation": wanted.interpolation}
    return data.model_copy(update={key: value for key, value in filled.items() if getattr(data, key) is None})


def load_images(config: ExperimentConfig, context: LoadContext | None = None) -> Dataset:
    """The dataset of a configuration, with the mean and the standard deviation of the network's pretrained weights
    where `data.mean` and `data.std` name no others.

    Raises:
        ConfigError, DataError: as load_dataset.
    """
    dataset = load_dataset(data_settings(config), context=context)
    wanted = pretrained_input(config.model.name, config.model.options)
    if wanted is None:
        return dataset
    fitted = wanted.of_channels(dataset.channels)
    mean = dataset.mean if config.data.mean else fitted.mean
    std = dataset.std if config.data.std else fitted.std
    return replace(dataset, mean=mean, std=std)


def as_prepared(config: ExperimentConfig, how: Preprocessing) -> ExperimentConfig:
    """The configuration of a run whose files are prepared once more as the run did it."""
    if not isinstance(config.data, FilesConfig):
        return config
    settings: dict[str, Any] = {name: getattr(how, name) for name in ("size", "channels", "fit", "interpolation")}
    return config.model_copy(update={"data": config.data.model_copy(update=settings)})
