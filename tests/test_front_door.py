"""`import interlude_fast as il`: what the command line does, as functions."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from PIL import Image

import interlude_fast as il
from interlude_fast import flags, registry
from interlude_fast.cli import settings
from interlude_fast.config import from_dict
from interlude_fast.data import datasets as dataset_registry
from interlude_fast.data.datasets import LoadContext, from_arrays
from interlude_fast.errors import ConfigError, DataError, InterludeError
from interlude_fast.models import NETWORKS
from tests.helpers import SMALL

SETTINGS: dict[str, Any] = {
    **{f"model.{key}": value for key, value in SMALL["model"].items() if key != "name"},
    **{f"train.{key}": value for key, value in SMALL["train"].items()},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def small(**flags: Any) -> il.Result:
    return il.train(dataset="digits", labels=20, device="cpu", set=SETTINGS, quiet=True, **flags)


def test_train_evaluate_predict(tmp_path: Path) -> None:
    result = small(run_dir="run")
    assert callable(il.train)  # after its package of the same kind was imported
    assert result.directory == Path("run")
    assert result.error == result.scores["test"]["ema"].error
    assert result.scores["test"]["raw"].n == 360
    assert "<table>" in result._repr_html_()
    again = il.evaluate("run", quiet=True)
    assert again.scores == result.scores
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 24), dtype=np.uint8)
    Image.fromarray(images[0]).save(tmp_path / "one.png")
    of_arrays = il.predict("run", images, device="cpu", quiet=True)
    of_file = il.predict("run", "one.png", device="cpu", quiet=True)
    assert of_arrays.probabilities.shape == (3, 10)
    assert of_file.paths == ("one.png",)
    np.testing.assert_allclose(of_file.probabilities[0], of_arrays.probabilities[0], atol=1e-6)
    assert of_file.labels == [of_arrays.labels[0]]


def test_a_model_by_itself() -> None:
    small(run_dir="run", method="interlude", seed=3)
    model = il.load_model("run", network="raw", device="cpu")
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1), dtype=np.uint8)
    embeddings = model.embed(images)
    assert embeddings.shape == (4, 64)
    with torch.no_grad():
        logits = model.network.classify(torch.from_numpy(embeddings))
    np.testing.assert_allclose(logits.softmax(1), model.predict(images).probabilities, atol=1e-6)
    assert model.name == "raw"
    with pytest.raises(ConfigError, match="unknown network of a run 'best'"):
        il.load_model("run", network="best")


def test_sweeps() -> None:
    grid = {"method.alpha": [0, 0.1]}
    found = il.sweep(grid, seeds=[0], out="grid", labels=20, device="cpu", set=SETTINGS, quiet=True)
    assert sorted(found.results) == ["alpha=0.1/seed0", "alpha=0/seed0"]
    seeds = il.sweep(seeds=[1, 2], out="seeds", jobs=1, labels=20, device="cpu", set=SETTINGS, quiet=True)
    assert sorted(seeds.results) == ["seed1", "seed2"]
    with pytest.raises(ConfigError, match="a grid wants a folder"):
        il.sweep(grid, labels=20)


def test_keywords_are_the_flags() -> None:
    known = {
        p.name for option in (*settings.DATA, *settings.SHARED) for p in click.command()(option(lambda: 0)).params
    }
    known -= {"config_file", "assignments"}
    assert known <= {*flags.FLAGS}
    assert {*flags.FLAGS} == {*flags.Flags.__annotations__}
    for name in flags.FLAGS:
        assert name in (flags.Flags.__doc__ or "")
    with pytest.raises(ConfigError, match="unknown keyword 'label'; did you mean 'labels'"):
        il.load_config(label=3)  # type: ignore[call-arg]


def test_settings_as_a_mapping_and_as_assignments() -> None:
    for given in ({"method.tau": 0.8, "train.mu": 2}, ["method.tau=0.8", "train.mu=2"]):
        config = il.load_config(labels=20, set=given)
        assert (config.method.options.tau, config.train.mu, config.data.labels) == (0.8, 2, 20)


def test_everything_that_is_offered_is_there_and_documented() -> None:
    for name in il.__all__:
        assert inspect.getdoc(getattr(il, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = il.nothing
    assert {*il.__all__} <= {*dir(il)}


def test_in_a_script_as_written_in_the_issue(tmp_path: Path) -> None:
    """Without a guard for the main module, and twice in one process."""
    script = tmp_path / "script.py"
    script.write_text(
        "import interlude_fast as il\n"
        f"given = {SETTINGS!r}\n"
        "for seed in (0, 1):\n"
        "    print(il.train(dataset='digits', labels=20, device='cpu', set=given, seed=seed).error)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [
        "digits-interlude-20-seed0",
        "digits-interlude-20-seed1",
    ]


class Stripes:
    """A dataset of one's own."""

    class Options(il.DataConfig):
        width: int = 2

    @staticmethod
    def load(options: il.DataConfig, context: LoadContext) -> il.Dataset:
        """Stripes across and along."""
        images = np.zeros((24, 16, 16, 1), np.uint8)
        images[::2, ::4], images[1::2, :, ::4] = 255, 255
        images += np.random.default_rng(0).integers(0, 40, images.shape, dtype=np.uint8)
        labels = np.arange(24) % 2
        return from_arrays("stripes", (images, labels), (images[:8], labels[:8]), ["across", "along"])


