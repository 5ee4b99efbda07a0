"""InterLUDE (Huang, Yu, Zhu, Hughes, ICML 2024): embedding fusion and delta-consistency over interdigitated
batches. The equations stand in ops/losses.py (losses) and models/fusion.py (fusion)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from interlude_fast.config import Strict
from interlude_fast.data.batch import Batch, Layout
from interlude_fast.ops import interlude_loss

from .base import Losses, Method, Problem
from .parts import class_weight_tensor


class InterludeOptions(Strict):
    """Names as in the paper; defaults are its CIFAR settings."""

    alpha: float = Field(0.1, ge=0, lt=1, description="fusion strength")
    tau: float = Field(0.95, ge=0, le=1, description="confidence threshold of pseudo labels")
    lambda_u: float = Field(1.0, ge=0)
    lambda_dc: float = Field(1.0, ge=0)
    temperature: float = Field(1.0, gt=0)
    delta: Literal["mean", "per_class"] = "mean"
    layout: Layout = "interdigitated"
    fusion_at_eval: bool = Field(False, description="as the released code: predictions depend on their batch")
    class_weights: list[float] | None = None


class Interlude(Method):
    Options = InterludeOptions
    labeled_views = ("weak", "strong")
    unlabeled_views = ("weak", "strong")
    options: InterludeOptions
    class_weights: Tensor | None

    def __init__(self, options: InterludeOptions, problem: Problem) -> None:
        super().__init__(options, problem)
        self.register_buffer("class_weights", class_weight_tensor(options.class_weights, problem.num_classes))

    @property
    def layout(self) -> Layout:
        return self.options.layout

    @property
    def fusion_alpha(self) -> float:
        return self.options.alpha

    @property
    def fusion_at_eval(self) -> bool:
        return self.options.fusion_at_eval

    def loss(self, logits: Tensor, batch: Batch) -> Losses:
        o = self.options
        parts = interlude_loss(
            logits,
            batch.labels,
            mu=batch.mu,
            thresholds=o.tau,
            lambda_u=o.lambda_u,
            lambda_dc=o.lambda_dc,
            temperature=o.temperature,
            delta=o.delta,
            layout=o.layout,
            class_weights=self.class_weights,
        )
        metrics = {f"loss_{name}": getattr(parts, name) for name in ("labeled", "unlabeled", "delta")}
        return Losses(parts.total, {**metrics, "mask_rate": parts.mask_rate})
