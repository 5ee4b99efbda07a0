from __future__ import annotations

import torch
from torch import Tensor, nn

from interlude_fast.methods.mean_teacher import as_in_training, consistency

from .golden import close, exact_method, golden, make_batch


class Shifted(nn.Module):
    """Logits are the images plus trained numbers of the network's own."""

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


def test_a_step_of_the_released_code() -> None:
    g = golden("meanteacher")
    method = exact_method("mean_teacher", steps=int(g["num_train_iter"]))
    student = g["logits_student"].clone().requires_grad_()
    images = torch.cat([g["logits_lb"], g["logits_teacher"], student])
    losses = method(nn.Identity(), make_batch(method, g["y_lb"], images, int(g["it"])), nn.Identity())
    close(losses.metrics["loss_unlabeled"], g["unsup_loss"])
    close(losses.total, g["total_loss"])
    losses.total.backward()
    close(student.grad / (g["warm"] * g["lambda_u"]), g["grad_logits_student"])


def test_the_consistency_that_usb_loses_is_there() -> None:
    """USB's head compares the teacher with itself, so its recorded loss is 0."""
    g = golden("meanteacher")
    assert g["usb_head_unsup_loss"] == 0
    assert consistency(g["logits_student"], g["logits_teacher"]) > 0.05


def test_the_teacher_is_the_averaged_network_and_sees_the_first_view() -> None:
    method, labels = exact_method("mean_teacher", {"ramp": 0}), torch.arange(2)
    lb, first, second = torch.randn(3, 2, 10, dtype=torch.float64)
    model, ema = (Shifted(torch.randn(10, dtype=torch.float64)) for _ in range(2))
    losses = method(model, make_batch(method, labels, torch.cat([lb, first, second])), ema)
    expected = (model(second).softmax(1) - ema(first).softmax(1)).square().mean()
    close(losses.metrics["loss_unlabeled"], expected)
    losses.total.backward()
    assert model.shift.grad is not None
    assert ema.shift.grad is None


def test_the_teacher_normalizes_by_its_batch_and_is_left_as_it_was() -> None:
    teacher = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3))).eval()
    teacher[1].train()
    modes, before = [m.training for m in teacher.modules()], teacher[0].running_mean.clone()
    with as_in_training(teacher):
        out = teacher(5 + torch.randn(64, 3))
    assert out.mean().abs() < 1e-5
    assert not out.requires_grad
    assert [m.training for m in teacher.modules()] == modes
    assert torch.equal(teacher[0].running_mean, before)
