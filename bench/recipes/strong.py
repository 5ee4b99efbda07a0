"""InterLUDE as well as plain PyTorch and torchvision do it, without a kernel of one's own.

The images lie on the device as uint8 and are gathered, flipped and cropped there, image by image; RandAugment is
torchvision's v2 on whole batches, so the images of a step share its draw unless `draws` says otherwise (one draw
is the fastest, and favours this recipe). bfloat16 where the device computes in it, channels last, torch.compile on
GPUs, fused SGD, multi-tensor EMA, rows made in their order, and no value is read back from the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

# ---- The network: InterLUDE's WideResNet without what nobody reads -------------------------------------


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, first: bool, momentum: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs, momentum=momentum)  # in the state even where it is not read
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, momentum=momentum)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.same, self.first = inputs == outputs and stride == 1, first
        self.convShortcut = None if self.same else nn.Conv2d(inputs, outputs, 1, stride, 0, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.leaky_relu(self.bn1(x), 0.1, inplace=True) if self.same or self.first else x
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        return shortcut + self.conv2(F.leaky_relu(self.bn2(self.conv1(out)), 0.1, inplace=True))


class WideResNet(nn.Module):
    def __init__(self, classes: int, channels: int, alpha: float, o: dict[str, Any]) -> None:
        super().__init__()
        blocks = (o["depth"] - 4) // 6 if (o["depth"] - 4) % 6 == 0 else (o["depth"] - 5) // 8
        self.alpha, self.stages, inputs = alpha, o["stages"], 16
        self.conv1 = nn.Conv2d(channels, inputs, 3, 1, 1, bias=False)
        for s in range(self.stages):
            outputs, layers = 16 * o["width"] * 2**s, nn.Sequential()
            for b in range(blocks):
                stride = 1 if b else (2 if s else o["first_stride"])
                layers.append(Block(outputs if b else inputs, outputs, stride, s == b == 0, o["momentum"]))
            self.add_module(f"block{s + 1}", nn.ModuleDict({"layer": layers}))
            inputs = outputs
        self.bn1 = nn.BatchNorm2d(inputs, momentum=o["momentum"])
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.xavier_normal_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for s in range(1, self.stages + 1):
            if s == self.stages:  # embedding fusion
                x = torch.lerp(x, x.roll(-1, 0), self.alpha)
            x = getattr(self, f"block{s}")["layer"](x)
        return self.fc(F.leaky_relu(self.bn1(x), 0.1, inplace=True).mean((2, 3)))


# ---- Views ---------------------------------------------------------------------------------------------


def flip_and_crop(images: Tensor, flip: bool) -> Tensor:
    """uint8 [N, C, S, S]: every image flipped and cropped by itself, out of a reflect padding of an eighth."""
    n, _, side, _ = images.shape
    pad, place = int(side * 0.125), torch.arange(side, device=images.device)

    def source() -> Tensor:
        at = (place + torch.randint(-pad, pad + 1, (n, 1), device=images.device)).abs()
        return torch.where(at >= side, 2 * (side - 1) - at, at)

    rows, columns = source(), source()
    mirrored = torch.rand(n, 1, device=images.device) < 0.5 * flip
    columns = torch.where(mirrored, side - 1 - columns, columns)
    item = torch.arange(n, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[item, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(images: Tensor) -> Tensor:
    """A grey square of half the side in every image."""
    n, _, side, _ = images.shape
    place, square = torch.arange(side, device=images.device), int(0.5 * side)
    low = (torch.rand(2, n, 1, device=images.device) * side - square / 2).clamp(min=0).int()
    inside = (place >= low) & (place <= low + square)
    return images.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 127)


def interlude_loss(
    logits: Tensor, labels: Tensor, mu: int, tau: float, lambda_u: float, lambda_dc: float
) -> Tensor:
    """L_sup + lambda_u L_u + lambda_dc L_dc of interdigitated logits [2B(1+mu), K]."""
    b = len(labels)
    weak, strong = logits.float().unflatten(0, (b, 2, 1 + mu)).unbind(1)
    q_weak, q_strong = weak.softmax(-1), strong.softmax(-1)
    confidence, target = q_weak[:, 1:].detach().max(-1)
    ce = F.cross_entropy(strong[:, 1:].flatten(0, 1), target.flatten(), reduction="none")
    change = q_weak - q_strong
    delta = (change[:, 1:].mean(1) - change[:, 0].detach()).square().mean()
    unlabeled = ((confidence >= tau).flatten() * ce).mean()
    return F.cross_entropy(weak[:, 0], labels) + lambda_u * unlabeled + lambda_dc * delta


# ---- A step --------------------------------------------------------------------------------------------


def fastest() -> Any:
    """cuDNN tries its algorithms and keeps the fastest."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True)


