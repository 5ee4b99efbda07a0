"""`interlude-fast embed` and `il.embed`: embeddings of files, by a run or by pretrained weights."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from pyarrow import parquet

import interlude_fast as il
from interlude_fast.cli import main
from interlude_fast.errors import InterludeError
from interlude_fast.evaluation import pretrained
from interlude_fast.experiment.run import train_run
from tests.helpers import small_config, write_images

NAMES = ["new/a.png", "new/deep/b.png", "new/c.png"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and images, two of which are damaged."""
    place = tmp_path_factory.mktemp("embed")
    train_run(small_config(), place / "run")
    write_images(place, NAMES, (20, 16))
    for name in ("d.png", "e.png"):
        (place / "new" / name).write_text("no image")
    return place


@pytest.fixture
def call(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs the command line in a copy of that folder."""
    shutil.copytree(trained, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])


def refused(done: Result) -> str:
    assert done.exit_code == 2, done.output
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_embeddings_of_a_run_as_npz(call: Callable[..., Result]) -> None:
    done = call("embed", "run", "new", "--out", "features/new.npz", "--device", "cpu")
    assert done.exit_code == 0, done.output
    made, skipped = done.stderr.splitlines()
    assert made == "3 embeddings of 64 numbers in features/new.npz"
    assert skipped.startswith("interlude-fast: skipped 2 of 5 images: new/d.png (")
    with np.load("features/new.npz") as file:
        found = dict(file)
    assert sorted(found) == ["classes", "embeddings", "network", "paths", "probabilities"]
    assert sorted(found["paths"]) == sorted(NAMES)
    assert found["embeddings"].dtype == np.float32
    assert (found["network"], found["classes"].tolist()) == ("ema", [str(k) for k in range(10)])
    model = il.load_model("run", device="cpu")
    files = found["paths"].tolist()
    np.testing.assert_allclose(found["embeddings"], model.embed(files), atol=1e-6)
    np.testing.assert_allclose(found["probabilities"], model.predict(files).probabilities, atol=1e-6)
    assert "--overwrite replaces it" in refused(call("embed", "run", "new", "--out", "features/new.npz"))
    again = ("embed", "run", NAMES[0], "--out", "features/new.npz", "--overwrite", "--network", "raw")
    assert call(*again).exit_code == 0
    with np.load("features/new.npz") as file:
        assert (file["paths"].tolist(), file["network"]) == (NAMES[:1], "raw")


def test_embeddings_of_a_run_as_parquet(call: Callable[..., Result]) -> None:
    assert call("embed", "run", "new", "--out", "new.parquet", "--device", "cpu").exit_code == 0
    table = parquet.read_table("new.parquet")
    assert table.column_names == ["path", "embedding", "probabilities"]
    assert str(table.schema.field("embedding").type).endswith("float>[64]")
    found = il.embed("run", "new", device="cpu", quiet=True)
    assert tuple(table["path"].to_pylist()) == found.paths
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), found.embeddings)
    np.testing.assert_array_equal(np.array(table["probabilities"].to_pylist(), np.float32), found.probabilities)
    about = table.schema.metadata
    assert (about[b"network"], json.loads(about[b"classes"])) == (b"ema", list(found.classes))


def test_pretrained_weights_by_name(call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if timm had downloaded them: nothing is."""
    asked, real = [], timm.create_model

    def fresh(name: str, pretrained: bool = False, **settings: Any) -> torch.nn.Module:
        asked.append((name, pretrained))
        torch.manual_seed(0)
        return real(name, **settings)

    monkeypatch.setattr(timm, "create_model", fresh)
    monkeypatch.setattr("interlude_fast.models.timm_network._quick_download", torch.no_grad)
    done = call("embed", "timm:test_resnet.r160_in1k", *NAMES, "--out", "new.npz", "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert asked[-1] == ("test_resnet.r160_in1k", True)  # one before it counts parameters
    with np.load("new.npz") as file:
        assert sorted(file) == ["embeddings", "network", "paths"]
        assert file["paths"].tolist() == NAMES
        assert file["embeddings"].shape[0] == 3
        assert file["network"] == "timm:test_resnet.r160_in1k"
    model = pretrained.load_network("timm:test_resnet.r160_in1k", device="cpu")
    wanted = timm.get_pretrained_cfg("test_resnet.r160_in1k")
    assert (model.preprocessing.size, model.preprocessing.mean) == (wanted.input_size[1], wanted.mean)
    images = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(wanted.mean)[:, None, None]) / torch.tensor(wanted.std)[:, None, None]
    with torch.no_grad():
        there = model.network.embed(x)
    np.testing.assert_allclose(model.embed(images), there, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "new", "--out", "new.csv"], "new.csv: embeddings are written as .npz or .parquet"),
        (["run", "nowhere", "--out", "new.npz"], "nowhere does not exist"),
        (["run", "new/d.png", "--out", "new.npz"], "none of the 1 images can be read"),
        (["new", "new", "--out", "new.npz"], "new is not a run directory"),
        (["runs", "new", "--out", "new.npz"], "runs is neither a run directory nor a network"),
        (["wideresnet", "new", "--out", "new.npz"], "wideresnet has no pretrained weights"),
        (["timm:resnet1", "new", "--out", "new.npz"], "unknown timm network 'resnet1'"),
        (["timm:resnet18", "new", "--out", "new.npz", "--network", "raw"], "--network chooses among"),
        (["run", "new", "--out", "new.npz", "--network", "best_on_validation"], "kept no network by validation"),
        (["run", "new", "--out", "new.npz", "--device", "gpu"], "device 'gpu'"),
        (["run", "new"], "Missing option '--out'"),
    ],
)
def test_what_does_not_fit_gets_one_line(call: Callable[..., Result], arguments: list[str], line: str) -> None:
    assert line in refused(call("embed", *arguments))
    assert not list(Path().glob("new.*"))


def test_without_pyarrow(call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else real(name))
    line = refused(call("embed", "nowhere", "nothing", "--out", "new.parquet"))
    assert "pip install 'interlude-fast[parquet]'" in line


def test_from_python(call: Callable[..., Result]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 24), dtype=np.uint8)
    found = il.embed("run", images, "new.npz", device="cpu", quiet=True)
    assert (found.paths, found.embeddings.shape) == (("0", "1", "2"), (3, 64))
    with np.load("new.npz") as file:
        np.testing.assert_array_equal(file["embeddings"], found.embeddings)
    with pytest.raises(InterludeError, match=r"new\.npz exists; overwrite=True replaces it"):
        il.embed("nowhere", "nothing", "new.npz")
    assert il.embed("run", images[:1], "new.npz", device="cpu", overwrite=True, quiet=True).paths == ("0",)
