from __future__ import annotations

import copy
import dataclasses
import random
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interlude_fast
from interlude_fast import registry
from interlude_fast.data.batch import Batch, RowOrder
from interlude_fast.errors import ConfigError
from interlude_fast.experiment.run import train_run
from interlude_fast.methods import METHODS, Losses, Method, TaskInfo, build_method, register_method
from interlude_fast.options import Strict
from tests.helpers import small_config

BOTH = ("weak", "strong")
# The others train a network of their own; their test files have it.
PLAIN = [name for name, method in METHODS.items() if method.adapt is Method.adapt]


PROBLEM = TaskInfo(4, unlabeled=9, steps=10)


def make_batch(method: Method, batch: int = 3, mu: int = 2, classes: int = 4) -> tuple[Tensor, Batch]:
    order = RowOrder(batch, mu, method.labeled_views, method.unlabeled_views, method.layout)
    logits = torch.randn(order.count, classes, dtype=torch.float64, requires_grad=True)
    items = torch.arange(batch * mu).reshape(batch, mu)
    return logits, Batch(logits.detach(), torch.arange(batch) % classes, order, items, torch.tensor(3))


def small_network(seed: int = 0) -> nn.Module:
    """Rows of four numbers -> logits of four classes, through a batch norm, as a network of images would have."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4)).double()


@pytest.mark.parametrize("mu", [1, 2])
@pytest.mark.parametrize("name", PLAIN)
def test_losses_are_differentiable_and_metrics_are_not(name: str, mu: int) -> None:
    method, network = build_method(name, {}, PROBLEM), small_network()
    ema = small_network(1).requires_grad_(False).eval()
    losses = method(network, make_batch(method, mu=mu)[1], ema)
    losses.total.backward()
    assert losses.total.dtype == torch.float64
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert not any(m.requires_grad or m.ndim for m in losses.metrics.values())
    assert not any(module.training for module in ema.modules())
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("name", PLAIN)
def test_running_statistics_see_few_forward_passes_and_those_of_the_ema_none(name: str) -> None:
    method, network = build_method(name, {}, PROBLEM), small_network()
    ema = small_network(1).requires_grad_(False).eval()
    before = {key: value.clone() for key, value in ema.state_dict().items()}
    method(network, make_batch(method)[1], ema)
    assert network[1].num_batches_tracked == (2 if name == "semimeta" else 1)
    assert all(torch.equal(value, before[key]) for key, value in ema.state_dict().items())


@pytest.mark.parametrize("name", PLAIN)
def test_losses_of_half_precision_logits_are_single(name: str) -> None:
    method, network = build_method(name, {}, PROBLEM), small_network().float()
    ema = small_network(1).float().requires_grad_(False).eval()
    batch = make_batch(method)[1]
    batch = dataclasses.replace(batch, images=batch.images.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        losses = method(network, batch, ema)
    losses.total.backward()
    assert losses.total.dtype == torch.float32
    assert all(v.isfinite() for v in (losses.total, *losses.metrics.values()))
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", PLAIN)
def test_the_state_is_all_that_the_next_step_depends_on(name: str) -> None:
    """A method that took another's state goes on as that one does, and draws from torch's generators alone."""
    network, ema = small_network(), small_network(1).requires_grad_(False).eval()
    first, second = (build_method(name, {}, PROBLEM) for _ in range(2))
    first(network, make_batch(first)[1], ema)
    second.load_state_dict(first.state_dict())
    batch, totals = make_batch(first)[1], []
    random.seed(0), np.random.seed(0)
    states = random.getstate(), np.random.get_state()[1].tolist()
    for method in (first, second):
        torch.manual_seed(5)
        totals.append(method(copy.deepcopy(network), batch, ema).total)
    assert torch.equal(*totals)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize("layout", ["interdigitated", "separate"])
def test_interlude_reads_its_rows_in_either_layout(layout: str) -> None:
    method = build_method("interlude", {"layout": layout, "tau": 0.3, "lambda_dc": 2.0}, TaskInfo(4))
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
    method = build_method("interlude", {"class_weights": [1, 2, 3, 4]}, TaskInfo(4))
    assert method.state_dict()["class_weights"].tolist() == [1, 2, 3, 4]
    for weights in ([1, 2], [1, 2, 3, 0]):
        with pytest.raises(ConfigError, match=r"method\.class_weights"):
            build_method("supervised", {"class_weights": weights}, TaskInfo(4))


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

    monkeypatch.setitem(METHODS._parts, "entropy", Entropy)
    assert register_method("entropy", Entropy) is Entropy
    config = small_config(method={"name": "entropy", "weight": 0.2})
    assert train_run(config, tmp_path / "run").scores["test"]["raw"].n == 360
    with pytest.raises(ConfigError, match="registered already"):
        register_method("interlude", Entropy)


def test_a_method_of_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip's metadata names it."""
    point = EntryPoint("twin", "interlude_fast.methods.supervised:Supervised", "interlude_fast.methods")
    broken = EntryPoint("broken", "interlude_fast.methods.nowhere:Nothing", "interlude_fast.methods")
    points = {"twin": [point], "broken": [broken]}
    monkeypatch.setattr(METHODS, "_parts", dict(METHODS._parts))
    monkeypatch.setattr(registry, "entry_points", lambda group, name=None: points.get(name, []))
    assert isinstance(build_method("twin", {}, TaskInfo(4)), METHODS["supervised"])
    with pytest.raises(ConfigError, match=r"method 'broken' of interlude_fast\.methods\.nowhere:Nothing does not"):
        build_method("broken", {}, TaskInfo(4))


