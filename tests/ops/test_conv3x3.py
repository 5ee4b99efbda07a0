"""conv3x3: against torch's convolution, its gradients, its torch.library rules, which of the two runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from interlude_fast import ops, reference
from interlude_fast.models.conv import Conv2d
from interlude_fast.ops.conv import winograd_runs

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.rules]  # no CUDA kernel
OP = torch.ops.interlude_fast
CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(not ops.status().vector_unit, reason="no vector unit, or no extension")
# N, C, K, height, width: sides that 4 divides and does not, one image, panels and slices that are not full.
SHAPES = [
    (3, 16, 32, 32, 32),
    (5, 32, 32, 16, 16),
    (2, 64, 64, 15, 17),
    (1, 128, 128, 8, 8),
    (33, 8, 24, 7, 6),
    (7, 40, 72, 6, 13),
    (9, 160, 8, 4, 3),
    (40, 24, 136, 1, 4),
    (64, 16, 16, 12, 12),
]
FEW = 8  # times torch's own error against float64
MOST_THREADS = 3


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def problem(n: int, c: int, k: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, gradient of the output."""
    x = normal(n, c, height, width).contiguous(memory_format=torch.channels_last)
    return x, normal(k, c, 3, 3, seed=1) / (9 * c) ** 0.5, normal(k, seed=2), normal(n, k, height, width, seed=3)


def all_gradients(function, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """Output, its gradients, and second derivatives: the gradients of |gradients|^2."""
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias, grad)]
    y = function(*leaves[:3])
    first = torch.autograd.grad(y, leaves[:3], leaves[3], create_graph=True)
    second = torch.autograd.grad(sum(g.square().mean() for g in first[:2]), [leaves[0], leaves[1], leaves[3]])
    return y, *first, *second


def error(result: Tensor, truth: Tensor) -> float:
    return (result.double() - truth).square().mean().sqrt().item() / truth.square().mean().sqrt().item()


def kernel(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return OP.conv3x3(x, weight, bias)


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_near_to_the_truth_as_a_few_torch_convolutions(shape):
    arguments = problem(*shape)
    ours = all_gradients(kernel, *arguments)
    plain = all_gradients(reference.conv3x3, *arguments)
    truth = all_gradients(reference.conv3x3, *(t.double() for t in arguments))
    for name, a, b, c in zip(["y", "x", "weight", "bias", "xx", "ww", "gg"], ours, plain, truth, strict=True):
        assert a.shape == c.shape
        assert error(a, c) <= FEW * error(b, c) + 1e-6, name
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


@needs_kernels
def test_an_impulse_gives_the_taps():
    x = torch.zeros(1, 16, 9, 9).contiguous(memory_format=torch.channels_last)
    x[0, 3, 0, 8] = x[0, 5, 4, 4] = 1
    weight = normal(16, 16, 3, 3)
    y = kernel(x, weight)
    torch.testing.assert_close(y[0, :, 3:6, 3:6], weight[:, 5].flip(1, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(y[0, :, :2, 7:], weight[:, 3].flip(1, 2)[:, 1:, :2], rtol=0, atol=1e-5)
    assert y[0, :, 8].abs().max() == 0  # a tile whose window holds no impulse


@needs_kernels
@pytest.mark.parametrize("shape", [(3, 64, 72, 9, 9), (40, 16, 32, 32, 32)], ids=str)
def test_threads_do_not_change_a_bit(shape):
    arguments = problem(*shape)
    expected = all_gradients(kernel, *arguments)[:3]
    torch.set_num_threads(MOST_THREADS)
    for a, b in zip(all_gradients(kernel, *arguments)[:3], expected, strict=True):
        assert torch.equal(a, b)


@needs_kernels
@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.contiguous(),
        lambda t: t[:, :, ::2, 1:],
        lambda t: t[::2],
        lambda t: t.transpose(2, 3),
        lambda t: t[:1].expand(3, -1, -1, -1),
    ],
)
def test_any_strides(view):
    x, weight, bias, _ = problem(4, 16, 16, 10, 10)
    x, weight = view(x), weight.transpose(2, 3)
    torch.testing.assert_close(kernel(x, weight, bias), F.conv2d(x, weight, bias, padding=1), rtol=1e-4, atol=1e-5)
    grad = normal(*x.shape, seed=4).transpose(2, 3).contiguous().transpose(2, 3)
    truth = torch.nn.grad.conv2d_weight(x, weight.shape, grad, padding=1)
    torch.testing.assert_close(OP.conv3x3_weight(x, grad), truth, rtol=1e-4, atol=1e-3)


@needs_kernels
def test_a_bad_pixel_stays_within_its_image():
    x, weight, _, _ = problem(3, 16, 16, 8, 8)
    x[1, 2, 3, 3] = float("nan")
    assert kernel(x, weight).isfinite().flatten(1).all(1).tolist() == [True, False, True]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("needs", [(True, True, True), (True, False, False), (False, True, False)], ids=str)
def test_gradcheck(device, needs):
    if device != CPU:
        pytest.skip("the op is the CPU's")
    x, weight, bias, _ = (t.double().requires_grad_() for t in problem(2, 3, 2, 4, 5))
    for t, need in zip((x, weight, bias), needs, strict=True):
        t.requires_grad_(need)
    assert torch.autograd.gradcheck(kernel, (x, weight, bias))
    assert torch.autograd.gradgradcheck(kernel, (x, weight, bias))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(2, 16, 24, 5, 6), (0, 16, 16, 4, 4), (2, 3, 16, 4, 4)], ids=str)
