"""Steps stay on their device: on the meta device, whose tensors have no values, for machines without a GPU."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from interlude_fast.data.batch import Batch, RowOrder
from interlude_fast.methods import build_method, mixmatch, semimeta
from interlude_fast.models import Shape
from interlude_fast.ops import extension
from interlude_fast.training.network import build_network
from interlude_fast.training.setup import load_data, task_info
from tests.helpers import TRAINED, small_config

META = torch.device("meta")


class OneDevice(TorchDispatchMode):
    """Whatever reads or makes a tensor of the host raises."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves((args, kwargs, out)):
            assert not isinstance(t, Tensor) or t.device == META, f"{func} has a tensor on {t.device}"
        return out


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the meta device lacks: kernels of ours, autocast, and torch's gamma distribution."""
    monkeypatch.setattr(extension.ExtensionStatus, "runs_on", lambda self, device: self.loaded)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    for module in (mixmatch, semimeta):
        monkeypatch.setattr(module, "mixup_strength", lambda a, *shape, like: torch.rand(shape, device=META))


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize("name", TRAINED)
def test_a_step_needs_nothing_of_the_host(name: str) -> None:
    config = small_config(method={"name": name})
    dataset, split = load_data(config)
    method = build_method(name, config.method.options, task_info(config, dataset, split))
    network = build_network(config, method, Shape(len(dataset.classes), dataset.channels, dataset.size))
    method, network = method.to(META), network.to(META)
    order = RowOrder(4, 2, method.labeled_views, method.unlabeled_views, method.layout)
    images = torch.empty(order.count, dataset.size, dataset.size, dataset.channels, device=META).permute(
        0, 3, 1, 2
    )
    labels, items = (torch.zeros(shape, dtype=torch.int64, device=META) for shape in ((4,), (4, 2)))
    batch = Batch(images, labels, order, items, torch.zeros((), dtype=torch.int64, device=META))
    with OneDevice():
        losses = method(network, batch, network)
        losses.total.backward()


def test_the_host_is_noticed() -> None:
    x = torch.zeros(3, device=META)
    with pytest.raises(AssertionError, match="has a tensor on cpu"), OneDevice():
        x * torch.tensor(2.0)
    with pytest.raises(RuntimeError, match="meta"), OneDevice():
        x.sum().item()
