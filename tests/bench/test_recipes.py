"""The recipes are InterLUDE: its rows, its loss, its network; and they train."""

from __future__ import annotations

import ast
import json
import multiprocessing
from pathlib import Path
from statistics import mean
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")

import interlude_fast.reference as plain
from bench.recipes import reference, strong
from bench.step import agree
from bench.workload import noise_run
from interlude_fast.benchmark.baseline import settings
from interlude_fast.data.batch import RowOrder
from interlude_fast.training.setup import load_data
from tests.helpers import small_config
from tests.methods.golden import FOLDER, pick

RECIPES = pytest.mark.parametrize("module", [reference, strong], ids=["reference", "strong"])
CLASSES, BATCH, MU = 10, 4, 3
pytestmark = pytest.mark.usefixtures("one_thread")


def build(module: ModuleType, **more: Any) -> Any:
    """A recipe on 40 images, one grey value each, which says the class; the first 20 are labeled."""
    labels = np.arange(40) % CLASSES
    images = np.broadcast_to((20 * labels + 10).astype(np.uint8)[:, None, None, None], (40, 8, 8, 3)).copy()
    more = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "workers": 0, **more}
    if module is strong:  # in the format of the figures that it is compared with, also where bf16 is faster
        more = {"bf16": False, **more}
        more.pop("workers")
    network = {"depth": 10, "width": 1}
    sizes = {"classes": CLASSES, "batch": BATCH, "mu": MU, "network": network}
    return module.build(images, labels, np.arange(20), np.arange(20, 40), **{**sizes, **more})


@RECIPES
def test_the_loss_and_its_gradient_are_those_of_the_paper(module: ModuleType) -> None:
    recipe = build(module, tau=0.6, lambda_u=0.7, lambda_dc=3.0)
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2 * BATCH * (1 + MU), CLASSES, generator=generator)).requires_grad_()
    labels = torch.randint(0, CLASSES, (BATCH,), generator=generator)
    total, *_, rate, _ = plain.interlude_loss(logits, labels, MU, tau=0.6, lambda_u=0.7, lambda_dc=3.0)
    assert 0 < rate < 1
    loss = recipe.loss(logits, labels)
    torch.testing.assert_close(loss, total)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (loss, total)))


@RECIPES
def test_steps_are_those_recorded_of_the_released_code(module: ModuleType) -> None:
    """Losses, weights, averages, running statistics, also those that nobody reads; in float64 where it can."""
    with np.load(FOLDER / "interlude_step_mean.npz") as file:
        meta = json.loads(str(file["meta"]))
        values = {key: torch.from_numpy(np.asarray(file[key])) for key in file if key != "meta"}
    how = {
        name: meta[name] for name in ("batch", "mu", "lr", "momentum", "weight_decay", "ema_decay", "tau", "alpha")
    }
    network = {"depth": meta["depth"], "width": meta["width"], "momentum": meta["bn_momentum"]}
    recipe = build(module, **how, classes=meta["num_classes"], network=network, steps=meta["total_steps"])
    exact = module is reference
    if exact:
        recipe.model.double()
    start = pick(values, "init/")
    recipe.model.load_state_dict(recipe.model.state_dict() | start)
    for name, value in start.items():
        recipe.ema[name] = recipe.ema[name].to(torch.float64 if exact else torch.float32)
        recipe.ema[name].copy_(value)
    if not exact:
        recipe.averaged = [recipe.ema[n] for n, _ in recipe.model.named_parameters()], recipe.averaged[1]
    for k in range(meta["steps"]):
        step = pick(values, f"step{k}/")
        names = ("labeled_weak", "labeled_strong", "unlabeled_weak", "unlabeled_strong")
        lw, ls, uw, us = (step[name] for name in names)
        rows = torch.stack([torch.cat([x[:, None], y], 1) for x, y in ((lw, uw), (ls, us))], 1).flatten(0, 2)
        batch = (lw, ls, uw, us, step["labels"]) if exact else (rows.float(), step["labels"])
        loss = recipe.loss(recipe.forward(batch), step["labels"])
        recipe.backward(loss)
        recipe.update()
        tolerance = {"rtol": 1e-9, "atol": 1e-10} if exact else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(loss.detach().double(), step["loss_total"], **tolerance)
    unread = {f"block{s}.layer.0.bn1.running_{kind}" for s in (2, 3) for kind in ("mean", "var")}
    for found, prefix in ((recipe.model.state_dict(), "final/"), (recipe.ema, "ema/")):
        for name, expected in pick(values, prefix).items():
            if expected.is_floating_point() and (exact or name not in unread):
                torch.testing.assert_close(found[name].double(), expected, **tolerance, msg=f"{prefix}{name}")


@RECIPES
def test_rows_are_interdigitated_and_weak_views_show_their_class(module: ModuleType) -> None:
    recipe, seen = build(module), []
    if module is reference:
        recipe.model = lambda images, alpha: seen.append(images) or images
        recipe.forward(batch := recipe.batch())
        images, labels = seen[0], batch[-1]
    else:
        images, labels = recipe.batch()
    slot, view = RowOrder(BATCH, MU, ("weak", "strong"), ("weak", "strong"), "interdigitated").rows
    assert images.shape == (len(slot), 3, 8, 8)
    weak = images[(view == 0) & (slot < BATCH)]
    torch.testing.assert_close(weak, (20.0 * labels + 10)[:, None, None, None].expand_as(weak))
    beside = images[(view == 0) & (slot >= BATCH)]
    torch.testing.assert_close(beside, beside[:, :1, :1, :1].expand_as(beside))
    grey = (images[view == 1] - 127).abs() < 1e-3
    assert grey.flatten(1).any(1).all()  # every strong view has its square
    assert torch.unique(labels).numel() > 1


def test_the_networks_are_ours() -> None:
    run = noise_run("WRN-10-1", torch.device("cpu"), images=200, train={"batch": 2, "precision": "fp32"})
    asked = settings(run.config, run.dataset, run.split, "cpu")
    for recipe in (reference.build(**asked, workers=0), strong.build(**asked)):
        agree(run, recipe)
    recipe.model.conv1.weight.data.mul_(1.1)
    run.state.model.conv1.weight.data.mul_(1.2)
    recipe.model.load_state_dict = lambda weights: None
    with pytest.raises(AssertionError):
        agree(run, recipe)


@RECIPES
def test_a_recipe_trains_on_the_digits_and_leaves_no_worker(module: ModuleType) -> None:
    others = set(multiprocessing.active_children())  # another test's
    config = small_config(data={"labels": 20}, train={"batch": 5, "mu": 2})
    workers = {"workers": 1} if module is reference else {}
    recipe = module.build(**settings(config, *load_data(config), "cpu"), **workers, lr=0.1)
    try:
        before = {name: value.clone() for name, value in recipe.ema.items()}
        losses = [float(recipe.step().detach()) for _ in range(60)]
        assert mean(losses[-15:]) < 0.8 * mean(losses[:15])
        assert all(not torch.equal(recipe.ema[name], before[name]) for name in ("fc.weight", "bn1.running_mean"))
        assert set(multiprocessing.active_children()) - others or module is strong
    finally:
        recipe.close()
    assert not set(multiprocessing.active_children()) - others


def test_recipes_import_nothing_of_ours() -> None:
    for path in Path(reference.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] in ("interlude_fast", "bench") for name in names), path
