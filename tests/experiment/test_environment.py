"""What `doctor` says of this machine."""

from __future__ import annotations

import pytest
import torch

from interlude_fast.experiment import environment
from interlude_fast.ops.extension import ExtensionStatus
from interlude_fast.training import device as devices

BUILT = ExtensionStatus(True, cuda_version="13.0")


@pytest.mark.parametrize(
    ("device", "native", "line"),
    [
        ("cpu", False, "on cpu (torch sees no GPU), in fp32 (the processor does not compute in bf16)"),
        (
            *("cpu", True),
            "on cpu (torch sees no GPU), in bf16 for images of 32 px and more, else in fp32 "
            "(the processor computes in bf16)",
        ),
        ("cuda", False, "on cuda (torch sees a GPU), in fp32 (the GPU does not compute in bf16)"),
        ("cuda", True, "on cuda (torch sees a GPU), in bf16 (the GPU computes in bf16)"),
    ],
)
def test_what_runs_and_why(monkeypatch: pytest.MonkeyPatch, device: str, native: bool, line: str) -> None:
    monkeypatch.setattr(environment, "resolve_device", lambda wish: torch.device(device))
    monkeypatch.setattr(devices, "computes_in_bf16", lambda device: native)
    monkeypatch.setattr(environment.ops, "status", lambda: BUILT)
    assert environment.what_runs() == f"{line}, with fused kernels"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (ExtensionStatus(True), "because the extension was built without kernels for cuda"),
        (ExtensionStatus(False, "not built"), "because the extension is not built (to build it: "),
    ],
)
def test_why_the_reference_runs(monkeypatch: pytest.MonkeyPatch, status: ExtensionStatus, words: str) -> None:
    monkeypatch.setattr(environment, "resolve_device", lambda wish: torch.device("cuda"))
    monkeypatch.setattr(devices, "computes_in_bf16", lambda device: True)
    monkeypatch.setattr(environment.ops, "status", lambda: status)
    assert f"with torch reference, {words}" in environment.what_runs()
