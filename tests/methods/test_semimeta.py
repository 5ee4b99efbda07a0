"""SemiMeta beside the released code's numbers and beside double backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interlude_fast.methods import semimeta
from interlude_fast.methods.parts import eval_mode
from interlude_fast.methods.semimeta import consistency, label_gradient, mix, step_labels
from interlude_fast.training.setup import prepare
from interlude_fast.training.step import compute_gradients
from tests.helpers import small_config

from .golden import close, exact_method, golden, make_batch, pick
from .recorded_mlp import assert_gradients, recorded_mlp


@pytest.fixture(scope="module")
def g() -> dict[str, Any]:
    return golden("semimeta")


def gradient_of(g: dict[str, Any], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return label_gradient(recorded_mlp(g), g["x_lb"], g["y_lb"], g["x_ulb"], **options)


def test_the_gradient_of_the_labels_is_the_recorded_one(g: dict[str, Any]) -> None:
    p, exact = gradient_of(g)
    close(p, g["probs"])
    close(exact, g["exact_2Jg"])
    close(gradient_of(g, inner="kl")[1], g["exact_Jlogp_g"])
    close(gradient_of(g, reference=True)[1], g["fd_grad"])
    between = gradient_of(g, inner="kl", reference=True)[1]
    torch.testing.assert_close(between, g["exact_Jlogp_g"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", ["mix_lr0.1", "nomix_lr0.1", "mix_lr3"])
def test_steps_of_the_released_code(g: dict[str, Any], case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, strength = recorded_mlp(g), g["mix_lambda"].flatten()
    of_case = pick(g, f"{case}_")
    p, exact = gradient_of(g)
    got = step_labels(p, exact, of_case["lr"], project=True)
    close(got, of_case["pseudo_exact_jvp"])
    p, between = gradient_of(g, reference=True)
    close(step_labels(p, between, of_case["lr"], False), of_case["pseudo_raw"])
    y = step_labels(p, between, of_case["lr"], True)
    close(y, of_case["pseudo"])
    mixup = case.startswith("mix")
    if mixup:
        close(mix(g["x_lb"], g["x_ulb"], strength), of_case["interp_img"])
        close(mix(F.one_hot(g["y_lb"], 10).double(), y, strength), of_case["interp_target"])
    monkeypatch.setattr(semimeta, "mixup_strength", lambda *_, **__: strength)
    options = {"reference": True, "mixup": mixup, "ramp": 0}
    method = exact_method("semimeta", options, learning_rate=lambda step: of_case["lr"].item())
    losses = method(net, make_batch(method, g["y_lb"], torch.cat([g["x_lb"], g["x_ulb"]])), net)
    close(losses.metrics["loss_labeled"], of_case["interp_loss" if mixup else "label_loss"])
    close(losses.metrics["loss_unlabeled"], of_case["unlabel_loss"])
    close(losses.total, of_case["total_loss"])
    assert_gradients(losses.total, net, of_case, "grad_")


def phi(p: Tensor, v: Tensor, inner: str) -> Tensor:
    """The paper's loss of predictions p against labels v, a mean over rows: squares, or KL(v || p)."""
    per_class = (p - v) ** 2 if inner == "mse" else torch.where(v > 0, v * (v.clamp(min=1e-300) / p).log(), 0)
    return per_class.sum() / len(p)


def meta_gradient(net: nn.Module, labeled: Tensor, labels: Tensor, images: Tensor, inner: str) -> Tensor:
    """n / alpha times the labeled loss's gradient with respect to pseudo labels that equal the predictions: double
    backward through one step of length alpha, as the paper defines it."""
    weights, alpha = dict(net.named_parameters()), 0.3
    y = net(images).softmax(-1).detach().requires_grad_()
    loss = phi(net(images).softmax(-1), y, inner)
    step = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
    moved = {n: w - alpha * d for (n, w), d in zip(weights.items(), step, strict=True)}
    outer = F.cross_entropy(torch.func.functional_call(net, moved, (labeled,)), labels)
    return torch.autograd.grad(outer, y)[0] * len(y) / alpha


