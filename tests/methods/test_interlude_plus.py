from __future__ import annotations

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from interlude_fast import ops
from interlude_fast.data.batch import Batch
from interlude_fast.errors import ConfigError
from interlude_fast.methods import Method, TaskInfo, build_method, interlude_plus
from tests.helpers import small_config

from .golden import close, exact_method, golden, make_batch, pick
from .test_interlude import LAYOUTS, resumes_exactly, rows


class Direct:
    """Section 5 of the algorithm in plain numbers, row by row."""

    def __init__(self, classes: int) -> None:
        self.tau, self.p, self.h = 1 / classes, [1 / classes] * classes, [1 / classes] * classes

    def thresholds(self, weak: Tensor) -> list[float]:
        q, n, classes = weak.softmax(1), len(weak), weak.shape[1]
        self.tau = 0.999 * self.tau + 0.001 * sum(float(row.max()) for row in q) / n
        counts = [sum(int(row.argmax()) == k for row in q) for k in range(classes)]
        self.p = [0.999 * p + 0.001 * float(q[:, k].mean()) for k, p in enumerate(self.p)]
        self.h = [0.999 * h + 0.001 * counts[k] / n for k, h in enumerate(self.h)]
        return [self.tau * p / max(self.p) for p in self.p]

    def losses(self, weak: Tensor, strong: Tensor) -> tuple[Tensor, Tensor, float]:
        """L_u, L_f and the share of learned rows."""
        tau, classes, terms, chosen = self.thresholds(weak), weak.shape[1], [], []
        for w, s in zip(weak.softmax(1), strong, strict=True):
            target = int(w.argmax())
            learned = float(w[target]) >= tau[target]
            terms.append(F.cross_entropy(s, torch.tensor(target)) * learned)
            chosen += [s.softmax(0)] if learned else []
        if not chosen:
            return torch.stack(terms).mean(), torch.tensor(0.0), 0.0
        share = [sum(int(s.argmax()) == k for s in chosen) / len(chosen) for k in range(classes)]
        mean = [sum(s[k] for s in chosen) / len(chosen) for k in range(classes)]
        wanted = [p / h for p, h in zip(self.p, self.h, strict=True)]
        found = [m / g if g else torch.tensor(0.0) for m, g in zip(mean, share, strict=True)]
        fair = sum(w / sum(wanted) * torch.log(f / sum(found) + 1e-9) for w, f in zip(wanted, found, strict=True))
        return torch.stack(terms).mean(), torch.as_tensor(fair), len(chosen) / len(weak)


def delta_loss(parts: tuple[Tensor, ...], labels: Tensor, mu: int, per_class: bool) -> Tensor:
    lw, ls, uw, us = (x.softmax(1) for x in parts)
    changes, matched = [], 0
    for i, y in enumerate(labels.tolist()):
        rows = range(i * mu, (i + 1) * mu)
        rows = [j for j in rows if not per_class or int(uw[j].argmax()) == y]
        matched += bool(rows)
        unlabeled = sum(uw[j] - us[j] for j in rows) / max(1, len(rows))
        changes.append(unlabeled - (lw[i] - ls[i]).detach())
    return torch.stack(changes).square().mean() * matched / len(labels)


@LAYOUTS
@pytest.mark.parametrize("delta", ["mean", "per_class"])
def test_losses_gradient_and_state_over_three_steps(layout: str, delta: str) -> None:
    options = {"layout": layout, "delta": delta, "lambda_u": 0.8, "lambda_dc": 2.0, "lambda_f": 0.3}
    method, direct = exact_method("interlude_plus", options, 4), Direct(4)
    method.threshold.confidence.fill_(0.6)  # so that some rows are below their threshold
    direct.tau = 0.6
    for step in range(3):
        logits, batch = rows(method, step, batch=4, mu=5)
        losses = method.loss(logits, batch)
        parts = batch.split(logits)
        unlabeled, fair, rate = direct.losses(parts[2].detach(), parts[3])
        dc = delta_loss(parts, batch.labels, batch.mu, delta == "per_class")
        supervised = F.cross_entropy(parts[0], batch.labels)
        total = supervised + 0.8 * unlabeled + 2 * dc + 0.3 * fair
        assert 0 < rate < 1
        close(losses.total, total)
        close(losses.metrics["loss_unlabeled"], unlabeled)
        close(losses.metrics["loss_fairness"], fair)
        close(losses.metrics["loss_delta"], dc)
        assert float(losses.metrics["mask_rate"]) == pytest.approx(rate)
        assert float(method.threshold.confidence) == pytest.approx(direct.tau, rel=1e-12)
        close(method.threshold.mean, torch.tensor(direct.p, dtype=torch.float64))
        close(method.threshold.histogram, torch.tensor(direct.h, dtype=torch.float64))
        gradients = [torch.autograd.grad(t, logits)[0] for t in (losses.total, total)]
        # delta_l has no gradient, L_sup reads the labeled weak rows: both are in the plain form too.
        close(*gradients)


STATE = {"confidence": "tau", "mean": "p", "histogram": "label_hist"}
RUNS = {"A": {}, "B": {"threshold_momentum": 0.6}}


def recorded_batch(method: Method, g: dict[str, Tensor]) -> tuple[Tensor, Batch]:
    """The logits of a recorded step in the method's row order."""
    lw, uw, ls, us = (g[f"logits_{name}"] for name in ("lw", "uw", "ls", "us"))
    if method.layout == "interdigitated":
        logits = torch.cat([lw[:, None], uw, ls[:, None], us], 1).flatten(0, 1)
    else:
        logits = torch.cat([lw, ls, uw.flatten(0, 1), us.flatten(0, 1)])
    logits.requires_grad_()
    return logits, make_batch(method, g["y_lb"], logits)


