"""Scores of pseudo labels: by hand on a few rows, and in a run where the true classes are hidden or unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interlude_fast.experiment.run import train_run
from interlude_fast.experiment.run_directory import RunDirectory
from interlude_fast.metrics import pseudo_label_scores
from interlude_fast.training import run as training_run
from interlude_fast.training.setup import prepare
from tests.helpers import image_names, small_config, write_images


def test_by_hand() -> None:
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [1, 0, 0], [0, 0, 9.0]])  # the third is not confident
    found = pseudo_label_scores(logits, torch.tensor([0, 2, 0, 2]))
    assert found["pseudo_labels/accuracy"] == 0.75
    assert found["pseudo_labels/confident"] == 0.75
    assert found["pseudo_labels/confident_accuracy"] == pytest.approx(2 / 3)
    assert "pseudo_labels/confident_accuracy" not in pseudo_label_scores(torch.zeros(2, 3), torch.tensor([0, 1]))


def test_every_evaluation_of_a_run_has_them(tmp_path: Path) -> None:
    train_run(small_config(train={"steps": 4, "eval_every": 2}), tmp_path / "run")
    rows = [r for r in RunDirectory(tmp_path / "run").read_metrics() if "pseudo_labels/accuracy" in r]
    assert [r["step"] for r in rows] == [2, 4]
    assert all(0 <= r["pseudo_labels/accuracy"] <= 1 for r in rows)


def test_the_labeled_images_are_not_among_them() -> None:
    run = prepare(small_config())
    store = run.pipeline.sampler.store
    assert torch.isin(store.labeled, store.unlabeled).all()
    store.all_labels[store.labeled] = -1  # what was asked for labels is not looked at
    assert run.pseudo_labels()
    store.all_labels.fill_(-1)
    assert run.pseudo_labels() == {}


def test_the_sample_is_of_all_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepare(small_config())
    store = run.pipeline.sampler.store
    hidden = store.unlabeled[~torch.isin(store.unlabeled, store.labeled)]
    monkeypatch.setattr(training_run, "PSEUDO_LABELED", len(hidden) // 2 + 1)  # between every one and every second
    looked_at: list[torch.Tensor] = []
    real = type(store).batches

    def noted(store: object, items: torch.Tensor, size: int) -> object:
        looked_at.append(items)
        return real(store, items, size)

    monkeypatch.setattr(type(store), "batches", noted)
    run.pseudo_labels()
    assert len(looked_at[0].unique()) == len(hidden) // 2 + 1
    assert (hidden > looked_at[0].max()).sum() <= 2


def test_images_whose_class_nobody_knows_have_none(tmp_path: Path) -> None:
    write_images(tmp_path / "labeled", image_names("ab", 6))
    write_images(tmp_path / "unlabeled", [f"{i}.png" for i in range(9)])
    places = {"labeled": tmp_path / "labeled", "unlabeled": tmp_path / "unlabeled", "labels": None}
    run = prepare(small_config(data={"dataset": "folder", "cache": tmp_path / "cache", **places}))
    assert run.pseudo_labels() == {}
