"""The memory that a run needs on its device.

A step is traced in fake tensors, which have shapes and no bytes: what every operation makes is counted until it is
let go, so the estimate is of any batch size and costs about as much as a step of a handful of rows. What libraries
take inside their operations is not seen.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from interlude_fast.config import ExperimentConfig
from interlude_fast.data.batch import Batch, RowOrder
from interlude_fast.data.datasets import Dataset
from interlude_fast.data.pipelines import choose_pipeline
from interlude_fast.data.split import Split
from interlude_fast.methods import Method, build_method
from interlude_fast.models import Network, Shape
from interlude_fast.options import Precision

from .checks import row_order
from .device import autocast, image_dtype, resolve_device, resolve_precision
from .network import build_network
from .room import room
from .setup import task_info

GIB = 2**30
# Share of a device's memory that an advised batch may take: allocators and libraries take some themselves.
USABLE = 0.9
# What the host pipeline holds on the device: steps prefetched, and the one at work (data/pipelines/host.py).
STAGED = 3


class LiveBytes(TorchDispatchMode):
    """While it lasts, counts the bytes of the storages that operations make, until they are let go.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key).atexit = False

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device.

    Attributes:
        rows: of a step. state: weights, their average, the optimizer's moments and the method's buffers. step: the
            most that views, activations and gradients take at once. evaluation: the same of an evaluation's batch,
            with the gradients that are still there. images: of the data set, and those on their way.
    """

    rows: int
    state: int
    step: int
    evaluation: int
    images: int

    @property
    def total(self) -> int:
        return self.state + self.images + max(self.step, self.evaluation)


class Need:
    """What a configuration needs on its device, found without a step of it.

    Args:
        config: of the run. dataset, split: its data.
    """

    def __init__(self, config: ExperimentConfig, dataset: Dataset, split: Split) -> None:
        self.config, self.dataset, self.split = config, dataset, split
        t = config.train
        self.device = resolve_device(t.device)
        self.precision: Precision = resolve_precision(
            t.precision, self.device, dataset.size, config.data.pipeline == "kept"
        )
        self.pipeline = choose_pipeline(config.data.pipeline, dataset, self.device)[0]

    @cached_property
    def _parts(self) -> tuple[FakeTensorMode, Method, Network, Network]:
        """Method, network and average with fake tensors."""
        config, dataset = self.config, self.dataset
        method = build_method(config.method.name, config.method.options, task_info(config, dataset, self.split))
        shape = Shape(len(dataset.classes), dataset.channels, dataset.size)
        network = build_network(config, method, shape, fresh=False)
        average = copy.deepcopy(network).requires_grad_(False)
        fake = FakeTensorMode()
        with FakeCopyMode(fake):
            parts = copy.deepcopy((method, network, average))
        with fake:
            for module in parts:
                _move(module, self.device)
        return fake, *parts

    def estimate(self, batch: int | None = None, precision: Precision | None = None) -> Estimate | None:
        """With another batch size or precision than configured; None where the step cannot be traced."""
        fake, method, network, _ = self._parts
        t = self.config.train
        order = replace(row_order(self.config, method), batch=batch or t.batch)
        weights, buffers = _nbytes(network.parameters()), _nbytes(network.buffers())
        o = self.config.optim
        moments = (1 if o.momentum else 0) if o.name == "sgd" else 2
        trained = _nbytes(p for p in network.parameters() if p.requires_grad)
        held_out = max(len(self.split.test), len(self.split.validation))
        try:
            step = self._peak(fake, lambda: self._step(order, precision or self.precision))
            evaluation = self._peak(fake, lambda: self._evaluate(min(t.eval_batch, held_out)))
        except Exception:  # a method of somebody's that reads values, an operation without a shape rule
            return None
        return Estimate(
            rows=order.count,
            state=2 * (weights + buffers) + moments * trained + _nbytes(method.buffers()),
            step=step,
            evaluation=trained + evaluation,
            images=self._images(order),
        )

    def _peak(self, fake: FakeTensorMode, work: Callable[[], None]) -> int:
        _, _, network, _ = self._parts
        with fake, LiveBytes() as live, torch.device(self.device):
            work()
        network.zero_grad(set_to_none=True)
        return live.peak

    def _step(self, order: RowOrder, precision: Precision) -> None:
        """Batch, forward, backward, as training/step.py does."""
        _, method, network, average = self._parts
        dtype = image_dtype(precision)
        items = torch.zeros(order.batch, order.mu, dtype=torch.int64)
        labels, number = torch.zeros(order.batch * order.labeled_parts, dtype=torch.int64), torch.tensor(0)
        batch = Batch(self._rows(order.count, dtype), labels, order, items, number)
        network.train()
        with autocast(precision, self.device):
            losses = method(network, batch, average.eval())
        losses.total.backward()

    @torch.no_grad()
    def _evaluate(self, rows: int) -> None:
        _, _, network, _ = self._parts
        if rows:
            network.eval()(self._rows(rows, torch.float32))

    def _rows(self, count: int, dtype: torch.dtype) -> Tensor:
        """[count, C, S, S], channels last; activations where the network is given these."""
        trunk = self._parts[2].trunk
        if trunk.kept and trunk.cut is not None:
            return torch.empty(count, *trunk.cut.shape, dtype=dtype)
        side, channels = self.dataset.size, self.dataset.channels
        return torch.empty(count, side, side, channels, dtype=dtype).permute(0, 3, 1, 2)

    def _images(self, order: RowOrder) -> int:
        """Of the data set where it lies on the device; on the host not where it is mapped from a file."""
        images = self.dataset.images
        if self.device.type == "cpu":
            return 0 if _is_mapped(images) else images.nbytes
        one = images.nbytes // max(1, len(images))
        return images.nbytes if self.pipeline == "resident" else STAGED * order.batch * (1 + order.mu) * one

    def largest_batch(self, budget: int, precision: Precision | None = None) -> tuple[int, Estimate] | None:
        """The largest train.batch up to the configured one that takes at most `budget` bytes, a round number, and
        its estimate; None where none does, or it is not known."""
        asked = self.config.train.batch
        most, least = self.estimate(asked, precision), self.estimate(2, precision)
        if most is None or least is None or least.total > budget:
            return None
        if most.total <= budget:
            return asked, most
        # Memory grows by the row, or faster: the line between the two lies above it.
        batch = 2 + int((asked - 2) * (budget - least.total) / (most.total - least.total))
        while (batch := _round_down(batch)) >= 1:
            found = self.estimate(batch, precision)
            if found and found.total <= budget:
                return batch, found
            batch -= 1
        return None

    def largest_evaluation(self, budget: int) -> int | None:
        """The largest train.eval_batch that takes at most `budget` bytes; None where none does."""
        size = self.config.train.eval_batch
        while size >= 1:
            config = self.config.model_copy(
                update={"train": self.config.train.model_copy(update={"eval_batch": size})}
            )
            other = copy.copy(self)
            other.config = config
            found = other.estimate(2)
            if found is None:
                return None
            if found.state + found.images + found.evaluation <= budget:
                return size
            size //= 2
        return None


def _move(module: nn.Module, device: torch.device) -> None:
    """A module's fake tensors on another device."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None and p.device.type != device.type:
                part._parameters[name] = nn.Parameter(torch.empty_like(p, device=device), p.requires_grad)
        for name, b in part._buffers.items():
            if b is not None and b.device.type != device.type:
                part._buffers[name] = torch.empty_like(b, device=device)


def _nbytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _is_mapped(array: np.ndarray | None) -> bool:
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap):
            return True
        array = array.base
    return False


def _round_down(batch: int) -> int:
    step = 64 if batch >= 512 else 8 if batch >= 32 else 1
    return batch // step * step


def runs_at_once(config: ExperimentConfig, dataset: Dataset, split: Split) -> int | None:
    """How many runs of a configuration a GPU's free memory holds, at least 1; None where it is not known."""
    need = Need(config, dataset, split)
    has, estimate = room(need.device), need.estimate()
    if has is None or estimate is None:
        return None
    context = GIB // 2  # of every process: kernels, handles and workspaces
    return max(1, int(USABLE * has.free / (estimate.total + context)))
