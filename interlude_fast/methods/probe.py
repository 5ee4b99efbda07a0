"""Linear probe: a classifier fitted to the embeddings of a frozen network, without steps (training/head.py)."""

from __future__ import annotations

from typing import Any, ClassVar

from interlude_fast.options import Strict

from .base import Losses, Method
from .supervised import Supervised, SupervisedOptions


class ProbeOptions(Strict):
    training_defaults: ClassVar[dict[str, Any]] = {
        "augment": {"label_strong": False},
        "data": {"pipeline": "kept"},
        "model": {"name": "efficientnet_lite0", "cut": "classifier", "norm": "folded", "head": "probe"},
        "optim": {"ema_decay": 0.0, "ema_warmup": False},
        "train": {"steps": 1},
    }


class Probe(Method):
    Options = ProbeOptions
    fitted = True

    def loss(self, logits: Any, batch: Any) -> Losses:
        """The labeled images' cross-entropy, as that of supervised training: what the fit makes small."""
        return Supervised(SupervisedOptions(), self.task).loss(logits, batch)
