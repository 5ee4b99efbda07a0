from __future__ import annotations

import pytest

from .golden import close, exact_method, golden, replay_logits

LOGITS = ("logits_lb", "logits_w", "logits_s")


def test_a_step_of_the_released_code() -> None:
    g = golden("fixmatch")
    losses, (lb, w, s) = replay_logits(exact_method("fixmatch"), g["y_lb"], *(g[k] for k in LOGITS))
    close(losses.metrics["loss_labeled"], g["sup_loss"])
    close(losses.metrics["loss_unlabeled"], g["unsup_loss"])
    close(losses.metrics["mask_rate"], g["mask"].mean())
    close(losses.total, g["total_loss"])
    for actual, name in zip((lb, w, s), LOGITS, strict=True):
        close(actual, g[f"grad_{name}"])


@pytest.mark.parametrize(("toolkit", "temperature"), [("torchssl", 0.5), ("usb", 1.0)])
def test_soft_labels_of_the_released_code(toolkit: str, temperature: float) -> None:
    g = golden("fixmatch")
    method = exact_method("fixmatch", {"hard_labels": False, "temperature": temperature})
    losses, (_, w, s) = replay_logits(method, g["y_lb"], *(g[k] for k in LOGITS))
    close(losses.metrics["loss_unlabeled"], g[f"soft_{toolkit}_unsup_loss"])
    close(s, g[f"soft_{toolkit}_grad_logits_s"])
    assert not w.any()
