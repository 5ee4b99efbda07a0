"""A network that classifies by prototypes: cosines of a projected embedding with one vector per class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Network


class PrototypeNetwork(Network):
    """images [N, C, H, W] -> projections z [N, D] of length 1 -> logits z c_k / temperature [N, K].

    Args:
        backbone: D is its embedding size; its classifier is taken out of it. temperature: positive.
        classes: K. Prototypes c_k begin as directions drawn from torch's generator.
    """

    classifier = "prototypes"

    def __init__(self, backbone: Network, classes: int, temperature: float) -> None:
        super().__init__()
        d = backbone.embedding_size
        backbone.set_submodule(backbone.classifier, nn.Identity())
        self.backbone, self.fusion = backbone, backbone.fusion
        self.embedding_size, self.temperature = d, temperature
        self.head = nn.Sequential(nn.Linear(d, d), nn.ReLU(inplace=True), nn.Linear(d, d))
        self.prototypes = nn.Parameter(torch.randn(classes, d))

    @property
    def trunk(self) -> Network:
        return self.backbone

    def embed(self, x: Tensor) -> Tensor:
        """images [N, C, H, W] -> z [N, D], float32 also under autocast."""
        h = self.head(self.backbone.embed_rows(x))
        return F.normalize(h.to(torch.promote_types(h.dtype, torch.float32)), dim=-1)

    def centers(self) -> Tensor:
        """c_k: the prototypes with length 1, [K, D]."""
        return F.normalize(self.prototypes, dim=-1)

    def classify(self, embedding: Tensor) -> Tensor:
        with torch.autocast(embedding.device.type, enabled=False):
            return embedding @ self.centers().T / self.temperature

    def layers(self) -> tuple[tuple[str, ...], ...]:
        below = [tuple(f"backbone.{prefix}" for prefix in layer) for layer in self.backbone.layers()]
        return (*below, ("head.", "prototypes")) if below else ()

    def without_decay(self) -> set[str]:
        return {f"backbone.{name}" for name in self.backbone.without_decay()}
