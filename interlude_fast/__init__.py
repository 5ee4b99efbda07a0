"""interlude-fast: semi-supervised image classification, fast."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("interlude-fast")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+unknown"

OF_METHODS = ("Losses", "Method", "Problem", "register_method")


def __getattr__(name: str) -> Any:
    """What a method of one's own needs; imported when it is asked for, as it brings torch."""
    if name in OF_METHODS:
        from interlude_fast import methods

        return getattr(methods, name)
    raise AttributeError(f"module 'interlude_fast' has no attribute '{name}'")
