"""batch_norm_leaky_relu: against torch's two functions, its gradients, its torch.library rules, which of the two
runs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interlude_fast import ops, reference
from interlude_fast.models.norm import BatchNorm2d, normalize_and_activate

pytestmark = pytest.mark.usefixtures("one_thread")
OP = torch.ops.interlude_fast
CPU = torch.device("cpu")
EPS, SLOPE = 1e-3, 0.1
SHAPES = [(4, 16, 32, 32), (9, 40, 13, 5), (3, 5, 7, 7), (70, 128, 8, 8), (1, 300, 3, 2)]
MOST_THREADS = 3


def problem(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """x far from zero mean and unit variance, weight, bias, gradient of the output."""
    draw = torch.Generator().manual_seed(0)
    c = shape[1]
    x = 3 * torch.randn(shape, generator=draw) + 10 * torch.randn(c, 1, 1, generator=draw)
    weight, bias, grad = (torch.randn(s, generator=draw) for s in (c, c, shape))
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    return x.to(dtype), weight.to(dtype), bias.to(dtype), grad.to(dtype)


def kernel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return OP.batch_norm_leaky_relu(x, weight, bias, EPS, SLOPE)[0]


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.batch_norm_leaky_relu(x, weight, bias, None, None, eps=EPS, slope=SLOPE)


def with_gradients(function, *arguments: Tensor) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in arguments[:3]]
    y = function(*leaves)
    return y, *torch.autograd.grad(y, leaves, arguments[3])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference(device, shape, within_budget):
    if device != CPU:
        pytest.skip("the op is the CPU's")
    arguments = problem(shape)
    ours, theirs = with_gradients(kernel, *arguments), with_gradients(plain, *arguments)
    truth = with_gradients(plain, *(t.double() for t in arguments))
    for a, b, c in zip(ours, theirs, truth, strict=True):
        within_budget(a, b, c, terms=shape[0] * shape[2] * shape[3])
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("kernels")
def test_derivatives(device):
    if device != CPU:
        pytest.skip("the op is the CPU's")
    x, weight, bias, _ = (t.requires_grad_() for t in problem((3, 2, 2, 3), torch.float64))
    assert torch.autograd.gradcheck(kernel, (x, weight, bias))
    assert torch.autograd.gradgradcheck(kernel, (x, weight, bias))
    only = [weight.detach(), bias.detach()]
    assert torch.autograd.gradgradcheck(lambda x: kernel(x, *only), (x,))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(2, 18, 3, 5), (2, 4, 2, 2)], ids=str)
def test_opcheck(device, shape):
    if device != CPU:
        pytest.skip("the op is the CPU's")
    x, weight, bias, grad = problem(shape)
    statistics = OP.batch_norm_leaky_relu(x, weight, bias, EPS, SLOPE)[1:]
    for needs in (False, True):
        leaves = [t.detach().requires_grad_(needs) for t in (x, weight, bias)]
        torch.library.opcheck(OP.batch_norm_leaky_relu.default, (*leaves, EPS, SLOPE))
    arguments = (grad, x, weight, bias, *statistics, EPS, SLOPE)
    torch.library.opcheck(OP.batch_norm_leaky_relu_backward.default, arguments)


@pytest.mark.usefixtures("kernels")
def test_threads_do_not_change_a_bit(device):
    arguments = problem((40, 24, 16, 16))
    expected = with_gradients(kernel, *arguments)
    torch.set_num_threads(MOST_THREADS)
    for a, b in zip(with_gradients(kernel, *arguments), expected, strict=True):
        assert torch.equal(a, b)


def layer(channels: int) -> BatchNorm2d:
    norm = BatchNorm2d(channels, eps=EPS, momentum=0.3)
    nn.init.normal_(norm.weight)
    return norm


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [{}, {"track_running_stats": False}, {"momentum": None}], ids=str)
def test_the_layer_s_state_moves_as_torch_s_does(training, affine):
    ours = BatchNorm2d(16, eps=EPS, **affine).train(training)
    theirs = nn.BatchNorm2d(16, eps=EPS, **affine).train(training)
    for seed in range(2):
        x = problem((4, 16, 32, 32))[0] + seed
        y = normalize_and_activate(ours, x, SLOPE)
        torch.testing.assert_close(y, F.leaky_relu(theirs(x), SLOPE), rtol=1e-4, atol=1e-5)
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_passes_of_several_sizes_share_a_backward_pass():
    norm = layer(16)
    x = problem((4, 16, 32, 32))[0].requires_grad_()
    small = x[:1, :, :8, :8].contiguous(memory_format=torch.channels_last)  # the library's
    parts = [normalize_and_activate(norm, t, SLOPE).square().mean() for t in (small, x, small)]
    sum(parts[1:], parts[0]).backward()


def ran_kernel(norm: nn.Module, x: Tensor) -> bool:
    with torch.autograd.profiler.profile() as profile:
        normalize_and_activate(norm, x, SLOPE)
    return any(event.name == "interlude_fast::batch_norm_leaky_relu" for event in profile.function_events)


@pytest.mark.usefixtures("kernels")
def test_the_kernel_runs_where_it_fits_and_only_there(device):
    if device != CPU:
        pytest.skip("the op is the CPU's")
    norm, x = layer(16), problem((4, 16, 32, 32))[0]
    assert ran_kernel(norm, x)
    with ops.use_reference():
        assert not ran_kernel(norm, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not ran_kernel(norm, x)
    assert not ran_kernel(layer(16).double(), x.double())
    assert not ran_kernel(norm, x.contiguous())
    assert not ran_kernel(norm, x[:, :, :4, :4].contiguous(memory_format=torch.channels_last))
    assert not ran_kernel(layer(16).eval(), x)
    assert not ran_kernel(nn.InstanceNorm2d(16), x)
    torch.func.jvp(lambda x: normalize_and_activate(layer(16), x, SLOPE), (x,), (x,))


@pytest.mark.usefixtures("kernels")
def test_compiles_whole(device):
    if device != CPU:
        pytest.skip("the op is the CPU's")
    norm, x = layer(16), problem((4, 16, 32, 32))[0]
    compiled = torch.compile(normalize_and_activate, fullgraph=True, backend="aot_eager")
    twin = copy.deepcopy(norm)
    torch.testing.assert_close(compiled(norm, x, SLOPE), normalize_and_activate(twin, x, SLOPE))
    torch.testing.assert_close(norm.running_var, twin.running_var)


@pytest.mark.usefixtures("kernels")
def test_bad_arguments(device):
    if device != CPU:
        pytest.skip("the op is the CPU's")
    x, weight, bias, grad = problem((2, 3, 4, 4))
    with pytest.raises(ValueError, match="x must be"):
        kernel(x[0], weight, bias)
    with pytest.raises(ValueError, match="weight and bias must have shape"):
        kernel(x, weight, bias[:2])
    with pytest.raises(TypeError, match="weight or bias is"):
        kernel(x, weight.double(), bias)
    with pytest.raises(ValueError, match="grad must have shape"):
        OP.batch_norm_leaky_relu_backward(grad[:1], x, weight, bias, weight, bias, EPS, SLOPE)
