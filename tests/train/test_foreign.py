"""Checkpoints of torch.save: their weights are read, and nothing in them is run."""

from __future__ import annotations

import argparse
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from interlude_fast.errors import CheckpointError
from interlude_fast.train.foreign import foreign_networks, read_foreign


class Trap:
    """Unpickled by pickle, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_read_and_nothing_is_run(tmp_path: Path, zipped: bool) -> None:
    raw, ema = network(), network().half()
    content = {
        "model": {f"module.{k}": v for k, v in raw.state_dict().items()},
        "ema_model": ema.state_dict(),
        "optimizer": torch.optim.SGD(raw.parameters(), 0.1).state_dict(),
        "best": np.float64(0.9),
        "args": argparse.Namespace(lr=0.03),
        "trap": Trap(tmp_path / "sprung"),
    }
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    found = foreign_networks(tmp_path / "file.pth")
    assert not (tmp_path / "sprung").exists()
    for name, net in (("raw", raw), ("ema", ema)):
        assert found[name].keys() == net.state_dict().keys()
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in found[name].items())


def test_a_view_of_a_larger_storage_keeps_its_place(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": whole[1:, 1:3], "b": nn.Parameter(whole.t())}, tmp_path / "file.pth")
    found = foreign_networks(tmp_path / "file.pth")["raw"]
    assert torch.equal(found["a"], whole[1:, 1:3])
    assert torch.equal(found["b"], whole.t())


@pytest.mark.parametrize("key", ["state_dict", "model", "ema_model"])
def test_names_of_the_released_programs(tmp_path: Path, key: str) -> None:
    torch.save({"epoch": 3, key: OrderedDict(network().state_dict())}, tmp_path / "file.pth")
    assert list(foreign_networks(tmp_path / "file.pth")) == ["ema" if key.startswith("ema") else "raw"]


def test_what_holds_no_weights_gets_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file.pth"
    with pytest.raises(CheckpointError, match="does not exist"):
        read_foreign(file)
    for content, message in (
        (b"", "not a checkpoint of torch.save"),
        (b"\x80\x02}q\x00.", "not a checkpoint of torch.save"),
        (b"PK\x03\x04" + b"\0" * 50, "not a checkpoint of torch.save"),
    ):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            read_foreign(file)
        assert "\n" not in str(caught.value)
    torch.save(network(), file)
    with pytest.raises(CheckpointError, match="no named weights"):
        read_foreign(file)
    torch.save({"epoch": 3, "lr": 0.1}, file)
    with pytest.raises(CheckpointError, match=r"no weights under state_dict, model.*it has epoch, lr"):
        foreign_networks(file)
    torch.save({"model": network().state_dict()}, file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="damaged"):
        foreign_networks(file)


def test_forged_pickles_cannot_change_what_names_stand_for(tmp_path: Path) -> None:
    """BUILD sets the state of whatever lies on the stack, here of the class that stands for OrderedDict."""
    forged = b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb."
    import io

    from interlude_fast.train.foreign import _Ordered, _Unpickler

    before = dict(vars(_Ordered))
    with pytest.raises(TypeError):
        _Unpickler(io.BytesIO(forged)).load()
    assert dict(vars(_Ordered)) == before
