"""Mixup-LR beside the released code's numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interlude_fast.methods import TaskInfo, build_method, mixmatch
from interlude_fast.methods.mixmatch import target_losses
from interlude_fast.methods.mixup_lr import MixupLR, lipschitz_penalty, perturbation
from interlude_fast.methods.parts import direction, divergence, ramp, unit
from interlude_fast.options import OptimConfig
from interlude_fast.training.setup import prepare
from interlude_fast.training.state import TrainState
from interlude_fast.training.step import compute_gradients, update
from tests.helpers import small_config

from .golden import close, exact_method, golden, make_batch, pick
from .recorded_mlp import NAMES, assert_gradients, recorded_mlp


@pytest.fixture(scope="module")
def g() -> dict[str, Any]:
    return golden("mixup_lr_alr")


@pytest.mark.parametrize("run", ["refhp", "K0", "K05"])
def test_the_penalty_is_the_recorded_one(g: dict[str, Any], run: str) -> None:
    net, x = recorded_mlp(g), g["x"]
    v = pick(g, f"{run}_")
    logits = net(x).detach()
    ends = (torch.tensor(-1.0).double(), torch.tensor(1.0).double())
    d = direction(net, x, logits, v["d_init"].clone(), v["xi"], v["ip"], ends)
    r = perturbation(d, v["eps"], v["fallback"], v["eps_min"], v["eps_max"])
    close(r, v["r_adv"])
    close(x + r, v["x_hat"])
    moved = net(x + r)
    close(logits, v["logits"])
    close(moved, v["logits_hat"])
    close(divergence(moved, logits.softmax(-1))[:, None], v["y_diff"])
    penalty = lipschitz_penalty(logits, moved, r, v["K"])
    close(penalty, v["alp_l1"])
    close((2 * penalty), v["loss"])
    assert_gradients(2 * penalty, net, v, "grad_")


def test_rows_without_a_direction_get_a_random_one() -> None:
    d = torch.zeros(3, 1, 2, 2)
    d[1], d[2, 0, 0, 0] = torch.nan, 1
    fallback = torch.rand_like(d)
    r = perturbation(d, torch.full((3, 1, 1, 1), 0.5), fallback, 0.5, 0.5)
    torch.testing.assert_close(r[:2], unit(fallback)[:2])
    torch.testing.assert_close(r[2], d[2] / 2)


def test_the_mixup_loss_is_the_recorded_one(g: dict[str, Any]) -> None:
    lx, lu = (g[f"ssl_logits_{part}"].clone().requires_grad_() for part in "xu")
    targets = torch.cat([g["ssl_targets_x"], g["ssl_targets_u"]])
    on_labels, on_guesses = target_losses(torch.cat([lx, lu]), targets, len(lx))
    close(on_labels, g["ssl_Lx"])
    close(on_guesses, g["ssl_Lu"])
    weight = g["ssl_lambda_u"] * ramp(g["ssl_epoch"], g["ssl_epochs"].item())
    close(weight, g["ssl_w"])
    total = on_labels + weight * on_guesses
    close(total, g["ssl_loss"])
    for got, part in zip(torch.autograd.grad(total, (lx, lu)), "xu", strict=True):
        close(got, g[f"ssl_grad_logits_{part}"])


def test_the_average_takes_the_parameters_before_they_shrink(g: dict[str, Any]) -> None:
    net = nn.Linear(12, 9, bias=False).double()
    optim = OptimConfig(name="adam", lr=0.002, shrink=0.02, schedule="constant", ema_decay=g["ema_alpha"])
    assert optim.lr * optim.shrink == pytest.approx(g["ema_wd"])
    state = TrainState(net, build_method("supervised", {}, TaskInfo(10)), optim, 10)
    with torch.no_grad():
        net.weight.copy_(g["ema_model_W1_before"])
        state.ema.model.weight.copy_(g["ema_shadow_W1_before"])
    update(state)  # without gradients the optimizer does nothing
    close(net.weight.detach(), g["ema_model_W1_after"])
    close(state.ema.model.weight, g["ema_shadow_W1_after"])


def fix_draws(monkeypatch: pytest.MonkeyPatch, start: Tensor, share: Tensor, fallback: Tensor) -> None:
    """Mixup of 0.3 with the rows in reverse; start and fallback as directions, and lengths [N], by share 0 at
    eps_min, by share 1 at eps_max."""
    noise = iter((start + 0.5, fallback + 0.5))
    monkeypatch.setattr(mixmatch, "mixup_strength", lambda *_, **__: torch.tensor(0.3, dtype=torch.float64))
    monkeypatch.setattr(mixmatch, "random_permutation", lambda n, _: torch.arange(n).flip(0))
    monkeypatch.setattr(torch, "rand_like", lambda _: next(noise))
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda x, low, high: x.copy_(low + (high - low) * share))


def mixmatch_loss(net: nn.Module, labels: Tensor, x: Tensor, weight: float) -> Tensor:
    """MixMatch's loss from its equations, at those draws. x: labeled rows, then both views."""
    b, n = len(labels), (len(x) - len(labels)) // 2
    with torch.no_grad():
        p = (net(x[b : b + n]).softmax(1) + net(x[b + n :]).softmax(1)) / 2
    guess = p**2 / (p**2).sum(1, keepdim=True)
    y = torch.cat([torch.eye(10).double()[labels], guess, guess])
    mixed, target = (0.7 * rows + 0.3 * rows.flip(0) for rows in (x, y))
    logits = torch.cat([net(rows) for rows in mixed.split(b)])
    on_labels = -(target[:b] * logits[:b].log_softmax(1)).sum() / b
    return on_labels + weight * ((logits[b:].softmax(1) - target[b:]) ** 2).sum() / (2 * n * 10)


