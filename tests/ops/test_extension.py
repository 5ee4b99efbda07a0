"""The extension as a whole: what was built, which side of an op runs, and life without it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils import cpp_extension

from interlude_fast import ops, reference

pytestmark = pytest.mark.usefixtures("one_thread")
OPS = ["circular_shift_fusion", "interlude_loss", "delta_consistency_loss", "sample_rows"]


def run_every_op(device: str = "cpu") -> dict[str, list]:
    """Results of one small call of each op's face, as lists."""
    x = torch.linspace(-2, 2, 48, dtype=torch.float64, device=device).sin().reshape(12, 4).requires_grad_()
    labels = torch.tensor([0, 3], device=device)
    grouped = x.reshape(2, 6, 4)
    results = {
        "circular_shift_fusion": ops.circular_shift_fusion(x, 0.1),
        "interlude_loss": torch.stack(ops.interlude_loss(x, labels, mu=2, thresholds=0.3)[:5]),
        "delta_consistency_loss": ops.delta_consistency_loss(
            grouped[:, 0], grouped[:, 3], grouped[:, 1:3], grouped[:, 4:]
        ),
    }
    results |= {f"gradient of {op}": torch.autograd.grad(y.sum(), x)[0] for op, y in results.items()}
    k = torch.tensor(2**40 + 3, device=device)
    items = ops.sample_rows(k, seed=-5, labeled=40, unlabeled=1437, batch=3, mu=4)
    results |= {"labeled items": items[0], "unlabeled items": items[1]}
    return {name: result.tolist() for name, result in results.items()}


def nvcc_found() -> bool:
    home = cpp_extension.CUDA_HOME
    return shutil.which("nvcc") is not None or (home is not None and (Path(home) / "bin/nvcc").exists())


def has_kernel(op: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"interlude_fast::{op}", key)


@pytest.mark.skipif(not ops.status().loaded, reason=f"no compiled extension: {ops.status().why_not}")
def test_a_build_has_every_kernel_of_its_devices():
    status = ops.status()
    assert status.torch_version.split("+")[0] == torch.__version__.split("+")[0]
    assert status.compiler
    for op in OPS:
        assert has_kernel(op, "CPU")
        assert has_kernel(op, "CUDA") == (status.cuda_version is not None)
    assert status.runs_on(torch.device("cpu"))
    assert status.runs_on(torch.device("cuda")) == (status.cuda_version is not None)
    assert not status.runs_on(torch.device("meta"))


@pytest.mark.skipif(not ops.status().loaded, reason=f"no compiled extension: {ops.status().why_not}")
@pytest.mark.skipif(not nvcc_found() or torch.version.cuda is None, reason="no nvcc, or torch without CUDA")
@pytest.mark.skipif(
    os.environ.get("INTERLUDE_FAST_CUDA") != "1", reason="no CUDA kernels asked for: INTERLUDE_FAST_CUDA=1"
)
def test_the_build_has_cuda_where_it_can():
    assert ops.status().cuda_version is not None
    assert ops.status().cuda_archs


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("op", OPS)
def test_use_reference_switches_and_switches_back(device, op, monkeypatch):
    calls = []
    original = getattr(reference, op)
    monkeypatch.setattr(reference, op, lambda *args, **kwargs: calls.append(op) or original(*args, **kwargs))
    compiled = run_every_op(device.type)
    assert calls == []
    with ops.use_reference(), ops.use_reference():
        plain = run_every_op(device.type)
    assert op in calls
    called = len(calls)
    assert run_every_op(device.type) == compiled
    assert len(calls) == called
    for name, result in plain.items():
        torch.testing.assert_close(torch.tensor(result), torch.tensor(compiled[name]), msg=name)


def test_use_reference_ends_with_an_error():
    with pytest.raises(ZeroDivisionError), ops.use_reference():
        raise ZeroDivisionError
    assert not ops.extension._reference_only


WITHOUT_EXTENSION = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from interlude_fast import ops
    from tests.ops.test_extension import run_every_op
    at_import = len(caught)
    results = [run_every_op(), run_every_op()]
warned = [[str(w.message), w.filename] for w in caught[at_import:] if w.category is RuntimeWarning]
print(json.dumps([ops.status().loaded, warned, results]))
"""


def test_without_the_extension_the_reference_runs_after_one_warning():
    root = Path(__file__).parents[2]
    environment = os.environ | {"INTERLUDE_FAST_EXTENSION": "0", "PYTHONPATH": str(root)}
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTENSION], cwd=root, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    loaded, warned, results = json.loads(process.stdout.splitlines()[-1])
    assert not loaded
    [(message, blamed)] = warned
    assert Path(blamed).name == Path(__file__).name
    assert "INTERLUDE_FAST_EXTENSION=0" in message
    assert "to build it: pip install" in message
    assert results[0] == results[1]
    for name, result in run_every_op().items():
        exact = {"rtol": 0, "atol": 0} if "items" in name else {}
        torch.testing.assert_close(torch.tensor(results[0][name]), torch.tensor(result), msg=name, **exact)


@pytest.mark.rules
@pytest.mark.usefixtures("kernels")
def test_inductor_takes_all_ops_in_one_graph(device):
    """A step in small: draw rows, fuse, score, differentiate."""
    images, weights = torch.randn(24, 6, device=device), torch.randn(6, 4, device=device)

    def step(weights: Tensor, k: Tensor) -> Tensor:
        labeled, unlabeled = ops.sample_rows(k, seed=1, labeled=9, unlabeled=24, batch=3, mu=2)
        groups = torch.cat([labeled[:, None], unlabeled], 1).repeat(1, 2)
        embedded = ops.circular_shift_fusion(images[groups.flatten()].tanh(), 0.1)
        logits = embedded @ weights
        lw, uw, ls, us = reference.split_rows(logits, 3, 2, True)
        extra = ops.delta_consistency_loss(lw, ls, uw, us)
        return ops.interlude_loss(logits, labeled % 4, mu=2, thresholds=0.6).total + extra

    def value_and_gradient(function) -> tuple[Tensor, Tensor]:
        leaf = weights.clone().requires_grad_()
        value = function(leaf, torch.tensor(5, device=device))
        return value, torch.autograd.grad(value, leaf)[0]

    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(value_and_gradient(compiled), value_and_gradient(step))


@pytest.mark.skipif(not ops.status().loaded, reason=f"no compiled extension: {ops.status().why_not}")
def test_a_build_for_another_torch_is_not_used(monkeypatch: pytest.MonkeyPatch):
    from interlude_fast import _C
    from interlude_fast.ops import extension

    monkeypatch.setattr(_C, "torch_version", "2.9.1")
    status = extension._load()
    assert not status.loaded
    assert status.why_not == f"built against torch 2.9.1, but {torch.__version__} runs"


def test_an_extension_that_was_not_built_is_called_so(monkeypatch: pytest.MonkeyPatch):
    from interlude_fast.ops import extension

    monkeypatch.setitem(sys.modules, "interlude_fast._C", None)
    assert extension._load().why_not == "not built"