def test_a_dataset_and_a_network_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_registry.DATASETS, "_parts", dict(dataset_registry.DATASETS._parts))
    monkeypatch.setattr(NETWORKS, "_parts", dict(NETWORKS._parts))

    class Flat(il.Network):
        """The pixels themselves."""

        classifier = "fc"

        def __init__(self, options: il.NetworkOptions, shape: Any, fusion: Any) -> None:
            super().__init__()
            self.fusion, self.embedding_size = fusion, shape.channels * shape.side**2
            self.fc = torch.nn.Linear(self.embedding_size, shape.classes)

        def embed(self, x: torch.Tensor) -> torch.Tensor:
            return self.fusion(x.flatten(1))

        def classify(self, embedding: torch.Tensor) -> torch.Tensor:
            return self.fc(embedding)

    assert il.register_dataset("stripes", Stripes) is Stripes
    assert il.register_network("flat", Flat) is Flat
    given = {"model.name": "flat", "data.width": 3, "train.steps": 3, "train.batch": 2, "train.mu": 2}
    result = il.train(dataset="stripes", labels=4, device="cpu", set=given, run_dir="run", quiet=True)
    assert result.scores["test"]["raw"].n == 8
    assert il.evaluate("run", quiet=True).scores == result.scores
    with pytest.raises(ConfigError, match=r"unknown key 'data\.widht'; did you mean 'width'"):
        il.load_config(dataset="stripes", set={"data.widht": 1})
    with pytest.raises(ConfigError, match="a network named 'wideresnet' is registered already"):
        il.register_network("wideresnet", Flat)
    with pytest.raises(ConfigError, match="wants `Options`"):
        il.register_dataset("nothing", object())


def test_what_does_not_fit_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    small(run_dir="run")
    model = il.load_model("run", device="cpu")
    grey = np.zeros((24, 24), np.uint8)
    for call, message in (
        (lambda: il.evaluate("run", network="emaa"), "unknown network of a run 'emaa'"),
        (lambda: il.evaluate("run", fgsm=[-3]), "whole numbers from 1 to 255"),
        (lambda: il.load_model("run", device="gpu"), "device 'gpu' is none of auto"),
        (lambda: model.predict(grey), "images are uint8 24x24"),
        (lambda: model.predict(np.zeros((2, 8, 8, 3))), "images are float64"),
        (lambda: model.predict([grey]), "stack several arrays"),
        (lambda: model.embed("nowhere"), "nowhere does not exist"),
        (lambda: il.load_config(set={5: 3}), "a setting has a name"),
        (lambda: il.load_config(steps=True), "true is no number"),
        (lambda: il.load_config(budget=True), "true is no number"),
        (lambda: il.sweep({"method.alpha": 0.1}, out="o"), "method.alpha wants a list of values, got 0.1"),
        (lambda: il.sweep({"method.name": "fixmatch"}, out="o"), "wants a list of values"),
        (lambda: il.sweep(each=True), "give a grid"),
        (lambda: il.sweep({"alpha": [0]}, out="o", resume=True), "resume is for seeds alone"),
        (lambda: il.compare("fixmatch"), "methods wants a list of values"),
        (lambda: il.compare(["fixmatch"], method="vat"), "no method beside them"),
        (lambda: il.register_method("x", object()), "wants a subclass of Method"),
        (lambda: il.register_network("x", object()), "wants a subclass of Network"),
        (lambda: il.train(method="fully_supervised", labels=30), r"data\.labels = 30 means nothing"),
    ):
        with pytest.raises(InterludeError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert il.load_config(set="method.tau=0.8").method.options.tau == 0.8


def test_a_package_that_does_not_load_is_no_concern_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "nowhere:Nothing", "interlude_fast.datasets")
    monkeypatch.setattr(
        registry, "entry_points", lambda group, name=None: [broken] if group == broken.group else []
    )
    old = {"data": {"dataset": "digits", "labels": 40, "extra": False, "size": None, "fit": "crop"}}
    assert from_dict(old).data.labels == 40


def test_a_run_without_held_out_images_has_no_error(tmp_path: Path) -> None:
    result = il.Result(tmp_path, {})
    assert "no test or validation images" in result._repr_html_()
    with pytest.raises(DataError, match="has no test or validation images"):
        _ = result.error
