"""SemiSupCon beside its authors' code's numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interlude_fast.evaluation.evaluate import evaluate_run
from interlude_fast.experiment.run import train_run
from interlude_fast.methods.semisupcon import SemiSupCon, contrastive_loss
from interlude_fast.models.prototypes import PrototypeNetwork
from interlude_fast.training.setup import prepare
from interlude_fast.training.step import compute_gradients
from tests.helpers import small_config

from .golden import close, exact_method, golden, make_batch

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


class RecordedNetwork(PrototypeNetwork):
    """Images are embeddings before they are normalized."""

    def __init__(self, prototypes: Tensor) -> None:
        nn.Module.__init__(self)
        self.prototypes = nn.Parameter(prototypes.clone())

    def embed(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


def step_of(
    method: SemiSupCon, labels: Tensor, *parts: Tensor, items: Tensor | None = None
) -> tuple[Any, tuple[Tensor, ...]]:
    """Losses of a step for parts as PARTS has them, and the gradient of the total with respect to each."""
    network = RecordedNetwork(parts[0])
    images = [x.clone().requires_grad_() for x in parts[1:]]
    losses = method(network, make_batch(method, labels, torch.cat(images), items=items), network)
    return losses, torch.autograd.grad(losses.total, [network.prototypes, *images], materialize_grads=True)


def recorded_trust(method: SemiSupCon) -> tuple[Tensor, Tensor]:
    weak, centers = (F.normalize(G[name], dim=-1) for name in ("h_w", "prototypes"))
    return method.trust(weak @ centers.T, torch.arange(len(weak)))


def method_of(case: str, **options: Any) -> SemiSupCon:
    method = exact_method("semisupcon", {**WEIGHTS[case], **options})
    if case.startswith("S"):
        method.weight.mean.fill_(G["S_init_mu"].item())
        method.weight.variance.fill_(G["S_init_var"].item())
    return method


@pytest.mark.parametrize("case", WEIGHTS)
def test_losses_and_gradients_are_the_recorded_ones(case: str) -> None:
    target, trust = recorded_trust(method_of(case))
    close(target, G["pseudo_label"])
    close(trust, G["S_weight" if case.startswith("S") else "mask"])
    parts = [G[name] for name in PARTS]
    losses, gradients = step_of(method_of(case), G["y_lb"], *parts)
    close(losses.metrics["mask_rate"], trust.mean())
    close(losses.total, G[f"{case}_loss"])
    for got, name in zip(gradients, PARTS, strict=True):
        close(got, G[f"{case}_grad_{name}"])
    if not case.startswith("S"):
        losses, _ = step_of(method_of(case, reduction="all"), G["y_lb"], *parts)
        close(losses.total, G[f"{case}_weighted_mean_over_all"])


def test_a_step_with_two_unlabeled_images_beside_each_labeled_one() -> None:
    """Beside the equations, one anchor after another."""
    parts = [G[name][-n:].clone().requires_grad_() for name, n in zip(PARTS, (10, 4, 8, 8, 8), strict=True)]
    centers, labeled, weak, first, second = (x / x.square().sum(1, keepdim=True).sqrt() for x in parts)
    labels = G["y_lb"][-4:]
    items = [(c, k, 0.7) for k, c in enumerate(centers)]
    items += [(z, int(y), 1.0) for z, y in zip(labeled, labels, strict=True)]
    sure = 0
    for i, z in enumerate(weak):
        q = ((centers @ z + 1) / 0.08).softmax(0)
        label, weight = (int(q.argmax()), 0.9) if q.max() >= 0.95 else (10 + i, 0.3)
        sure += label < 10
        items += [(first[i], label, weight), (second[i], label, weight)]
    assert 0 < sure < 8
    losses, weights = [], torch.tensor([weight for *_, weight in items], dtype=torch.float64)
    for a, (anchor, label, _) in enumerate(items):
        others = [item for b, item in enumerate(items) if b != a]
        below = sum((anchor @ z / 0.2).exp() for z, *_ in others)
        terms = [((anchor @ z / 0.2).exp() / below).log() for z, same, _ in others if same == label]
        losses.append(-sum(terms) / len(terms) if terms else torch.zeros(()).double())
    weighted = torch.stack(losses) * weights / weights.mean()
    expected = weighted.sum() / (weighted > 0).sum()

    options = {"temperature": 0.2, "w_prototypes": 0.7, "w_confident": 0.9, "w_unconfident": 0.3}
    got, gradients = step_of(exact_method("semisupcon", options), labels, *(x.detach() for x in parts))
    close(got.total, expected)
    close(got.metrics["mask_rate"] * 8, torch.tensor(float(sure), dtype=torch.float64))
    of_equations = torch.autograd.grad(expected, parts, materialize_grads=True)
    for gradient, of_part in zip(gradients, of_equations, strict=True):
        close(gradient, of_part)


def test_flexmatch_thresholds_rise_with_what_is_learned() -> None:
    method = exact_method("semisupcon", {"variant": "flexmatch"}, unlabeled=24)
    items = torch.arange(24).flip(0)
    losses, _ = step_of(method, G["y_lb"], *(G[name] for name in PARTS), items=items)
    assert losses.metrics["mask_rate"] == 1  # every threshold begins at 0
    close(method.threshold.labels[items], torch.where(G["mask"].bool(), G["pseudo_label"], -1))
    first = method.threshold.learned.clone()
    assert first.max() > 0
    target, trust = recorded_trust(method)
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
    assert evaluate_run(tmp_path / "run").scores == result.scores
