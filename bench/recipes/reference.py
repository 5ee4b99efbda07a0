"""InterLUDE (ICML 2024) as its users have it, written anew from what is known of the released loop, habits too.

Single precision, eager, channels first. Views come one image at a time out of Pillow, in DataLoader workers, and
every batch is copied to the device when its turn comes. Rows are put in order and taken apart by index lists that
Python makes at every step. The norm of every gradient is read back by `.item()`, every loss too, the mask of
pseudo labels is printed, and the EMA is a loop over tensors. The network computes what nobody reads, as there.
"""

from __future__ import annotations

import io
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

# ---- Views: FixMatch's RandAugment on Pillow images ----------------------------------------------------

# name -> (max, bias): v in 1..9 stands for v * max / 10 + bias
OPERATIONS = {
    **dict.fromkeys(("autocontrast", "equalize", "identity"), (0.0, 0.0)),
    **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0.9, 0.05)),
    **{"posterize": (4, 4), "rotate": (30, 0), "solarize": (256, 0)},
    **dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y"), (0.3, 0.0)),
}


def operate(image: Image.Image, name: str, value: float) -> Image.Image:
    if hasattr(ImageEnhance, name):
        return getattr(ImageEnhance, name)(image).enhance(value)
    if name in ("autocontrast", "equalize"):
        return getattr(ImageOps, name)(image)
    if name == "posterize":
        return ImageOps.posterize(image, int(value))
    if name == "solarize":
        return ImageOps.solarize(image, 256 - int(value))
    signed = -value if random.random() < 0.5 else value
    if name == "rotate":
        return image.rotate(int(signed))
    pixels = int(signed * image.size[0])
    shapes = {
        "shear_x": (1, signed, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, signed, 1, 0),
        "translate_x": (1, 0, pixels, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, pixels),
    }
    return image.transform(image.size, Image.Transform.AFFINE, shapes[name]) if name in shapes else image


def rand_augment(image: Image.Image) -> Image.Image:
    """Two operations, each with probability 1/2, then a grey square of half the side."""
    for name in random.choices(list(OPERATIONS), k=2):
        most, bias = OPERATIONS[name]
        v = random.randint(1, 9)
        if random.random() < 0.5:
            image = operate(image, name, v * most / 10 + bias)
    side, square = image.size[0], int(0.5 * image.size[0])
    x0, y0 = (int(max(0, random.uniform(0, side) - square / 2)) for _ in range(2))
    image = image.copy()
    box = (x0, y0, int(min(side, x0 + square)), int(min(side, y0 + square)))
    ImageDraw.Draw(image).rectangle(box, (127, 127, 127) if image.mode == "RGB" else 127)
    return image


