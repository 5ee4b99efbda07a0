"""sgd_ema_: against the reference and torch.optim.SGD with the average after it, its torch.library rules, nasty
inputs."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from interlude_fast import ops, reference

pytestmark = pytest.mark.usefixtures("one_thread")
OP = torch.ops.interlude_fast
DTYPES = [torch.float64, torch.float32]
SHAPES = [(7,), (3, 5), (), (0, 4), (16, 8, 3, 3), (5, 1, 3, 3), (2, 3, 2, 2, 2), (33, 129), (70001,), (1,)]
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
SETTINGS: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "ema_decay": 0.97, "shrink": 0.0}
NAN, INF = float("nan"), float("inf")


class Lists:
    """Tensors of one call; channels-last where they can be, unless told otherwise."""

    def __init__(self, device, dtype=torch.float32, shapes=SHAPES, channels_last=True) -> None:  # type: ignore[no-untyped-def]
        self.generator = torch.Generator().manual_seed(0)
        draw = [torch.randn(shape, generator=self.generator, dtype=torch.float64) for shape in shapes]
        self.parameters = [
            x.to(device, dtype, memory_format=FORMATS[x.dim()])
            if channels_last and x.dim() in FORMATS
            else x.to(device, dtype)
            for x in draw
        ]
        self.gradients: list[Tensor | None] = []
        self.momenta = [torch.zeros_like(p) for p in self.parameters]
        self.shadows = [p.clone() for p in self.parameters]
        self.lr = torch.tensor(0.03, dtype=torch.float64, device=device)
        self.scales = [0.5 ** (i % 3) / 3 for i in range(len(shapes))]
        self.weight_decays = [0.0 if i % 2 else 5e-3 for i in range(len(shapes))]
        self.draw_gradients()

    def draw_gradients(self) -> None:
        def like(p: Tensor) -> Tensor:
            values = torch.randn(p.shape, generator=self.generator, dtype=torch.float64)
            return torch.empty_like(p).copy_(values)

        self.gradients = [like(p) for p in self.parameters]

    def copy(self) -> Lists:
        other = object.__new__(Lists)
        other.__dict__ = dict(self.__dict__)
        for name in ("parameters", "momenta", "shadows"):
            setattr(other, name, [x.clone() for x in getattr(self, name)])
        return other

    def state(self) -> list[Tensor]:
        return [*self.parameters, *self.momenta, *self.shadows]

    def arguments(self, **changes: Any) -> tuple:
        """As the schema and the reference have them."""
        o = SETTINGS | {"gradient_scale": None, "found_inf": None} | changes
        numbers = (o["momentum"], o["nesterov"], o["ema_decay"], o["shrink"], o["gradient_scale"], o["found_inf"])
        lists = (self.parameters, self.gradients, self.momenta, self.shadows)
        return *lists, self.lr, self.scales, self.weight_decays, *numbers

    def step(self, **changes: Any) -> None:
        lists = (self.parameters, self.gradients, self.momenta, self.shadows)
        decays = {"scales": self.scales, "weight_decays": self.weight_decays}
        ops.sgd_ema_(*lists, self.lr, **(decays | SETTINGS | changes))


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """torch adds products in one rounding where the processor can; the op never does."""
    return {"rtol": 1e-14, "atol": 1e-14} if dtype == torch.float64 else {"rtol": 2e-6, "atol": 1e-6}


CASES: dict[str, dict[str, Any]] = {
    "nesterov": {},
    "heavy ball": {"nesterov": False},
    "no momentum": {"momentum": 0.0},
    "shrink": {"shrink": 0.01},
    "no average": {"ema_decay": 0.0},
    "scaled gradients": {"gradient_scale": 128.0},
    "scaled in float64": {"gradient_scale": 3.0, "wide": True},
    "found nothing": {"found_inf": 0.0},
}


def options(case: str, device: torch.device) -> dict[str, Any]:
    o = dict(CASES[case])
    dtype = torch.float64 if o.pop("wide", False) else torch.float32
    for name in {"gradient_scale", "found_inf"} & set(o):
        o[name] = torch.tensor(o[name], device=device, dtype=dtype)
    return o


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lr", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(device, dtype, lr, case):
    fused = Lists(device, dtype)
    fused.lr = fused.lr.to(lr)
    plain, o = fused.copy(), options(case, device)
    for _ in range(3):
        fused.draw_gradients()
        plain.gradients = fused.gradients
        before = [g.clone() for g in fused.gradients]
        fused.step(**o)
        reference.sgd_ema_(*plain.arguments(**o))
        torch.testing.assert_close(fused.state(), plain.state(), **tolerance(dtype))
        torch.testing.assert_close(fused.gradients, before, rtol=0, atol=0)


@pytest.mark.parametrize("shrink", [0.0, 0.02])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_torch_sgd_then_average_then_shrink(device, dtype, momentum, nesterov, shrink):
    """As training/step.py and training/ema.py compute them, with torch's own first step, at a falling rate."""
    fused = Lists(device, dtype)
    plain = [p.clone().requires_grad_() for p in fused.parameters]
    shadows = [p.clone() for p in fused.parameters]
    groups = [
        {"params": [p], "scale": scale, "weight_decay": decay}
        for p, scale, decay in zip(plain, fused.scales, fused.weight_decays, strict=True)
    ]
    sgd = torch.optim.SGD(groups, lr=1.0, momentum=momentum, nesterov=nesterov, foreach=True)
    fused.momenta = fused.momenta if momentum else []
    for k in range(5):
        lr = 0.03 * 0.8**k
        fused.draw_gradients()
        for p, g in zip(plain, fused.gradients, strict=True):
            p.grad = g.clone()
        for group in sgd.param_groups:
            group["lr"] = lr * group["scale"]
        sgd.step()
        with torch.no_grad():
            torch._foreach_mul_(shadows, 0.97)
            torch._foreach_add_(shadows, plain, alpha=1 - 0.97)
            torch._foreach_mul_(plain, 1 - 0.1 * shrink)
        fused.lr.fill_(lr)
        fused.step(momentum=momentum, nesterov=nesterov, shrink=0.1 * shrink)
        torch.testing.assert_close(fused.parameters, [p.detach() for p in plain], **tolerance(dtype))
        torch.testing.assert_close(fused.shadows, shadows, **tolerance(dtype))


