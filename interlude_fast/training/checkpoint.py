"""`checkpoints/last`: one safetensors file, replaced atomically. No pickled code is read or written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from interlude_fast.errors import CheckpointError
from interlude_fast.models.weights import load_tensors

from .selection import PREFIX, Selection
from .state import TrainState

FORMAT = "interlude-fast checkpoint 1"


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path`, reach the disk, then take its place: a reader sees the old file or the new one.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror or error}; it is as it was before"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, written atomically."""
    write_atomically(path, save({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, metadata))


def fingerprint(config: dict[str, Any]) -> str:
    """Hash of the settings that a run may not change when it goes on."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def save_checkpoint(path: Path, state: TrainState, config: dict[str, Any], selection: Selection) -> None:
    """State and selection in one file: a selection cannot be of steps that the state has not seen."""
    metadata = {
        "format": FORMAT,
        "step": str(state.step),
        "position": repr(state.position),
        "seconds": repr(state.seconds),
        "config": fingerprint(config),
        "torch": torch.__version__,
        "selection": selection.text(),
    }
    save_tensors(path, {**state.state_dict(), **selection.tensors()}, metadata)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of save_checkpoint's file.

    Raises:
        CheckpointError: the file is missing, cut short, or not a checkpoint.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != FORMAT or not metadata.get("step", "").isdigit() or "position" not in metadata:
        raise CheckpointError(f"{path} is not an interlude-fast checkpoint")
    return tensors, metadata


def load_checkpoint(path: Path, state: TrainState, config: dict[str, Any], selection: Selection) -> None:
    """Restore state and selection from save_checkpoint's file.

    Raises:
        CheckpointError: as read_checkpoint, or the file is of another configuration.
    """
    tensors, metadata = read_checkpoint(path)
    if metadata.get("config") != fingerprint(config):
        raise CheckpointError(f"{path} belongs to a run with another configuration")
    selection.restore(metadata.get("selection", ""), tensors)
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}
    state.load_state_dict(own, int(metadata["step"]), float(metadata["position"]))
    state.seconds = float(metadata["seconds"])
