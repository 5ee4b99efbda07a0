"""Loads the compiled extension, says what it was built with, and decides which side of an op runs."""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BUILD_HINT = "to build it: pip install --no-build-isolation --force-reinstall --no-deps . (or: make setup)"


@dataclass(frozen=True)
class ExtensionStatus:
    """What was found when `interlude_fast._C` was looked for."""

    loaded: bool
    why_not: str = ""
    torch_version: str = ""
    compiler: str = ""
    cuda_version: str | None = None
    cuda_archs: str = ""
    vector_unit: str = ""  # of this processor, for which there are convolution kernels

    def runs_on(self, device: torch.device) -> bool:
        """Whether compiled kernels exist for tensors of this device."""
        return self.loaded and (device.type == "cpu" or (device.type == "cuda" and self.cuda_version is not None))


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _load() -> ExtensionStatus:
    if os.environ.get("INTERLUDE_FAST_EXTENSION") == "0":
        return ExtensionStatus(False, "switched off by INTERLUDE_FAST_EXTENSION=0")
    try:
        _C = importlib.import_module("interlude_fast._C")  # `from ... import` would hide which error it is
    except ModuleNotFoundError:
        return ExtensionStatus(False, "not built")
    except ImportError as error:  # built against another torch: undefined symbols
        return ExtensionStatus(False, f"built against another torch than {torch.__version__} ({error})")
    if _minor(_C.torch_version) != _minor(torch.__version__):  # it may load and still misread tensors
        return ExtensionStatus(False, f"built against torch {_C.torch_version}, but {torch.__version__} runs")
    built = (_C.torch_version, _C.compiler, _C.cuda_version, _C.cuda_archs, _C.vector_unit)
    return ExtensionStatus(True, "", *built)


_status = _load()
_reference_only = False
_warned: set[str] = set()


def status() -> ExtensionStatus:
    """The state of the extension in this process."""
    return _status


@contextlib.contextmanager
def use_reference() -> Iterator[None]:
    """Inside, every op runs its plain torch reference (for comparisons; not thread-safe)."""
    global _reference_only
    before, _reference_only = _reference_only, True
    try:
        yield
    finally:
        _reference_only = before


def _warn_once(device_type: str) -> None:
    if device_type in _warned:
        return
    _warned.add(device_type)
    if not _status.loaded:
        _warned.update(("cpu", "cuda"))
        found = _status.why_not
    else:
        found = f"built without kernels for {device_type}"
    warnings.warn(
        f"interlude-fast: compiled extension {found}; the slower torch reference runs; {BUILD_HINT}",
        RuntimeWarning,
        stacklevel=4,
    )


def compiled_for(x: Tensor) -> bool:
    """Whether the compiled op is to run for this tensor; warns once where it ought to but cannot."""
    if _reference_only:
        return False
    if _status.runs_on(x.device):
        return True
    if not torch.compiler.is_compiling():
        _warn_once(x.device.type)
    return False
