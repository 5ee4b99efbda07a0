"""The fused views: the reference's bytes, which tests/data/test_augment.py holds against Pillow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from interlude_fast import ops
from interlude_fast.reference.augment import USB_FORM, fixmatch_form

pytestmark = pytest.mark.usefixtures("one_thread")


def images(count: int, side: int, channels: int) -> Tensor:
    """Noise, dark noise, few values and one value in turn."""
    g = torch.Generator().manual_seed(side * 7 + channels)
    x = torch.randint(0, 256, (count, side, side, channels), dtype=torch.uint8, generator=g)
    x[1::4] //= 3
    x[2::4] = x[2::4] // 64 * 64
    x[3::4] = 77
    return x


def arguments(
    device: torch.device, side: int = 32, channels: int = 3, rows: int = 64, **over: Any
) -> dict[str, Any]:
    """Arguments of augment_views; the table is the identity, so that the result is the pixels themselves.

    m: of FixMatch's form, None for USB's."""
    m = over.pop("m", 10)
    form = fixmatch_form(m) if m else USB_FORM
    affine, values = ops.randaugment_tables(side, form, device)
    number = torch.arange(rows, device=device)
    made = {
        "store": images(16, side, channels).to(device),
        "items": number * 5 % 16,
        "rows": number,
        "views": number % 2,
        "step": torch.tensor(2**33 + 1, device=device),
        **{"seed": 3, "flip": True, "pad": side // 8, "ops": form.ops, "always": form.always},
        **{"square": side // 2 << 16, "random_square": form.random_square, "fill": form.fill_of(channels)},
        **{"affine": affine, "values": values},
        "table": torch.arange(256, dtype=torch.uint8, device=device).repeat(channels, 1),
    }
    return made | over


def both(made: dict[str, Any]) -> tuple[Tensor, Tensor]:
    fused = ops.augment_views(**made)
    with ops.use_reference():
        return fused, ops.augment_views(**made)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("m", [10, None], ids=["fixmatch", "usb"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [3, 8, 32, 33, 96, 97, 224, 225])
def test_same_bytes_as_the_reference(device: torch.device, side: int, channels: int, m: int | None) -> None:
    rows = 200 if side < 90 else 40
    fused, plain = both(arguments(device, side, channels, rows=rows, m=m))
    assert fused.shape == (rows, channels, side, side)
    assert fused.is_contiguous(memory_format=torch.channels_last)
    assert plain.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(fused, plain)


@pytest.mark.usefixtures("kernels")
def test_every_operation_at_every_level_gives_the_same_bytes(device: torch.device) -> None:
    """One operation a view: 4,000 strong views draw each of the 252 combinations several times."""
    fused, plain = both(arguments(device, 16, 3, rows=8000, ops=1, square=0, pad=0, flip=False))
    assert torch.equal(fused, plain)


@pytest.mark.usefixtures("kernels")
def test_many_usb_views_give_the_same_bytes(device: torch.device) -> None:
    """4,000 strong views with three operations: most of the 14,336 operations and levels."""
    fused, plain = both(arguments(device, 16, 3, rows=8000, m=None))
    assert torch.equal(fused, plain)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    "over",
    [
        *(
            {"ops": 0},
            {"ops": 5},
            {"ops": 16},
            {"pad": 0},
            {"square": 0},
            {"square": 32 << 16},
            {"m": 2},
            {"m": 5},
        ),
        *({"square": 0, "m": None}, {"square": 32 << 16, "m": None}, {"ops": 16, "m": None}),
        *({"always": True}, {"random_square": True, "square": 12345}, {"square": (7 << 16) + 40_000}),
        {"fill": (0, 255, 9)},
    ],
    ids=str,
)
def test_other_policies(device: torch.device, over: dict) -> None:
    fused, plain = both(arguments(device, **over))
    assert torch.equal(fused, plain)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_normalized_in_every_dtype(device: torch.device, dtype: torch.dtype) -> None:
    table = (torch.randn(3, 256, generator=torch.Generator().manual_seed(0)) * 3).to(device, dtype)
    fused, plain = both(arguments(device, table=table))
    assert fused.dtype == dtype
    assert fused.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(fused, plain)


def test_a_row_does_not_depend_on_its_batch(device: torch.device) -> None:
    made = arguments(device)
    whole = ops.augment_views(**made)
    part = {k: made[k][10:14] for k in ("items", "rows", "views")}
    assert torch.equal(ops.augment_views(**(made | part)), whole[10:14])
    later = ops.augment_views(**(made | {"step": made["step"] + 1}))
    assert not torch.equal(later, whole)


def test_rows_that_share_a_key_share_their_parameters(device: torch.device) -> None:
    made = arguments(device, rows=8)
    keys = torch.zeros_like(made["rows"])
    out = ops.augment_views(**(made | {"rows": keys, "items": keys, "views": keys + 1}))
    assert all(torch.equal(out[0], other) for other in out[1:])


@pytest.mark.parametrize("random_square", [False, True])
def test_a_square_of_no_size_fills_nothing(device: torch.device, random_square: bool) -> None:
    plain = {"ops": 0, "pad": 0, "flip": False, "square": 0, "random_square": random_square}
    made = arguments(device, **plain)
    for out in both(made):
        assert torch.equal(out.permute(0, 2, 3, 1), made["store"][made["items"]])


def test_no_rows(device: torch.device) -> None:
    fused, plain = both(arguments(device, rows=0))
    assert fused.shape == plain.shape == (0, 3, 32, 32)


@pytest.mark.rules
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("side", [8, 32])
def test_opcheck_and_compile(device: torch.device, side: int) -> None:
    made = arguments(device, side, rows=6)
    torch.library.opcheck(torch.ops.interlude_fast.augment_views.default, tuple(made.values()))
    compiled = torch.compile(lambda **k: ops.augment_views(**k).float() + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**made), ops.augment_views(**made).float() + 1)


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("store", lambda x: x.float(), TypeError),
        ("store", lambda x: x[..., :2], ValueError),
        ("store", lambda x: x[:, 1:], ValueError),
        ("items", lambda x: x.int(), TypeError),
        ("items", lambda x: x + 16, IndexError),
        ("items", lambda x: x - 17, IndexError),
        ("rows", lambda x: x[1:], ValueError),
        ("views", lambda x: x.to("meta"), ValueError),
        ("table", lambda x: x[:, :255], ValueError),
        ("affine", lambda x: x[1:], ValueError),
        ("pad", lambda x: 32, ValueError),
        ("square", lambda x: (32 << 16) + 1, ValueError),
        ("square", lambda x: -1, ValueError),
        ("fill", lambda x: (127,), ValueError),
        ("fill", lambda x: (127, 256, 0), ValueError),
        ("fill", lambda x: (127, -1, 0), ValueError),
        ("ops", lambda x: 17, ValueError),
    ],
)
def test_bad_arguments_are_named(name: str, change: Any, error: type[Exception]) -> None:
    made = arguments(torch.device("cpu"))
    made[name] = change(made[name])
    with pytest.raises(error, match=name):
        ops.augment_views(**made)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("name", "value"), [("square", (32 << 16) + 1), ("fill", (127,)), ("fill", (127, 256, 0)), ("ops", 17)]
)
def test_direct_calls_are_guarded(device: torch.device, name: str, value: Any) -> None:
    made = arguments(device) | {name: value}
    with pytest.raises(ValueError, match=name):
        torch.ops.interlude_fast.augment_views(*made.values())