class Views(Dataset[tuple[Any, ...]]):
    """Item i: a weak and a strong view of labeled image i and of mu unlabeled ones drawn for it."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, parts: Sequence[np.ndarray], mu: int, **how: Any):
        self.images, self.labels, (self.labeled, self.unlabeled), self.mu = images, labels, parts, mu
        side = images.shape[1]
        crop = transforms.RandomCrop(side, padding=int(side * 0.125), padding_mode="reflect")
        both = [*([transforms.RandomHorizontalFlip()] if how["flip"] else []), crop]
        end = [transforms.ToTensor(), transforms.Normalize(how["mean"], how["std"])]
        self.weak = transforms.Compose([*both, *end])
        self.strong = transforms.Compose([*both, rand_augment, *end])

    def two_views(self, index: int) -> tuple[Tensor, Tensor]:
        pixels = self.images[index]
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        return self.weak(image), self.strong(image)

    def __getitem__(self, i: int) -> tuple[Any, ...]:
        beside = random.sample(range(len(self.unlabeled)), self.mu)
        unlabeled = [self.two_views(int(self.unlabeled[j])) for j in beside]
        weak, strong = (torch.stack(views) for views in zip(*unlabeled, strict=True))
        return *self.two_views(int(self.labeled[i])), weak, strong, int(self.labels[self.labeled[i]])


def permutations(count: int) -> Iterator[int]:
    """Of 0..count-1, one after another, without end."""
    while True:
        yield from torch.randperm(count).tolist()


# ---- The network ---------------------------------------------------------------------------------------


class Block(nn.Module):
    """Where the shape changes, all but the first block convolve the raw input: what bn1 makes of it is left."""

    def __init__(self, inputs: int, outputs: int, stride: int, first: bool, momentum: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs, momentum=momentum)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, momentum=momentum)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.same, self.first = inputs == outputs and stride == 1, first
        self.convShortcut = None if self.same else nn.Conv2d(inputs, outputs, 1, stride, 0, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.leaky_relu(self.bn1(x), 0.1)
        if self.convShortcut is not None and self.first:
            x = out
        y = self.conv1(out if self.same else x)
        y = self.conv2(F.leaky_relu(self.bn2(y), 0.1))
        return (x if self.convShortcut is None else self.convShortcut(x)) + y


class WideResNet(nn.Module):
    def __init__(self, classes: int, channels: int, o: dict[str, Any]) -> None:
        super().__init__()
        blocks = (o["depth"] - 4) // 6 if (o["depth"] - 4) % 6 == 0 else (o["depth"] - 5) // 8
        self.stages, inputs = o["stages"], 16
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

    def forward(self, x: Tensor, alpha: float) -> Tensor:
        x = self.conv1(x)
        for s in range(1, self.stages + 1):
            if s == self.stages:  # embedding fusion: every row with the next one
                x = (1 - alpha) * x + alpha * torch.cat([x[1:], x[:1]])
            x = getattr(self, f"block{s}")["layer"](x)
        return self.fc(F.adaptive_avg_pool2d(F.leaky_relu(self.bn1(x), 0.1), 1).flatten(1))


class Nowhere(io.TextIOBase):
    """Takes the prints."""

    def write(self, text: str) -> int:
        return len(text)


# ---- A step --------------------------------------------------------------------------------------------


class Recipe:
    """Made by `build`. ema: averaged tensors. history: what steps reported. waited: seconds of the last."""

    def __init__(self, views: Views, model: WideResNet, device: torch.device, **how: Any) -> None:
        self.model, self.device, self.log, self.how = model.to(device).train(), device, Nowhere(), how
        self.history: list[dict[str, float]] = []
        self.b, self.mu = how["batch"], views.mu
        order, pin = permutations(len(views.labeled)), device.type == "cuda"
        self.loader = DataLoader(views, self.b, sampler=order, num_workers=how["workers"], pin_memory=pin)
        self.batches: Iterator[Any] | None = None
        plain = [p for n, p in model.named_parameters() if "bias" in n or "bn" in n]
        decayed = [p for n, p in model.named_parameters() if "bias" not in n and "bn" not in n]
        groups = [{"params": decayed, "weight_decay": how["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=how["lr"], momentum=how["momentum"], nesterov=True)
        cosine = lambda k: max(0.0, math.cos(7 * math.pi * k / (16 * how["steps"])))  # noqa: E731
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, cosine)
        self.ema = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def batch(self) -> tuple[Tensor, ...]:
        """Labeled weak and strong [B, C, S, S], unlabeled weak and strong [B, mu, C, S, S], labels [B]."""
        if self.batches is None:
            self.batches = iter(self.loader)
        return tuple(part.to(self.device) for part in next(self.batches))

    def forward(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Logits [N, K], rows interdigitated."""
        lw, ls, uw, us, _ = batch
        rows, mu, b = [], self.mu, self.b
        for i in range(b):
            rows += [i, *range(2 * b + i * mu, 2 * b + (i + 1) * mu)]
            rows += [b + i, *range(2 * b + b * mu + i * mu, 2 * b + b * mu + (i + 1) * mu)]
        images = torch.cat([lw, ls, uw.flatten(0, 1), us.flatten(0, 1)])[rows]
        print(images.shape, file=self.log)
        return self.model(images, self.how["alpha"])

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """L_sup + lambda_u L_u + lambda_dc L_dc (delta: mean)."""
        b, mu = len(labels), self.mu
        weak = [2 * (1 + mu) * i for i in range(b)]
        strong = [row + 1 + mu for row in weak]
        lw, ls = logits[weak], logits[strong]
        uw = logits[[row + 1 + j for row in weak for j in range(mu)]]
        us = logits[[row + 1 + j for row in strong for j in range(mu)]]
        supervised = F.cross_entropy(lw, labels)
        confidence, targets = torch.max(torch.softmax(uw.detach(), -1), -1)
        mask = confidence.ge(self.how["tau"]).float()
        print(mask, file=self.log)
        unlabeled = (F.cross_entropy(us, targets, reduction="none") * mask).mean()
        delta_l = torch.softmax(lw.detach(), -1) - torch.softmax(ls.detach(), -1)
        delta_u = (torch.softmax(uw, -1) - torch.softmax(us, -1)).view(b, mu, -1).mean(1)
        delta = F.mse_loss(delta_u, delta_l)
        total = supervised + self.how["lambda_u"] * unlabeled + self.how["lambda_dc"] * delta
        parts = {
            "total": total,
            "labeled": supervised,
            "unlabeled": unlabeled,
            "delta": delta,
            "mask": mask.mean(),
        }
        self.history.append({name: part.item() for name, part in parts.items()})
        return total

    def backward(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        norms = [p.grad.norm().item() for p in self.model.parameters() if p.grad is not None]
        self.history[-1]["gradient"] = math.sqrt(sum(norm**2 for norm in norms))

    def update(self) -> None:
        self.optimizer.step()
        self.schedule.step()
        decay, parameters = self.how["ema_decay"], dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                average = decay * self.ema[name] + (1 - decay) * value if name in parameters else value
                self.ema[name].copy_(average)

    def step(self) -> Tensor:
        began = time.perf_counter()
        batch = self.batch()
        self.waited = time.perf_counter() - began
        loss = self.loss(self.forward(batch), batch[-1])
        self.backward(loss)
        self.update()
        return loss

    def close(self) -> None:
        """Ends the workers; a batch asked for later starts new ones."""
        batches, self.batches = self.batches, None
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()


def build(
    images: np.ndarray,
    labels: np.ndarray,
    labeled: np.ndarray,
    unlabeled: np.ndarray,
    *,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    flip: bool = True,
    device: str = "cpu",
    network: dict[str, Any] | None = None,
    batch: int = 64,
    mu: int = 7,
    workers: int | None = None,
    seed: int = 0,
    **how: float,
) -> Recipe:
    """The recipe, ready for its first step.

    Args:
        images: uint8 [N, S, S, C], C = 1 or 3. labels: integers [N]. labeled, unlabeled: indices of images.
        network: depth, width, stages, first_stride, momentum of a WideResNet; what is missing is WRN-28-2's.
        workers: processes; None: one a core.
        how: steps, lr, momentum, weight_decay, ema_decay, alpha, tau, lambda_u, lambda_dc.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    workers = os.cpu_count() or 1 if workers is None else workers
    shape = {"depth": 28, "width": 2, "stages": 3, "first_stride": 1, "momentum": 0.001, **(network or {})}
    known = {"steps": 2**20, "lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4, "ema_decay": 0.999}
    known |= {"alpha": 0.1, "tau": 0.95, "lambda_u": 1.0, "lambda_dc": 1.0}
    views = Views(images, labels, (labeled, unlabeled), mu, flip=flip, mean=mean, std=std)
    model = WideResNet(classes, images.shape[-1], shape)
    return Recipe(views, model, torch.device(device), batch=batch, workers=workers, **{**known, **how})
