"""SemiSupCon (Gauffre, Horvat, Amini, ECML-PKDD 2024): one supervised contrastive loss for everything.

Items are the class prototypes, the labeled images and both strong views of the unlabeled ones. Confident views
carry their pseudo label, the others a label of their own image, so that their other view is all that they match.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from interlude_fast.data.batch import Batch
from interlude_fast.models import Network
from interlude_fast.models.prototypes import PrototypeNetwork
from interlude_fast.options import Strict

from .base import Losses, Method, TaskInfo
from .flexmatch import FlexMatchOptions, FlexThreshold
from .parts import pseudo_labels
from .softmatch import SoftMatchOptions, SoftWeight

Reduction = Literal["nonzero", "all"]


class SemiSupConOptions(Strict):
    variant: Literal["fixmatch", "flexmatch", "softmatch"] = Field("fixmatch", description="which views to trust")
    temperature: float = Field(0.1, gt=0, description="of the loss")
    tau: float = Field(0.95, ge=0, le=1, description="confidence threshold of fixmatch and flexmatch")
    pl_temperature: float | None = Field(
        None, gt=0, description="confidence is softmax(cosine / (2 pl_temperature)); None: 0.04, softmatch 0.038"
    )
    w_prototypes: float = Field(1.0, ge=0, description="weight of the prototypes as anchors")
    w_confident: float = Field(1.0, ge=0)
    w_unconfident: float = Field(0.2, ge=0)
    reduction: Reduction = Field(
        "nonzero", description="mean over anchors that match something and count, as released, or over all"
    )
    momentum: float = Field(0.999, ge=0, lt=1, description="softmatch: of its running statistics")

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> SemiSupConOptions:
        self.refuse_unread(f"to variant {self.variant}", "tau" if self.variant == "softmatch" else "momentum")
        return self


def contrastive_loss(
    z: Tensor, labels: Tensor, weights: Tensor, temperature: float, reduction: Reduction = "nonzero"
) -> Tensor:
    """Weighted mean of l_a = -mean over p in P(a) of log(exp(z_a z_p / T) / sum over b != a of exp(z_a z_b / T)).

    Args:
        z: [N, D] of length 1. labels: int64 [N]; P(a) are the others with the label of a; without one l_a = 0.
        weights: [N], not all 0; divided by their mean. reduction: what the sum of weights times l is divided by.
    """
    alone = torch.eye(len(z), dtype=torch.bool, device=z.device)
    similarity = (z @ z.T / temperature).masked_fill(alone, -torch.inf)
    log_p = similarity - similarity.logsumexp(1, keepdim=True)
    matches = (labels[:, None] == labels) & ~alone
    losses = -log_p.where(matches, 0).sum(1) / matches.sum(1).clamp(min=1)
    weighted = losses * weights / weights.mean()
    return weighted.sum() / ((weighted > 0).sum().clamp(min=1) if reduction == "nonzero" else len(z))


class SemiSupCon(Method):
    Options = SemiSupConOptions
    unlabeled_views = ("weak", "strong", "strong2")
    options: SemiSupConOptions

    def __init__(self, options: SemiSupConOptions, task: TaskInfo) -> None:
        super().__init__(options, task)
        k, momentum = task.num_classes, options.momentum
        self.pl_temperature = options.pl_temperature or (0.038 if options.variant == "softmatch" else 0.04)
        if options.variant == "flexmatch":
            self.threshold = FlexThreshold(k, task.unlabeled, FlexMatchOptions(tau=options.tau))
        elif options.variant == "softmatch":
            self.weight = SoftWeight(k, SoftMatchOptions(momentum=momentum, form="usb"))

    def adapt(self, network: Network) -> Network:
        return PrototypeNetwork(network, self.num_classes, self.options.temperature)

    def trust(self, cosines: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo labels int64 [n] of weak views, and how far to trust them, [n] in [0, 1].

        Args:
            cosines: with the prototypes, [n, K]. items: of the unlabeled set, int64 [n].
        """
        q, confidence, target = pseudo_labels(cosines / (2 * self.pl_temperature))
        if self.options.variant == "softmatch":
            return target, self.weight(q, q)
        if self.options.variant == "fixmatch":
            return target, (confidence >= self.options.tau).to(q.dtype)
        trusted = (confidence >= self.threshold(target)).to(q.dtype)
        self.threshold.update(confidence, target, items)
        return target, trusted

    def contrast(
        self, centers: Tensor, labeled: Tensor, labels: Tensor, strong: Tensor, target: Tensor, trust: Tensor
    ) -> Tensor:
        """The loss of prototypes [K, D], labeled [B, D] and both strong views, [2n, D], one after the other. In
        softmatch each is there twice, under its pseudo label and under its own."""
        o, k = self.options, len(centers)
        own = k + torch.arange(len(target), device=target.device)
        sure, unsure = o.w_confident * trust, o.w_unconfident * (1 - trust)
        if o.variant == "softmatch":
            copies = [(target, sure), (own, unsure)]
        else:
            copies = [(torch.where(trust > 0, target, own), sure + unsure)]
        z = torch.cat([centers, labeled, *(strong for _ in copies)])
        of_prototypes = torch.arange(k, device=labels.device)
        every_label = torch.cat([of_prototypes, labels, *(label.repeat(2) for label, _ in copies)])
        ones = torch.ones_like(z[:, 0])
        weights = torch.cat(
            [o.w_prototypes * ones[:k], ones[: len(labels)], *(weight.repeat(2) for _, weight in copies)]
        )
        return contrastive_loss(z, every_label, weights, o.temperature, o.reduction)

    def forward(self, model: nn.Module, batch: Batch, ema: nn.Module) -> Losses:
        assert isinstance(model, PrototypeNetwork)
        z = model.embedding(batch.images)
        with torch.autocast(z.device.type, enabled=False):
            labeled, weak, *strong = batch.split(z)
            centers = model.centers()
            target, trust = self.trust(weak.detach() @ centers.detach().T, batch.unlabeled_items.flatten())
            total = self.contrast(centers, labeled, batch.labels, torch.cat(strong), target, trust)
        return Losses(total, {"mask_rate": trust.mean()})
