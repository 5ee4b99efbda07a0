"""Exceptions that carry one clear line for the user; the command line prints it and exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path


class InterludeError(Exception):
    """Base of every error that is the input's fault."""


class ConfigError(InterludeError, ValueError):
    """An unknown or contradictory setting."""


class DataError(InterludeError, ValueError):
    """A data set that is missing, incomplete or does not fit the request."""


class CheckpointError(InterludeError):
    """A checkpoint or run directory that cannot be used."""


class NonFiniteLossError(InterludeError, ArithmeticError):
    """The loss became NaN or infinite."""


class MemoryExhausted(InterludeError):
    """A run that needs more memory than its device has."""


class RunError(InterludeError):
    """Runs out of several that came to nothing."""


class Interrupted(KeyboardInterrupt):
    """Training was interrupted after it wrote `checkpoint`, from which the run goes on."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(f"interrupted after the checkpoint {checkpoint}")
        self.checkpoint = checkpoint


def nearest(name: str, known: Iterable[str]) -> str:
    """`"tua", [...]` -> `"; did you mean 'tau'?"`, with the known names where none is near."""
    known = sorted(known)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else f"; known: {', '.join(known)}"


def few(names: Sequence[str], most: int = 10) -> str:
    """The first names of a list that may be long, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def unknown(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that a registry or a configuration does not have."""
    return ConfigError(f"unknown {what} '{name}'{nearest(name, known)}")
