"""What only a GPU can show of the ops: streams, graph capture, no talk with the host, sizes beyond 2^31."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from interlude_fast import ops, reference
from interlude_fast.reference.augment import USB_FORM, Form, fixmatch_form

CUDA = torch.device("cuda")

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not ops.status().runs_on(CUDA), reason=f"no CUDA kernels: {ops.status().why_not}"),
]


class Case:
    """One op on inputs that stay where they are: `fill` writes new values, `run` is what is captured."""

    def __init__(self, run: Callable[..., list[Tensor]], *shapes: tuple[int, ...]) -> None:
        self.inputs = [torch.zeros(shape, device=CUDA, requires_grad=True) for shape in shapes]
        self._run = run

    def fill(self, seed: int) -> None:
        generator = torch.Generator(CUDA).manual_seed(seed)
        with torch.no_grad():
            for x in self.inputs:
                x.copy_(3 * torch.randn(x.shape, generator=generator, device=CUDA))

    def run(self) -> list[Tensor]:
        """Outputs and gradients of the inputs."""
        outputs = self._run(*self.inputs)
        gradients = torch.autograd.grad(outputs[0].square().sum(), self.inputs)
        return [*outputs, *gradients]


def whole_loss(delta: str) -> Callable[[Tensor], list[Tensor]]:
    labels = (torch.arange(8) % 4).to(CUDA) if torch.cuda.is_available() else None
    return lambda x: list(ops.interlude_loss(x, labels, mu=3, thresholds=0.6, delta=delta))


def delta_loss(uw: Tensor, us: Tensor) -> list[Tensor]:
    lw, ls = (x.detach()[:, 0].flip(0) for x in (uw, us))
    return [ops.delta_consistency_loss(lw, ls, uw, us, uw.detach()[..., 0] > 0)]


CASES: dict[str, Callable[[], Case]] = {
    "fusion": lambda: Case(lambda x: [ops.circular_shift_fusion(x, 0.1)], (64, 16, 9, 9)),
    "loss, mean": lambda: Case(whole_loss("mean"), (64, 5)),
    "loss, per class": lambda: Case(whole_loss("per_class"), (64, 5)),
    "delta alone": lambda: Case(delta_loss, (8, 3, 5), (8, 3, 5)),
}


def capture(run: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    """Warm up on a side stream, as capture demands, then record one run."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph, outputs


