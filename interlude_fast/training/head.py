"""The classifier's start: a logistic regression of the labeled images' embeddings, before a step is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from interlude_fast.data.kept import KeptViews
from interlude_fast.data.store import Store
from interlude_fast.models import Network

from .probe import LinearProbe, fit_linear_probe, knn_predict

AT_A_TIME = 256  # images


@dataclass(frozen=True)
class FrozenHead:
    """What the network's features are worth before it is trained.

    Attributes:
        probe: fitted to embeddings of the labeled images as they are and, where views are kept, of the weak ones.
        bank, labels: of the images as they are, float32 [L, D] and int64 [L].
        fits: whether the network's classifier is linear, and so begins as the probe.
    """

    probe: LinearProbe
    bank: Tensor
    labels: Tensor
    fits: bool

    def neighbours(self, embeddings: Tensor) -> Tensor:
        """Logarithms of the nearest labeled images' votes, [m, K]."""
        return knn_predict(self.bank, self.labels, embeddings, self.probe.weight.shape[0]).clamp(min=1e-12).log()


@torch.no_grad()
def start_from_probe(
    network: Network,
    store: Store,
    kept: KeptViews | None,
    normalize: Callable[[Tensor], Tensor],
    num_classes: int,
    seed: int,
) -> FrozenHead:
    """Fit the probe, and write it into the network's classifier where that is one linear layer.

    Args:
        normalize: uint8 [n, S, S, C] -> the network's input. seed: of the folds that choose the probe's strength.

    Raises:
        DataError: a class without a labeled image, or embeddings that are not finite.
    """
    was_training = network.training
    network.eval()
    labels = store.labels.cpu()
    rows = [*_plain(network, store, kept, normalize)]
    bank = torch.cat(rows)
    embeddings, groups = [bank], [torch.arange(len(labels))]
    for n in range(kept.plan.weak if kept else 0):
        parts = (kept.weak(items, torch.full_like(items, n)) for items in store.labeled.split(AT_A_TIME))  # type: ignore[union-attr]
        embeddings.append(torch.cat([_embed(network, part) for part in parts]))
        groups.append(groups[0])
    together, views = torch.cat(embeddings), len(embeddings)
    probe = fit_linear_probe(together, labels.repeat(views), num_classes, torch.cat(groups), seed)
    network.train(was_training)
    return FrozenHead(probe, bank, labels, _write(network, probe))


def _plain(
    network: Network, store: Store, kept: KeptViews | None, normalize: Callable[[Tensor], Tensor]
) -> Iterable[Tensor]:
    for items in store.labeled.split(AT_A_TIME):
        yield _embed(network, normalize(store.take(items)) if kept is None else kept.plain(items))


@torch.no_grad()
def embed_all(network: Network, inputs: Iterable[Tensor]) -> Tensor:
    """Embeddings float32 [N, D] of batches of the network's input, in eval mode; its mode is restored."""
    was_training = network.training
    network.eval()
    try:
        return torch.cat([_embed(network, part) for part in inputs])
    finally:
        network.train(was_training)


def _embed(network: Network, x: Tensor) -> Tensor:
    return network.embed_rows(x.float()).float().cpu()


def _write(network: Network, probe: LinearProbe) -> bool:
    layer = dict(network.named_modules()).get(network.classifier)
    if not isinstance(layer, nn.Linear) or layer.weight.shape != probe.weight.shape or layer.bias is None:
        return False
    layer.weight.copy_(probe.weight)
    layer.bias.copy_(probe.bias)
    return True
