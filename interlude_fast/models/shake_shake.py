"""Shake-Shake networks of 26 layers (Gastaldi, 2017), as SemiMeta trains them (docs/networks.md).

Parameter names are SemiMeta's: conv1, layer<s>.<i>.{conv_a1,bn_a1,conv_a2,bn_a2,conv_b1,...,downsample}, fc.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .base import Network, NetworkOptions, Shape
from .conv import Conv2d
from .fusion import EmbeddingFusion

BLOCKS, STAGES = 4, 3  # 26 layers: 3 stages of 4 blocks of 2 convolutions, stem and classifier


class ShakeShakeOptions(NetworkOptions):
    width: Literal[32, 96] = Field(32, description="channels of a branch in the first stage: 2x32d, 2x96d")
    bn_momentum: float = Field(0.1, gt=0, le=1, description="torch's convention: the share of the new batch")


def shake(a: Tensor, b: Tensor, training: bool) -> Tensor:
    """Blend of two branches [N, C, H, W]: g a + (1 - g) b with one g ~ U(0, 1) per image, while the gradient
    flows as if another such g had blended them. In eval mode both are 1/2.

    (The released code draws the gradient's g in eval mode too, which makes SemiMeta's gradient of the labeled loss
    noisy. That is not done here.)
    """
    if not training:
        return (a + b) / 2
    forward, backward = torch.rand(2, len(a), 1, 1, 1, dtype=a.dtype, device=a.device)
    return torch.lerp(b, a, backward) + ((forward - backward) * (a - b)).detach()


class Shift(nn.Module):
    """Shortcut [N, C, H, W] -> [N, 2C, H/2, W/2]: every second pixel, and beside them those one pixel down and
    right, each mapped to C channels. An odd side gets a row or column of zeros for the latter."""

    def __init__(self, inputs: int, outputs: int, momentum: float) -> None:
        super().__init__()
        self.conv = Conv2d(2 * inputs, outputs, 1, groups=2)
        self.bn = nn.BatchNorm2d(outputs, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        shifted = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1::2, 1::2]
        return self.bn(self.conv(F.relu(torch.cat([x[:, :, ::2, ::2], shifted], 1))))


class Block(nn.Module):
    """Two branches ReLU-conv3x3-BN-ReLU-conv3x3-BN, shaken, beside the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, momentum: float) -> None:
        super().__init__()
        for branch in "ab":
            self.add_module(f"conv_{branch}1", Conv2d(inputs, outputs, 3, stride, 1, bias=False))
            self.add_module(f"bn_{branch}1", nn.BatchNorm2d(outputs, momentum=momentum))
            self.add_module(f"conv_{branch}2", Conv2d(outputs, outputs, 3, 1, 1, bias=False))
            self.add_module(f"bn_{branch}2", nn.BatchNorm2d(outputs, momentum=momentum))
        self.downsample: nn.Module = nn.Identity()
        if stride > 1:
            self.downsample = Shift(inputs, outputs, momentum)
        elif inputs != outputs:
            norm = nn.BatchNorm2d(outputs, momentum=momentum)
            self.downsample = nn.Sequential(Conv2d(inputs, outputs, 1, bias=False), norm)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (self._branch(x, name) for name in "ab")
        return self.downsample(x) + shake(a, b, self.training)

    def _branch(self, x: Tensor, name: str) -> Tensor:
        conv1, bn1, conv2, bn2 = (getattr(self, f"{layer}_{name}{i}") for i in (1, 2) for layer in ("conv", "bn"))
        return bn2(conv2(F.relu(bn1(conv1(F.relu(x))))))


class ShakeShake(Network):
    """images [N, C, H, W] -> logits [N, K].

    Args:
        fusion: applied to the input of the third stage.
    """

    Options = ShakeShakeOptions

    def __init__(self, options: ShakeShakeOptions, shape: Shape, fusion: EmbeddingFusion) -> None:
        super().__init__()
        self.fusion = fusion
        self.conv1 = Conv2d(shape.channels, 16, 3, 1, 1, bias=False)
        inputs = 16
        for s in range(1, STAGES + 1):
            outputs, stride = options.width * 2 ** (s - 1), 1 if s == 1 else 2
            blocks = [Block(inputs, outputs, stride, options.bn_momentum)]
            blocks += [Block(outputs, outputs, 1, options.bn_momentum) for _ in range(BLOCKS - 1)]
            self.add_module(f"layer{s}", nn.Sequential(*blocks))
            inputs = outputs
        self.embedding_size = inputs
        self.fc = nn.Linear(inputs, shape.classes)
        self.apply(self._initialize)

    @staticmethod
    def _initialize(layer: nn.Module) -> None:
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / fan_out))

    def embed(self, x: Tensor) -> Tensor:
        """images [N, C, H, W] -> embeddings [N, 4 * width]."""
        x = self.conv1(x)
        for s in range(1, STAGES + 1):
            if s == STAGES:
                x = self.fusion(x)
            x = getattr(self, f"layer{s}")(x)
        return x.mean((2, 3))

    def classify(self, embedding: Tensor) -> Tensor:
        return self.fc(embedding)

    def layers(self) -> tuple[tuple[str, ...], ...]:
        return ("conv1.",), *((f"layer{s}.",) for s in range(1, STAGES + 1)), ("fc.",)
