"""Networks on held-out images, in detail."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from interlude_fast.data.eval_set import EvalSet
from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.metrics import Scores, detail, predict_logits
from interlude_fast.options import Precision

from .device import float32_products


def evaluate_networks(
    networks: Mapping[str, nn.Module],
    eval_sets: Mapping[str, EvalSet],
    preprocessing: Preprocessing,
    *,
    batch: int,
    precision: Precision,
    seed: int,
) -> dict[str, dict[str, Scores]]:
    """Images, by the names of the sets -> network -> scores in detail (metrics/detail.py).

    Args:
        batch: images at a time. seed: of the bootstrap's resamples.
    """
    found: dict[str, dict[str, Scores]] = {}
    for part, images in eval_sets.items():
        for name, network in networks.items():
            with float32_products(precision):
                logits = predict_logits(network, images.inputs(batch, preprocessing.normalize))
            found.setdefault(part, {})[name] = detail(logits, images.labels, preprocessing.classes, seed)
    return found
