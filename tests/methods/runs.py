"""What the tests of several methods do with a whole run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interlude_fast.config import Config
from interlude_fast.report import train_run
from interlude_fast.report.run_directory import RunDirectory
from interlude_fast.train import loop
from interlude_fast.train.checkpoint import load_tensors


class Stop(Exception):
    pass


def assert_resumes_exactly(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch, at: int = 5) -> None:
    """A run that dies before step `at` and goes on ends with the weights of one that does not, to the bit."""
    real = loop.train_step

    def dying(state, *args, **kwargs):
        if state.step == at:
            raise Stop
        return real(state, *args, **kwargs)

    train_run(config, folder / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", dying)
        with pytest.raises(Stop):
            train_run(config, folder / "resumed")
    train_run(config, folder / "resumed", resume=True)
    for name in ("raw", "ema"):
        a, b = (load_tensors(RunDirectory(folder / run).weights(name))[0] for run in ("whole", "resumed"))
        assert a.keys() == b.keys()
        assert all(torch.equal(value, b[key]) for key, value in a.items())