def test_by_hand(device):
    one = Lists(device, shapes=[(1,)])
    for x, value in zip((*one.parameters, *one.gradients, *one.momenta, *one.shadows), (4, 1, 2, 8), strict=True):
        x.fill_(value)
    one.lr.fill_(0.25)
    one.scales, one.weight_decays = [2.0], [0.5]
    one.step(momentum=0.5, nesterov=True, ema_decay=0.75, shrink=0.5)
    assert [x.item() for x in one.state()] == [0.75, 4.0, 6.375]


@pytest.mark.parametrize("found", [1.0, -2.0, INF, NAN])
def test_nothing_changes_where_an_infinity_was_found(device, found):
    lists = Lists(device)
    lists.gradients[0].fill_(NAN)
    before = lists.copy()
    for step in (lists.step, lambda **o: reference.sgd_ema_(*lists.arguments(**o))):
        step(found_inf=torch.tensor(found, device=device), shrink=0.5)
        torch.testing.assert_close(lists.state(), before.state(), rtol=0, atol=0)


def test_without_gradient_only_the_average_moves(device):
    lists = Lists(device)
    lists.gradients[0] = lists.gradients[4] = lists.gradients[8] = None
    for x in (*lists.momenta, *lists.shadows):
        x.normal_(generator=None)
    before, plain = lists.copy(), lists.copy()
    lists.step(shrink=0.25)
    reference.sgd_ema_(*plain.arguments(shrink=0.25))
    torch.testing.assert_close(lists.state(), plain.state(), **tolerance(torch.float32))
    for i in (0, 4, 8):
        torch.testing.assert_close(lists.momenta[i], before.momenta[i], rtol=0, atol=0)
        torch.testing.assert_close(lists.parameters[i], 0.75 * before.parameters[i], rtol=0, atol=0)
        average = 0.97 * before.shadows[i] + (1 - 0.97) * before.parameters[i]
        torch.testing.assert_close(lists.shadows[i], average)


