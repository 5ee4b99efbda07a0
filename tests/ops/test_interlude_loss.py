"""interlude_loss: against the reference, its gradients, its torch.library rules, nasty inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from interlude_fast import ops, reference

pytestmark = pytest.mark.usefixtures("one_thread")
OP = torch.ops.interlude_fast
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 1, 1), (1, 1, 2), (3, 7, 10), (5, 16, 3), (2, 1, 1000), (33, 2, 17)]  # B, mu, K
INF, NAN = float("inf"), float("nan")


def uneven(classes: int, low: float, high: float) -> Tensor:
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(classes))
    return torch.linspace(low, high, classes)[order]


DEFAULTS: dict[str, Any] = {
    "thresholds": 0.6,
    "lambda_u": 1.0,
    "lambda_dc": 1.0,
    "temperature": 1.0,
    "delta": "mean",
    "layout": "interdigitated",
    "class_weights": None,
    "pseudo_label_bias": None,
    "ramps": None,
}
CASES: dict[str, Callable[[int], dict[str, Any]]] = {
    "plain": lambda _: {},
    "per class": lambda _: {"delta": "per_class"},
    "separate rows": lambda _: {"layout": "separate"},
    "weights of terms": lambda _: {"lambda_u": 0.3, "lambda_dc": 2.5},
    "class weights": lambda classes: {"class_weights": uneven(classes, 0.2, 2)},
    "threshold by class": lambda classes: {"thresholds": uneven(classes, 0.1, 0.9)},
    "temperature": lambda _: {"temperature": 0.5},
    "bias": lambda classes: {"pseudo_label_bias": uneven(classes, -2, 2)},
    "ramps": lambda _: {"ramps": torch.tensor([0.25, 0.75])},
}
ALL = "all at once"


def options(case: str, classes: int) -> dict[str, Any]:
    o = dict(DEFAULTS)
    for change in CASES.values() if case == ALL else [CASES[case]]:
        o |= change(classes)
    return o


def fused(logits: Tensor, labels: Tensor, mu: int, o: dict[str, Any]) -> tuple[Tensor, ...]:
    """The scalars."""
    return ops.interlude_loss(logits, labels, mu=mu, **o)[:5]


def arguments(logits: Tensor, labels: Tensor, mu: int, o: dict[str, Any]) -> tuple:
    """The face's options as the schema and the reference have them."""
    by_class = o["thresholds"] if isinstance(o["thresholds"], Tensor) else None
    tau = o["thresholds"] if by_class is None else 0.0
    numbers = [o[name] for name in ("lambda_u", "lambda_dc", "temperature")]
    flags = o["delta"] == "per_class", o["layout"] == "interdigitated"
    return (
        logits,
        labels,
        mu,
        tau,
        by_class,
        *numbers,
        *flags,
        o["class_weights"],
        o["pseudo_label_bias"],
        o["ramps"],
    )


def plain(*sample: Any) -> tuple[Tensor, ...]:
    return reference.interlude_loss(*arguments(*sample))[:5]


def direct(*sample: Any) -> tuple[Tensor, ...]:
    return OP.interlude_loss(*arguments(*sample))


