from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from interlude_fast.config import ExperimentConfig, load
from interlude_fast.data.batch import Batch, RowOrder
from interlude_fast.errors import ConfigError
from interlude_fast.methods import Method, TaskInfo, build_method
from interlude_fast.models import EmbeddingFusion
from interlude_fast.training.setup import prepare
from interlude_fast.training.step import train_step
from tests.helpers import small_config

from .golden import close, exact_method

LAYOUTS = pytest.mark.parametrize("layout", ["interdigitated", "separate"])
EVERYTHING: dict[str, Any] = {
    "alpha_range": [0.0, 0.4],
    "warmup_u": 0.5,
    "warmup_dc": 1.0,
    "tau": [0.3, 0.2] * 5,
    "distribution_alignment": True,
}


def rows(method: Method, step: int = 0, batch: int = 3, mu: int = 2) -> tuple[Tensor, Batch]:
    """Random logits in the method's row order, a different draw for every step."""
    order = RowOrder(batch, mu, method.labeled_views, method.unlabeled_views, method.layout)
    generator = torch.Generator().manual_seed(step)
    logits = 2 * torch.randn(order.count, method.num_classes, dtype=torch.float64, generator=generator)
    labels = torch.arange(batch) % method.num_classes
    items = torch.arange(batch * mu).reshape(batch, mu)
    return logits.requires_grad_(), Batch(logits.detach(), labels, order, items, torch.tensor(step))


def unlabeled_loss(strong: Tensor, q: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """mean [c >= tau_t] CE(strong, t), row by row, and the share of rows that are learned."""
    terms = []
    for row, confidences in zip(strong, q, strict=True):
        target = int(confidences.argmax())
        learned = bool(confidences[target] >= tau[target])
        terms.append(F.cross_entropy(row, torch.tensor(target)) * learned)
    return torch.stack(terms).mean(), torch.tensor([t.item() != 0 for t in terms]).double().mean()


@LAYOUTS
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_distribution_alignment(layout: str, temperature: float) -> None:
    """p_model <- mean(q), then 0.999 p_model + 0.001 mean(q); q <- normalize(q p_target / p_model)."""
    options = {"distribution_alignment": True, "tau": 0.55, "layout": layout, "temperature": temperature}
    method, p_model, differs = exact_method("interlude", options, 4), None, False
    plain = build_method("interlude", {**options, "distribution_alignment": False}, TaskInfo(4))
    for step in range(4):
        logits, batch = rows(method, step)
        losses = method.loss(logits, batch)
        _, _, weak, strong = batch.split(logits.detach())
        q = (weak / temperature).softmax(1)
        p_model = q.mean(0) if p_model is None else 0.999 * p_model + 0.001 * q.mean(0)
        q = q * 0.25 / p_model
        expected, rate = unlabeled_loss(
            strong, q / q.sum(1, keepdim=True), torch.full((4,), 0.55, dtype=torch.float64)
        )
        close(method.p_model, p_model)
        close(losses.metrics["loss_unlabeled"], expected)
        close(losses.metrics["mask_rate"], rate)
        differs |= plain.loss(logits, batch).metrics["loss_unlabeled"] != losses.metrics["loss_unlabeled"]
    assert differs


def test_alignment_with_a_class_that_nobody_predicts() -> None:
    method = build_method("interlude", {"distribution_alignment": True, "tau": 0.1}, TaskInfo(4))
    logits, batch = rows(method)
    logits.data[:, 3] = -float("inf")
    for _ in range(2):
        losses = method.loss(logits, batch)
        assert losses.total.isfinite()
    assert method.p_model[3] == 0


@LAYOUTS
def test_thresholds_by_class(layout: str) -> None:
    tau = [0.2, 0.5, 0.7, 0.95]
    method = build_method("interlude", {"tau": tau, "layout": layout}, TaskInfo(4))
    logits, batch = rows(method, batch=8, mu=4)
    _, _, weak, strong = batch.split(logits.detach())
    expected, rate = unlabeled_loss(strong, weak.softmax(1), torch.tensor(tau, dtype=torch.float64))
    losses = method.loss(logits, batch)
    close(losses.metrics["loss_unlabeled"], expected)
    close(losses.metrics["mask_rate"], rate)
    for one in tau:
        results = [
            build_method("interlude", {"tau": t}, TaskInfo(4)).loss(logits, batch).total for t in (one, [one] * 4)
        ]
        assert results[0] == results[1]


WEIGHTS = {0: (0.0, 0.0), 10: (0.2, 0.5), 20: (0.4, 1.0), 49: (0.98, 1.0), 50: (1.0, 1.0), 99: (1.0, 1.0)}


@pytest.mark.parametrize("step", WEIGHTS)
@pytest.mark.parametrize("delta", ["mean", "per_class"])
def test_weights_rise_over_their_share_of_the_run(step: int, delta: str) -> None:
    options = {"tau": 0.4, "delta": delta, "lambda_u": 0.7, "lambda_dc": 3.0}
    warm = {"warmup_u": 0.5, "warmup_dc": 0.2}
    method = build_method("interlude", options | warm, TaskInfo(4, steps=100))
    logits, batch = rows(method, step)
    losses = method.loss(logits, batch)
    (gradient,) = torch.autograd.grad(losses.total, logits)
    m, (share_u, share_dc) = losses.metrics, WEIGHTS[step]
    close(losses.total, m["loss_labeled"] + 0.7 * share_u * m["loss_unlabeled"] + 3 * share_dc * m["loss_delta"])
    assert m["loss_unlabeled"] > 0
    scaled = options | {"lambda_u": 0.7 * share_u, "lambda_dc": 3 * share_dc}
    total = build_method("interlude", scaled, TaskInfo(4)).loss(logits, batch).total
    close(gradient, torch.autograd.grad(total, logits)[0])


def strengths(fusion: EmbeddingFusion, seed: int, count: int) -> list[float]:
    """Of rows 0 and 1 the first becomes the strength itself."""
    torch.manual_seed(seed)
    return [float(fusion(torch.tensor([[0.0], [1.0]]))[0, 0]) for _ in range(count)]


def test_a_drawn_strength_follows_the_seed_and_fills_its_range() -> None:
    fusion = EmbeddingFusion(0.2, at_eval=True)
    fusion.alpha_range = (0.1, 0.3)
    drawn = strengths(fusion, 0, 500)
    assert drawn[:20] == strengths(fusion, 0, 20) != strengths(fusion, 1, 20)
    assert len(set(drawn)) > 490
    assert 0.1 <= min(drawn) < 0.101 < 0.299 < max(drawn) <= 0.3
    fusion.eval()
    assert strengths(fusion, 0, 2) == pytest.approx([0.2, 0.2])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_drawn_strength_fuses_as_a_fixed_one(dtype: torch.dtype) -> None:
    fusion, fixed = EmbeddingFusion(0.2), EmbeddingFusion(0.0)
    fusion.alpha_range = (0.1, 0.3)
    x = torch.randn(5, 3, 4, 4).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.manual_seed(3)
    y = fusion(x)
    fixed.alpha = strengths(fusion, 3, 1)[0]
    z = fixed(x)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, z, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(out.float().square().sum(), x)[0] for out in (y, z)]
    torch.testing.assert_close(*gradients, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


def test_the_network_of_a_run_draws_its_strength() -> None:
    run = prepare(small_config(method={"alpha": None, "alpha_range": [0.1, 0.3]}))
    network = run.state.model
    assert network.fusion.alpha == pytest.approx(0.2)
    assert network.fusion.alpha_range == (0.1, 0.3)
    images = run.pipeline.batch(0).images
    outputs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs.append(network.train()(images))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def resumes_exactly(config: ExperimentConfig) -> None:
    """Six steps, and the last three of them again from the state after three."""
    a, b = prepare(config), prepare(config)
    for step in range(6):
        train_step(a.state, a.pipeline.batch(step))
        if step == 2:
            b.state.load_state_dict({k: v.clone() for k, v in a.state.state_dict().items()}, 3)
    torch.rand(5)
    for step in range(3, 6):
        train_step(b.state, b.pipeline.batch(step))
    theirs = b.state.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in a.state.state_dict().items())


