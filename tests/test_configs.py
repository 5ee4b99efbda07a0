"""configs/: every published setting loads, builds, and is what its command trains."""

from __future__ import annotations

import contextlib
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode

from interlude_fast import config as configuration
from interlude_fast.cli.train import command as train_command
from interlude_fast.config import ExperimentConfig, load
from interlude_fast.data.batch import RowOrder
from interlude_fast.flags import FLAGS, overrides
from interlude_fast.methods import TaskInfo, build_method
from interlude_fast.models import Shape
from interlude_fast.settings_files import configs_folder
from interlude_fast.training.network import build_network
from interlude_fast.training.optim import parameter_groups

FOLDER = configs_folder()
PRESETS = sorted(FOLDER.rglob("*.yaml"))
CLAIMS = [path for path in PRESETS if path.name not in ("base.yaml", "scratch.yaml")]
SHAPES = {"cifar100": Shape(100), "stl10": Shape(10, 3, 96), "tmed2": Shape(4, 1, 112), "digits": Shape(10, 1, 16)}
FAKE = FakeTensorMode()


def without_numbers(model: str) -> Any:
    """timm reads numbers of tensors while it builds; autocast, which prototypes want off, knows no meta device."""
    if model.startswith("efficientnet"):  # its weights are read
        return contextlib.nullcontext()
    return torch.device("meta") if model == "vit" else FAKE


each_preset = pytest.mark.parametrize("path", PRESETS, ids=lambda p: f"{p.parent.name}/{p.name}")
each_claim = pytest.mark.parametrize("path", CLAIMS, ids=lambda p: f"{p.parent.name}/{p.name}")


@cache
def network(model: str, method: str, dataset: str) -> torch.nn.Module:
    """Of shapes without numbers: the largest ones would take seconds each."""
    config = ExperimentConfig.model_validate({"model": yaml.safe_load(model), "method": yaml.safe_load(method)})
    shape = SHAPES.get(dataset, Shape(10))
    made = build_method(config.method.name, config.method.options, TaskInfo(shape.classes))
    with without_numbers(config.model.name):
        return build_network(config, made, shape)


@each_preset
def test_every_preset_loads_round_trips_and_builds(path: Path) -> None:
    config = load(path)
    again = configuration.validate(ExperimentConfig, yaml.safe_load(configuration.dump(config)))
    assert again == config
    shape, t = SHAPES.get(config.data.dataset, Shape(10)), config.train
    method = build_method(config.method.name, config.method.options, TaskInfo(shape.classes, 1000, t.steps))
    RowOrder(t.batch, t.mu, method.labeled_views, method.unlabeled_views, method.layout)
    parts = (yaml.safe_dump(part.model_dump(mode="json")) for part in (config.model, config.method))
    net = network(*parts, config.data.dataset)
    parameter_groups(net, config.optim)
    with without_numbers(config.model.name):
        assert net.eval()(torch.empty(2, shape.channels, shape.side, shape.side)).shape == (2, shape.classes)


@each_claim
def test_a_preset_is_a_claim(path: Path) -> None:
    """A file of a published setting says how it is run, what it costs, what to expect and where from; its command
    trains that setting and no other."""
    head = "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    for word in ("# Command:", "# Time:", "# Expected:", "# Source:"):
        assert word in head
    (line,) = (line for line in head.splitlines() if line.startswith("# Command:"))
    _, program, verb, *arguments = shlex.split(line.removeprefix("#"))
    assert (program, verb) == ("interlude-fast", "train")
    given = train_command.make_context("train", arguments).params
    file = given.pop("config_file")
    text = tuple(a for a in given.pop("assignments") if a != "model.weights=FILE")
    if file is not None:
        assert file.parent.name == "configs" or file.parts[0] == "configs"
        file = FOLDER.parent / file
    asked = overrides(text, {k: v for k, v in given.items() if k in FLAGS})
    assert load(file, asked) == load(path)
