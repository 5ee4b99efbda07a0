"""Parts that are known by a name: methods, networks, datasets."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from .errors import ConfigError, unknown

Part = TypeVar("Part")


class Registry(Mapping[str, Part], Generic[Part]):
    """Name -> part. Built-in parts are imported when they are asked for; others come from `register`, or from an
    entry point of an installed package, which needs no import of that package.

    Args:
        what: the kind of part, for messages. group: of the entry points.
        built_in: name -> "module" or "module:attribute".
    """

    def __init__(self, what: str, group: str, built_in: dict[str, str]) -> None:
        self.what, self.group = what, group
        self._built_in, self._parts = built_in, dict[str, Part]()

    def register(self, name: str, part: Part) -> Part:
        """Make a part known by `name` in this process; registering the same part again does nothing.

        Raises:
            ConfigError: the name belongs to another part.
        """
        if name in self and self.find(name) is not part:
            raise ConfigError(f"a {self.what} named '{name}' is registered already: {_describe(self[name])}")
        self._parts[name] = part
        return part

    def loadable(self) -> dict[str, Part]:
        """Built-in and registered parts by name, without those that only an entry point offers: another package
        that does not load is no concern of this run."""
        return {name: self.find(name) for name in sorted({*self._built_in, *self._parts})}

    def registered(self, name: str) -> Part | None:
        """The part of this name where this process alone knows it, by `register`; else None."""
        return None if name in self._built_in or self._offered(name) else self._parts.get(name)

    def _offered(self, name: str) -> bool:
        return bool(entry_points(group=self.group, name=name))

    def find(self, name: str) -> Part:
        """The part of this name.

        Raises:
            ConfigError: there is none, or the package that offers it does not load.
        """
        if name in self._parts:
            return self._parts[name]
        if name in self._built_in:
            self._parts[name] = _load(self._built_in[name])
            return self._parts[name]
        for point in entry_points(group=self.group, name=name):
            try:
                self._parts[name] = point.load()
            except Exception as error:
                raise ConfigError(f"{self.what} '{name}' of {point.value} does not load: {error}") from None
            return self._parts[name]
        raise unknown(self.what, name, self)

    def __getitem__(self, name: str) -> Part:
        try:
            return self.find(name)
        except ConfigError:
            if name in self:
                raise
            raise KeyError(name) from None

    def __contains__(self, name: object) -> bool:
        return (
            name in self._parts or name in self._built_in or bool(entry_points(group=self.group, name=str(name)))
        )

    def __iter__(self) -> Iterator[str]:
        offered = (point.name for point in entry_points(group=self.group))
        return iter(sorted({*self._built_in, *self._parts, *offered}))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    loaded = importlib.import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def _describe(part: Any) -> str:
    return str(getattr(part, "__qualname__", None) or getattr(part, "__name__", part))
