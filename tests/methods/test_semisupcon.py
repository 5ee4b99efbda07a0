"""SemiSupCon beside its authors' code's numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from interlude_fast.methods.semisupcon import SemiSupCon, contrastive_loss
from interlude_fast.report import evaluate_run, train_run
from interlude_fast.train.loop import prepare
from interlude_fast.train.step import compute_gradients
from tests.helpers import small_config

from .golden import close, exact_method, golden

G = golden("semisupcon")
PARTS = ("prototypes", "h_lb", "h_w", "h_s0", "h_s1")
WEIGHTS = {
    "A_unweighted": {"w_unconfident": 1},
    "B_unconf02": {},
    "C_semisupcon": {},
    "D_semisupcon_w": {"w_prototypes": 0.5, "w_confident": 0.8, "w_unconfident": 0.15},
    "E_proto0": {"w_prototypes": 0, "w_unconfident": 1},
    "S_softmatch_proto": {"variant": "softmatch", "momentum": G["S_momentum"].item()},
}


def replay(method: SemiSupCon) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Pseudo labels, trust and loss of the recorded embeddings, which are the leaves returned."""
    leaves = [G[name].clone().requires_grad_() for name in PARTS]
    centers, labeled, weak, *strong = (F.normalize(x, dim=-1) for x in leaves)
    target, trust = method.trust(weak @ centers.T, torch.arange(len(weak)))
    loss = method.contrast(centers, labeled, G["y_lb"], torch.cat(strong), target, trust)
    return target, trust, loss, leaves


@pytest.mark.parametrize("case", WEIGHTS)
def test_losses_and_gradients_are_the_recorded_ones(case: str) -> None:
    method = exact_method("semisupcon", WEIGHTS[case])
    if case.startswith("S"):
        method.weight.mean.fill_(G["S_init_mu"].item())
        method.weight.variance.fill_(G["S_init_var"].item())
    target, trust, loss, leaves = replay(method)
    close(target, G["pseudo_label"])
    close(trust, G["S_weight" if case.startswith("S") else "mask"])
    close(loss, G[f"{case}_loss"])
    for got, name in zip(torch.autograd.grad(loss, leaves, materialize_grads=True), PARTS, strict=True):
        close(got, G[f"{case}_grad_{name}"])
    if not case.startswith("S"):
        over_all = exact_method("semisupcon", {**WEIGHTS[case], "reduction": "all"})
        close(replay(over_all)[2], G[f"{case}_weighted_mean_over_all"])


def test_flexmatch_thresholds_rise_with_what_is_learned() -> None:
    method = exact_method("semisupcon", {"variant": "flexmatch"}, unlabeled=24)
    assert replay(method)[1].all()  # every threshold begins at 0
    first = method.threshold.learned.clone()
    assert first.max() > 0
    target, trust, _, _ = replay(method)
    confidence = G["probs_w"].amax(1)
    assert torch.equal(trust.bool(), confidence >= 0.95 * (first / (2 - first))[target])


def test_the_contrastive_loss_has_the_gradient_of_its_formula() -> None:
    torch.manual_seed(0)
    z = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    labels, weights = torch.tensor([0, 1, 1, 0, 2, 3, 1]), torch.rand(7, dtype=torch.float64)
    for reduction in ("nonzero", "all"):
        assert torch.autograd.gradcheck(
            lambda z, r=reduction: contrastive_loss(F.normalize(z, dim=1), labels, weights, 0.3, r), z
        )


def test_the_loss_is_stable_at_low_temperatures() -> None:
    z = F.normalize(torch.randn(6, 4), dim=1).requires_grad_()
    loss = contrastive_loss(z, torch.tensor([0, 0, 1, 1, 2, 2]), torch.ones(6), 1e-3)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


def run_of(**options: Any) -> Any:
    return prepare(small_config(method={"name": "semisupcon", **options}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["fixmatch", "flexmatch", "softmatch"])
def test_steps_train_head_and_prototypes(variant: str, precision: Any) -> None:
    run = run_of(variant=variant)
    losses = compute_gradients(run.state, run.pipeline.batch(0), precision)
    assert losses.total.dtype == torch.float32
    assert losses.total.isfinite()
    unread = {f"backbone.{s}.layer.0.bn1" for s in ("block2", "block3")}
    for name, p in run.state.model.named_parameters():
        assert (p.grad is None) == (name.rpartition(".")[0] in unread), name


def test_a_run_can_be_evaluated_afterwards(tmp_path) -> None:
    result = train_run(small_config(method={"name": "semisupcon"}), tmp_path / "run")
    assert evaluate_run(tmp_path / "run")["ema"] == result.scores["ema"]
