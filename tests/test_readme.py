"""The README's Python runs as it stands there (on a smaller network)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from interlude_fast import config as configuration
from interlude_fast import methods
from tests.helpers import SMALL

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_python(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(methods.METHODS, "_parts", dict(methods.METHODS._parts))
    small = {**SMALL, "data": {**SMALL["data"], "labels": 40}}
    monkeypatch.setattr(configuration, "preset", lambda *_: (small, ""))
    names = {
        "x": torch.randn(6, 3),
        "logits": torch.randn(2 * 2 * 8, 5, requires_grad=True),
        "labels": torch.tensor([0, 1]),
    }
    exec(BLOCKS[number], names)  # the README's own text
