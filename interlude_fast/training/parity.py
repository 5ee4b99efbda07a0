"""Replays recorded steps of the released code: the proof of parity (docs/parity.md).

A golden file holds float64 inputs, losses, gradients and weights of a few steps, and every setting in `meta`.
The steps run through the same network, method, optimizer and EMA as any training run.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interlude_fast import ops
from interlude_fast.data.batch import VIEWS, Batch, RowOrder
from interlude_fast.errors import DataError, InterludeError, unknown
from interlude_fast.methods import METHODS, TaskInfo, build_method
from interlude_fast.models import EmbeddingFusion, Shape
from interlude_fast.models.wideresnet import WideResNet, WideResNetOptions
from interlude_fast.options import OptimConfig

from .state import TrainState
from .step import compute_gradients, update

TOLERANCE = 1e-9
# Names of a golden -> of metrics, and of a method's buffers; a method has those that are its own.
LOSSES = {
    "total": "loss",
    **{name: f"loss_{name}" for name in ("labeled", "unlabeled", "delta", "fairness")},
}
STATE = {"tau": "threshold.confidence", "p": "threshold.mean", "label_hist": "threshold.histogram"}


@dataclass(frozen=True)
class Golden:
    """A file's arrays as tensors, and its settings."""

    arrays: dict[str, Tensor]
    meta: dict[str, Any]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """`init/`, `final/`, ... -> tensors by parameter or buffer name."""
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}


def read_golden(path: Path) -> Golden:
    """Read a golden without executing pickled code.

    Raises:
        DataError: not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
        meta = json.loads(str(content.pop("meta")))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except Exception as error:
        raise DataError(f"{path} is not a golden of docs/parity.md ({type(error).__name__}: {error})") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("method"), str):
        raise DataError(f"{path}: its meta is not a mapping that names a method")
    return Golden({name: torch.from_numpy(np.asarray(value)) for name, value in content.items()}, meta)


def build_state(golden: Golden) -> TrainState:
    """Network, method, optimizer and EMA from a golden's settings, with its initial weights, in float64."""
    m = golden.meta
    if m["method"] not in METHODS:
        raise unknown("method", m["method"], METHODS)
    fields = METHODS[m["method"]].Options.model_fields
    named = {k: v for k, v in m.items() if k in fields}
    method = build_method(m["method"], named, TaskInfo(m["num_classes"]), dtype=torch.float64)
    initial = golden.group("init/")
    stages = sum(f"block{s}.layer.0.conv1.weight" in initial for s in (1, 2, 3, 4))
    sizes = {k: v for k, v in m.items() if k in WideResNetOptions.model_fields}
    options = WideResNetOptions(**{"stages": stages, **sizes})
    fusion = EmbeddingFusion(method.fusion_alpha, at_eval=False)
    shape = Shape(m["num_classes"], initial["conv1.weight"].shape[1])
    model = WideResNet(options, shape, fusion).double()
    model.load_state_dict(initial)
    model.to(memory_format=torch.channels_last)
    optim = {k: v for k, v in m.items() if k in OptimConfig.model_fields}
    return TrainState(model, method, OptimConfig(**optim), m["total_steps"])


def golden_batch(golden: Golden, step: int, state: TrainState) -> Batch:
    """Step `step` of a golden with its rows in the method's order."""
    m, method = golden.meta, state.method
    order = RowOrder(m["batch"], m["mu"], method.labeled_views, method.unlabeled_views, method.layout)
    views = []
    for view in VIEWS[:2]:
        labeled, unlabeled = (golden.arrays[f"step{step}/{kind}_{view}"] for kind in ("labeled", "unlabeled"))
        views.append(torch.cat([labeled, unlabeled.flatten(0, 1)]))
    slot, view_index = order.rows
    images = torch.stack(views)[view_index, slot].contiguous(memory_format=torch.channels_last)
    return Batch(images, golden.arrays[f"step{step}/labels"], order, torch.empty(0), torch.tensor(step))


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference over the largest absolute value of theirs (at least 1e-12)."""
    if ours.shape != theirs.shape:
        return float("inf")
    scale = theirs.abs().max().clamp(min=1e-12) if theirs.numel() else torch.ones(())
    difference = (ours.double() - theirs.double()).abs()
    if not theirs.numel():
        return 0.0
    return float(difference.max() / scale) if difference.isfinite().all() else float("inf")


def _worst(what: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Over every name of ours; a golden that holds other names is refused, so that none passes unseen."""
    if ours.keys() != theirs.keys():
        name = min(ours.keys() ^ theirs.keys())
        holder, other = ("network", "golden") if name in ours else ("golden", "network")
        raise DataError(f"{what} of {name}: the {holder} has it and the {other} has not")
    return max((relative_difference(ours[name], value) for name, value in theirs.items()), default=0.0)