@pytest.mark.parametrize("inner", ["mse", "kl"])
def test_a_step_with_two_unlabeled_images_beside_each_labeled_one(
    g: dict[str, Any], inner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the equations, with a batch norm that tells eval mode from train mode."""
    net = recorded_mlp(g).insert(2, nn.BatchNorm1d(len(g["b1"])).double())
    labels, x, u, strength = g["y_lb"][:4], g["x_lb"][:4], g["x_ulb"], g["mix_lambda"].flatten()
    monkeypatch.setattr(semimeta, "mixup_strength", lambda *_, **__: strength)
    method = exact_method("semimeta", {"inner": inner, "meta_step": 3, "lambda_u": 2, "ramp": 40})
    losses = method(net.train(), make_batch(method, labels, torch.cat([x, u]), step=10), net)
    got = torch.autograd.grad(losses.total, list(net.parameters()))

    net[2].reset_running_stats()
    net.eval()
    raw = net(u).softmax(-1).detach() - 3 * meta_gradient(net, x, labels, u, inner)
    assert (raw < 0).any()
    y = raw.clamp(min=0) / raw.clamp(min=0).sum(1, keepdim=True)
    net.train()
    pairs = [(s, j // 2, j) for j, s in enumerate(strength)]
    mixed = torch.stack([s * x[i] + (1 - s) * u[j] for s, i, j in pairs])
    target = torch.stack([s * torch.eye(10).double()[labels[i]] + (1 - s) * y[j] for s, i, j in pairs])
    expected = phi(net(mixed).softmax(-1), target, "kl") + 2 * 10 / 40 * phi(net(u).softmax(-1), y, inner)
    close(losses.total, expected)
    for gradient, of_parameter in zip(got, torch.autograd.grad(expected, list(net.parameters())), strict=True):
        close(gradient, of_parameter)


@pytest.mark.parametrize("inner", ["mse", "kl"])
def test_the_papers_first_algorithm(g: dict[str, Any], inner: Any) -> None:
    net, (p, gradient) = recorded_mlp(g), gradient_of(g, inner=inner)
    exact = gradient * g["alg1_alpha"] / len(p)
    close(exact, g[f"alg1_exact_grad_{inner}"])
    y = step_labels(p, exact, g[f"alg1_{inner}_beta"], project=False)
    close(y, g[f"alg1_{inner}_pseudo"])
    loss = consistency(net(g["x_ulb"]), y, inner)
    close(loss, g[f"alg1_{inner}_loss"])
    assert_gradients(loss, net, g, f"alg1_{inner}_grad_")


def test_unlabeled_images_are_mixed_with_the_labeled_one_beside_them() -> None:
    labeled, unlabeled = torch.tensor([[10.0], [20.0]]), torch.zeros(4, 1)
    mixed = mix(labeled, unlabeled, torch.tensor([1.0, 0.5, 1.0, 0.0]))
    assert mixed.flatten().tolist() == [10, 5, 20, 0]


def test_labels_without_a_positive_entry_become_zero() -> None:
    y = step_labels(torch.tensor([[0.5, 0.5]]), torch.tensor([[9.0, 9.0]]), 1.0, project=True)
    assert y.tolist() == [[0.0, 0.0]]


def run_of(**options: Any) -> Any:
    return prepare(small_config(method={"name": "semimeta", **options}))


@pytest.mark.parametrize("reference", [False, True])
def test_pseudo_labels_leave_modes_and_running_statistics_alone(reference: bool) -> None:
    run = run_of(reference=reference)
    net, x = run.state.model.train(), run.pipeline.batch(0)
    labeled, unlabeled = x.split(x.images)
    net.block1.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with eval_mode(net):
        p, gradient = label_gradient(net, labeled, x.labels, unlabeled, reference=reference)
        torch.testing.assert_close(p, net(unlabeled).softmax(-1))
    assert not p.requires_grad
    assert not gradient.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training
    assert not net.block1.training
    assert not any(m.training for m in net.block1.modules())
    assert net.block2.training


def test_the_gradient_through_a_real_network_is_the_meta_gradient() -> None:
    run = run_of()
    net, x = run.state.model.double().eval(), run.pipeline.batch(0)
    labeled, unlabeled = (v.double() for v in x.split(x.images))
    _, gradient = label_gradient(net, labeled, x.labels, unlabeled)
    close(gradient, meta_gradient(net, labeled, x.labels, unlabeled, "mse"))


def test_pseudo_labels_are_computed_in_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = semimeta.step_labels
    monkeypatch.setattr(semimeta, "step_labels", lambda *a: seen.append(real(*a)) or seen[-1])
    for precision in ("fp32", "bf16"):
        run = run_of()
        losses = compute_gradients(run.state, run.pipeline.batch(0), precision)
        assert losses.total.isfinite()
    assert seen[1].dtype == torch.float32
    assert torch.equal(*seen)


def test_the_ramp_is_a_number_of_steps_or_a_share_of_the_run() -> None:
    weights = []
    for length in (4, 0.5, 0):
        run = run_of(ramp=length)  # of 8 steps
        run.state.step = 2
        losses = compute_gradients(run.state, run.pipeline.batch(2))
        m = losses.metrics
        weights.append(((losses.total - m["loss_labeled"]) / m["loss_unlabeled"]).item())
    assert weights == pytest.approx([0.5, 0.5, 1], rel=1e-4)
