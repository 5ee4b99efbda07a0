"""Builds the extension `interlude_fast._C`: CPU kernels where there is a C++ compiler, CUDA kernels where
there are an nvcc and a torch with CUDA, GPU or not. Without a compiler the package installs without it
and runs on its torch reference. Metadata: pyproject.toml. C++ tests: CMakeLists.txt.

Environment:
  INTERLUDE_FAST_CUDA       0 builds no CUDA kernels, 1 fails where they cannot be built
  INTERLUDE_FAST_EXTENSION  0 builds no extension at all
  INTERLUDE_FAST_WERROR     1 makes compiler warnings errors
  TORCH_CUDA_ARCH_LIST      as everywhere in torch, e.g. "8.0;9.0+PTX"
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
ARCHS = {"80": "8.0", "90": "9.0", "100": "10.0"}


def say(line: str) -> None:
    print(f"interlude-fast: {line}", file=sys.stderr)


def cuda_wish() -> str:
    wish = os.environ.get("INTERLUDE_FAST_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"INTERLUDE_FAST_CUDA must be 0 or 1, got {wish!r}")
    return wish


def has_compiler() -> bool:
    return shutil.which(os.environ.get("CXX", "c++")) is not None or shutil.which("g++") is not None


def find_cuda_home() -> Path | None:
    """The toolkit: a folder that holds bin/nvcc and include/cuda_runtime.h (nvcc on PATH may be a wrapper)."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    nvcc = shutil.which("nvcc")
    if nvcc:
        candidates.append(str(Path(nvcc).resolve().parent.parent))
    candidates += [str(home) for folder in site.getsitepackages() for home in Path(folder).glob("nvidia/cu*")]
    for home in map(Path, filter(None, candidates)):
        if (home / "bin" / "nvcc").exists() and (home / "include" / "cuda_runtime.h").exists():
            return home
    return None


def arch_list(home: Path, torch) -> str:
    """The GPU's own architecture where there is one, else every one of ARCHS that this nvcc knows."""
    if torch.cuda.is_available():
        return "{}.{}".format(*torch.cuda.get_device_capability())
    listing = subprocess.run(
        [str(home / "bin" / "nvcc"), "--list-gpu-arch"], capture_output=True, text=True
    ).stdout
    known = re.findall(r"compute_(\d+)", listing)
    # The newest as PTX too, which later GPUs compile when they load it.
    return ";".join(value for key, value in ARCHS.items() if key in known) + "+PTX"


def cuda_build(torch) -> tuple[Path, str] | None:
    """(toolkit, architectures) when CUDA kernels are to be built."""
    wish = cuda_wish()
    if wish == "0":
        say("no CUDA kernels: INTERLUDE_FAST_CUDA=0")
        return None
    home = find_cuda_home()
    if home is None or torch.version.cuda is None:
        why = "no nvcc found" if home is None else "the installed torch has no CUDA"
        if wish == "1":
            sys.exit(f"INTERLUDE_FAST_CUDA=1, but {why}")
        say(f"no CUDA kernels: {why}")
        return None
    return home, os.environ.get("TORCH_CUDA_ARCH_LIST") or arch_list(home, torch)


def extension() -> dict:
    if os.environ.get("INTERLUDE_FAST_EXTENSION") == "0":
        say("no extension: INTERLUDE_FAST_EXTENSION=0")
        return {}
    if not has_compiler():
        say("no C++ compiler found: installing without compiled kernels; the torch reference will run")
        return {}
    try:
        import torch
    except ImportError:
        say("no torch in the build environment: installing without compiled kernels")
        return {}
    cuda = cuda_build(torch)
    if cuda:
        os.environ["CUDA_HOME"], os.environ["TORCH_CUDA_ARCH_LIST"] = str(cuda[0]), cuda[1]
        say(f"CUDA kernels: {cuda[0]}, architectures {cuda[1]}, torch {torch.__version__}")
    from torch.utils import cpp_extension  # reads CUDA_HOME when imported

    sources = [
        "csrc/ops.cpp",
        "csrc/autograd.cpp",
        *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc/cpu").glob("*.cpp")),
    ]
    macros: list[tuple[str, str | None]] = []
    # No contraction of a*b+c: sampling and augmentation must give the same bits on every device.
    # The last two change no value; with them loops with selects vectorize.
    cxx = ["-O3", "-g0", "-std=c++20", "-fopenmp", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
    flags = {"cxx": [*cxx, "-Wall", "-Wno-unknown-pragmas"]}
    if cuda:
        sources += sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc/cuda").glob("*.cu"))
        macros = [
            ("INTERLUDE_FAST_CUDA", f'"{torch.version.cuda}"'),
            ("INTERLUDE_FAST_CUDA_ARCHS", f'"{cuda[1]}"'),
        ]
        flags["nvcc"] = ["-O3", "-std=c++20", "-fmad=false"]
    if os.environ.get("INTERLUDE_FAST_WERROR") == "1":
        flags["cxx"] += ["-Werror"]
        flags.get("nvcc", []).extend(["-Werror", "all-warnings"])
    kind = cpp_extension.CUDAExtension if cuda else cpp_extension.CppExtension
    built = kind(
        "interlude_fast._C",
        sources,
        define_macros=macros,
        extra_compile_args=flags,
        extra_link_args=["-s", "-fopenmp"],
        depends=[str(p) for p in (ROOT / "csrc").rglob("*.*h")],
    )
    command = cpp_extension.BuildExtension.with_options(no_python_abi_suffix=False)
    return {"ext_modules": [built], "cmdclass": {"build_ext": command}}


def packages() -> dict:
    """The package, and inside it configs/ as `configs` and bench/recipes/ as `recipes`."""
    folders = [p.relative_to(ROOT) for p in (ROOT / "configs").rglob("*") if p.is_dir()]
    configs = ["interlude_fast.configs", *("interlude_fast." + ".".join(f.parts) for f in folders)]
    return {
        "packages": [
            *find_packages(include=["interlude_fast", "interlude_fast.*"]),
            *configs,
            "interlude_fast.recipes",
        ],
        "package_dir": {"interlude_fast.configs": "configs", "interlude_fast.recipes": "bench/recipes"},
        "package_data": {"interlude_fast": ["py.typed"], **{name: ["*.yaml"] for name in configs}},
    }


setup(**packages(), **extension())
