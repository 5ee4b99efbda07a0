"""Number formats: which of them a device gets, and the loss scale of fp16."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
import torch

from interlude_fast.errors import ConfigError
from interlude_fast.experiment.run import train_run
from interlude_fast.training import device as devices
from interlude_fast.training.device import float32_products, image_dtype, resolve_precision
from interlude_fast.training.setup import prepare
from interlude_fast.training.step import EagerStep
from tests.helpers import small_config
from tests.training.test_runs import Stop as Died
from tests.training.test_runs import assert_same_run, stop_after

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("native", "device", "side", "chosen"),
    [
        (False, CPU, 32, "fp32"),
        (True, CPU, 32, "bf16"),
        (True, CPU, 16, "fp32"),
        (True, CUDA, 16, "bf16"),
        (False, CUDA, 96, "fp32"),
    ],
)
def test_auto(monkeypatch: pytest.MonkeyPatch, native: bool, device: torch.device, side: int, chosen: str) -> None:
    monkeypatch.setattr(devices, "computes_in_bf16", lambda device: native)
    assert resolve_precision("auto", device, side) == chosen


def test_processes_that_tests_start_hear_the_same_of_the_processor() -> None:
    """Also where pytest --bf16 makes something else of it than the truth."""
    code = "import torch; from interlude_fast.training.device import computes_in_bf16 as asked\n"
    code += "print(asked(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == f"{devices.computes_in_bf16(CPU)}\n", done.stderr


def test_formats_that_the_device_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="precision tf32 is a format of NVIDIA GPUs"):
        resolve_precision("tf32", CPU)
    monkeypatch.setattr(devices, "computes_in_bf16", lambda device: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    for wish in ("bf16", "tf32"):
        with pytest.raises(ConfigError, match=f"precision {wish}: Tesla T4 does not compute in it; use fp16"):
            resolve_precision(wish, CUDA)
    assert resolve_precision("fp16", CUDA) == "fp16"


def test_exact_products_are_exact_and_the_settings_come_back() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for precision, allowed in (("fp32", False), ("tf32", True), ("bf16", True)):
        with float32_products(precision):
            assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is allowed
    assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)


def test_images_come_in_the_format_of_the_run() -> None:
    assert image_dtype("fp16") == torch.float16
    assert prepare(small_config(train={"precision": "fp16"})).pipeline.batch(0).images.dtype == torch.float16


@pytest.mark.parametrize("optim", [{}, {"name": "adam", "lr": 0.001}], ids=["sgd", "adam"])
def test_an_overflow_under_fp16_changes_no_weight_and_lowers_the_scale(optim: dict) -> None:
    run = prepare(small_config(train={"precision": "fp16"}, optim=optim))
    step, scaler = EagerStep(run.state, run.pipeline, "fp16"), run.state.scaler
    before = {n: p.detach().clone() for n, p in run.state.model.named_parameters()}
    averages = [p.clone() for p in run.state.ema.model.parameters()]
    high = 2.0**60
    scaler.load_state_dict({**scaler.state_dict(), "scale": high})
    scaler.scale(torch.ones(()))
    scaler._scale.fill_(high)
    step()
    assert all(torch.equal(p, before[n]) for n, p in run.state.model.named_parameters())
    torch.testing.assert_close(list(run.state.ema.model.parameters()), averages, rtol=1e-6, atol=1e-7)
    assert scaler.get_scale() == high / 2
    scaler._scale.fill_(2.0**10)
    step()
    assert not torch.equal(run.state.model.fc.weight, before["fc.weight"])
    assert run.state.step == 2


def test_weights_that_shrink_outside_the_optimizer_have_no_fp16() -> None:
    for name, refused in (("adam", True), ("sgd", False)):
        optim = {"name": name, "lr": 0.001, "shrink": 0.02}
        with pytest.raises(ConfigError, match=r"optim\.shrink") if refused else contextlib.nullcontext():
            prepare(small_config(train={"precision": "fp16"}, optim=optim))


def test_fp16_runs_learn_what_fp32_runs_learn_and_resume_exactly(tmp_path, monkeypatch) -> None:
    config = small_config(train={"precision": "fp16"})
    train_run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Died):
            train_run(config, tmp_path / "stopped")
    train_run(config, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
