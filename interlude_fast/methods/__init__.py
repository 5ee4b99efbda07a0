"""The methods: a file each, and a line each in the table below. From outside the package: register_method, or an
entry point of an installed package in the group `interlude_fast.methods`, which the command line finds too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from interlude_fast.errors import ConfigError
from interlude_fast.options import Strict, validate
from interlude_fast.registry import Registry

from .base import Losses, Method, TaskInfo

METHODS: Registry[type[Method]] = Registry(
    "method",
    "interlude_fast.methods",
    {
        "fixmatch": "interlude_fast.methods.fixmatch:FixMatch",
        "flexmatch": "interlude_fast.methods.flexmatch:FlexMatch",
        "freematch": "interlude_fast.methods.freematch:FreeMatch",
        "fully_supervised": "interlude_fast.methods.fully_supervised:FullySupervised",
        "interlude": "interlude_fast.methods.interlude:Interlude",
        "interlude_plus": "interlude_fast.methods.interlude_plus:InterludePlus",
        "mean_teacher": "interlude_fast.methods.mean_teacher:MeanTeacher",
        "mixmatch": "interlude_fast.methods.mixmatch:MixMatch",
        "mixup_lr": "interlude_fast.methods.mixup_lr:MixupLR",
        "probe": "interlude_fast.methods.probe:Probe",
        "pseudo_label": "interlude_fast.methods.pseudo_label:PseudoLabel",
        "semimeta": "interlude_fast.methods.semimeta:SemiMeta",
        "semisupcon": "interlude_fast.methods.semisupcon:SemiSupCon",
        "softmatch": "interlude_fast.methods.softmatch:SoftMatch",
        "supervised": "interlude_fast.methods.supervised:Supervised",
        "uda": "interlude_fast.methods.uda:UDA",
        "vat": "interlude_fast.methods.vat:VAT",
    },
)


def register_method(name: str, method: type[Method]) -> type[Method]:
    """Make a method of your own known by name, to the configuration and the commands of this process.

    Raises:
        ConfigError: the name is taken by another method, or it is none.
    """
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ConfigError(f"method '{name}' wants a subclass of Method, got {method!r}")
    return METHODS.register(name, method)


def resolve_options(name: str, options: dict[str, Any]) -> Strict:
    """The method's typed options with its defaults filled in.

    Raises:
        ConfigError: an unknown method or option, or a value that does not fit.
    """
    cls = METHODS.find(name).Options
    for key in options.keys() - cls.model_fields.keys():
        if others := [n for n, m in METHODS.loadable().items() if key in m.Options.model_fields]:
            raise ConfigError(f"unknown key 'method.{key}': {name} has no such option; {', '.join(others)} have")
    resolved: Strict = validate(cls, options, "method")
    return resolved


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build_method(
    name: str, options: Strict | dict[str, Any], task: TaskInfo, *, dtype: torch.dtype = torch.float32
) -> Method:
    """The method with its state at its initial values.

    Args:
        options: of the method's own class, as a configuration holds them; or as resolve_options takes them.
        dtype: of state that the method names no dtype for: torch's default while it is built. `.double()` on a
            method of float32 is not the same: its initial 1 / K is rounded already, 3e-8 of it for K = 3.

    Raises:
        ConfigError: an unknown method or option, or a value that does not fit. TypeError: dtype is not floating.
    """
    resolved = options if isinstance(options, Strict) else resolve_options(name, options)
    with _default_dtype(dtype):
        return METHODS.find(name)(resolved, task)


__all__ = ["METHODS", "Losses", "Method", "TaskInfo", "build_method", "register_method", "resolve_options"]
