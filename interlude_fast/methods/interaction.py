"""What InterLUDE and InterLUDE+ share: embedding fusion and delta-consistency over interdigitated batches. The
equations stand in ops/losses.py (losses) and models/fusion.py (fusion)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from interlude_fast.data.batch import Batch, Layout
from interlude_fast.errors import ConfigError
from interlude_fast.models import Network
from interlude_fast.ops import InterludeLoss, interlude_loss
from interlude_fast.options import Strict

from .base import Losses, Method, TaskInfo
from .parts import check_per_class, class_weight_tensor, ramp


class InteractionOptions(Strict):
    """Names as in the paper; defaults are its CIFAR settings."""

    alpha: float | None = Field(None, ge=0, lt=1, description="fusion strength; None: 0.1 without alpha_range")
    alpha_range: tuple[float, float] | None = Field(None, description="each step draws its strength from it")
    lambda_u: float = Field(1.0, ge=0)
    lambda_dc: float = Field(1.0, ge=0)
    warmup_u: float = Field(0.0, ge=0, le=1, description="share of the run in which lambda_u rises from 0")
    warmup_dc: float = Field(0.0, ge=0, le=1, description="the same for lambda_dc")
    delta: Literal["mean", "per_class"] = "mean"
    layout: Layout = "interdigitated"
    fusion_at_eval: bool = Field(False, description="as the released code: predictions depend on their batch")
    class_weights: list[PositiveFloat] | None = None

    @model_validator(mode="before")
    @classmethod
    def _write_out_the_strength(cls, values: Any) -> Any:
        neither = isinstance(values, dict) and all(values.get(k) is None for k in ("alpha", "alpha_range"))
        return {**values, "alpha": 0.1} if neither else values

    @model_validator(mode="after")
    def _check(self) -> InteractionOptions:
        low, high = self.alpha_range or (0.0, 0.5)
        if self.alpha is not None and self.alpha_range is not None:
            raise ConfigError("method.alpha and method.alpha_range exclude each other; set one of them to null")
        if not 0 <= low < high < 1:
            raise ConfigError(
                f"method.alpha_range must be [low, high] with 0 <= low < high < 1, got [{low}, {high}]"
            )
        if self.alpha == 0 and self.fusion_at_eval:
            raise ConfigError("method.fusion_at_eval: nothing is fused with method.alpha = 0; drop one of them")
        for name in ("u", "dc"):
            if getattr(self, f"warmup_{name}") and not getattr(self, f"lambda_{name}"):
                raise ConfigError(
                    f"method.warmup_{name}: method.lambda_{name} = 0 has nothing to rise to; drop it"
                )
        return self


class Interaction(Method):
    """Fusion strength, row order and the fused loss head."""

    Options = InteractionOptions
    labeled_views = ("weak", "strong")
    unlabeled_views = ("weak", "strong")
    options: InteractionOptions
    class_weights: Tensor | None

    def __init__(self, options: InteractionOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        self.register_buffer("class_weights", class_weight_tensor(options.class_weights, task.num_classes))

    @classmethod
    def fuses(cls, options: InteractionOptions) -> bool:
        return bool(options.alpha or options.alpha_range)

    @classmethod
    def check_classes(cls, options: InteractionOptions, num_classes: int) -> None:
        check_per_class("class_weights", options.class_weights, num_classes)

    @property
    def layout(self) -> Layout:
        return self.options.layout

    @property
    def fusion_alpha(self) -> float:
        """A drawn strength's mean, which is that of eval mode."""
        alpha, drawn = self.options.alpha, self.options.alpha_range
        return sum(drawn) / 2 if drawn else alpha or 0.0

    @property
    def fusion_at_eval(self) -> bool:
        return self.options.fusion_at_eval

    def adapt(self, network: Network) -> Network:
        network.fusion.alpha_range = self.options.alpha_range
        return network

    def ramps(self, step: Tensor) -> Tensor | None:
        """Factors [2] on lambda_u and lambda_dc in this step, min(1, step / warm-up); None without warm-ups."""
        lengths = [share * self.task.steps for share in (self.options.warmup_u, self.options.warmup_dc)]
        return torch.stack([ramp(step, length) for length in lengths]) if any(lengths) else None

    def head(self, logits: Tensor, batch: Batch, thresholds: float | Tensor, **more: Any) -> InterludeLoss:
        """L_sup + lambda_u L_u + lambda_dc L_dc; `more` is passed on to ops.interlude_loss."""
        o = self.options
        return interlude_loss(
            logits,
            batch.labels,
            mu=batch.mu,
            thresholds=thresholds,
            lambda_u=o.lambda_u,
            lambda_dc=o.lambda_dc,
            delta=o.delta,
            layout=o.layout,
            class_weights=self.class_weights,
            ramps=self.ramps(batch.step),
            **more,
        )

    def losses(self, parts: InterludeLoss, extra: Tensor | float = 0.0, **metrics: Tensor) -> Losses:
        """The head's total plus another term, and every metric."""
        named = {f"loss_{name}": getattr(parts, name) for name in ("labeled", "unlabeled", "delta")}
        return Losses(parts.total + extra, {**named, "mask_rate": parts.mask_rate, **metrics})