def pseudo_labels(logits: Tensor, batch: int, mu: int, o: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Confidence less threshold, and class, [B, mu], in float64."""
    uw = reference.split_rows(logits.double(), batch, mu, o["layout"] == "interdigitated")[1]
    confidence, target = reference.pseudo_labels(uw, o["temperature"], o["pseudo_label_bias"])
    tau = o["thresholds"]
    return confidence - (tau.double()[target] if isinstance(tau, Tensor) else tau), target


def example(
    device: torch.device, size: tuple[int, int, int], dtype: torch.dtype = torch.float32, case: str = "plain"
) -> tuple[Tensor, Tensor, int, dict[str, Any]]:
    """Logits without a confidence within rounding of its threshold; every other label has a match."""
    (batch, mu, classes), o = size, options(case, size[2])
    for seed in itertools.count():
        generator = torch.Generator().manual_seed(seed)
        logits = 4 * torch.randn(2 * batch * (1 + mu), classes, generator=generator)
        margin, target = pseudo_labels(logits.to(dtype), batch, mu, o)
        if margin.abs().min() > 1e-5:
            break
    labels = torch.randint(classes, (batch,), generator=generator)
    labels[::2] = target[::2, -1]
    o = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in o.items()}
    return logits.to(device, dtype), labels.to(device), mu, o


def with_gradient(function, logits: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    logits = logits.detach().requires_grad_()
    parts = function(logits, *rest)
    return *parts, torch.autograd.grad(parts[0], logits)[0]


@pytest.mark.parametrize("case", [*CASES, ALL])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(device, dtype, size, case, within_budget):
    logits, *rest = example(device, size, dtype, case)
    results, plains = with_gradient(fused, logits, *rest), with_gradient(plain, logits, *rest)
    truths = with_gradient(plain, logits.double(), *rest)
    for result, other, truth in zip(results, plains, truths, strict=True):
        within_budget(result, other, truth, terms=size[2])
    assert results[-1].dtype == dtype


@pytest.mark.parametrize("case", [*CASES, ALL])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_targets_are_the_rows_that_are_learned(device, dtype, size, case):
    """They say which rows the mask rate counts, group by group in either row order."""
    logits, labels, mu, o = example(device, size, dtype, case)
    margin, target = pseudo_labels(logits, size[0], mu, o)
    expected = torch.where(margin >= 0, target, -1).int()
    loss = ops.interlude_loss(logits, labels, mu=mu, **o)
    assert torch.equal(loss.targets, expected)
    assert torch.equal(reference.interlude_loss(*arguments(logits, labels, mu, o))[5], expected)
    torch.testing.assert_close(loss.mask_rate, (expected >= 0).to(loss.mask_rate.dtype).mean())


@pytest.mark.parametrize("case", ["plain", "per class", "weights of terms"])
def test_ramps_scale_the_weights_of_the_terms(device, case):
    logits, labels, mu, o = example(device, (4, 3, 5), torch.float64, case)
    o["ramps"] = torch.tensor([0.5, 0.125], device=device)
    scaled = o | {"lambda_u": 0.5 * o["lambda_u"], "lambda_dc": 0.125 * o["lambda_dc"], "ramps": None}
    results = with_gradient(fused, logits, labels, mu, o)
    torch.testing.assert_close(results, with_gradient(fused, logits, labels, mu, scaled), rtol=1e-14, atol=0)
    o["ramps"] = torch.zeros(2, device=device)
    results = with_gradient(fused, logits, labels, mu, o)
    assert results[0] == results[1]


@pytest.mark.parametrize("case", [*CASES, ALL])
def test_gradcheck(device, case):
    """Labeled rows enter the delta term without gradient: they are checked without it, or held fixed."""
    logits, labels, mu, o = example(device, (3, 2, 4), torch.float64, case)
    rows = torch.arange(18, device=device)[:, None]
    labeled = rows < 6 if o["layout"] == "separate" else rows % 3 == 0
    fixed = logits.clone()
    logits.requires_grad_()

    def unlabeled_only(x: Tensor) -> Tensor:
        return fused(torch.where(labeled, fixed, x), labels, mu, o)[0]

    assert torch.autograd.gradcheck(unlabeled_only, logits)
    assert torch.autograd.gradcheck(lambda x: fused(x, labels, mu, o | {"lambda_dc": 0.0})[0], logits)


@pytest.mark.rules
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("case", ["plain", ALL])
def test_opcheck(device, case):
    for size in ((3, 2, 4), (1, 1, 1)):
        sample = arguments(*example(device, size, torch.float32, case))
        torch.library.opcheck(OP.interlude_loss.default, sample)
        sample[0].requires_grad_()
        torch.library.opcheck(OP.interlude_loss.default, sample)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_the_total_has_a_gradient_and_it_scales(device, dtype):
    logits, *rest = example(device, (3, 2, 4), dtype)
    expected = with_gradient(fused, logits, *rest)[-1]
    parts = fused(logits.requires_grad_(), *rest)
    torch.testing.assert_close(torch.autograd.grad(3 * parts[0], logits, retain_graph=True)[0], 3 * expected)
    assert [part.requires_grad for part in parts] == [True, False, False, False, False]
    assert all(part.dim() == 0 for part in parts)


def test_gradients_may_be_asked_for_twice_and_written_to(device):
    logits, *rest = example(device, (3, 2, 4))
    expected = with_gradient(fused, logits, *rest)[-1]
    total = fused(logits.requires_grad_(), *rest)[0]
    torch.autograd.grad(total, logits, retain_graph=True)[0].zero_()
    torch.testing.assert_close(torch.autograd.grad(total, logits)[0], expected, rtol=0, atol=0)
    with torch.inference_mode():
        assert not fused(logits, *rest)[0].requires_grad


@pytest.mark.usefixtures("kernels")
def test_second_derivative_is_refused(device):
    logits, *rest = example(device, (3, 2, 4))
    total = fused(logits.requires_grad_(), *rest)[0]
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(total, logits, create_graph=True)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", [(5, 3, 7), (64, 7, 10)], ids=str)
def test_neither_strides_nor_threads_change_a_bit(device, size):
    logits, labels, mu, o = example(device, size, case=ALL)
    expected = with_gradient(fused, logits, labels, mu, o)
    spread = torch.stack([labels, labels - 100], 1)[:, 0]
    o["class_weights"] = o["class_weights"].repeat_interleave(2)[::2]
    torch.set_num_threads(3)
    for other in (logits, logits.t().contiguous().t(), logits.repeat(1, 2)[:, : size[2]]):
        torch.testing.assert_close(with_gradient(fused, other, spread, mu, o), expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(), (1,), (7,)], ids=str)
def test_thresholds_as_number_and_as_tensors(device, shape):
    logits, labels, mu, o = example(device, (5, 3, 7))
    expected = with_gradient(fused, logits, labels, mu, o)
    o["thresholds"] = torch.full(shape, o["thresholds"], device=device)
    torch.testing.assert_close(with_gradient(fused, logits, labels, mu, o), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 4, 8])
def test_confidence_equal_to_tau_is_learned(device, dtype, classes):
    """Equal logits give exactly 1/K in every dtype, and the first class as pseudo label."""
    labels = torch.zeros(2, dtype=torch.int64, device=device)
    logits = torch.full((16, classes), 0.25, dtype=dtype, device=device)
    loss = ops.interlude_loss(logits, labels, mu=3, thresholds=1 / classes, delta="per_class")
    assert loss.mask_rate == 1
    torch.testing.assert_close(loss.unlabeled, loss.labeled)
    assert ops.interlude_loss(logits, labels, mu=3, thresholds=1 / classes + 1e-6).mask_rate == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_only_confidences_within_rounding_of_tau_may_flip(device, dtype):
    """Rows clear of tau by 1e-5 decide as they must; rows at tau, and an ulp away, only bound the result."""
    tau, mu, batch = 0.95, 5, 8
    offsets = torch.tensor([-1e-2, -1e-5, 0.0, 1e-5, 1e-2], dtype=torch.float64)
    offsets = offsets + torch.linspace(-1e-9, 1e-9, batch, dtype=torch.float64)[:, None]
    confidence = tau + offsets  # [B, mu]
    logits = torch.zeros(batch, 2, 1 + mu, 2, dtype=torch.float64)
    logits[:, 0, 1:, 0] = torch.log(confidence / (1 - confidence))
    logits[:, 1, 1:, 1] = torch.linspace(0, 3, mu, dtype=torch.float64)
    ce = torch.log1p(logits[:, 1, 1:, 1].exp())  # of class 0 under the strong logits
    labels = torch.zeros(batch, dtype=torch.int64, device=device)
    loss = ops.interlude_loss(logits.reshape(-1, 2).to(device, dtype), labels, mu=mu, thresholds=tau)
    rows, ones = batch * mu, torch.ones(batch, mu, dtype=torch.float64)
    for result, value in ((loss.mask_rate, ones), (loss.unlabeled, ce)):
        least, band = value[:, 3:].sum() / rows, value[:, 2].sum() / rows
        assert least - 1e-6 <= result.item() <= least + band + 1e-6


@pytest.mark.parametrize("delta", ["mean", "per_class"])
@pytest.mark.parametrize(("bad", "classes"), [(NAN, 3), (-INF, slice(None))])
@pytest.mark.parametrize("row", range(8))
def test_what_is_not_a_number_reaches_the_total(device, row, bad, classes, delta):
    logits, labels, mu, o = example(device, (4, 3, 5))
    logits[2 * 8 + row, classes] = bad
    o["delta"] = delta
    assert fused(logits, labels, mu, o)[0].isnan()
    assert plain(logits, labels, mu, o)[0].isnan()


@pytest.mark.parametrize("case", [*CASES, ALL])
def test_an_impossible_class_costs_nothing(device, case):
    logits, labels, mu, o = example(device, (4, 3, 6), torch.float64, case)
    labels = labels.clamp(max=4)
    logits[:, 5] = -INF
    results, plains = (with_gradient(function, logits, labels, mu, o) for function in (fused, plain))
    torch.testing.assert_close(results, plains)
    assert results[0].isfinite()
    assert fused(logits, torch.full_like(labels, 5), mu, o)[0] == INF


def test_large_logits_do_not_overflow(device):
    logits, labels, mu, o = example(device, (4, 3, 5))
    result, expected = fused(logits + 1e4, labels, mu, o)[0], plain(logits, labels, mu, o)[0]
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=0)
    assert fused(logits * 1e30, labels, mu, o)[0].isfinite()


def change(sample: tuple, changes: dict[str, Any]) -> tuple:
    """The example's (logits, labels, mu, options) with some replaced, or changed by a function."""
    logits, labels, mu, o = sample
    named = {"logits": logits, "labels": labels, "mu": mu} | o
    for name, value in changes.items():
        given = value.to(logits.device) if isinstance(value, Tensor) and not value.is_meta else value
        named[name] = value(named[name]) if callable(value) else given
    return named.pop("logits"), named.pop("labels"), named.pop("mu"), named


# B = 2, mu = 3, K = 5
BAD: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "logits", {"logits": Tensor.long}),
    (ValueError, "logits", {"logits": lambda x: x[None]}),
    (ValueError, "logits", {"logits": lambda x: x[1:]}),
    (TypeError, "labels", {"labels": Tensor.int}),
    (ValueError, "labels", {"labels": lambda x: x[:, None]}),
    (ValueError, "labels", {"labels": lambda x: x[:0], "logits": lambda x: x[:0]}),
    (ValueError, "^mu must be >= 1, got 0$", {"mu": 0}),
    (ValueError, "^mu must be >= 1, got -1$", {"mu": -1}),
    (ValueError, "^mu must be >= 1, got 0$", {"mu": 0, "logits": lambda x: x[:4]}),  # 2B(1+mu) rows
    (ValueError, "^logits must have 2B", {"mu": 2}),
    (ValueError, "thresholds", {"thresholds": torch.ones(4)}),
    (TypeError, "thresholds", {"thresholds": torch.ones(5).long()}),
    (ValueError, "class_weights", {"class_weights": torch.ones(5, 1)}),
    (ValueError, "pseudo_label_bias", {"pseudo_label_bias": torch.ones(6)}),
    (ValueError, "ramps", {"ramps": torch.ones(3)}),
    (TypeError, "ramps", {"ramps": torch.ones(2).long()}),
]
BAD_FACE = [
    (ValueError, "temperature", {"temperature": 0.0}),
    (ValueError, "temperature", {"temperature": NAN}),
    (ValueError, "delta", {"delta": "class"}),
    (ValueError, "layout", {"layout": "mixed"}),
    (ValueError, "labels is on meta", {"labels": lambda x: x.to("meta")}),
    (ValueError, "thresholds is on meta", {"thresholds": torch.ones(5, device="meta")}),
    (ValueError, "ramps is on meta", {"ramps": torch.ones(2, device="meta")}),
    (ValueError, "class_weights is on meta", {"class_weights": torch.ones(5, device="meta")}),
]


