from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interlude_fast.data.batch import Batch, RowOrder
from interlude_fast.methods import vat
from interlude_fast.methods.parts import unit
from interlude_fast.methods.vat import VATOptions, adversarial, kl

from .golden import close, exact_method, golden

LAYERS = ("W1", "b1", "W2", "b2")


class RecordedOrder(RowOrder):
    """8 labeled rows and 12 unlabeled ones, which no mu gives."""

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split([8, 12])


def recorded_network() -> nn.Sequential:
    g = golden("vat")
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 10))
    for parameter, name in zip(network.parameters(), LAYERS, strict=True):
        parameter.data = g[name].clone()
    return network


def recorded_losses(**options: Any) -> tuple[Any, dict[str, Tensor]]:
    """Losses and the total's gradients by the recorded names."""
    g = golden("vat")
    network, method = recorded_network(), exact_method("vat", options, steps=1000)
    images = torch.cat([g["x_lb"], g["x_ulb"]])
    order = RecordedOrder(8, 1, ("weak",), ("weak",))
    losses = method.losses(
        network, Batch(images, g["y_lb"], order, torch.empty(0), torch.tensor(120)), g["d_init"]
    )
    gradients = torch.autograd.grad(losses.total, tuple(network.parameters()))
    return losses, dict(zip(LAYERS, gradients, strict=True))


def test_a_step_of_the_released_code(monkeypatch: pytest.MonkeyPatch) -> None:
    g = golden("vat")
    monkeypatch.setattr(vat, "adversarial", lambda *_: g["r_adv"])
    losses, gradients = recorded_losses()
    close(losses.metrics["loss_labeled"], g["sup_loss"])
    close(losses.metrics["loss_unlabeled"], g["lds"])
    close(losses.metrics["loss_entropy"], g["entropy"])
    close(losses.total, g["total_loss"])
    for name in LAYERS:
        close(gradients[name], g[f"grad_total_{name}"])


@pytest.mark.parametrize("term", ["lds", "entropy"])
def test_each_term_has_its_recorded_gradient(term: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g = golden("vat")
    monkeypatch.setattr(vat, "adversarial", lambda *_: g["r_adv"])
    _, without = recorded_losses(lambda_u=0.0, lambda_entropy=0.0)
    _, with_term = recorded_losses(
        lambda_u=float(term == "lds"), lambda_entropy=float(term == "entropy"), ramp=0.0
    )
    for name in LAYERS:
        close(with_term[name] - without[name], g[f"grad_{term}_{name}"])


def test_the_released_code_from_its_noise_on() -> None:
    """With its xi of 1e-6 the difference of two predictions is about 1e-9 of them, so that rounding in the last
    place of float64 already moves the change of length 6 by some 1e-7, and the losses by some 1e-8."""
    g = golden("vat")
    change = adversarial(recorded_network(), g["x_ulb"], g["d_init"], VATOptions(xi=1e-6))
    torch.testing.assert_close(change, g["r_adv"], rtol=0, atol=2e-6)
    losses, gradients = recorded_losses(xi=1e-6)
    torch.testing.assert_close(losses.total.detach(), g["total_loss"], rtol=0, atol=1e-7)
    for name in LAYERS:
        torch.testing.assert_close(gradients[name], g[f"grad_total_{name}"], rtol=0, atol=1e-7)


def direction(dtype: torch.dtype, xi: float) -> Tensor:
    g = golden("vat")
    # A mean of 1, as a pixel may be: what is added to it is rounded to its last place.
    change = adversarial(recorded_network().to(dtype), 1 + g["x_ulb"].to(dtype), g["d_init"], VATOptions(xi=xi))
    return change.flatten(1).double()


def test_the_default_probe_is_sound_in_float32_and_the_published_one_is_not() -> None:
    true = direction(torch.float64, 1e-5)
    sound, lost = (F.cosine_similarity(direction(torch.float32, xi), true).min() for xi in (VATOptions().xi, 1e-6))
    assert sound > 0.999
    assert lost < 0.9


def test_half_precision_does_not_touch_the_probe() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        under = direction(torch.float32, 1e-2)
    assert torch.equal(under, direction(torch.float32, 1e-2))


def test_unit_rows_of_any_scale() -> None:
    x = torch.randn(4, 3, 2, 2) * torch.tensor([1e-30, 1.0, 1e30, 0.0])[:, None, None, None]
    torch.testing.assert_close(unit(x).flatten(1).norm(dim=1), torch.tensor([1.0, 1.0, 1.0, 0.0]))


def test_more_iterations_find_a_worse_change() -> None:
    """Worse for the predictions, at a length where the quadratic form that they climb still holds."""
    g, network = golden("vat"), recorded_network()
    x, p = g["x_ulb"], network(g["x_ulb"]).softmax(1).detach()
    once, often = (
        kl(p, network(x + adversarial(network, x, g["d_init"], VATOptions(eps=1e-2, iterations=n))))
        for n in (1, 8)
    )
    assert often > once
