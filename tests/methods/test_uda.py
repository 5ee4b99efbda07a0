from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from interlude_fast.methods.uda import annealed_cross_entropy, tsa_threshold

from .golden import close, exact_method, golden, replay_logits

LOGITS = ("logits_lb", "logits_w", "logits_s")


@pytest.mark.parametrize(("toolkit", "options"), [("torchssl", {}), ("usb", {"temperature": 1.0})])
def test_a_step_of_the_released_code(toolkit: str, options: dict) -> None:
    g = golden("uda")
    losses, (lb, w, s) = replay_logits(exact_method("uda", options), g["y_lb"], *(g[k] for k in LOGITS))
    close(losses.metrics["loss_labeled"], g["sup_loss"])
    close(losses.metrics["loss_unlabeled"], g[f"{toolkit}_unsup_loss"])
    close(losses.metrics["mask_rate"], g["mask"].mean())
    close(losses.total, g["sup_loss"] + g[f"{toolkit}_unsup_loss"])
    close(s, g[f"{toolkit}_grad_logits_s"])
    close(lb, g["usb_grad_logits_lb"])
    assert not w.any()


def test_the_kl_form_has_the_same_gradient() -> None:
    """Its loss is less by the targets' entropy, which trains nothing."""
    g = golden("uda")
    _, (_, _, s) = replay_logits(exact_method("uda"), g["y_lb"], *(g[k] for k in LOGITS))
    close(s, g["torchssl_kld_tf_grad_logits_s"])
    target = (g["logits_w"] / g["T"]).softmax(1)
    entropy = (g["mask"] * -(target * target.log()).sum(1)).mean()
    close(g["torchssl_unsup_loss"] - entropy, g["torchssl_kld_tf_unsup_loss"])


@pytest.mark.parametrize("schedule", ["linear", "exp", "log"])
def test_thresholds_of_training_signal_annealing(schedule: str) -> None:
    g = golden("uda")
    close(tsa_threshold(schedule, g["tsa_its"] / g["tsa_total"].double(), 10), g[f"tsa_{schedule}"])


def test_annealing_of_the_released_code() -> None:
    g = golden("uda")
    method = exact_method("uda", {"tsa": "linear", "tsa_form": "torchssl", "lambda_u": 0.0}, steps=1000)
    losses, (lb, _, _) = replay_logits(method, g["y_lb"], *(g[k] for k in LOGITS), step=500)
    close(losses.metrics["loss_labeled"], g["tsa_sup_loss"])
    close(lb, g["tsa_grad_logits_lb"])


def test_annealing_of_the_paper() -> None:
    logits, labels = torch.randn(9, 4, dtype=torch.float64) * 2, torch.arange(9) % 4
    probability = logits.softmax(1)[torch.arange(9), labels]
    kept = probability <= 0.4
    assert 0 < kept.sum() < 9
    expected = F.cross_entropy(logits[kept], labels[kept])
    close(annealed_cross_entropy(logits, labels, torch.tensor(0.4), "paper"), expected)
    assert annealed_cross_entropy(logits, labels, torch.tensor(0.0), "paper") == 0
