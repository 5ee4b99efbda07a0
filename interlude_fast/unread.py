"""Settings that a user asks for and nothing reads."""

from __future__ import annotations

from typing import Any

from .methods import METHODS
from .options import AugmentConfig, DataConfig, OptimConfig, Strict, TrainConfig
from .settings_files import find_setting


def unread_settings(
    asked: dict[str, Any],
    under: dict[str, Any],
    name: str,
    options: Strict,
    network: Strict,
    *,
    label_strong: bool,
) -> dict[str, str]:
    """A line for every setting that is asked for, differs from what lies under it, and is read by nothing.

    Args:
        asked, under: nested settings: what the user says, and the preset below.
        name, options: of the method. network: the network's options. label_strong: of the augmentation.
    """
    method = METHODS.find(name)
    rules: dict[str, list[str]] = {}
    if not method.unlabeled_views:
        keys = ["train.mu", "data.unlabeled_includes_labeled", "augment.paired"]
        keys += ["data.split.unlabeled_imbalance", "data.split.unlabeled_largest"]
        rules[f"to {name}, which sees no unlabeled images"] = keys
    views = {*method.labeled_views, *method.unlabeled_views}
    if not views & {"strong", "strong2"} and not label_strong:
        rules[f"to {name}, which sees no strong view"] = [f"augment.{k}" for k in ("form", "n", "m", "cutout")]
    if not method.fuses(options):
        keys = [key for key in type(network).model_fields if key.startswith("fusion_")]
        rules[f"where {name} fuses no embeddings"] = [f"model.{key}" for key in keys]
    if method.every_label:
        rules[f"to {name}, which trains with every label"] = [
            "data.labels",
            "data.split.kind",
            "data.split.counts",
        ]
    sections: dict[str, type[Strict]] = {"train": TrainConfig, "data": DataConfig, "augment": AugmentConfig}
    sections["optim"] = OptimConfig
    sections["model"] = type(network)
    defaults: dict[str, Any] = {
        name: {key: field.get_default(call_default_factory=True) for key, field in section.model_fields.items()}
        for name, section in sections.items()
    }
    defaults["data"]["split"] = defaults["data"]["split"].model_dump(mode="json")
    if method.fitted:
        rules[f"to {name}, which takes no steps"] = [
            *(f"train.{key}" for key in ("steps", "batch", "mu", "budget")),
            *(f"optim.{key}" for key in OptimConfig.model_fields),
        ]
    found = {}
    for because, keys in rules.items():
        for key in keys:
            value = find_setting(asked, key)
            default = find_setting(under, key) or find_setting(defaults, key)
            if value and value != default and value != [None]:
                found[key] = f"{key} = {value[0]} means nothing {because}; drop it, or set it to {default[0]}"
    return found
