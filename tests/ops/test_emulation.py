"""The emulation that runs CUDA kernels on the CPU: all of them, and it finds faults."""

from __future__ import annotations

import re

import pytest
import torch

from tests.ops import emulation

pytestmark = pytest.mark.usefixtures("emulated_kernels")
FAULTS = {
    2: "not all threads .* came to the barrier",
    3: "not all threads .* exchange",
    4: "behind its dynamic shared memory",
    5: "CUDA refuses: cudaLaunchKernelEx",
    6: "not all threads",
}


def reverse_rows(x: torch.Tensor, fault: int) -> torch.Tensor:
    return torch.ops.interlude_fast_emulated.reverse_rows(x, fault)


def test_every_cuda_kernel_is_emulated():
    named = {
        name for file in emulation.kernel_files() for name in re.findall(r'm\.impl\("(\w+)"', file.read_text())
    }
    assert set(emulation.emulated_ops()) == named
    assert len(named) >= 6


def test_a_right_kernel_passes():
    x = torch.randn(5, 64)
    torch.testing.assert_close(reverse_rows(x, 0), x.flip(1), rtol=0, atol=0)


def test_a_missing_barrier_gives_wrong_results():
    x = torch.randn(5, 64)
    assert not torch.equal(reverse_rows(x, 1), x.flip(1))


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_errors(fault):
    with pytest.raises(RuntimeError, match=FAULTS[fault]):
        reverse_rows(torch.randn(5, 64), fault)
    test_a_right_kernel_passes()  # and the next launch is as good as ever


def test_the_emulated_kernels_run_only_inside():
    x, op = torch.randn(4, 6), torch.ops.interlude_fast.circular_shift_fusion
    registered = torch._C._dispatch_dump("interlude_fast::circular_shift_fusion")
    with emulation.in_place_of_the_cpu_kernels():
        assert torch._C._dispatch_dump("interlude_fast::circular_shift_fusion") != registered
        inside = op(x, 0.1, 1)
    assert torch._C._dispatch_dump("interlude_fast::circular_shift_fusion") == registered
    torch.testing.assert_close(inside, op(x, 0.1, 1))