class Recipe:
    """Made by `build`. model, ema: the network and its average."""

    def __init__(
        self, images: Tensor, labels: Tensor, parts: Sequence[Tensor], model: WideResNet, how: dict
    ) -> None:
        self.images, self.labels, (self.labeled, self.unlabeled), self.how = images, labels, parts, how
        self.device, self.k, self.queue = images.device, 0, labels[:0]
        self.model = model.to(self.device).to(memory_format=torch.channels_last).train()
        parameters = dict(model.named_parameters())
        plain = [p for n, p in parameters.items() if "bias" in n or "bn" in n]
        decayed = [p for n, p in parameters.items() if not ("bias" in n or "bn" in n)]
        groups = [{"params": decayed, "weight_decay": how["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, how["lr"], how["momentum"], nesterov=True, fused=True)
        self.ema = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.averaged = [self.ema[name] for name in parameters], [p.data for p in parameters.values()]
        buffers = dict(model.named_buffers())
        self.copied = [self.ema[name] for name in buffers], list(buffers.values())
        self.randaugment = v2.RandAugment(num_ops=2, magnitude=15)
        mean, std = (torch.tensor(how[n], device=self.device)[:, None, None] * 255 for n in ("mean", "std"))
        self.mean, self.scale = mean, 1 / std
        self.dtype = torch.bfloat16 if how["bf16"] else torch.float32
        mode = {"mode": how["compile_mode"]} if how["compile_mode"] else {}
        compiled: Callable[[Any], Any] = lambda f: torch.compile(f, **mode) if how["compile"] else f  # noqa: E731
        self.network, self.criterion = compiled(self.model), compiled(interlude_loss)
        self.cuts, self.finish = (torch.compile(f) if how["compile"] else f for f in (flip_and_crop, self._finish))

    def batch(self) -> tuple[Tensor, Tensor]:
        """Interdigitated images [N, C, S, S], normalized, and labels [B]."""
        b, mu = self.how["batch"], self.how["mu"]
        while len(self.queue) < b:
            self.queue = torch.cat([self.queue, torch.randperm(len(self.labeled), device=self.device)])
        chosen, self.queue = self.labeled[self.queue[:b]], self.queue[b:]
        count = len(self.unlabeled)
        if b * mu <= count:  # distinct in the whole batch, else beside each labeled image
            drawn = torch.randperm(count, device=self.device)[: b * mu].view(b, mu)
        else:
            drawn = torch.rand(b, count, device=self.device).argsort(1)[:, :mu]
        items = torch.cat([chosen[:, None], self.unlabeled[drawn]], 1).flatten()
        images, flip = self.images[items], self.how["flip"]
        weak, strong = self.cuts(images, flip), self.cuts(images, flip)
        strong = torch.cat([self.randaugment(part) for part in strong.chunk(self.how["draws"])])
        return self.finish(weak, strong), self.labels[chosen]

    def _finish(self, weak: Tensor, strong: Tensor) -> Tensor:
        b, mu = self.how["batch"], self.how["mu"]
        both = torch.stack([x.unflatten(0, (b, 1 + mu)) for x in (weak, cut_out(strong))], 1).flatten(0, 2)
        images = ((both - self.mean) * self.scale).to(self.dtype)
        return images.contiguous(memory_format=torch.channels_last)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Logits [N, K]."""
        with fastest(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.how["bf16"]):
            return self.network(batch[0])

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.criterion(logits, labels, *(self.how[n] for n in ("mu", "tau", "lambda_u", "lambda_dc")))

    def backward(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with fastest():
            loss.backward()

    def update(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.how["lr"] * max(0.0, math.cos(7 * math.pi * self.k / (16 * self.how["steps"])))
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(*self.averaged, weight=1 - self.how["ema_decay"])
            torch._foreach_copy_(*self.copied)
        self.k += 1

    def step(self) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        batch = self.batch()
        loss = self.loss(self.forward(batch), batch[-1])
        self.backward(loss)
        self.update()
        return loss.detach()

    def close(self) -> None:
        """Nothing is left behind."""


def build(
    images: np.ndarray,
    labels: np.ndarray,
    labeled: np.ndarray,
    unlabeled: np.ndarray,
    *,
    classes: int,
    device: str = "cpu",
    network: dict[str, Any] | None = None,
    seed: int = 0,
    **how: Any,
) -> Recipe:
    """The recipe, ready for its first step. As reference.build, without `workers` and `log`.

    Args:
        how: further bf16 and compile (None: where the device gains by them), compile_mode of network and loss,
            draws of RandAugment in a step.
    """
    torch.manual_seed(seed)
    cuda = device.startswith("cuda")
    native = torch.cuda.is_bf16_supported() if cuda else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    known = {"flip": True, "batch": 64, "mu": 7, "steps": 2**20, "lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4}
    known |= {"ema_decay": 0.999, "alpha": 0.1, "tau": 0.95, "lambda_u": 1.0, "lambda_dc": 1.0}
    known |= {"bf16": None, "compile": None, "compile_mode": "reduce-overhead" if cuda else None, "draws": 1}
    how = {**known, **how}
    how["bf16"] = native if how["bf16"] is None else how["bf16"]
    how["compile"] = cuda if how["compile"] is None else how["compile"]
    shape = {"depth": 28, "width": 2, "stages": 3, "first_stride": 1, "momentum": 0.001, **(network or {})}
    model = WideResNet(classes, images.shape[-1], how["alpha"], shape)
    on_device = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    parts = [torch.from_numpy(np.asarray(p, dtype=np.int64)).to(device) for p in (labels, labeled, unlabeled)]
    return Recipe(on_device, parts[0], parts[1:], model, how)
