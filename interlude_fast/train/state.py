"""The one training state: what checkpoint, resume and every way to run a step see."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interlude_fast.config import OptimConfig
from interlude_fast.errors import CheckpointError
from interlude_fast.methods import Method

from .ema import EMA
from .optim import build_optimizer

MODULES = ("model", "ema", "method")


class TrainState:
    """Parameters, EMA, optimizer, the method's state and the step number.

    Args:
        steps: of the whole run, which the learning rate follows. seed: of what a step draws.

    Attributes:
        step: number of steps done, which is also the index of the next.
    """

    def __init__(self, model: nn.Module, method: Method, optim: OptimConfig, steps: int, seed: int = 0) -> None:
        self.model, self.method, self.optim, self.steps, self.seed = model, method, optim, steps, seed
        self.optimizer = build_optimizer(model, optim)
        self.ema = EMA(model, optim.ema_decay)
        self.step = 0

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor of the state by a flat name; the step number is the caller's to write."""
        state: dict[str, Tensor] = {}
        for prefix, module in self._modules():
            state.update({f"{prefix}/{name}": value for name, value in module.state_dict().items()})
        for name, parameter in self.model.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            state.update({f"{key}/{name}": m for key, m in moments.items() if isinstance(m, Tensor)})
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor], step: int) -> None:
        """Restore state_dict()'s tensors.

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
            if kind in MODULES:
                continue
            parameter = parameters[name]
            # A parameter's moments lie as it does; Adam's step count is one number on the host.
            kept = torch.empty_like(parameter).copy_(moment) if moment.shape == parameter.shape else moment.clone()
            self.optimizer.state[parameter][kind] = kept
        self.step = step

    def _modules(self) -> list[tuple[str, nn.Module]]:
        return [("model", self.model), ("ema", self.ema.model), ("method", self.method)]