@LAYOUTS
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "reference"])
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("classes", [3, 7])
def test_four_steps_of_the_released_code(classes: int, run: str, fused: bool, layout: str) -> None:
    """The state begins at 1 / K, which float32 rounds, and is carried from step to step."""
    if fused and not ops.status().loaded:
        pytest.skip(f"no compiled extension: {ops.status().why_not}")
    options = {"delta": "per_class", "layout": layout, **RUNS[run]}
    method, recorded = exact_method("interlude_plus", options, classes), golden(f"interlude_plus_k{classes}")
    for step in range(4):
        g = pick(recorded, f"t{step}_")
        g.update(pick(g, f"{run}_"))
        for mine, theirs in STATE.items():
            close(getattr(method.threshold, mine), g[f"{theirs}_before"])
        logits, batch = recorded_batch(method, g)
        with contextlib.nullcontext() if fused else ops.use_reference():
            losses = method.loss(logits, batch)
        for mine, theirs in STATE.items():
            close(getattr(method.threshold, mine), g[f"{theirs}_after"])
        close(losses.total, g["loss_total"])
        for name in ("labeled", "unlabeled", "delta", "fairness"):
            close(losses.metrics[f"loss_{name}"], g[f"loss_{name}"])
        close(losses.metrics["mask_rate"], g["mask"].mean())
        gradient = torch.autograd.grad(losses.total, logits)[0]
        for got, name in zip(batch.split(gradient), ("lw", "ls", "uw", "us"), strict=True):
            close(got, g[f"grad_logits_{name}"].flatten(0, -2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("delta", ["mean", "per_class"])
def test_no_row_over_its_threshold_is_no_fairness_and_no_nan(dtype: torch.dtype, delta: str) -> None:
    method = build_method("interlude_plus", {"delta": delta}, TaskInfo(4))
    method.threshold.confidence.fill_(1.0)
    logits, batch = rows(method)
    logits = (logits.detach() / 2).to(dtype).requires_grad_()
    losses = method.loss(logits, batch)
    losses.total.backward()
    assert losses.metrics["mask_rate"] == losses.metrics["loss_fairness"] == losses.metrics["loss_unlabeled"] == 0
    assert losses.total.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_every_row_at_first() -> None:
    """The first global threshold is about 1 / K, and no confidence is less."""
    method = build_method("interlude_plus", {}, TaskInfo(4))
    logits, batch = rows(method, batch=8, mu=7)
    assert method.loss(logits, batch).metrics["mask_rate"] > 0.9


@LAYOUTS
def test_fairness_reads_the_rows_that_the_head_learns(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every confidence is the threshold but for rounding, where a second softmax would decide otherwise."""
    seen: list[Tensor] = []

    def spy(logits: Tensor, mask: Tensor, *rest: object, **more: object) -> Tensor:
        seen.append(mask)
        return logits.sum() * 0

    monkeypatch.setattr(interlude_plus, "fairness", spy)
    method = build_method("interlude_plus", {"threshold_momentum": 0.0, "layout": layout}, TaskInfo(10))
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(10, generator=generator)
    some = 0
    for step in range(20):
        logits, batch = rows(method, step, batch=16, mu=7)
        logits = torch.stack([values[torch.randperm(10, generator=generator)] for _ in logits])
        monkeypatch.setattr(method.threshold, "update", lambda *_: None)
        method.threshold.confidence.fill_(float(values.softmax(0).max()))
        losses = method.loss(logits.requires_grad_(), batch)
        assert losses.metrics["mask_rate"] == seen[-1].float().mean()
        some += 0 < losses.metrics["mask_rate"] < 1
    assert some


def test_weight_of_fairness() -> None:
    gradients = {}
    for weight in (0.0, 0.05, 1.0):
        method = exact_method("interlude_plus", {"lambda_f": weight}, 4)
        logits, batch = rows(method)
        losses = method.loss(logits, batch)
        gradients[weight] = torch.autograd.grad(losses.total, logits)[0]
        m = losses.metrics
        plain = m["loss_labeled"] + m["loss_unlabeled"] + m["loss_delta"]
        close(losses.total, plain + weight * m["loss_fairness"])
    close(gradients[0.05], 0.95 * gradients[0.0] + 0.05 * gradients[1.0])
    assert not torch.allclose(gradients[0.0], gradients[1.0])


def test_warm_ups_are_those_of_interlude() -> None:
    method = exact_method("interlude_plus", {"warmup_u": 0.5, "warmup_dc": 1.0}, 4, steps=8)
    for step, (u, dc) in {0: (0, 0), 2: (0.5, 0.25), 4: (1, 0.5), 7: (1, 0.875)}.items():
        losses = method.loss(*rows(method, step))
        m = losses.metrics
        expected = m["loss_labeled"] + u * m["loss_unlabeled"] + dc * m["loss_delta"] + 0.05 * m["loss_fairness"]
        close(losses.total, expected)


@pytest.mark.parametrize("option", ["tau", "distribution_alignment", "temperature"])
def test_what_it_has_no_use_for_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"'method.{option}': interlude_plus has no such option"):
        build_method("interlude_plus", {option: 1}, TaskInfo(4))


@LAYOUTS
def test_a_run_resumes_exactly(layout: str) -> None:
    resumes_exactly(small_config(method={"name": "interlude_plus", "layout": layout, "alpha_range": [0, 0.3]}))


def test_thresholds_begin_at_chance() -> None:
    state = build_method("interlude_plus", {}, TaskInfo(5)).state_dict()
    assert math.isclose(state["threshold.confidence"], 0.2, rel_tol=1e-6)
    assert {k: v.numel() for k, v in state.items()} == {
        "threshold.confidence": 1,
        "threshold.mean": 5,
        "threshold.histogram": 5,
    }
