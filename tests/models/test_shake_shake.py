from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, jvp

from interlude_fast.models import EmbeddingFusion, Shape, build_model
from interlude_fast.models.shake_shake import Shift, shake

A, B = (torch.full((6, 2, 1, 1), value, dtype=torch.float64) for value in (1.0, 0.0))


def gates(training: bool) -> tuple[Tensor, Tensor]:
    """What weighs branch a of every image in forward, and its gradient in backward; b's are 1 minus these."""
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    y = shake(a, b, training)
    y.sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(a.grad + b.grad, torch.ones_like(A))
    for gate in (y.detach(), a.grad):
        assert torch.equal(gate[:, :1], gate[:, 1:])  # one per image
    return y.detach()[:, 0, 0, 0], a.grad[:, 0, 0, 0]


def test_gates_are_drawn_anew_for_image_pass_and_direction() -> None:
    torch.manual_seed(0)
    forward, backward = gates(training=True)
    again, _ = gates(training=True)
    values = torch.cat([forward, backward, again])
    assert len(values.unique()) == 18
    assert 0 <= values.min() < values.max() <= 1
    torch.manual_seed(0)
    assert torch.equal(gates(training=True)[0], forward)


def test_gates_stand_still_in_eval_mode() -> None:
    before = torch.get_rng_state()
    for gate in gates(training=False):
        assert torch.equal(gate, torch.full((6,), 0.5, dtype=torch.float64))
    assert torch.equal(before, torch.get_rng_state())


def test_forward_mode_and_reverse_mode_agree_in_eval_mode(one_thread: None) -> None:
    torch.manual_seed(0)
    net = build_model("shake_shake", {}, Shape(5, 3, 8), EmbeddingFusion()).double().eval()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    parameters = {n: p.detach() for n, p in net.named_parameters()}
    direction = {n: torch.randn_like(p) for n, p in parameters.items()}
    logits, change = jvp(lambda p: functional_call(net, p, (x,)), (parameters,), (direction,))
    weight = torch.randn_like(logits)
    gradients = torch.autograd.grad((net(x) * weight).sum(), list(net.parameters()))
    backward = sum((g * d).sum() for g, d in zip(gradients, direction.values(), strict=True))
    torch.testing.assert_close((weight * change).sum(), backward)


def test_shortcut_reads_every_second_pixel_and_those_between() -> None:
    shift = Shift(1, 2, 0.1).double().eval()
    with torch.no_grad():
        shift.conv.weight.fill_(1)
        shift.conv.bias.zero_()
        for side in (4, 5):
            x = torch.arange(1.0, side * side + 1, dtype=torch.float64).reshape(1, 1, side, side)
            y = shift(x) * (1 + 1e-5) ** 0.5
            torch.testing.assert_close(y[:, :1], x[:, :, ::2, ::2])
            between = torch.zeros_like(y[:, 1:])
            odd = x[:, :, 1::2, 1::2]
            between[:, :, : odd.shape[2], : odd.shape[3]] = odd
            torch.testing.assert_close(y[:, 1:], between)
