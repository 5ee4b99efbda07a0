"""Imports run one way, along the line that data takes through the package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import interlude_fast

ROOT = Path(interlude_fast.__file__).parent
# Lower imports nothing higher; names of one rank may import each other only where they are one package.
RANK = {"errors": 0, "registry": 1, "options": 1, "settings_files": 1, "reference": 1, "flags": 2, "ops": 2}
RANK |= {"data": 3, "models": 3, "methods": 4, "presets": 5, "unread": 5, "config": 6, "metrics": 7, "training": 8}
RANK |= {"experiment": 9, "evaluation": 10, "sweeps": 10, "benchmark": 10, "report": 11, "api": 11, "cli": 12}
MODULES = sorted(p.relative_to(ROOT) for p in ROOT.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level parts of the package that a module imports, relative and absolute, wherever it does."""
    names = set()
    package = ("interlude_fast", *path.parent.parts)
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            full = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{full}.{alias.name}" for alias in node.names}
    parts = (name.split(".") for name in names)
    return {p[1] for p in parts if p[0] == "interlude_fast" and len(p) > 1 and p[1] in RANK}


@pytest.mark.parametrize("path", [m for m in MODULES if len(m.parts) > 1 or m.stem in RANK], ids=str)
def test_imports_run_one_way(path: Path) -> None:
    own = path.parts[0].removesuffix(".py")
    for other in imported(path):
        assert other == own or RANK[other] < RANK[own], f"{path} imports {other}"


def test_every_part_has_a_rank() -> None:
    parts = {m.parts[0].removesuffix(".py") for m in MODULES} - {"__init__"}
    assert parts == set(RANK)


def test_methods_know_no_device_and_no_optimizer() -> None:
    for path in (ROOT / "methods").glob("*.py"):
        text = path.read_text()
        assert "torch.optim" not in text
        assert "cuda" not in text
