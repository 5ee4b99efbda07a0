"""What torch says of the processor, as `pytest --bf16` wants it. Python imports a module of this name when it
starts, so that processes which tests start hear the same: conftest.py puts this folder on their PYTHONPATH."""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

CHOICE = "INTERLUDE_FAST_TESTS_BF16"  # "chosen" or "refused"; of the tests alone, the package does not read it


def pretend(torch: ModuleType, choice: str) -> None:
    """AMX stays as it is where bf16 is chosen: compiled steps would use its instructions."""
    chosen = choice == "chosen"
    torch.cpu._is_avx512_bf16_supported = lambda: chosen
    torch.ops.mkldnn._is_mkldnn_bf16_supported._op = lambda: chosen
    if not chosen:
        torch.cpu._is_amx_tile_supported = lambda: False


class WhenTorchComes(importlib.abc.MetaPathFinder):
    """Pretends as soon as torch is imported: most processes that tests start are quicker without it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_pretend(torch: ModuleType) -> None:
                load(torch)
                pretend(torch, os.environ[CHOICE])

            spec.loader.exec_module = load_and_pretend  # type: ignore[method-assign]
        return spec


if CHOICE in os.environ and "torch" not in sys.modules:
    sys.meta_path.insert(0, WhenTorchComes())