def test_opcheck(device, shape):
    if device != CPU:
        pytest.skip("the op is the CPU's")
    x, weight, bias, grad = problem(*shape)
    for needs in (False, True):
        leaves = [t.detach().requires_grad_(needs) for t in (x, weight, bias, grad)]
        torch.library.opcheck(OP.conv3x3.default, tuple(leaves[:3]))
        torch.library.opcheck(OP.conv3x3.default, (leaves[0], leaves[1], None))
        torch.library.opcheck(OP.conv3x3_weight.default, (leaves[0], leaves[3]))


def fitting() -> tuple[Tensor, Tensor, Tensor]:
    return problem(8, 16, 16, 16, 16)[:3]


def ran_kernel(*arguments: Tensor) -> bool:
    with torch.autograd.profiler.profile() as profile:
        y = ops.conv3x3(*arguments)
    torch.testing.assert_close(y, reference.conv3x3(*arguments), rtol=1e-4, atol=1e-5)
    return any(event.name == "interlude_fast::conv3x3" for event in profile.function_events)


@needs_kernels
def test_the_kernel_runs_where_it_fits_and_only_there():
    x, weight, bias = fitting()
    assert ran_kernel(x, weight, bias)
    assert ran_kernel(x, weight)
    with ops.use_reference():
        assert not ran_kernel(x, weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert not ran_kernel(x, weight, bias)
    assert not ran_kernel(x.double(), weight.double(), bias.double())
    assert not ran_kernel(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert not ran_kernel(x.contiguous(), weight, bias)
    assert not ran_kernel(x[:0], weight, bias)
    assert not ran_kernel(x[:3], weight, bias)
    assert not ran_kernel(x[:, :12].contiguous(memory_format=torch.channels_last), weight[:, :12], bias)
    assert not ran_kernel(x, weight[:12], bias[:12])
    assert not ran_kernel(x[:, :8].contiguous(memory_format=torch.channels_last), weight[:, :8], bias)


def test_other_devices_are_the_library_s():
    x, weight, _ = (t.to("meta") for t in fitting())
    assert not winograd_runs(x, weight)
    assert ops.conv3x3(x, weight).shape == (8, 16, 16, 16)


@needs_kernels
def test_forward_mode_is_the_library_s():
    x, weight, bias = fitting()
    _, change = torch.func.jvp(lambda x: ops.conv3x3(x, weight, bias), (x,), (x,))
    torch.testing.assert_close(change, F.conv2d(x, weight, padding=1))
    with torch.autograd.forward_ad.dual_level():
        y = ops.conv3x3(torch.autograd.forward_ad.make_dual(x, x), weight, bias)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(y).tangent, change)


@needs_kernels
def test_compiles_whole():
    x, weight, bias = (t.requires_grad_() for t in fitting())
    compiled = torch.compile(lambda *t: ops.conv3x3(*t).square().sum(), fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(ops.conv3x3(x, weight, bias).square().sum(), (x, weight, bias))
    for a, b in zip(torch.autograd.grad(compiled(x, weight, bias), (x, weight, bias)), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.usefixtures("kernels")
def test_bad_arguments(device):
    if device != CPU:
        pytest.skip("the op is the CPU's")
    x, weight, bias = fitting()
    for arguments, message in {
        (x[0], weight, bias): "x must be",
        (x, weight[:, :8], bias): "weight must have shape",
        (x, weight, bias[:8]): "bias must have shape",
    }.items():
        with pytest.raises(ValueError, match=message):
            OP.conv3x3(*arguments)
    with pytest.raises(TypeError, match="weight is"):
        OP.conv3x3(x, weight.double(), bias)
    with pytest.raises(ValueError, match="grad must have shape"):
        OP.conv3x3_weight(x, normal(8, 16, 16, 15))


@pytest.mark.parametrize(
    "settings", [{}, {"stride": 2}, {"padding": 0}, {"groups": 2}, {"padding_mode": "circular"}]
)
@pytest.mark.parametrize("side", [1, 3])
def test_the_layer_is_torch_s(settings, side):
    settings = {"padding": side // 2} | settings
    ours, plain = Conv2d(16, 32, side, **settings), torch.nn.Conv2d(16, 32, side, **settings)
    plain.load_state_dict(ours.state_dict())
    x = fitting()[0]
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-5)