def test_the_package_itself_offers_what_a_method_needs() -> None:
    assert interlude_fast.register_method is register_method
    assert interlude_fast.Method is Method
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = interlude_fast.nothing


def test_options_of_other_methods_are_named() -> None:
    with pytest.raises(ConfigError, match=r"'method\.alpha': supervised has no such option; interlude.* have"):
        build_method("supervised", {"alpha": 0.1}, TaskInfo(4))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fixmatch", {"temperature": 0.1}, "temperature = 0.1 means nothing with hard_labels"),
        ("uda", {"tsa_form": "torchssl"}, "tsa_form = torchssl means nothing without tsa"),
        ("semisupcon", {"variant": "softmatch", "tau": 0.5}, "tau = 0.5 means nothing to variant softmatch"),
        ("semisupcon", {"momentum": 0.5}, "momentum = 0.5 means nothing to variant fixmatch"),
        ("freematch", {"lowest": 0.9, "highest": 0.5}, "lowest = 0.9 is above highest = 0.5"),
        ("mixup_lr", {"reference": True, "clamp": False}, "clamp = False means nothing with reference"),
        ("mixup_lr", {"eps_min": 2, "eps_max": 1}, "eps_min = 2.0 is above eps_max = 1.0"),
        ("semimeta", {"reference": True, "meta_step": 0.5}, "meta_step = 0.5 means nothing with reference"),
    ],
)
def test_options_that_contradict_each_other(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^method: {message}") as caught:
        build_method(name, options, PROBLEM)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_state_is_built_in_its_dtype(name: str) -> None:
    """In float64 nothing was rounded to float32 before; a float32 method is the same one, rounded."""
    problem = TaskInfo(3, unlabeled=9, steps=10, lowest=(-0.1,), highest=(0.7,))
    exact, single = (build_method(name, {}, problem, dtype=d) for d in (torch.float64, torch.float32))
    for (key, ours), theirs in zip(exact.named_buffers(), single.buffers(), strict=True):
        assert not ours.is_floating_point() or ours.dtype == torch.float64, key
        assert torch.equal(ours.to(theirs.dtype), theirs), key
    for (key, plain), theirs in zip(
        build_method(name, {}, problem).named_buffers(), single.buffers(), strict=True
    ):
        assert plain.dtype == theirs.dtype, key
        assert torch.equal(plain, theirs), key


@pytest.mark.parametrize(
    ("name", "buffers"),
    [
        ("freematch", ("threshold.confidence", "threshold.mean", "threshold.histogram")),
        ("interlude_plus", ("threshold.confidence", "threshold.mean", "threshold.histogram")),
        ("softmatch", ("weight.mean", "weight.wanted", "weight.seen")),
    ],
)
@pytest.mark.parametrize("classes", [3, 7])
def test_state_begins_at_chance_to_the_last_bit(name: str, buffers: tuple[str, ...], classes: int) -> None:
    state = build_method(name, {}, TaskInfo(classes), dtype=torch.float64).state_dict()
    converted = build_method(name, {}, TaskInfo(classes)).double().state_dict()
    for key in buffers:
        assert set(state[key].flatten().tolist()) == {1 / classes}
        assert ((converted[key] * classes - 1).abs() > 1e-8).all()  # what dtype is for


def test_the_default_dtype_is_restored() -> None:
    build_method("freematch", {}, PROBLEM, dtype=torch.float64)
    assert torch.get_default_dtype() == torch.float32
    with pytest.raises(ConfigError, match=r"method\.tau"):
        build_method("interlude", {"tau": [0.5]}, PROBLEM, dtype=torch.float64)
    assert torch.get_default_dtype() == torch.float32
    with pytest.raises(TypeError):
        build_method("interlude", {}, PROBLEM, dtype=torch.int64)
    assert torch.get_default_dtype() == torch.float32


def test_a_method_may_run_the_network_itself() -> None:
    class Twice(METHODS["supervised"]):  # type: ignore[misc]
        def forward(self, model: nn.Module, batch: Batch, ema: nn.Module) -> Losses:
            return self.loss(model(batch.images) + model(batch.images), batch)

    method = Twice(METHODS["supervised"].Options(), TaskInfo(4))
    logits, batch = make_batch(method)
    expected = F.cross_entropy(2 * logits, batch.labels)
    torch.testing.assert_close(method(nn.Identity(), batch, nn.Identity()).total, expected.detach())