def step_of(net: nn.Module, x: Tensor, mu: int, options: dict[str, Any], **problem: Any) -> tuple[Tensor, Tensor]:
    """The total of step 120 of 1000 for unlabeled views x and a few labeled rows, and what MixMatch adds to it."""
    labels = torch.arange(len(x) // (2 * mu))
    images = torch.cat([x[: len(labels)].flip(-1) - 0.1, x])
    method = exact_method("mixup_lr", options, steps=1000, **problem)
    total = method(net, make_batch(method, labels, images, step=120), net).total
    return total, mixmatch_loss(net, labels, images, 75 * 0.12)


@pytest.mark.parametrize("mu", [1, 2])
@pytest.mark.parametrize("run", ["refhp", "K0", "K05"])
def test_steps_add_the_recorded_penalty(
    g: dict[str, Any], run: str, mu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, v = recorded_mlp(g), pick(g, f"{run}_")
    low, high = v["eps_min"].item(), v["eps_max"].item()
    fix_draws(monkeypatch, v["d_init"], (v["eps"].flatten() - low) / (high - low), v["fallback"])
    options = {"k": v["K"].item(), "eps_min": low, "eps_max": high, "reference": run == "refhp"}
    total, without = step_of(net, g["x"], mu, options, lowest=(-1.0,) * 3, highest=(1.0,) * 3)
    close(total, without + v["loss"])
    weights = list(net.parameters())
    both = (torch.autograd.grad(loss, weights) for loss in (total, without))
    for name, got, of_mixmatch in zip(NAMES, *both, strict=True):
        close(got, of_mixmatch + v[f"grad_{name}"])


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("iterations", [1, 3])
def test_a_step_with_other_options(
    g: dict[str, Any], iterations: int, clamp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the equations, for two unlabeled images beside each labeled one and a batch norm in train mode."""
    net, x = recorded_mlp(g).insert(2, nn.BatchNorm1d(len(g["b1"])).double()).train(), g["x"]
    start, share = g["K0_d_init"], torch.linspace(0.1, 0.9, len(x), dtype=torch.float64)
    fix_draws(monkeypatch, start, share, torch.full_like(x, torch.nan))
    lowest, highest = (-1.0, -0.75, -0.5), (1.0, 0.5, 0.25)
    options = {"lambda_lr": 0.7, "k": 1, "xi": 0.5, "eps_min": 0.2, "eps_max": 3, "interleave": False}
    options |= {"iterations": iterations, "clamp": clamp}
    total, expected = step_of(net, x, 2, options, lowest=lowest, highest=highest)

    def lengths(d: Tensor) -> Tensor:
        return d.square().sum((1, 2, 3), keepdim=True).sqrt()

    def divergences(moved: Tensor) -> Tensor:
        return (p * (p.log() - net(moved).log_softmax(1))).sum(1)

    p = net(x).softmax(1).detach()
    bounds = [torch.tensor(end, dtype=torch.float64)[:, None, None] for end in (lowest, highest)]
    d = start / lengths(start)
    for _ in range(iterations):
        d.requires_grad_()
        near = x + 0.5 * d
        near = torch.minimum(torch.maximum(near, bounds[0]), bounds[1]) if clamp else near
        d = torch.autograd.grad(divergences(near).mean(), d)[0]
        d = d / lengths(d)
    length = 0.2 + 2.8 * share
    over = divergences(x + length[:, None, None, None] * d) / length - 1
    assert 0 < (over > 0).sum() < len(over)
    expected = expected + 0.7 * over.clamp(min=0).mean()
    close(total, expected)
    both = (torch.autograd.grad(loss, list(net.parameters())) for loss in (total, expected))
    for got, of_equations in zip(*both, strict=True):
        close(got, of_equations)


def run_of(**options: Any) -> Any:
    return prepare(small_config(method={"name": "mixup_lr", **options}))


def test_the_penalty_leaves_running_statistics_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They end as after MixMatch's passes, whose draws come first."""
    after = []
    for penalty in (None, lambda self, model, x: x.new_zeros(())):
        run = run_of()
        if penalty:
            monkeypatch.setattr(MixupLR, "penalty", penalty)
        compute_gradients(run.state, run.pipeline.batch(0))
        after.append({k: v.clone() for k, v in run.state.model.named_buffers()})
    assert all(torch.equal(v, after[1][k]) for k, v in after[0].items())


@pytest.mark.parametrize("reference", [False, True])
def test_the_range_of_power_iteration(reference: bool) -> None:
    method = run_of(reference=reference).state.method
    x = run_of().pipeline.batch(0).images
    assert method.clamps
    inside = (x >= method.lowest - 1e-5) & (x <= method.highest + 1e-5)
    assert bool(inside.all()) != reference
    assert method.xi == (10 if reference else 0.1)
    assert not build_method("mixup_lr", {}, TaskInfo(10)).clamps


def test_perturbations_climb_faster_than_random_ones() -> None:
    run = run_of()
    net, batch = run.state.model.eval(), run.pipeline.batch(0)
    x = batch.images
    with torch.no_grad():
        logits = net(x)
    start = torch.rand_like(x) - 0.5
    d = direction(net, x, logits, start.clone(), 0.1, 2)
    torch.testing.assert_close(torch.linalg.vector_norm(d, dim=(1, 2, 3)), torch.ones(len(x)))
    p = logits.softmax(-1)
    climbed, random = (divergence(net(x + 0.5 * way), p).detach() for way in (d, unit(start)))
    assert (climbed > random).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_are_finite_also_under_autocast(precision: Any) -> None:
    run = run_of(clamp=False, k=0.1)
    losses = compute_gradients(run.state, run.pipeline.batch(0), precision)
    assert losses.total.isfinite()
    assert not any(m.requires_grad for m in losses.metrics.values())
