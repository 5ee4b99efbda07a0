from __future__ import annotations

import pytest
import torch

from interlude_fast.methods.softmatch import SoftMatchOptions, SoftWeight

from .golden import close, exact_method, golden, pick, replay_logits

STATE = {
    "usb": {"mean": "mu", "variance": "var", "wanted": "p_target", "seen": "p_model"},
    "torchssl": {"mean": "mu", "variance": "var", "wanted": "lb_prob", "seen": "ulb_prob"},
}
RUNS = {
    "usbA": {"form": "usb"},
    "usbB": {"form": "usb", "momentum": 0.9},
    "usbM": {"form": "usb", "momentum": 0.9, "target": "labeled"},
    "tsslA": {"form": "torchssl"},
    "tsslB": {"form": "torchssl", "momentum": 0.9},
}


@pytest.mark.parametrize("run", RUNS)
def test_three_steps_of_the_released_code(run: str) -> None:
    recorded = golden("softmatch")
    method = exact_method("softmatch", RUNS[run])
    state = method.weight
    for step in range(3):
        g = pick(recorded, f"t{step}_")
        g.update(pick(g, f"{run}_"))
        for mine, theirs in STATE[RUNS[run]["form"]].items():
            if step == 0 and not run.endswith("A"):  # which begin at the defaults; NaN is nothing seen yet
                getattr(state, mine).copy_(g[f"{theirs}_before"].nan_to_num(0))
            close(getattr(state, mine), g[f"{theirs}_before"].nan_to_num(0))
        losses, (lb, w, s) = replay_logits(method, g["y_lb"], g["logits_lb"], g["logits_w"], g["logits_s"])
        for mine, theirs in STATE[RUNS[run]["form"]].items():
            close(getattr(state, mine), g[f"{theirs}_after"])
        close(state.align(g["logits_w"].softmax(1)), g["aligned_probs"])
        close(losses.metrics["loss_unlabeled"], g["unsup_loss"])
        close(losses.metrics["mask_rate"], g["weight"].mean())
        close(s, g["grad_logits_s"])
        assert not w.any()
        if "total_loss" in g:
            close(losses.total, g["total_loss"])
            close(losses.metrics["loss_labeled"], g["sup_loss"])
            close(lb, g["grad_logits_lb"])


@pytest.mark.parametrize("run", RUNS)
def test_weights_of_the_first_step(run: str) -> None:
    g = pick(golden("softmatch"), "t0_")
    state = exact_method("softmatch", RUNS[run]).weight
    state.mean.copy_(g[f"{run}_mu_before"])
    state.variance.copy_(g[f"{run}_var_before"])
    state.wanted.fill_(0.1)
    if RUNS[run]["form"] == "torchssl":
        state.seen.fill_(0.1)
    close(state(g["logits_w"].softmax(1), g["logits_lb"].softmax(1)), g[f"{run}_weight"])


@pytest.mark.parametrize("form", ["usb", "torchssl"])
def test_initial_statistics(form: str) -> None:
    state = SoftWeight(4, SoftMatchOptions(form=form))
    assert (float(state.mean), float(state.variance)) == (0.25, 1)
    assert state.wanted.tolist() == [0.25] * 4
    assert state.seen.tolist() == [0.25 if form == "torchssl" else 0] * 4


@pytest.mark.parametrize("form", ["usb", "torchssl"])
def test_one_row_and_equal_confidences_are_no_division_by_zero(form: str) -> None:
    state = SoftWeight(3, SoftMatchOptions(form=form, momentum=0.0))
    for _ in range(3):
        assert state(torch.tensor([[0.7, 0.2, 0.1]]), torch.full((2, 3), 1 / 3)).isfinite().all()
