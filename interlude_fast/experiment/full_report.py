"""The full report on a run's networks: every score of every network on every held-out image."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.metrics import Detail, detail, predict_logits
from interlude_fast.train.device import float32_products
from interlude_fast.train.loop import Run
from interlude_fast.train.selection import BY_VALIDATION

PARTS = ("test", "validation")


def with_selected(run: Run, weights: dict[str, Tensor] | None) -> dict[str, nn.Module]:
    """A run's networks, and the one that validation selected as BY_VALIDATION where its weights are given."""
    networks = run.networks()
    if weights is not None:
        networks[BY_VALIDATION] = copy.deepcopy(run.state.ema.model)
        networks[BY_VALIDATION].load_state_dict(weights)
    return networks


def details(run: Run, networks: dict[str, nn.Module]) -> dict[str, dict[str, Detail]]:
    """Images, "test" and "validation" where there are some -> network -> what can be said of it there."""
    how = Preprocessing.of(run.dataset)
    found: dict[str, dict[str, Detail]] = {}
    for part in PARTS:
        labels = run.held_out_labels(part)
        for name, network in networks.items() if len(labels) else ():
            with float32_products(run.precision):
                logits = predict_logits(network, run.held_out_batches(part), how.normalize)
            found.setdefault(part, {})[name] = detail(logits, labels, how.classes, run.config.seed)
    return found
