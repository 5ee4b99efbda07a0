"""What timm says of its pretrained weights: the images they want, and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

import torch

from interlude_fast.options import Interpolation

from .base import PretrainedInput
from .timm_network import check_architecture

# Names of weight files in a repository, where timm's entry names none.
FILES = ("model.safetensors", "pytorch_model.bin")


def timm_input(architecture: str) -> PretrainedInput | None:
    """The images that timm's pretrained weights of an architecture were trained on; None where it has none.

    Raises:
        ConfigError: timm is not installed, or knows no such network or weights.
    """
    config = check_architecture(architecture).get_pretrained_cfg(architecture)
    if not (config and config.has_weights):
        return None
    known = config.interpolation in get_args(Interpolation)
    return PretrainedInput(
        mean=tuple(config.mean),
        std=tuple(config.std),
        interpolation=cast(Interpolation, config.interpolation if known else "bilinear"),
        size=min(config.input_size[1:]),
        channels=len(config.mean),
    )


def download_note(architecture: str) -> str | None:
    """One line about weights that timm is going to download; None where it will not.

    Raises:
        ConfigError: as timm_input.
    """
    timm = check_architecture(architecture)
    config = timm.get_pretrained_cfg(architecture)
    folder = _where_kept(config) if config and config.has_weights else None
    if folder is None:
        return None
    licence = config.license if config.license not in (None, "", "unknown") else "not stated"
    size = _megabytes(timm, architecture)
    source = config.hf_hub_id or "timm's own place for it"
    what = f"downloading its pretrained weights ({source}, {size}, licence {licence})"
    return f"timm:{architecture}: {what} to {folder}"


def _where_kept(config: Any) -> Path | None:
    """The folder that weights are downloaded to; None where they are there, or nothing is to be downloaded."""
    if config.file:
        return None
    if not config.hf_hub_id:
        url = config.url if isinstance(config.url, str) else config.url[0]
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        return None if (folder / url.rsplit("/", 1)[-1]).exists() else folder
    from huggingface_hub import constants, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE:
        return None
    repository, _, revision = config.hf_hub_id.partition("@")
    named = config.hf_hub_filename
    # timm prefers a safetensors file beside the one that it names.
    files = (named.replace("pytorch_model", "model").replace(".bin", ".safetensors"), named) if named else FILES
    files = (*files, named.replace(".bin", ".safetensors")) if named else files
    kept = (try_to_load_from_cache(repository, file, revision=revision or None) for file in files)
    return None if any(isinstance(file, str) for file in kept) else Path(constants.HF_HUB_CACHE)


def _megabytes(timm: Any, architecture: str) -> str:
    """By the number of parameters, in float32."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = timm.create_model(architecture, pretrained=False)
    except Exception:  # of whatever library builds it; some cannot do without memory
        return "size unknown"
    return f"about {sum(p.numel() for p in network.parameters()) * 4 / 1e6:,.0f} MB"
