"""The command line: parses and prints, and decides nothing."""

from __future__ import annotations

from .main import main

__all__ = ["main"]
