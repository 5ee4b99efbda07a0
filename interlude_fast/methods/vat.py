"""VAT (Miyato et al., TPAMI 2018): predictions stay as they are under the small change that alters them most."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from interlude_fast.data.batch import Batch
from interlude_fast.options import Strict

from .base import Losses, Method
from .parts import INNER_GRADIENTS, combine, direction, divergence, frozen_statistics, ramp, wide


class VATOptions(Strict):
    training_defaults: ClassVar[dict[str, Any]] = {"train": {"mu": 1}}

    lambda_u: float = Field(0.3, ge=0)
    lambda_entropy: float = Field(
        0.06, ge=0, description="weight of the unlabeled predictions' entropy, not ramped"
    )
    ramp: float = Field(0.4, ge=0, description="share of the run in which lambda_u rises from 0, linearly")
    eps: float = Field(6.0, gt=0, description="length of the adversarial change, of all of an image's pixels")
    iterations: int = Field(1, ge=1, description="of the power method that finds its direction")
    xi: float = Field(
        1e-2, gt=0, description="length of the probing change; float32 cannot resolve the published code's 1e-6"
    )


def kl(p: Tensor, logits: Tensor) -> Tensor:
    """Mean over rows of KL(p || softmax(logits)), of probabilities p [N, K]."""
    return divergence(logits, p).mean()


def adversarial(model: nn.Module, images: Tensor, noise: Tensor, options: VATOptions) -> Tensor:
    """The change of length eps that alters predictions most, like images [N, C, H, W]; begins at `noise`.
    In float32 at least, also under autocast: in bfloat16 a change of length xi is lost."""
    with torch.autocast(images.device.type, enabled=False):
        x = wide(images)
        with torch.no_grad():
            logits = model(x)
        return options.eps * direction(model, x, logits, noise.to(x.dtype), options.xi, options.iterations)


class VAT(Method):
    """L_u = mean KL(sg softmax(u) || softmax(f(x + r))) of the unlabeled rows' logits u and adversarial changes r;
    plus lambda_entropy * mean H(softmax(u)). Running statistics follow the labeled rows alone."""

    Options = VATOptions
    unlabeled_views = ("weak",)
    forwards = "apart"
    cannot_compile = INNER_GRADIENTS

    def forward(self, model: nn.Module, batch: Batch, ema: nn.Module) -> Losses:
        _, images = batch.split(batch.images)
        return self.losses(model, batch, torch.randn_like(images, dtype=torch.float32))

    def losses(self, model: nn.Module, batch: Batch, noise: Tensor) -> Losses:
        """The losses for given noise, like the unlabeled images."""
        o = self.options
        labeled_images, images = batch.split(batch.images)
        supervised = F.cross_entropy(wide(model(labeled_images)), batch.labels)
        with frozen_statistics(model):
            logits = wide(model(images))
            change = adversarial(model, images, noise, o)
            smoothness = kl(logits.detach().softmax(-1), wide(model(images + change)))
        entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()
        weight = o.lambda_u * ramp(batch.step, o.ramp * self.task.steps)
        total, metrics = combine(supervised, smoothness, weight, loss_entropy=entropy)
        return Losses(total + o.lambda_entropy * entropy, metrics)
