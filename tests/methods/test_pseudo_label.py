from __future__ import annotations

from .golden import close, exact_method, golden, replay_logits


def test_a_step_of_the_released_code() -> None:
    g = golden("pseudolabel")
    method = exact_method("pseudo_label", steps=int(g["num_train_iter"]))
    losses, (lb, ulb) = replay_logits(method, g["y_lb"], g["logits_lb"], g["logits_ulb"], step=int(g["it"]))
    close(losses.metrics["loss_unlabeled"], g["unsup_loss"])
    close(losses.metrics["mask_rate"], g["mask"].mean())
    close(losses.total, g["total_loss"])
    close(lb, g["grad_logits_lb"])
    close(ulb, g["grad_logits_ulb"])


def test_without_a_ramp_the_weight_is_whole_from_the_first_step() -> None:
    g = golden("pseudolabel")
    for ramp, share in ((0.0, 1.0), (0.4, 0.0)):
        method = exact_method("pseudo_label", {"ramp": ramp, "lambda_u": 2.0}, steps=1000)
        losses, _ = replay_logits(method, g["y_lb"], g["logits_lb"], g["logits_ulb"])
        parts = losses.metrics
        close(losses.total, parts["loss_labeled"] + share * 2 * parts["loss_unlabeled"])
