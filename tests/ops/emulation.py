"""The CUDA kernels on the CPU: csrc/cuda/*.cu, built by the host's compiler with csrc/tests/emulation/."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
EMULATION, KERNELS, BUILD = ROOT / "csrc/tests/emulation", ROOT / "csrc/cuda", ROOT / "build/emulation"
LOCK = BUILD / "lock"
NAMESPACE = "interlude_fast_emulated"
# The arithmetic's flags are setup.py's; the rest is what makes it build fast.
FLAGS = [
    "-std=c++20",
    "-O1",
    "-g0",
    "-U_FORTIFY_SOURCE",
    "-ffp-contract=off",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Werror",
]


def kernel_files() -> list[Path]:
    return sorted(KERNELS.glob("*.cu"))


def build() -> None:
    """Build what changed and load it: the ops of `NAMESPACE` then have kernels for tensors in main memory."""
    BUILD.mkdir(parents=True, exist_ok=True)
    sources = []
    for kernel in [*kernel_files(), EMULATION / "faults.cu"]:
        source = BUILD / f"{kernel.stem}.cpp"
        text = f'#include "{EMULATION}/emulation.h"\n#include "{kernel}"\n'
        if not source.exists() or source.read_text() != text:
            source.write_text(text)
        sources.append(str(source))
    with contextlib.suppress(OSError):  # of a build that was killed; torch would wait for its end
        if time.time() - LOCK.stat().st_mtime > 600:
            LOCK.unlink()
    beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where pip puts ninja
    with mock.patch.dict(os.environ, PATH=beside_python):
        cpp_extension.load(
            NAMESPACE,
            sources,
            extra_cflags=FLAGS,
            extra_include_paths=[str(EMULATION), str(EMULATION / "include")],
            build_directory=str(BUILD),
            is_python_module=False,
        )


def emulated_ops() -> list[str]:
    """Names of the ops that have a CUDA kernel."""
    names = torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
    return sorted(name.split("::")[1] for name in names if name.startswith(f"{NAMESPACE}::"))


@contextlib.contextmanager
def in_place_of_the_cpu_kernels() -> Iterator[None]:
    """Calls of the package's ops on CPU tensors run the CUDA kernels."""
    schemas = torch.library.Library(NAMESPACE, "FRAGMENT")
    override = torch.library.Library("interlude_fast", "IMPL")
    try:
        for name in emulated_ops():
            schema = str(getattr(torch.ops.interlude_fast, name).default._schema)
            schemas.define(schema.split("::")[1])
            override.impl(name, getattr(getattr(torch.ops, NAMESPACE), name).default, "CPU")
        yield
    finally:
        override._destroy()
        schemas._destroy()
