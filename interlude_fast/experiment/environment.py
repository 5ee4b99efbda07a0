"""What was used: versions, device, extension. Written beside every result and printed by `doctor`."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import interlude_fast
from interlude_fast import ops
from interlude_fast.ops.extension import BUILD_HINT
from interlude_fast.training.device import LEAST_SIDE_FOR_BF16, resolve_device, resolve_precision

PACKAGES = (
    *("torchvision", "nvidia-dali-cuda130", "numpy", "pillow", "pydantic", "safetensors"),
    *("scikit-learn", "torchmetrics", "timm"),
)


def command_line() -> str:
    """The command that this process was started with."""
    return shlex.join(["interlude-fast", *sys.argv[1:]])


def processor() -> str:
    """The CPU's name, where the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def package_versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def gpus() -> list[str]:
    """Name, compute capability and memory of every GPU that torch sees."""
    return [
        f"{p.name}, compute capability {p.major}.{p.minor}, {p.total_memory / 2**30:.0f} GiB"
        for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]


def driver() -> str:
    """Version of NVIDIA's driver; "none" where there is none to be asked."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "none"
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else "none"


def extension_line() -> str:
    """The compiled extension in one line."""
    s = ops.status()
    if not s.loaded:
        return f"not loaded: {s.why_not}"
    cuda = f"CUDA {s.cuda_version} for {s.cuda_archs}" if s.cuda_version else "no CUDA kernels"
    return f"built with {s.compiler}, torch {s.torch_version}; {cuda}"


def environment() -> dict[str, Any]:
    """Everything that a figure should not travel without."""
    device = resolve_device("auto")
    return {
        "interlude_fast": interlude_fast.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "packages": package_versions(),
        "extension": extension_line(),
        "processor": f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "gpus": gpus(),
        "driver": driver() if torch.cuda.is_available() else "none",
        "device": str(device),
        "precision": resolve_precision("auto", device),
    }


def why_precision(device: torch.device) -> str:
    """The format that `auto` settles on, and what it depends on."""
    large, small = (resolve_precision("auto", device, side) for side in (None, LEAST_SIDE_FOR_BF16 - 1))
    where = "the GPU" if device.type == "cuda" else "the processor"
    if large != "bf16":
        return f"in {large} ({where} does not compute in bf16)"
    below = "" if small == large else f" for images of {LEAST_SIDE_FOR_BF16} px and more, else in {small}"
    return f"in {large}{below} ({where} computes in bf16)"


def what_runs() -> str:
    """Device, precision and kernels that `auto` settles on here, and why."""
    device = resolve_device("auto")
    why_device = "torch sees a GPU" if device.type == "cuda" else "torch sees no GPU"
    s = ops.status()
    if s.runs_on(device):
        kernels = "fused kernels"
    elif s.loaded:
        kernels = f"torch reference, because the extension was built without kernels for {device.type}"
    else:
        kernels = f"torch reference, because the extension is {s.why_not} ({BUILD_HINT})"
    return f"on {device} ({why_device}), {why_precision(device)}, with {kernels}"
