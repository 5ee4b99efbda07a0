"""The methods: a file each, and a line each in the table below. From outside the package: register_method, or an
entry point of an installed package in the group `interlude_fast.methods`, which the command line finds too."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from interlude_fast.config import validate
from interlude_fast.errors import ConfigError, unknown

from .base import Losses, Method, Problem
from .fixmatch import FixMatch
from .flexmatch import FlexMatch
from .freematch import FreeMatch
from .fully_supervised import FullySupervised
from .interlude import Interlude
from .interlude_plus import InterludePlus
from .mean_teacher import MeanTeacher
from .mixmatch import MixMatch
from .mixup_lr import MixupLR
from .pseudo_label import PseudoLabel
from .semimeta import SemiMeta
from .semisupcon import SemiSupCon
from .softmatch import SoftMatch
from .supervised import Supervised
from .uda import UDA
from .vat import VAT

METHODS: dict[str, type[Method]] = {
    "fixmatch": FixMatch,
    "flexmatch": FlexMatch,
    "freematch": FreeMatch,
    "fully_supervised": FullySupervised,
    "interlude": Interlude,
    "interlude_plus": InterludePlus,
    "mean_teacher": MeanTeacher,
    "mixmatch": MixMatch,
    "mixup_lr": MixupLR,
    "pseudo_label": PseudoLabel,
    "semimeta": SemiMeta,
    "semisupcon": SemiSupCon,
    "softmatch": SoftMatch,
    "supervised": Supervised,
    "uda": UDA,
    "vat": VAT,
}


def register_method(name: str, method: type[Method]) -> type[Method]:
    """Make a method of your own known by name, to the configuration and the commands of this process.

    Raises:
        ConfigError: the name is taken by another method.
    """
    if METHODS.setdefault(name, method) is not method:
        raise ConfigError(f"a method named '{name}' is registered already: {METHODS[name].__qualname__}")
    return method


def method_class(name: str) -> type[Method]:
    """Raises ConfigError where no method has this name, or the package that offers it does not load."""
    for point in entry_points(group="interlude_fast.methods", name=name) if name not in METHODS else ():
        try:
            return register_method(name, point.load())
        except Exception as error:
            raise ConfigError(f"method '{name}' of {point.value} does not load: {error}") from None
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def resolve_options(name: str, options: dict[str, Any]) -> Any:
    """The method's typed options with its defaults filled in.

    Raises:
        ConfigError: an unknown method or option, or a value that does not fit.
    """
    fields = method_class(name).Options.model_fields
    for key in options.keys() - fields.keys():
        if others := [other for other, method in METHODS.items() if key in method.Options.model_fields]:
            raise ConfigError(f"unknown key 'method.{key}': {name} has no such option; {', '.join(others)} have")
    return validate(METHODS[name].Options, options, "method")


def build_method(name: str, options: dict[str, Any], problem: Problem) -> Method:
    """The method with its state at its initial values."""
    resolved = resolve_options(name, options)
    return METHODS[name](resolved, problem)


__all__ = [
    "METHODS",
    "Losses",
    "Method",
    "Problem",
    "build_method",
    "method_class",
    "register_method",
    "resolve_options",
]
