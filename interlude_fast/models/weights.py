"""Weight files that a network starts from."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interlude_fast.errors import CheckpointError, ConfigError

from .base import Network
from .foreign import foreign_networks, refuse_non_finite
from .released import Released, from_released, identify


def load_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: the file is missing, cut short, or something else.
    """
    try:
        with safe_open(str(path), framework="pt", device=device) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is cut short or not a safetensors file ({error})") from None


def check_weight_file(path: Path, setting: str = "model.weights") -> dict[str, Tensor]:
    """The tensors of a file that a network is to start from.

    Args:
        setting: what asks for the file.

    Raises:
        ConfigError: no such file, not one of weights, or weights that are not finite.
    """
    try:
        found = _read(path)
        refuse_non_finite(path, found)
    except CheckpointError as error:
        raise ConfigError(f"{setting}: {error}") from None
    return found


@torch.no_grad()
def start_from(network: Network, path: Path, setting: str = "model.weights") -> str:
    """Put a file's weights into a network: a safetensors file's, or those of a checkpoint of torch.save, of which
    nothing is run. Its classifier keeps its fresh values where the file has none or one of another shape (K
    differs).

    Args:
        setting: what asks for the file.

    Returns:
        a line that says so where the classifier keeps its fresh values, else "".

    Raises:
        ConfigError: no such file, or it is another network's: the first name that tells so.
    """
    found, line = check_weight_file(path, setting), ""
    released, weights = _under_our_names(found)
    weights = network.fit_weights(_backbone(weights))
    own = network.state_dict()
    head = {name for name in own if name.startswith(f"{network.classifier}.")}
    if any(name not in weights or weights[name].shape != own[name].shape for name in head):
        line = f"{setting}: {path} has {_classifier(head, own, weights)}; the classifier begins with fresh values"
        own, weights = ({n: v for n, v in side.items() if n not in head} for side in (own, weights))
    _refuse_another_network(path, setting, own, weights, released)
    for name, value in weights.items():
        own[name].copy_(value)
    return line


def _classifier(head: set[str], own: dict[str, Tensor], weights: dict[str, Tensor]) -> str:
    """What a file has instead of a classifier that fits, in words."""
    name = next((n for n in sorted(head) if n in weights and weights[n].shape != own[n].shape), "")
    if not name or not weights[name].ndim:
        return "no classifier"
    theirs, ours = len(weights[name]), len(own[name])
    return f"a classifier of {theirs} classes, not {ours}" if theirs != ours else "another classifier"


def _read(path: Path) -> dict[str, Tensor]:
    """Of a released program's two networks the averaged one."""
    try:
        with path.open("rb") as file:
            begins = file.read(9)
    except OSError:
        begins = b""  # load_tensors says what is wrong
    # A safetensors file may begin with any byte: eight of them are a length, behind which JSON stands.
    if begins[8:] == b"{" or not begins.startswith((b"PK\x03\x04", b"\x80")):
        return load_tensors(path)[0]
    found = foreign_networks(path)
    return found.get("ema") or found["raw"]


def _under_our_names(weights: dict[str, Tensor]) -> tuple[Released | None, dict[str, Tensor]]:
    """What the file is, where it is of released code; else its names are left to the network."""
    try:
        released = identify(weights)
        return released, from_released(weights, released.source, released.network)
    except CheckpointError:
        return None, weights


def _backbone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a network of prototypes what the prototypes stand on; other weights as they are."""
    if "prototypes" not in weights:
        return weights
    inner = {name.removeprefix("backbone."): v for name, v in weights.items() if name.startswith("backbone.")}
    return inner or weights


def _refuse_another_network(
    path: Path, setting: str, own: dict[str, Tensor], weights: dict[str, Tensor], released: Released | None
) -> None:
    advice = "set model.name and its options to those of the network that the file was saved from"
    if released:
        advice += f": {released.network}, {', '.join(f'{k} {v}' for k, v in released.options.items())}"
    for name, value in own.items():
        if name not in weights:
            # Files of old torch versions lack the counter, which only batch norms without momentum read.
            if not name.endswith("num_batches_tracked"):
                raise ConfigError(f"{setting}: {path} lacks {name} of this network; {advice}")
        elif weights[name].shape != value.shape:
            theirs, ours = list(weights[name].shape), list(value.shape)
            raise ConfigError(f"{setting}: {name} is {theirs} in {path} and {ours} in this network; {advice}")
    for name in weights:
        if name not in own:
            raise ConfigError(f"{setting}: {path} holds {name}, which this network has not; {advice}")
