"""How many images a network still gets right after one step against it (FGSM; Goodfellow et al. 2015)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .classification import Normalize


def fgsm_errors(
    model: nn.Module, batches: Iterable[Tensor], labels: Tensor, normalize: Normalize, steps: Sequence[int]
) -> dict[int, float]:
    """Error by step size on x_adv = clip(x + step * sign(gradient of the true label's cross-entropy), 0, 255).

    The network is in eval mode, and its mode is restored. As pixels count in whole steps, x_adv is an image again
    and takes the way into the network that every image takes.

    Args:
        batches: uint8 images [n, H, W, C]; labels: int64 [N] of them all.
        normalize: makes a network's input of them, [n, C, H, W], rising with the pixel's value: the gradient by
            the pixels then has the sign of that by the input.
        steps: step sizes in pixel units, of 0 to 255.
    """
    wrong = torch.zeros(len(steps), dtype=torch.int64, device=labels.device)
    was_training, start = model.training, 0
    model.eval()
    try:
        for images in batches:
            truth = labels[start : start + len(images)]
            start += len(images)
            signs = _gradient_signs(model, normalize(images), truth)
            with torch.inference_mode():
                for i, step in enumerate(steps):
                    moved = (images + step * signs).clamp(0, 255).to(torch.uint8)
                    wrong[i] += (model(normalize(moved)).argmax(1) != truth).sum()
    finally:
        model.train(was_training)
    return {step: count / len(labels) for step, count in zip(steps, wrong.tolist(), strict=True)}


def _gradient_signs(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """int16 [n, H, W, C] in {-1, 0, 1}."""
    with torch.enable_grad():
        inputs = inputs.detach().requires_grad_()
        logits = model(inputs)
        (gradient,) = torch.autograd.grad(logits, inputs, _scaled_gradient(logits.detach(), labels))
    return gradient.sign().permute(0, 2, 3, 1).to(torch.int16)


def _scaled_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy's gradient by the logits [n, K], every row scaled to a largest entry of 1. The factor is
    positive; without it a network that is sure enough would have the gradient 0 in float32, and look robust."""
    others = logits.double().softmax(1).scatter(1, labels[:, None], 0)
    gradient = others.scatter(1, labels[:, None], -others.sum(1, keepdim=True))
    largest = gradient.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return (gradient / largest).to(logits.dtype)
