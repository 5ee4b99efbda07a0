"""FGSM on linear networks, where the attacked image is known by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interlude_fast.data.preprocessing import Preprocessing
from interlude_fast.metrics import fgsm_errors
from interlude_fast.metrics.robustness import _gradient_signs


class Linear(nn.Module):
    """logits [0, w . x + b] of one-pixel images with two channels, in pixel units."""

    def __init__(self, w: tuple[float, float], b: float) -> None:
        super().__init__()
        self.w, self.b = torch.tensor(w), b
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.inputs.append(x.detach())
        margin = x[:, :, 0, 0] @ self.w + self.b
        return torch.stack([torch.zeros_like(margin), margin], 1)


def pixels(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float()


def test_a_linear_network_by_hand() -> None:
    # Class 1 where a - b > 0. A step s takes 2 s from its margin, but for what the ends of the range hold back.
    images = torch.tensor([[10, 5], [10, 3], [254, 250], [0, 200], [2, 0]], dtype=torch.uint8)[:, None, None]
    labels = torch.tensor([1, 1, 1, 0, 1])
    model = Linear((1.0, -1.0), 0.0)
    model.train()
    errors = fgsm_errors(model, images.split(2), labels, pixels, [0, 1, 2, 3, 255])
    # Margins 5, 7, 4, -200, 2; a margin of 0 is a tie, which class 0 wins. At 200 float32 knows no gradient.
    assert errors == {0: 0.0, 1: 0.2, 2: 0.4, 3: 0.6, 255: 1.0}
    assert model.training
    strongest = torch.cat([x for x in model.inputs if len(x) == 1][-1:])  # the last image, step 255
    assert strongest.flatten().tolist() == [0, 255]


def test_the_step_is_in_pixels_whatever_the_normalization() -> None:
    how = Preprocessing(1, 1, "crop", (0.3,), (0.2,), ("a", "b"))

    class Threshold(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            value = (x[:, 0, 0, 0] * 0.2 + 0.3) * 255
            return torch.stack([torch.zeros_like(value), value - 100.5], 1)

    images = torch.tensor([101, 104, 110], dtype=torch.uint8)[:, None, None, None]
    errors = fgsm_errors(Threshold(), [images], torch.tensor([1, 1, 1]), how.normalize, [1, 4, 9, 10])
    assert errors == pytest.approx({1: 1 / 3, 4: 2 / 3, 9: 2 / 3, 10: 1})


def test_the_direction_is_the_sign_of_the_cross_entropys_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 5)).double()
    x, labels = torch.randn(6, 3, 5, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])
    inputs = x.clone().requires_grad_()
    F.cross_entropy(model(inputs), labels).backward()
    assert torch.equal(_gradient_signs(model, x, labels), inputs.grad.sign().permute(0, 2, 3, 1).to(torch.int16))


def test_frozen_networks_are_attacked_and_keep_no_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).requires_grad_(False)
    images = torch.randint(0, 256, (8, 2, 2, 3), dtype=torch.uint8)
    labels = model(pixels(images)).argmax(1)
    errors = fgsm_errors(model, [images], labels, pixels, [0, 128])
    assert errors[0] == 0 < errors[128]
    trained = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    fgsm_errors(trained, [images], labels, pixels, [1])
    assert all(p.grad is None for p in trained.parameters())
