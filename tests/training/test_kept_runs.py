"""Runs on kept views: every method, exact resume, whole networks in files, the probe, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import interlude_fast as il
from interlude_fast.config import load
from interlude_fast.errors import ConfigError, DataError
from interlude_fast.methods import METHODS
from interlude_fast.metrics import predict_logits
from interlude_fast.models.weights import load_tensors
from interlude_fast.training.checkpoint import save_tensors
from interlude_fast.training.setup import prepare
from interlude_fast.training.step import train_step

pytestmark = pytest.mark.usefixtures("one_thread")
DIGITS = {
    "data": {
        "dataset": "digits",
        "labels": 20,
        "pipeline": "kept",
        "kept": {"weak": 2, "strong": 3, "precision": "fp32"},
    },
    "model": {"name": "wideresnet", "depth": 10, "width": 1, "cut": "block3", "norm": "frozen"},
    "train": {"batch": 4, "mu": 2, "steps": 6, "eval_every": 3, "checkpoint_every": 3, "log_every": 3},
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One for all tests of this file: their networks start alike, and so do their views."""
    folder = tmp_path_factory.getbasetemp() / "kept-cache"
    monkeypatch.setenv("INTERLUDE_FAST_CACHE", str(folder))
    return folder


def settings(method: str = "fixmatch", **more: Any) -> list[dict[str, Any]]:
    return [DIGITS, {"method": {"name": method}}, more]


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"probe"}))
@pytest.mark.parametrize("label_strong", [False, True])
def test_every_method_trains_on_them(method: str, label_strong: bool) -> None:
    more = {"train": {"steps": 20}, "augment": {"label_strong": label_strong}}
    run = prepare(load(None, settings(method, **more), unread={}))
    before = {n: p.detach().clone() for n, p in run.state.model.named_parameters()}
    for step in range(2):
        losses = train_step(run.state, run.pipeline.batch(step))
    assert bool(losses.total.isfinite())
    trunk = run.state.model.trunk
    moved = {n for n, p in run.state.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert not [n for n in moved if trunk.cut.holds(n.removeprefix("backbone."))]
    scores = run.evaluate()
    assert set(scores["test"]) == {"raw", "ema"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_images_and_kept_plain_views_give_the_same_logits(precision: str) -> None:
    run = prepare(load(None, settings(data={"kept": {"precision": precision}})))
    for step in range(3):
        train_step(run.state, run.pipeline.batch(step))
    images, model = run.eval_sets["test"], run.state.model
    kept = predict_logits(model, images.inputs(64, run.normalize))
    model.kept = False
    whole = predict_logits(model, map(run.normalize, images.batches(64)))
    torch.testing.assert_close(kept, whole, rtol=1e-4, atol=1e-4)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = il.train(set=_flat(*settings()), run_dir=tmp_path / "whole", quiet=True)
    il.train(set=_flat(*settings()), run_dir=tmp_path / "cut", quiet=True)
    checkpoint = tmp_path / "cut" / "checkpoints" / "last"
    assert checkpoint.exists()
    # Once more from step 3: the run below stops there.
    _stop_at_three(tmp_path / "again")
    resumed = il.train(run_dir=tmp_path / "again", resume=True, quiet=True)
    assert resumed.scores == whole.scores
    for name in ("raw", "ema"):
        ours, theirs = (
            load_tensors(d / "weights" / f"{name}.safetensors")[0]
            for d in (tmp_path / "again", tmp_path / "whole")
        )
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def _flat(*nested: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for values in nested:
        for key, value in _walk(values, ""):
            flat[key] = value
    return flat


def _walk(values: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found = []
    for key, value in values.items():
        found += _walk(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


def _stop_at_three(folder: Path) -> None:
    from interlude_fast.training import loop

    real, saves = loop.save_checkpoint, []

    def stops(*args: Any) -> None:
        real(*args)
        saves.append(args)
        if len(saves) == 2:  # that of step 0, and that of step 3
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", stops)
        with pytest.raises(KeyboardInterrupt):
            il.train(set=_flat(*settings()), run_dir=folder, quiet=True)


def test_files_hold_the_whole_network_under_plain_names(tmp_path: Path) -> None:
    folded = settings("fixmatch", model={"norm": "folded"})
    il.train(set=_flat(*folded), run_dir=tmp_path / "run", quiet=True)
    plain = prepare(
        load(None, [{"data": {"labels": 20}, "model": {"name": "wideresnet", "depth": 10, "width": 1}}])
    )
    written, _ = load_tensors(tmp_path / "run" / "weights" / "ema.safetensors")
    assert set(written) == set(plain.state.model.state_dict())
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    again = il.evaluate(tmp_path / "run", quiet=True).scores["test"]["ema"]
    assert again.error == pytest.approx(result["scores"]["test"]["ema"]["error"], abs=1e-6)


def test_rows_without_a_counting_label_are_left_out_of_the_pass_alone() -> None:
    """The losses and gradients are those of all rows."""
    sparse, dense = (prepare(load(None, settings())) for _ in range(2))
    batch = sparse.pipeline.batch(0)
    _, weak, _ = batch.split(sparse.state.model.train()(batch.images))
    for run in (sparse, dense):
        run.state.method.options.tau = weak.softmax(1).amax(1).median().item()
    passed: list[int] = []
    handle = sparse.state.model.fc.register_forward_hook(lambda m, given, out: passed.append(len(given[0])))
    ours = sparse.state.method(sparse.state.model.train(), batch, sparse.state.ema.model)
    handle.remove()
    logits = dense.state.model.train()(batch.images)
    theirs = dense.state.method.loss(logits, batch)
    torch.testing.assert_close(ours.total, theirs.total)
    for run, losses in ((sparse, ours), (dense, theirs)):
        losses.total.backward()
        assert run.state.model.fc.weight.grad is not None
    torch.testing.assert_close(sparse.state.model.fc.weight.grad, dense.state.model.fc.weight.grad)
    counting = int((theirs.metrics["mask_rate"] * 8).round())
    assert passed == [8, 4 + counting]
    assert 0 < counting < 8


@pytest.mark.parametrize("method", ["fixmatch", "flexmatch", "freematch", "uda"])
def test_counts_tells_before_what_the_loss_lets_in(method: str) -> None:
    run = prepare(load(None, settings(method)))
    batch, state = run.pipeline.batch(0), run.state
    logits = state.model.train()(batch.images) * 5
    _, weak, _ = batch.split(logits)
    before = {n: b.clone() for n, b in state.method.named_buffers()}
    counts = state.method.counts(weak)
    assert all(torch.equal(b, before[n]) for n, b in state.method.named_buffers())
    assert counts.float().mean() == pytest.approx(state.method.loss(logits, batch).metrics["mask_rate"].item())


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Weights of a network that has learned digits."""
    run = prepare(load(None, [{"model": {"depth": 10, "width": 1}, "train": {"batch": 8, "mu": 1, "steps": 100}}]))
    for step in range(30):
        train_step(run.state, run.pipeline.batch(step))
    save_tensors(tmp_path / "features.safetensors", dict(run.state.model.state_dict()), {})
    return tmp_path / "features.safetensors"


def probe_settings(features: Path) -> dict[str, Any]:
    own = {"name": "wideresnet", "depth": 10, "width": 1, "first_stride": 2, "weights": str(features)}
    return _flat({"model": own, "data": {"kept": {"weak": 2}}})


def test_a_probe_is_a_run_as_any_other(tmp_path: Path, features: Path) -> None:
    result = il.probe(labels=40, set=probe_settings(features), run_dir=tmp_path / "probe", quiet=True)
    scores = result.scores["test"]
    assert scores["ema"].error == scores["raw"].error == scores["probe"].error < 0.5
    assert scores["probe"].intervals is not None
    assert 0 < scores["knn"].error < 0.7
    assert il.evaluate(tmp_path / "probe", quiet=True).scores["test"]["ema"].error == pytest.approx(
        scores["ema"].error, abs=0.01
    )
    images = np.zeros((2, 8, 8, 1), np.uint8)
    assert il.predict(tmp_path / "probe", images, quiet=True).probabilities.shape == (2, 10)
    again = il.train(run_dir=tmp_path / "probe", resume=True, quiet=True)
    assert again.scores["test"]["probe"] == scores["probe"]


def test_a_run_that_begins_with_the_probe_tells_what_it_was_worth(tmp_path: Path, features: Path) -> None:
    given = {**_flat(*settings()), "model.weights": str(features), "model.head": "probe", "optim.lr": 1e-8}
    result = il.train(set=given, run_dir=tmp_path / "run", quiet=True)
    assert result.scores["test"]["raw"].error == pytest.approx(result.scores["test"]["probe"].error, abs=0.02)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"data.pipeline": "kept"}, "wants a frozen front: set model.cut"),
        ({"method.name": "probe", "model.name": "wideresnet"}, "starts from random ones"),
        ({"method.name": "probe", "model.cut": "auto"}, "set model.cut=classifier and model.head=probe"),
        (
            {"method.name": "probe", "train.steps": 7},
            "train.steps = 7 means nothing to probe, which takes no steps",
        ),
        ({"model.head": "probe"}, "starts from random ones"),
        ({"model.cut": "block7"}, "cannot be cut before 'block7'"),
        ({"model.cut": 9}, "leaves nothing to train"),
        ({"model.cut": -1}, "model.cut"),
    ],
)
def test_bad_settings(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        il.train(set=asked, quiet=True)


def folder(root: Path, *classes: tuple[str, int]) -> Path:
    random = np.random.default_rng(0)
    for name, count in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return root


def test_one_label_in_a_class_is_enough(tmp_path: Path, features: Path) -> None:
    given = {**probe_settings(features), "data.size": 16, "data.channels": 1, "data.split.test": 0.2}
    place = folder(tmp_path / "photos", ("a", 6), ("b", 6))
    result = il.probe(place, labels=2, set=given, run_dir=tmp_path / "run", quiet=True)
    assert "probe" in result.scores["test"]


@pytest.mark.parametrize(
    ("classes", "message"),
    [((("a", 5),), "1 class folders, at least 2 wanted"), ((), "0 class folders, at least 2 wanted")],
)
def test_too_few_classes(tmp_path: Path, classes: tuple, message: str) -> None:
    place = folder(tmp_path / "photos", *classes)
    place.mkdir(exist_ok=True)
    with pytest.raises(DataError, match=message):
        il.train(place, quiet=True)


def test_images_without_any_label(tmp_path: Path) -> None:
    place = folder(tmp_path, ("photos", 5)) / "photos"
    with pytest.raises(DataError, match=r"no image in .*photos has a label: .*interlude-fast embed"):
        il.train(place, quiet=True)
