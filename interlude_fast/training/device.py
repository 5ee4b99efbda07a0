"""Where a run computes, and in which number format."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from interlude_fast.errors import ConfigError
from interlude_fast.options import Precision

# Side from which on bf16 pays on processors that compute in it: below, casting costs more than products save.
LEAST_SIDE_FOR_BF16 = 32
AMPERE = (8, 0)


def resolve_device(wish: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        ConfigError: no such device, or a GPU is asked for that this machine or this torch does not have.
    """
    if wish == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", wish):
        raise ConfigError(f"device '{wish}' is none of auto, cpu, cuda and cuda:<i>")
    device = torch.device(wish)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(
                f"device '{wish}': torch {torch.__version__} sees {count} GPUs here; use --device cpu"
            )
    return device


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16 products."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= AMPERE
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def resolve_precision(
    wish: Precision, device: torch.device, side: int | None = None, kept: bool = False
) -> Precision:
    """`auto` is bf16 where the device computes in it, on CPUs for images of 32 px and more, else fp32.

    Args:
        side: of the images; None: large ones. kept: whether a step is that of a tail on kept activations, which on
            CPUs is faster in fp32.

    Raises:
        ConfigError: a format that the device does not have.
    """
    native = computes_in_bf16(device)
    if wish == "auto":
        small = device.type == "cpu" and (kept or (side is not None and side < LEAST_SIDE_FOR_BF16))
        return "bf16" if native and not small else "fp32"
    if wish == "tf32" and device.type == "cpu":
        raise ConfigError("precision tf32 is a format of NVIDIA GPUs, this run is on the CPU; use fp32 or bf16")
    if wish in ("tf32", "bf16") and device.type == "cuda" and not native:
        name = torch.cuda.get_device_name(device)
        raise ConfigError(f"precision {wish}: {name} does not compute in it; use fp16 or fp32")
    return wish


def autocast(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager:
    """The context in which the network runs."""
    if precision in ("bf16", "fp16"):
        return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
    return contextlib.nullcontext()


def image_dtype(precision: Precision) -> torch.dtype:
    """Of a batch's images: as autocast would round them."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


@contextlib.contextmanager
def float32_products(precision: Precision) -> Iterator[None]:
    """Inside, float32 products and convolutions on GPUs are exact under fp32, and TF32 otherwise; torch's own
    default is TF32 for convolutions alone."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision != "fp32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
