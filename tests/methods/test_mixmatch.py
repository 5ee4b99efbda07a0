from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from interlude_fast.methods.mixmatch import interleave, mixup

from .golden import close, exact_method, golden, make_batch


class Recorder(nn.Module):
    """Keeps the batches that a network is shown."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seen = network, []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((x.detach(), torch.is_grad_enabled()))
        return self.network(x)


@pytest.mark.parametrize("interleaved", [True, False])
def test_a_step_of_the_released_code(interleaved: bool) -> None:
    """A linear network treats rows one by one, so that either order of them has the recorded losses."""
    g = golden("mixmatch")
    linear = nn.Linear(12, 10).double()
    with torch.no_grad():
        linear.weight.copy_(g["W"]), linear.bias.copy_(g["b"])
    method = exact_method("mixmatch", {"interleave": interleaved}, steps=1000)
    batch = make_batch(method, g["y_lb"], torch.cat([g["x_lb"], g["x_ulb_1"], g["x_ulb_2"]]), step=120)
    close(method.guess(linear, batch), g["sharpened"])
    close(mixup(batch.images, g["lam_raw"], g["perm"]), g["mixed_x"])
    network = Recorder(linear)
    losses = method.mixed_losses(network, batch, g["lam_raw"], g["perm"])
    passes = [x for x, with_gradient in network.seen if with_gradient]
    assert [len(x) for x in passes] == [8, 8, 8]
    close(torch.cat(interleave(passes) if interleaved else passes), g["mixed_x"])
    close(losses.metrics["loss_labeled"], g["sup_loss"])
    close(losses.metrics["loss_unlabeled"], g["unsup_loss"])
    close(losses.total, g["total_loss"])
    losses.total.backward()
    close(linear.weight.grad, g["grad_W"])
    close(linear.bias.grad, g["grad_b"])


def test_interleaving_of_the_released_code_and_back() -> None:
    chunks = list(torch.arange(24).split(8))
    mixed = interleave(chunks)
    close(torch.stack(mixed), golden("mixmatch")["torchssl_interleave_out"])
    assert torch.equal(torch.cat(interleave(mixed)), torch.arange(24))


@pytest.mark.parametrize(("chunks", "rows"), [(1, 4), (15, 64), (7, 2), (5, 5)])
def test_interleaving_is_its_own_inverse_for_any_mu(chunks: int, rows: int) -> None:
    x = torch.arange(chunks * rows)
    mixed = interleave(list(x.split(rows)))
    assert [len(chunk) for chunk in mixed] == [rows] * chunks
    assert torch.cat(mixed).unique().numel() == chunks * rows
    assert torch.equal(torch.cat(interleave(mixed)), x)


def test_images_in_half_precision_are_mixed_in_single() -> None:
    x, strength = torch.randn(4, 3).bfloat16(), torch.tensor(0.3)
    expected = 0.7 * x.float() + 0.3 * x.float().flip(0)
    torch.testing.assert_close(mixup(x, strength, torch.tensor([3, 2, 1, 0])), expected)
