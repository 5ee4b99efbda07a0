"""What two methods share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interlude_fast.errors import ConfigError
from interlude_fast.models import Network

from .base import Losses

# Method.cannot_compile of those whose forward has gradients in it.
INNER_GRADIENTS = "its forward takes gradients, which torch.compile does not"


def check_per_class(option: str, values: list[float] | None, num_classes: int) -> None:
    """Raises ConfigError where an option holds another number of values than there are classes."""
    if values is not None and len(values) != num_classes:
        raise ConfigError(
            f"method.{option} must be {num_classes} numbers, one per class of the dataset, got {values}"
        )


def class_weight_tensor(weights: list[float] | None, num_classes: int) -> Tensor | None:
    """Option `class_weights` as a tensor [K].

    Raises:
        ConfigError: their number is not the number of classes.
    """
    check_per_class("class_weights", weights, num_classes)
    return None if weights is None else torch.tensor(weights, dtype=torch.float64)


def ramp(step: Tensor, length: float) -> Tensor:
    """min(1, step / length), float64 on the step's device; 1 everywhere for length 0."""
    return torch.ones_like(step, dtype=torch.float64) if length <= 0 else (step.double() / length).clamp(max=1)


def combine(labeled: Tensor, unlabeled: Tensor, weight: Tensor | float, **metrics: Tensor) -> Losses:
    """labeled + weight * unlabeled, two scalar losses, with both among the metrics."""
    weight = weight.to(labeled.dtype) if isinstance(weight, Tensor) else weight
    metrics = {"loss_labeled": labeled, "loss_unlabeled": unlabeled, **metrics}
    return Losses(labeled + weight * unlabeled, {name: value.detach() for name, value in metrics.items()})


def wide(x: Tensor) -> Tensor:
    """x in float32 where it is float16 or bfloat16, in which losses would be too coarse."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def update_average(average: Tensor, now: Tensor, momentum: float) -> None:
    """average <- momentum * average + (1 - momentum) * now, in place and in the dtype of the average."""
    average.mul_(momentum).add_(now.detach().to(average.dtype), alpha=1 - momentum)


def start_or_update_average(average: Tensor, now: Tensor, momentum: float) -> None:
    """update_average, but an average that is 0 everywhere, as before a first step, becomes `now`."""
    first = (average == 0).all()
    update_average(average, now, momentum)
    average.copy_(torch.where(first, now.detach().to(average.dtype), average))


def normalized(x: Tensor) -> Tensor:
    """x [..., K], not negative, over its sum along the last axis."""
    return x / x.sum(-1, keepdim=True)


def pseudo_labels(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """softmax of logits [N, K] without gradient, its largest value c [N] and where that is [N] (int64)."""
    q = logits.detach().softmax(-1)
    confidence, target = q.max(-1)
    return q, confidence, target


def masked_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over all N rows, also those of weight 0, of weight [N] times CE(logits [N, K], target); target is int64
    [N], or a distribution [N, K]."""
    return (weight.to(logits.dtype) * F.cross_entropy(logits, target, reduction="none")).mean()


def sharpen(p: Tensor, temperature: float) -> Tensor:
    """p [N, K] to the power 1 / temperature, rows normalized to 1."""
    return normalized(p ** (1 / temperature))


def mixup_strength(a: float, *shape: int, like: Tensor) -> Tensor:
    """lambda ~ Beta(a, a) of the given shape, on the device of `like`."""
    both = torch.full((), a, device=like.device)  # a number would be copied to the device, and waited for
    b = torch.distributions.Beta(both, both, validate_args=False)
    return b.sample(torch.Size(shape)).to(like.dtype)


def random_permutation(n: int, like: Tensor) -> Tensor:
    """int64 [n], on the device of `like`, which it does not wait for."""
    return torch.rand(n, device=like.device).argsort()


@contextlib.contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms in train mode normalize with the batch's statistics and leave their running ones as they are."""
    norms = [
        m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextlib.contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """The network in eval mode; every layer finds its own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def mean_over_ranks(network: nn.Module, gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of the network's parameters that torch.autograd.grad gave, in a job of several processes: a rank's
    are of its own rows."""
    shards = network.shards if isinstance(network, Network) else None
    return tuple(gradients) if shards is None else shards.mean(gradients)


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target || softmax(logits)) of rows, [N, K] twice -> [N]. A negative entry of a target counts in the
    cross-entropy only."""
    entries = target.clamp(min=0)
    return (torch.special.xlogy(entries, entries) - target * logits.log_softmax(-1)).sum(-1)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """values [N] as [N, 1, ...], to go with rows [N, ...]."""
    return values.reshape(-1, *(1 for _ in like.shape[1:]))


def unit(x: Tensor) -> Tensor:
    """x [N, ...] with every row of length 1, 0 where it is 0; no small row underflows on the way."""
    flat = x.flatten(1)
    flat = flat / flat.abs().amax(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    return F.normalize(flat, dim=1).view_as(x)


def direction(
    network: nn.Module,
    x: Tensor,
    logits: Tensor,
    d: Tensor,
    xi: float,
    iterations: int,
    bounds: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Power iteration: unit directions [N, ...], beginning with the drawn `d`, in which KL(softmax(logits) ||
    softmax f(x + xi d)) grows fastest. logits: f(x), which d does not enter. A row without gradient is 0.

    bounds: x + xi d is cut to them.
    """
    p, d = logits.softmax(-1), unit(d)
    for _ in range(iterations):
        d.requires_grad_()
        near = x + xi * d
        near = near if bounds is None else near.clamp(*bounds)
        d = unit(torch.autograd.grad(divergence(network(near), p).sum(), d)[0])
    return d
