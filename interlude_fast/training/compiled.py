"""Forward and losses through torch.compile, as one graph without breaks; AOT autograd makes the backward of it."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from interlude_fast.data.batch import Batch, RowOrder
from interlude_fast.methods import Losses

from .state import TrainState
from .step import LossFunction

_number = itertools.count()


def silence_cuda_home() -> None:
    """Torch's compiler imports its builder of extensions, which warns where there is a CUDA toolkit and no GPU. A
    run on the CPU needs neither; whatever else that module says is shown."""
    logging.getLogger("torch.utils.cpp_extension").addFilter(_not_about_cuda_home)


def _not_about_cuda_home(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("No CUDA runtime is found, using CUDA_HOME=")


def compiled_losses(state: TrainState, backend: str = "inductor") -> LossFunction:
    """The method's forward, compiled when it is first called.

    What a step draws comes from torch's own generators, so that a compiled run draws what an eager one does.
    """
    silence_cuda_home()
    compiled: dict[RowOrder, Callable[..., Losses]] = {}
    options: dict[str, Any] | None = {"fallback_random": True} if backend == "inductor" else None

    def compute(model: nn.Module, batch: Batch, ema: nn.Module) -> Losses:
        if batch.order not in compiled:
            function = _on_tensors(state, batch.order)
            compiled[batch.order] = torch.compile(
                function, fullgraph=True, dynamic=False, backend=backend, options=options
            )
        return compiled[batch.order](batch.images, batch.labels, batch.unlabeled_items, batch.step)

    return compute


def _on_tensors(state: TrainState, order: RowOrder) -> Callable[..., Losses]:
    model, ema, method = state.model, state.ema.model, state.method

    def losses(images: Tensor, labels: Tensor, unlabeled_items: Tensor, step: Tensor) -> Losses:
        return method(model, Batch(images, labels, order, unlabeled_items, step), ema)

    # A code object of its own: torch counts recompilations by it, and another run is no recompilation of this one.
    losses.__code__ = losses.__code__.replace(co_name=f"losses_{next(_number)}")
    return losses
