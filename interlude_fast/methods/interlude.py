"""InterLUDE (Huang, Yu, Zhu, Hughes, ICML 2024): fixed thresholds, optional distribution alignment."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from interlude_fast.data.batch import Batch
from interlude_fast.errors import ConfigError

from .base import Losses, Problem
from .interaction import Interaction, InteractionOptions
from .parts import start_or_update_average, wide


class InterludeOptions(InteractionOptions):
    tau: float | list[float] = Field(0.95, description="confidence threshold of pseudo labels, or one per class")
    temperature: float = Field(1.0, gt=0)
    distribution_alignment: bool = Field(False, description="draw pseudo labels to equal shares of the classes")


def threshold_tensor(tau: float | list[float], num_classes: int) -> Tensor | None:
    """Option `tau` as a tensor [K] where it is a list, else None.

    Raises:
        ConfigError: a threshold outside [0, 1], or a list of another length than K.
    """
    values = tau if isinstance(tau, list) else [tau] * num_classes
    if len(values) != num_classes or not all(0 <= value <= 1 for value in values):
        raise ConfigError(
            f"method.tau must be a number in [0, 1], or {num_classes} of them, one per class, got {tau}"
        )
    return torch.tensor(tau, dtype=torch.float64) if isinstance(tau, list) else None


class Interlude(Interaction):
    """Buffers: tau [K] where it is given by class; p_model [K] under distribution alignment, the running mean of
    the predictions q, 0 before the first step."""

    Options = InterludeOptions
    options: InterludeOptions
    tau: Tensor | None
    p_model: Tensor | None

    def __init__(self, options: InterludeOptions, problem: Problem) -> None:
        super().__init__(options, problem)
        self.register_buffer("tau", threshold_tensor(options.tau, problem.num_classes))
        aligned = options.distribution_alignment
        self.register_buffer("p_model", torch.zeros(problem.num_classes) if aligned else None)

    @torch.no_grad()
    def alignment(self, logits: Tensor, batch: Batch) -> Tensor | None:
        """log(p_target / p_model) [K] for a uniform target, after this step's mean prediction has entered p_model;
        None without distribution alignment."""
        if self.p_model is None:
            return None
        q = (batch.split(wide(logits))[2] / self.options.temperature).softmax(-1)
        start_or_update_average(self.p_model, q.mean(0), 0.999)
        return -(self.num_classes * self.p_model).clamp(min=torch.finfo(self.p_model.dtype).tiny).log()

    def loss(self, logits: Tensor, batch: Batch) -> Losses:
        o, bias = self.options, self.alignment(logits, batch)
        thresholds = o.tau if isinstance(o.tau, float) else self.tau
        assert thresholds is not None
        shape = {"temperature": o.temperature, "pseudo_label_bias": bias}
        return self.losses(self.head(logits, batch, thresholds, **shape))
