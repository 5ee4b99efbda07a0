"""The one training state: what checkpoint, resume and every way to run a step see."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from interlude_fast.data.batch import Batch
from interlude_fast.errors import CheckpointError
from interlude_fast.methods import Losses, Method
from interlude_fast.options import OptimConfig

from .ema import EMA
from .optim import build_optimizer

MODULES = ("model", "ema", "method")
COUNTS = ("growth_interval", "_growth_tracker")  # of a GradScaler's state


def loss_scaler(device: torch.device, enabled: bool) -> torch.amp.GradScaler:
    """Its scale lies on the device from the beginning: torch makes it in the first step only."""
    scaler = torch.amp.GradScaler(device.type, enabled=enabled)
    scaler.scale(torch.ones((), device=device))
    return scaler


class Sharing(Protocol):
    """What shares a state's steps among the processes of a job (training/parallel.py)."""

    def __call__(self, model: nn.Module, batch: Batch, ema: nn.Module) -> Losses: ...

    def average_statistics(self) -> None: ...


class TrainState:
    """Parameters, EMA, optimizer, the method's state and the step number.

    Args:
        steps: length of the schedule. seed: of what a step draws. scale_loss: whether gradients are too small for
            their format (fp16) without a loss scale.

    Attributes:
        step: number of steps done, which is also the index of the next.
        position: in the schedule, of `steps`; it is `step` but where the schedule is scaled to wall time.
        seconds: of wall time so far, where that is what leads through the schedule.
        scaler: of the loss; does nothing without scale_loss.
        parallel: what shares the steps among the processes of a job; None in a single one.
    """

    parallel: Sharing | None = None

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optim: OptimConfig,
        steps: int,
        seed: int = 0,
        scale_loss: bool = False,
    ) -> None:
        self.model, self.method, self.optim, self.steps, self.seed = model, method, optim, steps, seed
        self.ema = EMA(model, optim.ema_decay, optim.ema_warmup)
        self.optimizer = build_optimizer(model, optim, self.ema)
        self.scaler = loss_scaler(next(model.parameters()).device, scale_loss)
        self.step, self.position, self.seconds = 0, 0.0, 0.0

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def finished(self) -> bool:
        return self.method.fitted or self.position >= self.steps

    def advance(self) -> None:
        """A step is done."""
        self.step += 1
        self.position += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor of the state by a flat name; the step number is the caller's to write."""
        state: dict[str, Tensor] = {}
        for prefix, module in self._modules():
            state.update({f"{prefix}/{name}": value for name, value in module.state_dict().items()})
        for name, parameter in self.model.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            state.update({f"{key}/{name}": m for key, m in moments.items() if isinstance(m, Tensor)})
        state.update({f"scaler/{n}": torch.tensor(float(v)) for n, v in self.scaler.state_dict().items()})
        return state

    def snapshot(self) -> list[tuple[Tensor, Tensor]]:
        """Every tensor that a step changes, and a copy of it."""
        tensors = [t for _, module in self._modules() for t in (*module.parameters(), *module.buffers())]
        tensors += [t for m in self.optimizer.state.values() for t in m.values() if isinstance(t, Tensor)]
        scaler = (getattr(self.scaler, name, None) for name in ("_scale", "_growth_tracker"))
        tensors += [t for t in scaler if isinstance(t, Tensor)]
        return [(t, t.detach().clone()) for t in tensors]

    @torch.no_grad()
    def restore(self, snapshot: list[tuple[Tensor, Tensor]]) -> None:
        """Undo what was done to the tensors since; what a first step made (moments of Adam) begins at 0 again, and
        so does what a step that broke off has left of its loss scale."""
        getattr(self.scaler, "_per_optimizer_states", {}).clear()  # a scaler that is off has none
        for name in ("grad_scale", "found_inf"):
            vars(self.optimizer).pop(name, None)
        for moments in self.optimizer.state.values():
            for moment in moments.values():
                if isinstance(moment, Tensor):
                    moment.zero_()
        for tensor, before in snapshot:
            tensor.copy_(before)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], step: int, position: float | None = None) -> None:
        """Restore state_dict()'s tensors; position: None for that of `step`.

        Raises:
            CheckpointError: names or shapes are not this run's.
        """
        for prefix, module in self._modules():
            part = {n.partition("/")[2]: v for n, v in state.items() if n.startswith(f"{prefix}/")}
            try:
                module.load_state_dict(part)
            except RuntimeError as error:
                detail = " ".join(str(error).split())[:200]
                raise CheckpointError(f"the checkpoint's {prefix} does not fit this run: {detail}") from None
        parameters = dict(self.model.named_parameters())
        for key, moment in state.items():
            kind, _, name = key.partition("/")
            if kind in MODULES or kind == "scaler":
                continue
            parameter = parameters[name]
            mine = self.optimizer.state[parameter].get(kind)
            if mine is not None and mine.shape == moment.shape:
                mine.copy_(moment)
                continue
            # A parameter's moments lie as it does; Adam's step count is one number.
            kept = (
                torch.empty_like(parameter).copy_(moment)
                if moment.shape == parameter.shape
                else moment.to(parameter.device, copy=True)
            )
            self.optimizer.state[parameter][kind] = kept
        if scaler := {n.partition("/")[2]: v.item() for n, v in state.items() if n.startswith("scaler/")}:
            self.scaler.load_state_dict({n: int(v) if n in COUNTS else v for n, v in scaler.items()})
        self.step, self.position = step, float(step if position is None else position)

    def _modules(self) -> list[tuple[str, nn.Module]]:
        return [("model", self.model), ("ema", self.ema.model), ("method", self.method)]
