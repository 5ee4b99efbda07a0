"""InterLUDE (Huang, Yu, Zhu, Hughes, ICML 2024): fixed thresholds, optional distribution alignment."""

from __future__ import annotations

import torch
from pydantic import Field, field_validator
from torch import Tensor

from interlude_fast.data.batch import Batch
from interlude_fast.errors import ConfigError

from .base import Losses, TaskInfo
from .interaction import Interaction, InteractionOptions
from .parts import check_per_class, start_or_update_average, wide


class InterludeOptions(InteractionOptions):
    tau: float | list[float] = Field(0.95, description="confidence threshold of pseudo labels, or one per class")
    temperature: float = Field(1.0, gt=0)
    distribution_alignment: bool = Field(False, description="draw pseudo labels to equal shares of the classes")

    @field_validator("tau")
    @classmethod
    def _check_tau(cls, tau: float | list[float]) -> float | list[float]:
        if not all(0 <= value <= 1 for value in (tau if isinstance(tau, list) else [tau])):
            raise ConfigError(
                f"method.tau must be a number in [0, 1], or a list of them, one per class, got {tau}"
            )
        return tau


def threshold_tensor(tau: float | list[float], num_classes: int) -> Tensor | None:
    """Option `tau` as a tensor [K] where it is a list, else None.

    Raises:
        ConfigError: a list of another length than K.
    """
    if not isinstance(tau, list):
        return None
    check_per_class("tau", tau, num_classes)
    return torch.tensor(tau, dtype=torch.float64)


class Interlude(Interaction):
    """Buffers: tau [K] where it is given by class; p_model [K] under distribution alignment, the running mean of
    the predictions q, 0 before the first step."""

    Options = InterludeOptions
    options: InterludeOptions
    tau: Tensor | None
    p_model: Tensor | None

    def __init__(self, options: InterludeOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.register_buffer("tau", threshold_tensor(options.tau, task.num_classes))
        aligned = options.distribution_alignment
        self.register_buffer("p_model", torch.zeros(task.num_classes) if aligned else None)

    @classmethod
    def check_classes(cls, options: InteractionOptions, num_classes: int) -> None:
        super().check_classes(options, num_classes)
        assert isinstance(options, InterludeOptions)
        check_per_class("tau", options.tau if isinstance(options.tau, list) else None, num_classes)

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
