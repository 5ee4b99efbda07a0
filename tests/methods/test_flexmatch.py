from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interlude_fast.methods.flexmatch import FlexMatchOptions, FlexThreshold

from .golden import close, exact_method, golden, pick, replay_logits


@pytest.mark.parametrize("run", ["warmup", "nowarmup"])
def test_three_steps_of_the_released_code(run: str) -> None:
    recorded = golden("flexmatch")
    method = exact_method("flexmatch", {"thresh_warmup": run == "warmup"}, unlabeled=int(recorded["num_ulb"]))
    state = method.threshold
    for step in range(3):
        g = pick(recorded, f"t{step}_")
        g.update(pick(g, f"{run}_"))
        close(state.labels, g["selected_label_before"])
        close(state.learned, g["classwise_acc_before"])
        close(state(g["pseudo_label"]), g["threshold"])
        losses, (lb, w, s) = replay_logits(
            method, g["y_lb"], g["logits_lb"], g["logits_w"], g["logits_s"], items=g["idx_ulb"]
        )
        close(losses.total, g["total_loss"])
        close(losses.metrics["loss_labeled"], g["sup_loss"])
        close(losses.metrics["loss_unlabeled"], g["unsup_loss"])
        close(losses.metrics["mask_rate"], g["mask"].mean())
        close(lb, g["grad_logits_lb"])
        close(s, g["grad_logits_s"])
        assert not w.any()
        close(state.labels, g["selected_label_after"])
        close(state.learned, g["classwise_acc_after"])
        close(state.counts, torch.bincount(g["selected_label_after"] + 1, minlength=11))


def slow_update(state: FlexThreshold, confidence: Tensor, target: Tensor, items: Tensor) -> list[int]:
    """The labels after a step, row after row."""
    labels = state.labels.tolist()
    for c, t, i in zip(confidence.tolist(), target.tolist(), items.tolist(), strict=True):
        if c >= state.options.tau:
            labels[i] = t
    return labels


def test_images_may_repeat_in_a_batch_and_the_last_confident_row_wins() -> None:
    state = FlexThreshold(4, 12, FlexMatchOptions(tau=0.5))
    generator = torch.Generator().manual_seed(1)
    for _ in range(30):
        confidence = torch.rand(20, generator=generator)
        target = torch.randint(4, (20,), generator=generator)
        items = torch.randint(12, (20,), generator=generator)
        expected = slow_update(state, confidence, target, items)
        state.update(confidence, target, items)
        assert state.labels.tolist() == expected
        assert state.counts.tolist() == torch.bincount(state.labels + 1, minlength=5).tolist()


def test_before_any_confident_prediction_every_threshold_is_zero_and_stays_so() -> None:
    state = FlexThreshold(3, 5, FlexMatchOptions())
    state.update(torch.full((2,), 0.9), torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert not state(torch.arange(3)).any()
    state.update(torch.tensor([0.99, 0.2]), torch.tensor([2, 1]), torch.tensor([4, 1]))
    assert state.learned.tolist() == [0, 0, 0.25]  # one image of class 2, four never confident


@pytest.mark.parametrize(("mapping", "half"), [("convex", 1 / 3), ("linear", 0.5), ("concave", 0.5849625)])
def test_mappings(mapping: str, half: float) -> None:
    state = FlexThreshold(3, 5, FlexMatchOptions(tau=0.8, mapping=mapping))
    state.learned.copy_(torch.tensor([0, 0.5, 1]))
    torch.testing.assert_close(state(torch.tensor([2, 0, 1])), torch.tensor([0.8, 0, 0.8 * half]))
