"""Checkpoints of others: files of `torch.save`, read without executing what they hold.

Such a file is a pickle, and unpickling runs whatever it names. Here nothing of a file runs: the few names that
tensors need stand for the classes below, and any other for an object that does nothing and is dropped. torch.load
leaves this unpickler for TorchScript archives, whose code would run, and unpacks the old tar layout to disk: both
are refused before it sees them.
"""

from __future__ import annotations

import pickle
import tarfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch import Tensor

from interlude_fast.errors import CheckpointError

# Under which names the released programs keep the trained and the averaged network.
RAW = ("state_dict", "model", "model_state_dict", "net")
EMA = ("ema_state_dict", "ema_model", "ema", "state_dict_ema")


class _StandIn:
    """What a name in a pickle stands for. A pickle may set the state of anything that it has in hand, so all of
    them, also as classes, answer to that.

    dump_patches: old files keep the source of a module's class, and torch.load asks the class whether to write the
    difference to a patch file.
    """

    __slots__ = ()
    dump_patches = False

    def __setstate__(self, state: Any) -> None: ...


class _Nothing(_StandIn):
    """A name that tensors do not need: whatever is done with it, nothing happens."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls)

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


class _Ordered(dict, _StandIn):
    """collections.OrderedDict."""


class _Tensor(_StandIn):
    """torch._utils._rebuild_tensor_v2."""

    def __new__(cls, storage: Any, offset: int, size: tuple, stride: tuple, *rest: Any) -> Any:
        return torch._utils._rebuild_tensor(storage, offset, size, stride)


class _Parameter(_StandIn):
    """torch._utils._rebuild_parameter."""

    def __new__(cls, data: Tensor, *rest: Any) -> Any:
        return data


STANDS_FOR: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): _Ordered,
    ("torch._utils", "_rebuild_tensor"): _Tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        return STANDS_FOR.get((module, name), _Nothing)


def _load(file: Any, **settings: Any) -> Any:
    return _Unpickler(file, **settings).load()


def read_foreign(path: Path) -> dict[str, Any]:
    """What a torch.save file holds, tensors and plain values; everything else is an object that does nothing.

    Raises:
        CheckpointError: not such a file, damaged, without names, or of a kind that cannot be read without running
            it.
    """
    harmless = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__=__name__)
    try:
        # One open file for the check and for torch, which for a path would go by its suffix too.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes in the file, which are not loaded
            _refuse_what_would_run(path, file)
            content = torch.load(file, map_location="cpu", mmap=False, pickle_module=harmless, weights_only=False)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged or forged file makes pickle, zip and torch raise
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is not a checkpoint of torch.save, or damaged: {reason[:200]}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no named weights, but a {type(content).__name__}")
    return content


def _refuse_what_would_run(path: Path, file: IO[bytes]) -> None:
    """By the reader of archives and the test for the tar layout that torch.load uses, so that it sees what passed
    here, and by more names than it looks for."""
    zipped = file.read(4) == b"PK\x03\x04"
    file.seek(0)
    if zipped:
        names = [name.lower() for name in torch._C.PyTorchFileReader(file).get_all_records()]
        if any(name.endswith("constants.pkl") or "code" in name.split("/")[:-1] for name in names):
            raise CheckpointError(
                f"{path} is a TorchScript archive: reading it would run its code; save the state_dict instead"
            )
    else:
        try:
            tarfile.open(fileobj=file, mode="r:").close()
        except tarfile.TarError:
            pass
        else:
            raise CheckpointError(f"{path} is a tar archive, torch's oldest layout; save it anew by a later one")
    file.seek(0)


def foreign_networks(path: Path) -> dict[str, dict[str, Tensor]]:
    """State dicts of a released program's checkpoint: "raw" and, where the file has it, "ema"; names without the
    prefix of DataParallel. A file that is one state dict is "raw".

    Raises:
        CheckpointError: as read_foreign, or no state dict in it.
    """
    content = read_foreign(path)
    found = {}
    for network, keys in (("raw", RAW), ("ema", EMA)):
        for key in keys:
            if weights := _weights(content.get(key)):
                found[network] = weights
                break
    if not found and (weights := _weights(content)):
        found["raw"] = weights
    if not found:
        raise CheckpointError(
            f"{path} holds no weights under {', '.join((*RAW, *EMA))}; it has {', '.join(map(str, content))[:200]}"
        )
    return found


def _weights(value: Any) -> dict[str, Tensor]:
    """The tensors of a state dict; {} where it is none."""
    if not isinstance(value, dict):
        return {}
    return {str(k).removeprefix("module."): v.detach() for k, v in value.items() if isinstance(v, Tensor)}


def refuse_non_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError for the first tensor that holds NaN or an infinity."""
    for name, value in weights.items():
        if value.is_floating_point() and not value.double().isfinite().all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values")
