from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from interlude_fast.methods import Method
from interlude_fast.methods.freematch import SelfAdaptiveThreshold, fairness

from .golden import close, exact_method, golden, pick, replay_logits

STATE = {"confidence": "time_p", "mean": "p_model", "histogram": "label_hist"}
RUNS = {
    "A": {},
    "B": {"momentum": 0.9},
    "C": {"momentum": 0.9, "use_quantile": True},
    "D": {"momentum": 0.9, "use_quantile": True, "clip": 0.95},
}


# Recorded with other numbers of classes, whose 1 / K float32 rounds by more: they begin at it, in every run.
OF_CLASSES = {"A": {}, "B": {"momentum": 0.6}}


def replay(name: str, method: Method, run: str, steps: int, starts_elsewhere: bool = False) -> None:
    """Losses, gradients and state of consecutive steps; the state is carried from step to step."""
    recorded, state = golden(name), method.threshold
    for step in range(steps):
        g = pick(recorded, f"t{step}_")
        g.update(pick(g, f"{run}_"))
        for mine, theirs in STATE.items():
            if step == 0 and starts_elsewhere:
                getattr(state, mine).copy_(g[f"{theirs}_before"])
            close(getattr(state, mine), g[f"{theirs}_before"])
        losses, (lb, w, s) = replay_logits(method, g["y_lb"], g["logits_lb"], g["logits_w"], g["logits_s"])
        for mine, theirs in STATE.items():
            close(getattr(state, mine), g[f"{theirs}_after"])
        close(state(g["pseudo_label"]), g["threshold"])
        close(losses.metrics["loss_labeled"], g["sup_loss"])
        close(losses.metrics["loss_unlabeled"], g["unsup_loss"])
        close(losses.metrics["loss_fairness"], g["ent_loss"])
        close(losses.metrics["mask_rate"], g["mask"].mean())
        close(losses.total, g["total_loss"])
        close(lb, g["grad_logits_lb"])
        close(s, g["grad_logits_s_total"])
        assert not w.any()
        strong = g["logits_s"].clone().requires_grad_()
        fairness(strong, g["mask"], state, 1e-12).backward()
        close(strong.grad, g["grad_logits_s_ent"])


@pytest.mark.parametrize("run", RUNS)
def test_three_steps_of_the_released_code(run: str) -> None:
    replay("freematch", exact_method("freematch", RUNS[run]), run, 3, starts_elsewhere=run != "A")


@pytest.mark.parametrize("run", OF_CLASSES)
@pytest.mark.parametrize("classes", [3, 7])
def test_four_steps_of_the_released_code_from_its_own_start(classes: int, run: str) -> None:
    replay(f"freematch_k{classes}", exact_method("freematch", OF_CLASSES[run], classes), run, 4)


def test_the_clamped_thresholds_of_torchssl_on_svhn() -> None:
    recorded = golden("freematch")
    method = exact_method("freematch", {"momentum": 0.9, "lowest": 0.9, "highest": 0.95, "lambda_f": 0.0})
    for step in range(3):
        g = pick(recorded, f"t{step}_")
        for mine, theirs in STATE.items():
            getattr(method.threshold, mine).copy_(g[f"B_{theirs}_before"])
        losses, (_, _, s) = replay_logits(method, g["y_lb"], g["logits_lb"], g["logits_w"], g["logits_s"])
        close(losses.metrics["loss_unlabeled"], g["svhn_torchssl_unsup_loss"])
        close(losses.metrics["mask_rate"], g["svhn_torchssl_mask"].mean())
        close(s, g["svhn_torchssl_grad_logits_s"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_selected_is_no_fairness_and_no_nan(dtype: torch.dtype) -> None:
    logits = torch.randn(6, 4, dtype=dtype, requires_grad=True)
    loss = fairness(logits, torch.zeros(6, dtype=torch.bool), SelfAdaptiveThreshold(4).to(dtype), 1e-12)
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_class_that_float32_has_almost_forgotten_is_no_nan() -> None:
    """1 / 1e-40 is infinite there: it counts as never predicted."""
    forgotten, never = (SelfAdaptiveThreshold(3) for _ in range(2))
    forgotten.histogram[1], never.histogram[1] = 1e-40, 0
    logits, mask = torch.randn(8, 3), torch.ones(8)
    loss = fairness(logits, mask, forgotten, 1e-12)
    assert loss.isfinite()
    assert loss == fairness(logits, mask, never, 1e-12)


def test_fairness_over_the_selected_rows_alone() -> None:
    state = SelfAdaptiveThreshold(3).double()
    state.mean.copy_(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64))
    state.histogram.copy_(torch.tensor([0.5, 0.0, 0.5]))
    logits = torch.randn(8, 3, dtype=torch.float64)
    mask = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0]).bool()
    p = logits[mask].softmax(1)
    histogram = F.one_hot(p.argmax(1), 3).double().mean(0)
    q = torch.where(histogram > 0, p.mean(0) / histogram, 0)
    wanted = torch.tensor([0.4, 0.0, 1.0], dtype=torch.float64) / 1.4
    close(fairness(logits, mask, state, 1e-9), (wanted * (q / q.sum() + 1e-9).log()).sum())
