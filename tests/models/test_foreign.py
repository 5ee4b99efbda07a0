"""Checkpoints of torch.save: their weights are read, and nothing in them is run."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from interlude_fast.errors import CheckpointError
from interlude_fast.models.foreign import _Ordered, _Unpickler, foreign_networks, read_foreign


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
    before = dict(vars(_Ordered))
    with pytest.raises(TypeError):
        _Unpickler(io.BytesIO(forged)).load()
    assert dict(vars(_Ordered)) == before


class LeavesAFile(nn.Module):
    """As TorchScript, loading it writes a file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save([torch.ones(1)], state[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_torchscript_is_refused_and_not_run(tmp_path: Path) -> None:
    file, sprung = tmp_path / "file.pth", tmp_path / "sprung"
    torch.jit.save(torch.jit.script(LeavesAFile(str(sprung))), file)
    torch.load(file, weights_only=False)
    assert sprung.exists(), "the file is no trap"
    sprung.unlink()
    with pytest.raises(CheckpointError, match="is a TorchScript archive") as caught:
        read_foreign(file)
    assert "\n" not in str(caught.value)
    assert not sprung.exists()


@pytest.mark.parametrize("member", ["constants.pkl", "CONSTANTS.PKL", "code/__torch__.py", "extra/code/x.py"])
def test_archives_with_any_part_of_torchscript_are_refused(tmp_path: Path, member: str) -> None:
    file = tmp_path / "code.pth"
    torch.save({"model": network().state_dict()}, file)
    assert foreign_networks(file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(f"code/{member}", b"")
    with pytest.raises(CheckpointError, match="is a TorchScript archive"):
        read_foreign(file)


def test_the_tar_layout_is_refused_before_a_member_is_taken_out(tmp_path: Path) -> None:
    """Also where the first member's name begins as a pickle does."""
    for first in ("storages", "\udc80\x02"):
        with tarfile.open(tmp_path / "file.pth", "w") as archive:
            for name in (first, "storages", "tensors", "pickle"):
                content = pickle.dumps(Trap(tmp_path / "sprung") if name == "pickle" else 0, 2)
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        with pytest.raises(CheckpointError, match="is a tar archive"):
            read_foreign(tmp_path / "file.pth")
        assert not (tmp_path / "sprung").exists()


def test_a_suffix_does_not_change_how_a_file_is_read(tmp_path: Path) -> None:
    state = network().state_dict()
    torch.save({"model": state}, tmp_path / "file.safetensors")
    assert foreign_networks(tmp_path / "file.safetensors")["raw"].keys() == state.keys()


@pytest.mark.parametrize("zipped", [True, False])
def test_no_pickle_protocol_runs_anything(tmp_path: Path, zipped: bool) -> None:
    content = {"model": network().state_dict(), "trap": Trap(tmp_path / "sprung"), "net": network()}
    for protocol in range(2, 6):
        torch.save(content, tmp_path / "f", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        assert set(foreign_networks(tmp_path / "f")["raw"]) == set(network().state_dict())
    assert not (tmp_path / "sprung").exists()
