"""SemiMeta beside the released code's numbers and beside double backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from interlude_fast.methods import semimeta
from interlude_fast.methods.parts import divergence, eval_mode
from interlude_fast.methods.semimeta import consistency, label_gradient, mix, step_labels
from interlude_fast.train.loop import prepare
from interlude_fast.train.step import compute_gradients
from tests.helpers import small_config

from .golden import close, golden, pick
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
def test_steps_of_the_released_code(g: dict[str, Any], case: str) -> None:
    net = recorded_mlp(g)
    of_case = pick(g, f"{case}_")
    p, exact = gradient_of(g)
    got = step_labels(p, exact, of_case["lr"], project=True)
    close(got, of_case["pseudo_exact_jvp"])
    p, between = gradient_of(g, reference=True)
    close(step_labels(p, between, of_case["lr"], False), of_case["pseudo_raw"])
    y = step_labels(p, between, of_case["lr"], True)
    close(y, of_case["pseudo"])
    on_pseudo = consistency(net(g["x_ulb"]), y, "mse")
    if case.startswith("mix"):
        strength = g["mix_lambda"].flatten()
        mixed = mix(g["x_lb"], g["x_ulb"], strength)
        target = mix(F.one_hot(g["y_lb"], 10).double(), y, strength)
        close(mixed, of_case["interp_img"])
        close(target, of_case["interp_target"])
        total = divergence(net(mixed), target).mean() + on_pseudo
    else:
        total = F.cross_entropy(net(g["x_lb"]), g["y_lb"]) + on_pseudo
    close(on_pseudo, of_case["unlabel_loss"])
    close(total, of_case["total_loss"])
    assert_gradients(total, net, of_case, "grad_")


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
    """Double backward through one step of the network, as the paper defines it."""
    run = run_of()
    net, x = run.state.model.double().eval(), run.pipeline.batch(0)
    labeled, unlabeled = (v.double() for v in x.split(x.images))
    p, gradient = label_gradient(net, labeled, x.labels, unlabeled)
    y = p.clone().requires_grad_()
    weights, alpha = dict(net.named_parameters()), 0.3
    inner = (net(unlabeled).softmax(-1) - y).square().sum(-1).mean()
    step = torch.autograd.grad(inner, list(weights.values()), create_graph=True, materialize_grads=True)
    moved = {n: w - alpha * d for (n, w), d in zip(weights.items(), step, strict=True)}
    outer = F.cross_entropy(torch.func.functional_call(net, moved, (labeled,)), x.labels)
    expected = torch.autograd.grad(outer, y)[0]
    close(gradient * alpha / len(p), expected)


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
