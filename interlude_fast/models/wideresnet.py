"""Wide residual networks in the forms that InterLUDE, TorchSSL, USB and Mixup-LR released (docs/networks.md).

Parameter names are InterLUDE's: conv1, block<s>.layer.<i>.{bn1,conv1,bn2,conv2,convShortcut}, bn1, fc.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from interlude_fast.errors import ConfigError

from .base import Network, NetworkOptions, Shape
from .conv import Conv2d
from .fusion import EmbeddingFusion


class Form(NamedTuple):
    """What the released codes differ in: where convolutions have biases, and the eps of batch norms."""

    stem_bias: bool
    block_bias: bool
    block_eps: float
    final_eps: float


FORMS = {
    "interlude": Form(False, False, 1e-5, 1e-5),
    "torchssl": Form(True, True, 1e-3, 1e-3),
    "usb": Form(True, False, 1e-5, 1e-3),
    "mixup_lr": Form(False, False, 1e-5, 1e-5),
}


class WideResNetOptions(NetworkOptions):
    """Depth counts as the papers do: 6n+4 for three stages; four stages take 6n+4 (released code) or 8n+5."""

    form: Literal["interlude", "torchssl", "usb", "mixup_lr"] = Field("interlude", description="whose network")
    depth: int = Field(28, ge=10, le=1000)
    width: int = Field(2, ge=1, le=64)
    stages: int = Field(3, ge=3, le=4)
    first_stride: int = Field(1, ge=1, le=2, description="2 for 96 px (STL-10)")
    leaky_slope: float = Field(0.1, ge=0)
    bn_momentum: float = Field(0.001, gt=0, le=1, description="torch's convention: the share of the new batch")
    bn_eps: float | None = Field(None, gt=0, description="of every batch norm; None: the form's")
    fusion_stage: int | None = Field(None, ge=1, le=4, description="fuse this stage's input; None: the last's")

    @model_validator(mode="after")
    def _check(self) -> WideResNetOptions:
        self.blocks_per_stage()
        if self.fusion_stage is not None and self.fusion_stage > self.stages:
            raise ConfigError(f"model.fusion_stage = {self.fusion_stage}: the network has {self.stages} stages")
        return self

    def parametrization(self) -> Form:
        """The form's biases and eps, the latter as `bn_eps` says where it does."""
        form = FORMS[self.form]
        return form if self.bn_eps is None else form._replace(block_eps=self.bn_eps, final_eps=self.bn_eps)

    def blocks_per_stage(self) -> int:
        blocks, rest = divmod(self.depth - 4, 6)
        if rest == 0:
            return blocks
        blocks, rest = divmod(self.depth - 5, 8)
        if rest == 0 and self.stages == 4:
            return blocks
        form = "6n+4" if self.stages == 3 else "6n+4 or 8n+5"
        raise ConfigError(f"model.depth = {self.depth}: a {self.stages}-stage WideResNet has depth {form}")


class Block(nn.Module):
    """Pre-activation block: BN-LeakyReLU-conv3x3-BN-LeakyReLU-conv3x3 beside its shortcut.

    Where the shape changes, the released code feeds the raw input to convolution and shortcut and leaves the
    first batch norm unread, except in the network's first block, which normalizes before the split. The unread
    layer keeps its parameters, so that released checkpoints load, and is not computed.
    """

    def __init__(self, o: WideResNetOptions, inputs: int, outputs: int, stride: int, is_first: bool) -> None:
        super().__init__()
        self.slope = o.leaky_slope
        _, bias, eps, _ = o.parametrization()
        self.bn1 = nn.BatchNorm2d(inputs, eps, o.bn_momentum)
        self.conv1 = Conv2d(inputs, outputs, 3, stride, 1, bias=bias)
        self.bn2 = nn.BatchNorm2d(outputs, eps, o.bn_momentum)
        self.conv2 = Conv2d(outputs, outputs, 3, 1, 1, bias=bias)
        self.same_shape = inputs == outputs and stride == 1
        self.activates_before_split = is_first and not self.same_shape
        if not self.same_shape:
            self.convShortcut = Conv2d(inputs, outputs, 1, stride, 0, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.same_shape:
            shortcut, out = x, self._activate(self.bn1, x)
        else:
            out = self._activate(self.bn1, x) if self.activates_before_split else x
            shortcut = self.convShortcut(out)
        out = self.conv2(self._activate(self.bn2, self.conv1(out)))
        return shortcut + out

    def _activate(self, bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
        return F.leaky_relu(bn(x), self.slope, inplace=True)

    def unread_buffers(self) -> list[str]:
        """Names of running statistics that the released code updates and nobody reads."""
        unread = not (self.same_shape or self.activates_before_split)
        return [f"bn1.{name}" for name, _ in self.bn1.named_buffers()] if unread else []


class Stage(nn.Module):
    def __init__(self, o: WideResNetOptions, inputs: int, outputs: int, stride: int, is_first: bool) -> None:
        super().__init__()
        blocks = [Block(o, inputs, outputs, stride, is_first)]
        blocks += [Block(o, outputs, outputs, 1, False) for _ in range(o.blocks_per_stage() - 1)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(Network):
    """images [N, C, H, W] -> logits [N, K].

    Args:
        options: depth, width, stages and the rest of WideResNetOptions.
        shape: K and C are read.
        fusion: applied to the input of `options.fusion_stage`.

    Raises:
        ConfigError: a depth that no network of this many stages has, or a fusion stage beyond the last.
    """

    Options = WideResNetOptions

    def __init__(self, options: WideResNetOptions, shape: Shape, fusion: EmbeddingFusion) -> None:
        super().__init__()
        self.slope, self.stages = options.leaky_slope, options.stages
        self.fusion, self.fusion_stage = fusion, options.fusion_stage or options.stages
        form = options.parametrization()
        self.conv1 = Conv2d(shape.channels, 16, 3, 1, 1, bias=form.stem_bias)
        inputs = 16
        for s in range(1, self.stages + 1):
            outputs = 16 * options.width * 2 ** (s - 1)
            stride = options.first_stride if s == 1 else 2
            self.add_module(f"block{s}", Stage(options, inputs, outputs, stride, is_first=s == 1))
            inputs = outputs
        self.bn1 = nn.BatchNorm2d(inputs, form.final_eps, options.bn_momentum)
        self.embedding_size = inputs
        self.fc = nn.Linear(inputs, shape.classes)
        self.apply(self._initialize)

    @staticmethod
    def _initialize(layer: nn.Module) -> None:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def embed(self, x: Tensor) -> Tensor:
        """images [N, C, H, W] -> embeddings [N, 16 * width * 2^(stages-1)]."""
        x = self.conv1(x)
        for s in range(1, self.stages + 1):
            if s == self.fusion_stage:
                x = self.fusion(x)
            x = getattr(self, f"block{s}")(x)
        return F.leaky_relu(self.bn1(x), self.slope, inplace=True).mean((2, 3))

    def classify(self, embedding: Tensor) -> Tensor:
        return self.fc(embedding)

    def layers(self) -> tuple[tuple[str, ...], ...]:
        stages = [(f"block{s}.",) for s in range(1, self.stages + 1)]
        return ("conv1.",), *stages, ("bn1.", "fc.")

    def unread_buffers(self) -> set[str]:
        """Running statistics that stay at their initial values here but not in the released code."""
        return {
            f"{name}.{buffer}"
            for name, module in self.named_modules()
            if isinstance(module, Block)
            for buffer in module.unread_buffers()
        }