@pytest.mark.parametrize("name", CASES)
def test_work_goes_to_the_current_stream(name):
    """Inputs are written late on a side stream: a kernel on another one would read the old values."""
    case = CASES[name]()
    case.fill(1)
    expected = [x.clone() for x in case.run()]
    case.fill(0)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        case.fill(1)
        results = case.run()
    side.synchronize()
    torch.testing.assert_close(results, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", CASES)
def test_a_captured_graph_computes_anew_at_each_replay(name):
    case = CASES[name]()
    case.fill(0)
    graph, outputs = capture(case.run)
    for seed in (1, 2):
        case.fill(seed)
        graph.replay()
        replayed = [x.clone() for x in outputs]
        torch.testing.assert_close(replayed, case.run(), rtol=0, atol=0)


def test_a_captured_graph_draws_the_next_rows_at_each_replay():
    step, size = torch.zeros(1, dtype=torch.int64, device=CUDA), (40, 1437, 64, 7)

    def draw_and_advance() -> list[Tensor]:
        items = ops.sample_rows(step, seed=-3, labeled=40, unlabeled=1437, batch=64, mu=7)
        step.add_(1)
        return list(items)

    graph, items = capture(draw_and_advance)
    step.fill_(2**33)
    for k in range(2**33, 2**33 + 4):
        graph.replay()
        expected = reference.sample_rows(torch.tensor(k), -3, *size)
        torch.testing.assert_close([x.cpu() for x in items], list(expected), rtol=0, atol=0)
    assert step.item() == 2**33 + 4


@pytest.mark.parametrize(
    "size", [(1, 7, 5, 7), (40, 50_000, 64, 7), (1437, 65_537, 448, 0), (2**31, 2**31, 300, 3)]
)
@pytest.mark.parametrize("step", [0, 2**33 + 5])
def test_rows_are_those_of_the_cpu(step, size):
    labeled, unlabeled, batch, mu = size
    cpu, gpu = (
        ops.sample_rows(
            torch.tensor(step, device=device), seed=-9, labeled=labeled, unlabeled=unlabeled, batch=batch, mu=mu
        )
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close([x.cpu() for x in gpu], list(cpu), rtol=0, atol=0)


def views(device: str, form: Form, side: int, rows: int, step: Tensor) -> Tensor:
    """Weak and strong views in turn of patterned images."""
    count = 16 * side * side * 3
    store = ((torch.arange(count) * 2654435761) >> 13 & 255).to(torch.uint8).reshape(16, side, side, 3).to(device)
    affine, values = ops.randaugment_tables(side, form, torch.device(device))
    row = torch.arange(rows, device=device)
    return ops.augment_views(
        store, row % 16, row, row % 2, step.to(device), seed=3, flip=True, pad=side // 8, ops=form.ops,
        always=form.always, square=side // 2 << 16, random_square=form.random_square, fill=form.fill_of(3),
        affine=affine, values=values, table=torch.arange(256, dtype=torch.uint8, device=device).repeat(3, 1),
    )  # fmt: skip


@pytest.mark.parametrize("form", [fixmatch_form(), USB_FORM], ids=["fixmatch", "usb"])
@pytest.mark.parametrize(("side", "rows"), [(32, 3000), (225, 1500)])
def test_views_are_those_of_the_cpu(form, side, rows):
    """225 px do not fit shared memory, and 1500 rows not the GPU at once: blocks take several in turn."""
    step = torch.tensor(2**33 + 5)
    gpu, cpu = (views(device, form, side, rows, step) for device in ("cuda", "cpu"))
    assert torch.equal(gpu.cpu(), cpu)


@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_for_the_gpu(name):
    case = CASES[name]()
    case.fill(1)
    case.run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        case.run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("batch", "mu", "classes"), [(5000, 1, 3), (300, 20, 10), (2, 2, 5000)])
def test_more_groups_rows_or_classes_than_fit_the_machine_at_once(batch, mu, classes):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2 * batch * (1 + mu), classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (batch,), generator=generator)
    results = []
    for x, y in ((logits.to(CUDA), labels.to(CUDA)), (logits, labels)):
        x.requires_grad_()
        loss = ops.interlude_loss(x, y, mu=mu, thresholds=0.4, delta="per_class")
        results.append([part.cpu() for part in (*loss, torch.autograd.grad(loss.total, x)[0])])
    torch.testing.assert_close(*results)


