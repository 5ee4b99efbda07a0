"""circular_shift_fusion: against the reference, its gradients, its torch.library rules, nasty inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interlude_fast import ops, reference

pytestmark = pytest.mark.usefixtures("one_thread")
OP = torch.ops.interlude_fast
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (0, 5),
    (5, 0),
    (1, 7),
    (2, 1),
    (7,),
    (33, 129),
    (9, 3, 5),
    (4, 8, 6, 6),
    (3, 5, 2, 3, 2),
    (40, 1000),
]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def embeddings(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def value_and_gradient(function, x: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """y and d <y, c> / dx for a fixed uneven c."""
    x = x.detach().requires_grad_()
    y = function(x, alpha)
    c = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=torch.float64).to(y.dtype).reshape(y.shape)
    return y, torch.autograd.grad(y, x, c)[0]


@pytest.mark.parametrize("alpha", [0.1, 0.75])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference(device, shape, dtype, alpha, within_budget):
    x = embeddings(shape, device, dtype)
    results = value_and_gradient(ops.circular_shift_fusion, x, alpha)
    plains = value_and_gradient(lambda x, alpha: (1 - alpha) * x + alpha * x.roll(-1, 0), x, alpha)
    truths = value_and_gradient(reference.circular_shift_fusion, x.double(), alpha)
    for result, plain, truth in zip(results, plains, truths, strict=True):
        assert result.dtype == dtype
        within_budget(result, plain, truth)


def test_by_hand(device):
    x = torch.tensor([[1.0, 10], [2, 20], [4, 40]], device=device)
    y = ops.circular_shift_fusion(x, 0.25)
    assert y.tolist() == [[1.25, 12.5], [2.5, 25.0], [3.25, 32.5]]


def test_without_strength_or_neighbour_nothing_changes(device):
    x = embeddings((5, 3), device)
    torch.testing.assert_close(ops.circular_shift_fusion(x, 0), x, rtol=0, atol=0)
    torch.testing.assert_close(ops.circular_shift_fusion(x[:1], 0.3), x[:1])


@pytest.mark.parametrize("shape", [(4, 3), (1, 5), (3, 2, 2, 2)], ids=str)
def test_gradcheck(device, shape):
    x = embeddings(shape, device, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(ops.circular_shift_fusion, (x, 0.3))
    assert torch.autograd.gradgradcheck(ops.circular_shift_fusion, (x, 0.3))


@pytest.mark.rules
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(5, 3), (4, 8, 6, 6), (3, 5, 2, 3, 2), (0, 4)], ids=str)
@pytest.mark.parametrize("special_format", [False, True])
def test_opcheck(device, shape, special_format):
    x = embeddings(shape, device)
    if special_format:
        x = x.to(memory_format=FORMATS[x.dim()]) if x.dim() in FORMATS else x.t().contiguous().t()
    for sample in (x, x.detach().requires_grad_()):
        torch.library.opcheck(OP.circular_shift_fusion.default, (sample, 0.2, 1))


@pytest.mark.parametrize("shape", [(6, 8, 5, 5), (3, 5, 2, 3, 2)], ids=str)
def test_channels_last_stays_so(device, shape):
    x = embeddings(shape, device).to(memory_format=FORMATS[len(shape)])
    y, gradient = value_and_gradient(ops.circular_shift_fusion, x, 0.2)
    assert y.stride() == x.stride()
    torch.testing.assert_close(y, reference.circular_shift_fusion(x, 0.2))
    torch.testing.assert_close(gradient, value_and_gradient(reference.circular_shift_fusion, x, 0.2)[1])


def copies(x: Tensor) -> bool:
    with torch.autograd.profiler.profile() as profile:
        ops.circular_shift_fusion(x, 0.2)
    return any(event.name in ("aten::copy_", "aten::clone") for event in profile.function_events)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(6, 8, 5, 5), (3, 5, 2, 3, 2)], ids=str)
def test_only_odd_strides_are_copied(device, shape):
    x = embeddings(shape, device)
    assert not copies(x)
    assert not copies(x.to(memory_format=FORMATS[len(shape)]))
    assert copies(x.transpose(0, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[::2],
        lambda x: x[:, 1::2],
        lambda x: x.transpose(0, 1),
        lambda x: x.permute(2, 0, 1),
        lambda x: x[:1].expand(5, -1, -1),
        lambda x: x.flatten()[1:],  # not aligned to 16 bytes
        lambda x: x.flatten()[1:-15].view(-1, 8),
        lambda x: x.flatten()[3].expand(4, 3),
    ],
)
def test_any_strides(device, dtype, view):
    x = view(embeddings((8, 10, 16), device, dtype))
    y = ops.circular_shift_fusion(x, 0.2)
    torch.testing.assert_close(y, reference.circular_shift_fusion(x, 0.2), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(y, ops.circular_shift_fusion(x.contiguous(), 0.2), rtol=0, atol=0)


def test_threads_do_not_change_a_bit(device):
    x = embeddings((301, 401), device)
    expected = ops.circular_shift_fusion(x, 0.2)
    torch.set_num_threads(3)
    torch.testing.assert_close(ops.circular_shift_fusion(x, 0.2), expected, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_spreads_to_the_row_before_it_and_no_further(device, bad):
    x = embeddings((6, 40), device)
    x[2] = bad
    finite = ops.circular_shift_fusion(x, 0.1).isfinite()
    assert finite.all(1).tolist() == finite.any(1).tolist() == [True, False, False, True, True, True]


BAD = {
    "x must be float64": (TypeError, lambda x: x.long(), 0.1),
    "x must have a row": (ValueError, lambda x: x[0, 0], 0.1),
    "alpha must lie in .*1.5": (ValueError, lambda x: x, 1.5),
    "alpha must lie in .*-0.1": (ValueError, lambda x: x, -0.1),
    "alpha must lie in .*nan": (ValueError, lambda x: x, float("nan")),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(device, message):
    error, change, alpha = BAD[message]
    with pytest.raises(error, match=message):
        ops.circular_shift_fusion(change(embeddings((3, 4), device)), alpha)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_of_direct_calls(device, message):
    error, change, alpha = BAD[message]
    with pytest.raises(error, match=message):
        OP.circular_shift_fusion(change(embeddings((3, 4), device)), alpha, 1)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shift", [0, 2, -(2**62)])
def test_bad_shift_of_direct_calls(device, shift):
    with pytest.raises(ValueError, match="shift must be 1 or -1"):
        OP.circular_shift_fusion(embeddings((3, 4), device), 0.1, shift)


@pytest.mark.rules
@pytest.mark.parametrize("special_format", [False, True])
def test_compiles_whole_with_gradient(device, special_format):
    def function(x: Tensor, alpha: float) -> Tensor:
        return ops.circular_shift_fusion(x.tanh(), alpha)

    x = embeddings((4, 8, 6, 6), device)
    x = x.to(memory_format=torch.channels_last) if special_format else x
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results, plains = value_and_gradient(compiled, x, 0.2), value_and_gradient(function, x, 0.2)
    torch.testing.assert_close(results, plains, rtol=0, atol=0)
    assert results[0].stride() == x.stride()


@pytest.mark.rules
def test_compiles_for_any_number_of_rows(device):
    compiled = torch.compile(ops.circular_shift_fusion, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 2, 9):
        x = embeddings((rows, 6), device)
        torch.testing.assert_close(compiled(x, 0.2), ops.circular_shift_fusion(x, 0.2), rtol=0, atol=0)
