"""One batch over the processes of a job (docs/distributed.md): every rank runs a network on its share of the rows
and learns the embeddings of all. The collectives are those of torch.distributed's default group."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .fusion import EmbeddingFusion


def gather_rows(x: Tensor, size: int) -> Tensor:
    """[n, ...] of every rank -> [size * n, ...], rank after rank; no gradient."""
    every = x.new_empty((size * len(x), *x.shape[1:]))
    dist.all_gather_into_tensor(every, x.contiguous())
    return every


class _AllRows(torch.autograd.Function):
    """gather_rows. What follows is computed alike on every rank, and so is its gradient, of which a rank's rows
    take their own part, `size` times: the mean over ranks, which DDP takes, is then the sum of the parts."""

    @staticmethod
    def forward(x: Tensor, rank: int, size: int) -> Tensor:
        return gather_rows(x, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.rank, ctx.size = inputs
        ctx.rows = slice(ctx.rank * len(x), (ctx.rank + 1) * len(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.size * grad[ctx.rows], None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return gather_rows(tangent, ctx.size)


class _OwnRows(torch.autograd.Function):
    """[size * n, ...], alike on every rank -> this rank's [n, ...]. The gradient is that of all rows, on every
    rank; it undoes the factor of _AllRows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rank: int, size: int) -> Tensor:
        ctx.size, n = size, len(x) // size
        return x[rank * n : (rank + 1) * n].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return gather_rows(grad, ctx.size) / ctx.size, None, None


class _NextRow(torch.autograd.Function):
    """[1, ...] -> that of the next rank, in a circle."""

    @staticmethod
    def forward(ctx: Any, row: Tensor, rank: int, size: int) -> Tensor:
        ctx.rank, ctx.size = rank, size
        return _one_of(gather_rows(row, size), (rank + 1) % size, row)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _one_of(gather_rows(grad, ctx.size), (ctx.rank - 1) % ctx.size, grad), None, None


def _one_of(rows: Tensor, index: int, like: Tensor) -> Tensor:
    """Row `index` as [1, ...], in the memory format of `like`."""
    return torch.empty_like(like).copy_(rows[index : index + 1])


class OfAllRanks(torch.autograd.Function):
    """[...] of every rank -> [size, ...]; here every rank's loss counts, with its own gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return gather_rows(x[None], dist.get_world_size())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]


class Shards:
    """Equal shares of a batch's rows, consecutive ones, one for each rank.

    Attributes:
        given: whether networks are given the rank's own rows alone; else all rows, alike on every rank.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.given = rank, size, False
        self.seed, self.passes = 0, 0

    def embed(
        self, embed: Callable[[Tensor], Tensor], fusion: EmbeddingFusion, x: Tensor, training: bool
    ) -> Tensor:
        """Embeddings [N, D] of all rows on every rank. Rows that cannot be shared equally are computed by each.

        Args:
            embed: of rows. fusion: the one inside it. x: images, of the own or of all rows as `given` says.
        """
        if not self.given and len(x) % self.size:
            return embed(x)
        own = x if self.given else self._own_rows(x)
        with fusion.continued(self._next_row, x.device), self._own_draws(x) if training else _as_it_is():
            embedding = embed(own)
        return _AllRows.apply(embedding, self.rank, self.size)

    def mean(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Means over ranks of tensors of one dtype, without gradient."""
        flat = torch.cat([t.detach().flatten() for t in tensors])
        dist.all_reduce(flat)
        parts = flat.div_(self.size).split([t.numel() for t in tensors])
        return tuple(part.view_as(t) for part, t in zip(parts, tensors, strict=True))

    def _own_rows(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return _OwnRows.apply(x, self.rank, self.size)
        n = len(x) // self.size
        return x[self.rank * n : (self.rank + 1) * n]

    def _next_row(self, row: Tensor) -> Tensor:
        return _NextRow.apply(row, self.rank, self.size)

    @contextlib.contextmanager
    def _own_draws(self, x: Tensor) -> Iterator[None]:
        """Dropout and the like draw otherwise on every rank and in every pass since the generators were seeded;
        outside they are as if nothing had been drawn, and so remain equal on all ranks."""
        seed = torch.initial_seed()
        self.passes = self.passes + 1 if seed == self.seed else 1
        self.seed = seed
        number = self.passes * self.size + self.rank
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            torch.manual_seed((seed ^ number * 0x9E3779B97F4A7C15) % 2**64)
            yield


@contextlib.contextmanager
def _as_it_is() -> Iterator[None]:
    yield
