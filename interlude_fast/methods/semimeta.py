"""SemiMeta (Zhang, Xiao, Jia, Cheng, Yang, AISTATS 2021): pseudo labels take a step against the labeled loss.

Pseudo labels y begin as the predictions P. If the network, by one step of length eta towards y, is to lower the
labeled loss L, then dL/dy at y = P is one Jacobian-vector product with g = grad L: 2 eta / n J g for squared
error (J = dP/d theta, n images), eta / n J_log g for KL. Labels become P - meta_step (2 J g), or (J_log g).
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from interlude_fast.data.batch import Batch
from interlude_fast.errors import ConfigError
from interlude_fast.options import Strict

from .base import Losses, Method, TaskInfo
from .parts import (
    INNER_GRADIENTS,
    combine,
    divergence,
    eval_mode,
    mean_over_ranks,
    mixup_strength,
    normalized,
    per_row,
    ramp,
    wide,
)

Inner = Literal["mse", "kl"]
# torch's own, when it loads its forward-mode rules.
warnings.filterwarnings("ignore", message=".torch.jit.script. is deprecated", category=FutureWarning)


class SemiMetaOptions(Strict):
    """Defaults are the paper's for CIFAR. `meta_step` is beta eta / n of the paper; the released code, and so
    `reference`, takes the current learning rate, which is 0.1 for three quarters of its run."""

    training_defaults: ClassVar[dict[str, Any]] = {
        "optim": {
            **{
                "name": "sgd",
                "lr": 0.1,
                "momentum": 0.9,
                "nesterov": False,
                "weight_decay": 1e-4,
                "decay_all": True,
            },
            **{"schedule": "steps", "warmup": 0.01, "milestones": [0.75, 0.875]},
            **{"ema_decay": 0.0, "ema_warmup": False},
        },
        "train": {"mu": 1},
    }

    inner: Inner = Field("mse", description="loss of a prediction against its pseudo label, inside and outside")
    meta_step: float = Field(0.1, ge=0)
    project: bool = Field(True, description="negative entries of pseudo labels become 0, rows sum to 1")
    mixup: bool = Field(True, description="labeled loss on mixtures of labeled and unlabeled images")
    alpha: float = Field(1.0, gt=0, description="of mixup's lambda ~ Beta(alpha, alpha); the paper's SVHN: 0.1")
    lambda_u: float = Field(1.0, ge=0)
    ramp: float = Field(
        0.01,
        ge=0,
        description="steps in which lambda_u rises from 0; up to 1: a share of all (the paper's 4,000 of 400,000)",
    )
    reference: bool = Field(False, description="as released: finite differences over 0.01, not J g; step: the lr")

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> SemiMetaOptions:
        if self.reference:
            self.refuse_unread("with reference, which follows the learning rate", "meta_step")
        return self


def label_gradient(
    network: nn.Module,
    labeled: Tensor,
    labels: Tensor,
    images: Tensor,
    inner: Inner = "mse",
    reference: bool = False,
) -> tuple[Tensor, Tensor]:
    """P = softmax f(images) [N, K] and 2 J g for "mse", J_log g for "kl" [N, K]; neither has a gradient. `network`
    runs as it is: in eval mode no image depends on another."""
    names, weights = zip(*((n, p) for n, p in network.named_parameters() if p.requires_grad), strict=True)
    g = torch.autograd.grad(F.cross_entropy(network(labeled), labels), weights, materialize_grads=True)
    g = mean_over_ranks(network, g)
    at = tuple(w.detach() for w in weights)

    def predict(*values: Tensor) -> Tensor:
        logits = torch.func.functional_call(network, dict(zip(names, values, strict=True)), (images,))
        return logits.log_softmax(-1) if inner == "kl" else logits.softmax(-1)

    with torch.no_grad():
        if reference:
            step = 0.01 / torch.stack(torch._foreach_norm(g)).norm().clamp(min=1e-30)
            above, below = (predict(*(w + s * d for w, d in zip(at, g, strict=True))) for s in (step, -step))
            p, change = predict(*at), (above - below) / (2 * step)
        else:
            with sdpa_kernel(SDPBackend.MATH):  # the fused attentions have no forward-mode derivative
                p, change = torch.func.jvp(predict, at, g)[:2]
    return (p.exp(), change) if inner == "kl" else (p, 2 * change)


def step_labels(p: Tensor, gradient: Tensor, step: Tensor | float, project: bool) -> Tensor:
    """Pseudo labels p - step * gradient [N, K]; with `project` without negative entries and of sum 1, or all 0."""
    y = p - step * gradient
    return normalized(y.relu()).nan_to_num(0) if project else y


def mix(labeled: Tensor, unlabeled: Tensor, strength: Tensor) -> Tensor:
    """strength of the labeled row beside it and 1 - strength of each unlabeled one: [B, ...], [N, ...], [N]."""
    beside = labeled.repeat_interleave(len(unlabeled) // len(labeled), 0)
    return torch.lerp(unlabeled, beside, per_row(strength, unlabeled))


def consistency(logits: Tensor, target: Tensor, inner: Inner) -> Tensor:
    """Mean over rows of ||softmax(logits) - target||^2 (a sum over classes) or KL(target || softmax(logits))."""
    squares = (logits.softmax(-1) - target).square().sum(-1).mean()
    return divergence(logits, target).mean() if inner == "kl" else squares


class SemiMeta(Method):
    """Pseudo labels come from eval mode (running statistics, no dropout), in float32 under autocast too; the two
    losses from passes in train mode. An unlabeled image is mixed with the labeled one beside it."""

    Options = SemiMetaOptions
    unlabeled_views = ("weak",)
    forwards = "apart"
    cannot_compile = INNER_GRADIENTS
    options: SemiMetaOptions
    steps: Tensor

    def __init__(self, options: SemiMetaOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        follow = task.learning_rate if options.reference else None
        sizes = [follow(k) for k in range(task.steps)] if follow else [options.meta_step]
        self.register_buffer("steps", torch.tensor(sizes, dtype=torch.float64), persistent=False)

    @classmethod
    def check_steps(cls, options: SemiMetaOptions, steps: int) -> None:
        if options.ramp > max(1, steps):
            raise ConfigError(
                f"method.ramp = {options.ramp:g} steps: a run of {steps} steps ends before lambda_u is reached; "
                "write a share of the run, such as 0.01"
            )

    def forward(self, model: nn.Module, batch: Batch, ema: nn.Module) -> Losses:
        o, (labeled, unlabeled) = self.options, batch.split(batch.images)
        dtype = next(model.parameters()).dtype
        with eval_mode(model), torch.autocast(labeled.device.type, enabled=False):
            x, u = labeled.to(dtype), unlabeled.to(dtype)
            p, gradient = label_gradient(model, x, batch.labels, u, o.inner, o.reference)
        at = batch.step.clamp(max=len(self.steps) - 1)
        size = self.steps.index_select(0, at[None]).squeeze(0)  # [at] would ask the device for the number
        y = step_labels(p, gradient, size, o.project)
        if o.mixup:
            strength = mixup_strength(o.alpha, len(u), like=p)
            truth = F.one_hot(batch.labels, self.num_classes).to(y.dtype)
            mixed, target = mix(x, u, strength), mix(truth, y, strength)
            on_labels = divergence(wide(model(mixed)), target).mean()
        else:
            on_labels = F.cross_entropy(wide(model(labeled)), batch.labels)
        on_pseudo = consistency(wide(model(unlabeled)), y, o.inner)
        rise = ramp(batch.step, o.ramp if o.ramp > 1 else o.ramp * self.task.steps)
        return combine(on_labels, on_pseudo, o.lambda_u * rise, label_change=(y - p).abs().sum(-1).mean())