@LAYOUTS
def test_a_run_with_everything_resumes_exactly(layout: str) -> None:
    resumes_exactly(small_config(method={**EVERYTHING, "alpha": None, "layout": layout}))


@pytest.mark.parametrize("name", ["interlude", "interlude_plus"])
def test_the_strength_is_written_out(name: str) -> None:
    for given, alpha, drawn in (
        ({}, 0.1, None),
        ({"alpha": None}, 0.1, None),
        ({"alpha": 0}, 0.0, None),
        ({"alpha_range": [0.1, 0.3]}, None, [0.1, 0.3]),
    ):
        config = ExperimentConfig(method={"name": name, **given})
        for _ in range(2):
            o = config.model_dump(mode="json")["method"]
            assert (o["alpha"], o["alpha_range"]) == (alpha, drawn)
            config = load(None, [config.model_dump(mode="json")])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"alpha": 0.1, "alpha_range": [0.0, 0.2]}, "method.alpha and method.alpha_range exclude each other"),
        ({"alpha_range": [0.3, 0.2]}, r"method.alpha_range must be \[low, high\]"),
        ({"alpha_range": [0.3, 1.0]}, r"method.alpha_range must be \[low, high\]"),
        ({"alpha_range": [-0.1, 0.2]}, r"method.alpha_range must be \[low, high\]"),
        ({"alpha_range": [0.2]}, "method.alpha_range"),
        ({"alpha": 0.0, "fusion_at_eval": True}, "method.fusion_at_eval: nothing is fused"),
        ({"lambda_u": 0.0, "warmup_u": 0.1}, "method.warmup_u: method.lambda_u = 0"),
        ({"lambda_dc": 0.0, "warmup_dc": 0.1}, "method.warmup_dc: method.lambda_dc = 0"),
        ({"warmup_u": 1.5}, "method.warmup_u = 1.5"),
        ({"tau": [0.9, 0.9, 0.9]}, "method.tau must be 4 numbers, one per class"),
        ({"tau": [0.9, 0.9, 0.9, 1.1]}, "method.tau must be a number in"),
        ({"tau": 1.1}, "method.tau must be a number in"),
        ({"tau": []}, "method.tau must be 4 numbers"),
        ({"tau": "high"}, "method.tau"),
    ],
)
def test_options_that_do_not_fit_get_one_line(options: dict, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        build_method("interlude", options, TaskInfo(4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["interlude", "interlude_plus"])
def test_the_losses_compile_whole(name: str) -> None:
    options = {"warmup_u": 0.5} | ({"distribution_alignment": True} if name == "interlude" else {})
    results = []
    for compiled in (False, True):
        method = build_method(name, options, TaskInfo(4, steps=10))
        for step in range(2):
            logits, batch = rows(method, step)

            def total(logits: Tensor, method: Method = method, batch: Batch = batch) -> Tensor:
                return method.loss(logits, batch).total

            run = torch.compile(total, fullgraph=True, backend="aot_eager") if compiled else total
            loss = run(logits)
            results.append((loss.detach(), torch.autograd.grad(loss, logits)[0], *method.state_dict().values()))
    torch.testing.assert_close(results[:2], results[2:])