def test_fusion_of_more_than_2_to_the_31_elements():
    rows, columns = 131_073, 16_400
    if torch.cuda.mem_get_info()[0] < 3 * 2 * rows * columns:
        pytest.skip("not enough GPU memory")
    x = torch.empty(rows, columns, dtype=torch.bfloat16, device=CUDA).normal_()
    y = ops.circular_shift_fusion(x, 0.25)
    for row in (0, 7, 65_536, 2**31 // columns, rows - 2, rows - 1):
        pair = torch.stack([x[row], x[(row + 1) % rows]])
        torch.testing.assert_close(y[row], reference.circular_shift_fusion(pair, 0.25)[0])


class Descent:
    """WRN-like tensors of sgd_ema_, channels-last, on both devices; `lr` stays where it is."""

    SHAPES = ((16, 3, 3, 3), (32,), (64, 32, 3, 3), (10, 128), (7,), (1_000_003,), (128, 128, 3, 3))

    def __init__(self, device: str, dtype: torch.dtype, copies: int = 1) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(zero: bool = False) -> list[Tensor]:
            tensors = [torch.randn(s, generator=generator, dtype=dtype) * (not zero) for s in self.SHAPES * copies]
            formats = (torch.channels_last if x.dim() == 4 else torch.contiguous_format for x in tensors)
            return [x.to(device, memory_format=f) for x, f in zip(tensors, formats, strict=True)]

        self.parameters, self.momenta, self.shadows, self.gradients = draw(), draw(zero=True), draw(), draw()
        self.lr = torch.tensor(0.03, dtype=torch.float64, device=device)
        self.scale, self.found = (torch.tensor(x, device=device) for x in (64.0, 0.0))

    def step(self) -> list[Tensor]:
        count = len(self.parameters)
        ops.sgd_ema_(
            self.parameters, self.gradients, self.momenta, self.shadows, self.lr,
            scales=[0.9 ** (i % 40) for i in range(count)], weight_decays=[5e-4 * (i % 2) for i in range(count)],
            momentum=0.9, nesterov=True, ema_decay=0.99, shrink=1e-3,
            gradient_scale=self.scale, found_inf=self.found,
        )  # fmt: skip
        return self.state()

    def state(self) -> list[Tensor]:
        return [*self.parameters, *self.momenta, *self.shadows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("copies", [1, 30])
def test_descent_is_that_of_the_cpu(copies, dtype):
    """To the bit: neither side contracts products and sums. 30 copies are three launches."""
    gpu, cpu = (Descent(device, dtype, copies if dtype == torch.float32 else 1) for device in ("cuda", "cpu"))
    for _ in range(3):
        torch.testing.assert_close([x.cpu() for x in gpu.step()], cpu.step(), rtol=0, atol=0)


def test_a_captured_descent_reads_rate_scale_and_infinities_at_each_replay():
    captured, eager = (Descent("cuda", torch.float32) for _ in range(2))
    start = [x.clone() for x in captured.state()]
    graph, _ = capture(captured.step)
    for x, y in zip(captured.state(), start, strict=True):
        x.copy_(y)
    for lr, scale, found in ((0.5, 2.0, 0.0), (0.1, 1.0, 1.0), (0.2, 8.0, 0.0)):
        for side in (captured, eager):
            for number, value in ((side.lr, lr), (side.scale, scale), (side.found, found)):
                number.fill_(value)
        graph.replay()
        eager.step()
        torch.testing.assert_close(captured.state(), eager.state(), rtol=0, atol=0)


def test_descent_waits_for_nothing_and_goes_to_the_current_stream():
    """The rate is written late on a side stream: a kernel on another one would read the old value."""
    late, expected = (Descent("cuda", torch.float32) for _ in range(2))
    expected.lr.fill_(0.5)
    expected.step()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
            late.lr.fill_(0.5)
            late.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    side.synchronize()
    torch.testing.assert_close(late.state(), expected.state(), rtol=0, atol=0)


def test_descent_of_tensors_on_two_devices():
    descent = Descent("cuda", torch.float32)
    descent.lr = descent.lr.cpu()
    with pytest.raises(ValueError, match="lr is on cpu but"):
        descent.step()
    descent = Descent("cuda", torch.float32)
    descent.shadows[2] = descent.shadows[2].cpu()
    with pytest.raises(ValueError, match=r"shadows\[2\] is on cpu"):
        descent.step()


@pytest.mark.parametrize("tensor", ["labels", "thresholds", "class_weights", "pseudo_label_bias", "ramps"])
def test_direct_calls_with_tensors_of_two_devices(tensor):
    o = {"labels": torch.tensor([0, 1], device=CUDA), "thresholds": None, "class_weights": None}
    o |= {"pseudo_label_bias": None, "ramps": None}
    o[tensor] = torch.tensor([0, 1]) if tensor == "labels" else torch.ones(2 if tensor == "ramps" else 4)
    logits = torch.randn(16, 4, device=CUDA)
    with pytest.raises(ValueError, match=f"{tensor} is on cpu"):
        torch.ops.interlude_fast.interlude_loss(
            logits, o.pop("labels"), 3, 0.9, o.pop("thresholds"), 1.0, 1.0, 1.0, False, True, *o.values()
        )


OUT_OF_RANGE = """
import torch
from interlude_fast import ops
labels = torch.tensor([0, 4], device="cuda")
ops.interlude_loss(torch.randn(16, 4, device="cuda"), labels, mu=3)
torch.cuda.synchronize()
"""


def test_labels_out_of_range_end_in_an_assertion():
    """In a process of its own, which the assertion ends."""
    process = subprocess.run([sys.executable, "-c", OUT_OF_RANGE], capture_output=True, text=True)
    assert process.returncode != 0
    assert "label >= 0 && label < p.classes" in process.stdout + process.stderr
