"""The 13-layer convolutional network of Mean Teacher and VAT, as SemiMeta trains it (docs/networks.md): channel
dropout, neither weight normalization nor input noise.

Parameter names are SemiMeta's but for the classifier: block<i>.{0: convolution, 1: batch norm}, fc.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from interlude_fast.errors import ConfigError

from .base import Network, NetworkOptions, Shape
from .conv import Conv2d
from .fusion import EmbeddingFusion

# (output channels, kernel, padding) of every convolution; the first two stages end in max pooling and dropout.
STAGES = (
    ((128, 3, 1), (128, 3, 1), (128, 3, 1)),
    ((256, 3, 1), (256, 3, 1), (256, 3, 1)),
    ((512, 3, 0), (256, 1, 0), (128, 1, 0)),
)
SMALLEST_SIDE = 12


class ConvLargeOptions(NetworkOptions):
    dropout: float = Field(0.5, ge=0, lt=1, description="of whole channels, after each of the two poolings")
    leaky_slope: float = Field(0.1, ge=0)
    bn_momentum: float = Field(0.1, gt=0, le=1, description="torch's convention: the share of the new batch")


class ConvLarge(Network):
    """images [N, C, H, W], sides of at least 12 -> logits [N, K].

    Args:
        fusion: applied to the input of the third stage, after pooling and dropout.

    Raises:
        ConfigError: smaller images.
    """

    Options = ConvLargeOptions

    def __init__(self, options: ConvLargeOptions, shape: Shape, fusion: EmbeddingFusion) -> None:
        super().__init__()
        if shape.side < SMALLEST_SIDE:
            raise ConfigError(f"conv_large wants images of at least {SMALLEST_SIDE} px, these have {shape.side}")
        self.fusion, self.dropout, self.slope = fusion, options.dropout, options.leaky_slope
        inputs, number = shape.channels, 0
        for stage in STAGES:
            for outputs, kernel, padding in stage:
                number += 1
                convolution = Conv2d(inputs, outputs, kernel, padding=padding, bias=False)
                norm = nn.BatchNorm2d(outputs, momentum=options.bn_momentum)
                self.add_module(f"block{number}", nn.Sequential(convolution, norm))
                inputs = outputs
        self.embedding_size = inputs
        self.fc = nn.Linear(inputs, shape.classes)

    def embed(self, x: Tensor) -> Tensor:
        """images [N, C, H, W] -> embeddings [N, 128]."""
        number = 0
        for s, stage in enumerate(STAGES):
            if s == len(STAGES) - 1:
                x = self.fusion(x)
            for _ in stage:
                number += 1
                x = F.leaky_relu(getattr(self, f"block{number}")(x), self.slope, inplace=True)
            if s < len(STAGES) - 1:
                x = F.dropout2d(F.max_pool2d(x, 2), self.dropout, self.training)
        return x.mean((2, 3))

    def classify(self, embedding: Tensor) -> Tensor:
        return self.fc(embedding)

    def layers(self) -> tuple[tuple[str, ...], ...]:
        return *((f"block{i}.",) for i in range(1, 10)), ("fc.",)
