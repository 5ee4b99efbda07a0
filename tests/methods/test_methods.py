from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interlude_fast
from interlude_fast import methods
from interlude_fast.config import Strict
from interlude_fast.data.batch import Batch, RowOrder
from interlude_fast.errors import ConfigError
from interlude_fast.methods import METHODS, Losses, Method, Problem, build_method, register_method
from interlude_fast.report import train_run
from tests.helpers import small_config

BOTH = ("weak", "strong")


def make_batch(method: Method, batch: int = 3, mu: int = 2, classes: int = 4) -> tuple[Tensor, Batch]:
    order = RowOrder(batch, mu, method.labeled_views, method.unlabeled_views, method.layout)
    logits = torch.randn(order.count, classes, dtype=torch.float64, requires_grad=True)
    return logits, Batch(logits.detach(), torch.arange(batch) % classes, order, torch.empty(0), torch.tensor(0))


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_differentiable_and_metrics_are_not(name: str) -> None:
    method = build_method(name, {}, Problem(4))
    logits, batch = make_batch(method)
    losses = method.loss(logits, batch)
    losses.total.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not any(m.requires_grad for m in losses.metrics.values())


@pytest.mark.parametrize("layout", ["interdigitated", "separate"])
def test_interlude_reads_its_rows_in_either_layout(layout: str) -> None:
    method = build_method("interlude", {"layout": layout, "tau": 0.3, "lambda_dc": 2.0}, Problem(4))
    logits, batch = make_batch(method)
    slot, view = batch.order.rows

    def row(s: int, v: int) -> Tensor:
        return logits.detach()[int(((slot == s) & (view == v)).nonzero())]

    lw, ls = (torch.stack([row(i, v) for i in range(3)]) for v in (0, 1))
    uw, us = (torch.stack([row(3 + j, v) for j in range(6)]) for v in (0, 1))
    confidence, target = uw.softmax(1).max(1)
    unlabeled = ((confidence >= 0.3) * F.cross_entropy(us, target, reduction="none")).mean()
    delta_u = (uw.softmax(1) - us.softmax(1)).reshape(3, 2, 4).mean(1)
    delta = (delta_u - (lw.softmax(1) - ls.softmax(1))).square().mean()
    expected = F.cross_entropy(lw, batch.labels) + unlabeled + 2 * delta
    torch.testing.assert_close(method.loss(logits, batch).total.detach(), expected)


def test_class_weights_are_part_of_the_state_and_are_checked() -> None:
    method = build_method("interlude", {"class_weights": [1, 2, 3, 4]}, Problem(4))
    assert method.state_dict()["class_weights"].tolist() == [1, 2, 3, 4]
    for weights in ([1, 2], [1, 2, 3, 0]):
        with pytest.raises(ConfigError, match=r"method\.class_weights must be 4 positive numbers"):
            build_method("supervised", {"class_weights": weights}, Problem(4))


def test_a_method_of_ones_own(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    class EntropyOptions(Strict):
        weight: float = 0.1

    class Entropy(Method):
        Options = EntropyOptions
        labeled_views = ("weak",)
        unlabeled_views = ("weak",)

        def loss(self, logits: Tensor, batch: Batch) -> Losses:
            labeled, unlabeled = logits.split([len(batch.labels), len(logits) - len(batch.labels)])
            q = unlabeled.softmax(1)
            entropy = -(q * q.clamp(min=1e-8).log()).sum(1).mean()
            total = F.cross_entropy(labeled, batch.labels) + self.options.weight * entropy
            return Losses(total, {"entropy": entropy.detach()})

    monkeypatch.setitem(METHODS, "entropy", Entropy)
    assert register_method("entropy", Entropy) is Entropy
    config = small_config(method={"name": "entropy", "weight": 0.2})
    assert train_run(config, tmp_path / "run").scores["raw"].n == 360
    with pytest.raises(ConfigError, match="registered already"):
        register_method("interlude", Entropy)


def test_a_method_of_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip's metadata names it."""
    point = EntryPoint("twin", "interlude_fast.methods.supervised:Supervised", "interlude_fast.methods")
    broken = EntryPoint("broken", "interlude_fast.methods.nowhere:Nothing", "interlude_fast.methods")
    points = {"twin": [point], "broken": [broken]}
    monkeypatch.setattr(methods, "METHODS", dict(METHODS))
    monkeypatch.setattr(methods, "entry_points", lambda group, name: points.get(name, []))
    assert isinstance(build_method("twin", {}, Problem(4)), METHODS["supervised"])
    with pytest.raises(ConfigError, match=r"method 'broken' of interlude_fast\.methods\.nowhere:Nothing does not"):
        build_method("broken", {}, Problem(4))


def test_the_package_itself_offers_what_a_method_needs() -> None:
    assert interlude_fast.register_method is register_method
    assert interlude_fast.Method is Method
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = interlude_fast.nothing


def test_options_of_other_methods_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'method\.alpha': supervised has no such option; interlude.* have"):
        build_method("supervised", {"alpha": 0.1}, Problem(4))


def test_a_method_may_run_the_network_itself() -> None:
    class Twice(METHODS["supervised"]):  # type: ignore[misc]
        def forward(self, model: nn.Module, batch: Batch, ema: nn.Module) -> Losses:
            return self.loss(model(batch.images) + model(batch.images), batch)

    method = Twice(METHODS["supervised"].Options(), Problem(4))
    logits, batch = make_batch(method)
    expected = F.cross_entropy(2 * logits, batch.labels)
    torch.testing.assert_close(method(nn.Identity(), batch, nn.Identity()).total, expected.detach())
