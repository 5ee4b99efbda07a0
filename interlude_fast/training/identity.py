"""Which settings a run's computation depends on: what a checkpoint is bound to, and what may change later."""

from __future__ import annotations

from typing import Any

from interlude_fast.config import ExperimentConfig
from interlude_fast.options import KeptConfig

# Settings that may differ when a run is resumed: they do not change what is computed, or, as the number of
# processes and whether their batch norms are one, are those of a job and not of the run.
FREE_TO_CHANGE = {
    "train": {
        *("device", "compile", "capture", "sync_batch_norm"),
        *("log_every", "eval_every", "checkpoint_every", "eval_batch"),
    },
    "data": {"root", "labeled", "unlabeled", "test", "cache", "workers"},  # the split's hash tells other images
}
# Checkpoints are bound to a hash of the settings, which earlier versions wrote for every dataset alike, and
# without those of later versions.
ALWAYS_COUNTED = {"extra": False, "size": None, "channels": None, "fit": "crop", "max_unreadable": 0.05}
KEPT = KeptConfig().model_dump(mode="json", exclude={"precision"})
ADDED_LATER: dict[str, dict[str, Any]] = {
    "augment": {"label_strong": False},
    "data": {
        "interpolation": None,
        "max_size": None,
        "kept": KEPT,
    },
    "model": {"cut": None, "norm": "train", "head": "fresh"},
    "optim": {"ema_warmup": False},
}


def what_counts(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that a run's computation depends on. Pipelines with equal bytes are one."""
    settings = config.model_dump(mode="json")
    settings["data"] = {**ALWAYS_COUNTED, **settings["data"]}
    for section, keys in FREE_TO_CHANGE.items():
        settings[section] = {k: v for k, v in settings[section].items() if k not in keys}
    for section, defaults in ADDED_LATER.items():
        settings[section] = {k: v for k, v in settings[section].items() if k not in defaults or v != defaults[k]}
    pipeline = settings["data"]["pipeline"]
    settings["data"]["pipeline"] = pipeline if pipeline in ("dali", "kept") else "any but dali"
    settings["data"]["split"].pop("file")  # the run keeps the split itself
    settings["data"]["kept"].pop("precision")  # the run keeps what was chosen
    return settings
