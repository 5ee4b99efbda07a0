"""What an installed package carries beside its modules."""

from __future__ import annotations

import runpy
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import setuptools

ROOT = Path(__file__).parent.parent


def test_type_checkers_take_the_package_for_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (resources.files("interlude_fast") / "py.typed").is_file()
    asked: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", asked.update)
    monkeypatch.setenv("INTERLUDE_FAST_EXTENSION", "0")
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    assert asked["package_data"]["interlude_fast"] == ["py.typed"]
    assert {"interlude_fast", "interlude_fast.cli", "interlude_fast.configs.cifar10"} <= set(asked["packages"])
    assert "include interlude_fast/py.typed" in (ROOT / "MANIFEST.in").read_text().splitlines()