def test_more_tensors_than_a_launch_takes(device):
    """Also more pairs of scale and weight decay than a launch holds."""
    many = Lists(device, shapes=[(i % 40, 1 + i % 7) for i in range(300)])
    many.scales = [0.9 ** (i % 50) for i in range(300)]
    plain = many.copy()
    many.step()
    reference.sgd_ema_(*plain.arguments())
    torch.testing.assert_close(many.state(), plain.state(), **tolerance(torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_addresses_that_are_not_aligned(device, dtype):
    """Each list shifted by another number of elements out of the 16 bytes that a wide access wants."""
    odd = Lists(device, dtype, [(5, 7), (4099,)], channels_last=False)
    for shift, name in enumerate(("parameters", "gradients", "momenta", "shadows")):
        moved = [torch.empty(x.numel() + 4, dtype=dtype, device=device)[shift:] for x in getattr(odd, name)]
        views = [m[: x.numel()].view(x.shape) for m, x in zip(moved, getattr(odd, name), strict=True)]
        for view, x in zip(views, getattr(odd, name), strict=True):
            view.copy_(x)
        setattr(odd, name, views)
    plain = odd.copy()
    odd.step()
    reference.sgd_ema_(*plain.arguments())
    torch.testing.assert_close(odd.state(), plain.state(), **tolerance(dtype))


def test_strides_of_sides_of_one_say_nothing(device):
    lists = Lists(device, shapes=[(6, 1, 3)])
    lists.gradients = [g.as_strided(g.shape, (3, 77, 1)) for g in lists.gradients]
    plain = lists.copy()
    lists.step()
    reference.sgd_ema_(*plain.arguments())
    torch.testing.assert_close(lists.state(), plain.state())


def test_threads_do_not_change_a_bit(device):
    one, three = (Lists(device, shapes=[(301, 401), (5,), (70001,)]) for _ in range(2))
    one.step()
    torch.set_num_threads(3)
    three.step()
    torch.testing.assert_close(three.state(), one.state(), rtol=0, atol=0)


def test_a_bad_gradient_spreads_no_further(device):
    lists = Lists(device, shapes=[(40,), (40,)])
    lists.gradients[0][3] = NAN
    lists.step()
    for i, x in enumerate(lists.state()):
        assert x.isnan().sum() == (i % 2 == 0)


def test_nothing_to_do(device):
    Lists(device, shapes=[]).step()
    Lists(device, shapes=[(0,), (3, 0)]).step()


@pytest.mark.usefixtures("kernels")
def test_autograd_notices_the_change(device):
    lists = Lists(device, shapes=[(4,)])
    (weight,) = lists.parameters
    out = weight.requires_grad_().square().sum()
    lists.step()
    assert weight.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.rules
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("case", ["nesterov", "no momentum", "scaled gradients", "found nothing"])
def test_opcheck(device, case):
    lists = Lists(device, shapes=[(7,), (4, 3, 2, 2)])
    lists.gradients[0] = None
    if case == "no momentum":
        lists.momenta = []
    torch.library.opcheck(OP.sgd_ema_.default, lists.arguments(**options(case, device)))


@pytest.mark.rules
@pytest.mark.parametrize("requires_grad", [False, True])
def test_compiles_whole(device, requires_grad):
    lists = Lists(device, shapes=[(7,), (4, 3, 2, 2), (5,)])
    lists.gradients[2] = None
    plain = lists.copy()
    for x in (*lists.parameters, *plain.parameters):
        x.requires_grad_(requires_grad)
    compiled = torch.compile(Lists.step, fullgraph=True, backend="aot_eager")
    found = torch.tensor(0.0, device=device)
    for k in range(3):
        for side, step in ((lists, compiled), (plain, Lists.step)):
            side.lr.fill_(0.1 / (1 + k))
            step(side, found_inf=found)
        torch.testing.assert_close(lists.state(), plain.state(), rtol=0, atol=0)


def wrong(name: str, change: Any) -> Any:
    def spoil(lists: Lists) -> dict[str, Any]:
        setattr(lists, name, change(getattr(lists, name)))
        return {}

    return spoil


BAD: dict[str, tuple[type[Exception], Any]] = {
    "momentum must be >= 0": (ValueError, lambda _: {"momentum": -0.1}),
    "momentum must be >= 0, got nan": (ValueError, lambda _: {"momentum": NAN}),
    "ema_decay must lie in": (ValueError, lambda _: {"ema_decay": 1.5}),
    "shrink must lie in": (ValueError, lambda _: {"shrink": 1.0}),
    "gradients must hold an entry for each of 3 parameters, got 2": (
        ValueError,
        wrong("gradients", lambda x: x[:2]),
    ),
    "momenta must hold .* got 0": (ValueError, wrong("momenta", lambda x: [])),
    "shadows must hold .* got 4": (ValueError, wrong("shadows", lambda x: [*x, x[0]])),
    "scales must hold": (ValueError, wrong("scales", lambda x: x[:1])),
    "weight_decays must hold": (ValueError, wrong("weight_decays", lambda x: [])),
    "lr must be one float32 or float64 value": (TypeError, wrong("lr", lambda x: x.half())),
    "lr must be one .*2": (TypeError, wrong("lr", lambda x: x.expand(2))),
    "found_inf must be one": (
        TypeError,
        lambda x: {"found_inf": torch.zeros((), dtype=torch.bool, device=x.lr.device)},
    ),
    "gradient_scale must be one": (TypeError, lambda x: {"gradient_scale": x.lr.long()}),
    r"parameters\[0\] must be float32 or float64": (
        TypeError,
        wrong("parameters", lambda x: [p.half() for p in x]),
    ),
    r"parameters\[1\] is .* but parameters\[0\] is": (
        TypeError,
        wrong("parameters", lambda x: [x[0], x[1].double(), x[2]]),
    ),
    r"parameters\[2\] must be dense": (
        ValueError,
        wrong("parameters", lambda x: [*x[:2], x[2][..., :1].expand_as(x[2])]),
    ),
    r"gradients\[0\] is .* but parameters\[0\] is": (
        TypeError,
        wrong("gradients", lambda x: [x[0].half(), *x[1:]]),
    ),
    r"gradients\[1\] must lie in memory as parameters\[1\] does": (
        ValueError,
        wrong("gradients", lambda x: [x[0], x[1].contiguous(), x[2]]),
    ),
    r"momenta\[2\] must lie .*\[4, 5\].*\[5, 4\]": (ValueError, wrong("momenta", lambda x: [*x[:2], x[2].t()])),
    r"shadows\[0\] must lie in memory": (ValueError, wrong("shadows", lambda x: [x[0][:-1], *x[1:]])),
}


@pytest.mark.parametrize("message", BAD)
@pytest.mark.parametrize("with_kernels", [True, False])
def test_bad_arguments(device, message, with_kernels):
    error, spoil = BAD[message]
    lists = Lists(device, shapes=[(7,), (4, 3, 2, 2), (4, 5)])
    changes = spoil(lists)
    with (
        contextlib.nullcontext() if with_kernels else ops.use_reference(),
        pytest.raises(error, match=message) as caught,
    ):
        lists.step(**changes)
    assert "\n" not in str(caught.value)
