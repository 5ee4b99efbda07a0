from __future__ import annotations

import pytest

from interlude_fast.methods import METHODS

from .golden import close, exact_method, golden, replay_logits


@pytest.mark.parametrize("name", ["supervised", "fully_supervised"])
def test_a_step_of_the_released_code(name: str) -> None:
    g = golden("supervised")
    losses, (lb,) = replay_logits(exact_method(name), g["y_lb"], g["logits_lb"])
    close(losses.total, g["loss"])
    close(losses.metrics["loss_labeled"], g["loss"])
    close(lb, g["grad_logits_lb"])


def test_only_fully_supervised_asks_for_every_label() -> None:
    assert [name for name, method in METHODS.items() if method.every_label] == ["fully_supervised"]