@pytest.mark.parametrize(("error", "message", "changes"), BAD + BAD_FACE)
def test_bad_arguments(device, error, message, changes):
    with pytest.raises(error, match=message):
        fused(*change(example(device, (2, 3, 5)), changes))


@pytest.mark.parametrize(("error", "message", "changes"), BAD + BAD_FACE)
def test_bad_arguments_without_the_extension(device, error, message, changes):
    with ops.use_reference(), pytest.raises(error, match=message):
        fused(*change(example(device, (2, 3, 5)), changes))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("error", "message", "changes"), BAD)
def test_bad_arguments_of_direct_calls(device, error, message, changes):
    with pytest.raises(error, match=message):
        direct(*change(example(device, (2, 3, 5)), changes))


@pytest.mark.skipif(not ops.status().loaded, reason="no compiled extension; the reference words it differently")
@pytest.mark.parametrize("call", [fused, direct])
@pytest.mark.parametrize("bad", [5, -1, -100, 2**40])
def test_labels_out_of_range(call, bad):
    """On a GPU the kernel's assertion ends the process: tests/gpu."""
    changes = {"labels": torch.tensor([0, bad])}
    with pytest.raises(IndexError, match=rf"labels\[1\] = {bad} is outside"):
        call(*change(example(torch.device("cpu"), (2, 3, 5)), changes))


@pytest.mark.rules
@pytest.mark.parametrize("case", ["plain", ALL])
def test_compiles_whole_with_gradient(device, case):
    sample = example(device, (3, 2, 4), case=case)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    results = with_gradient(compiled, *sample)
    torch.testing.assert_close(results, with_gradient(fused, *sample), rtol=0, atol=0)