def replay(path: Path, fused: bool) -> dict[str, float]:
    """Largest relative difference of every quantity of a golden, with fused kernels or the reference.

    Not compared: the running statistics of batch norms that nobody reads (docs/equations.md).

    Raises:
        DataError: not a golden. ConfigError: a method that is not known.
    """
    golden = read_golden(path)
    with contextlib.nullcontext() if fused else ops.use_reference():
        try:
            return _replay(golden)
        except InterludeError:
            raise
        except KeyError as error:
            raise DataError(f"{path} lacks {error}, which a golden of its method holds") from None
        except Exception as error:  # settings and arrays that do not fit together, in whatever way
            first = str(error).strip().splitlines()[:1]
            raise DataError(f"{path} cannot be replayed: {type(error).__name__}: {' '.join(first)}") from None


def replay_both(path: Path) -> dict[str, dict[str, float]]:
    """replay() with fused kernels, where they are built, and with the torch reference."""
    sides = (
        {"fused kernels": True, "torch reference": False} if ops.status().loaded else {"torch reference": False}
    )
    return {name: replay(path, fused) for name, fused in sides.items()}


def _replay(golden: Golden) -> dict[str, float]:
    m, state = golden.meta, build_state(golden)
    differences: dict[str, float] = {}

    def note(name: str, value: float) -> None:
        differences[name] = max(differences.get(name, 0.0), value) if value == value else float("inf")

    for step in range(m["steps"]):
        losses = compute_gradients(state, golden_batch(golden, step, state))
        values = {"loss": losses.total.detach(), **losses.metrics}
        for theirs, ours in LOSSES.items():
            if ours not in values:
                continue
            note(
                f"loss {theirs}",
                relative_difference(values[ours], golden.arrays[f"step{step}/loss_{theirs}"]),
            )
        gradients = {n: p.grad for n, p in state.model.named_parameters() if p.grad is not None}
        note("gradients", _worst("the gradient", gradients, golden.group(f"step{step}/grad/")))
        update(state)
    buffers_of_method = state.method.state_dict()
    carried = {theirs: buffers_of_method[ours] for theirs, ours in STATE.items() if ours in buffers_of_method}
    if carried:
        note("state", _worst("the state", carried, golden.group("state/")))
    network = state.model
    assert isinstance(network, WideResNet)
    unread = network.unread_buffers()
    for prefix, word, trained in (("final/", "", state.model), ("ema/", "EMA ", state.ema.model)):
        recorded, values = golden.group(prefix), dict(trained.state_dict())
        buffers = {n for n, _ in trained.named_buffers()} - unread
        for kind, names in (("weights", values.keys() - buffers - unread), ("buffers", buffers)):
            others = buffers if kind == "weights" else values.keys() - buffers
            asked = {n: v for n, v in recorded.items() if n not in others | unread}
            note(f"{word}{kind}", _worst(prefix, {n: values[n] for n in names}, asked))
    images = golden.arrays["eval/x"].contiguous(memory_format=torch.channels_last)
    network.eval()
    for at_eval, word in ((True, "with"), (False, "without")):
        network.fusion.at_eval = at_eval
        with torch.no_grad():
            logits = network(images)
        expected = golden.arrays[f"eval/logits_{word}_fusion"]
        note(f"eval logits {word} fusion", relative_difference(logits, expected))
    return differences
