"""delta_consistency_loss: against the reference, its gradients, its torch.library rules, nasty inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from interlude_fast import ops, reference

pytestmark = pytest.mark.usefixtures("one_thread")
OP = torch.ops.interlude_fast
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SIZES = [(1, 1, 1), (1, 1, 2), (3, 7, 10), (5, 16, 3), (2, 1, 1000), (33, 2, 17)]  # B, mu, K
MATCHES = ["no match given", "some rows", "no row", "every row"]
NAMES = ["labeled_weak", "labeled_strong", "unlabeled_weak", "unlabeled_strong", "match"]
plain = reference.delta_consistency_loss  # in the dtype of its inputs throughout
NAN, INF = float("nan"), float("inf")

Sample = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]


def example(
    device: torch.device,
    size: tuple[int, int, int] = (3, 2, 4),
    dtype: torch.dtype = torch.float32,
    match: str = "some rows",
) -> Sample:
    batch, mu, classes = size
    generator = torch.Generator().manual_seed(sum(size))
    shapes = [(batch, classes)] * 2 + [(batch, mu, classes)] * 2
    logits = [(3 * torch.randn(s, generator=generator)).to(device, dtype) for s in shapes]
    matches = torch.rand(batch, mu, generator=generator) < {"no row": 0.0, "every row": 1.0}.get(match, 0.4)
    return *logits, None if match == "no match given" else matches.to(device)


def with_gradient(function, *sample: Any) -> tuple[Tensor, Tensor, Tensor]:
    lw, ls, *unlabeled, match = sample
    unlabeled = [u.detach().requires_grad_() for u in unlabeled]
    loss = function(lw, ls, *unlabeled, match)
    return loss, *torch.autograd.grad(loss, unlabeled)


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_reference(device, dtype, size, match, within_budget):
    sample = example(device, size, dtype, match)
    results, plains = with_gradient(ops.delta_consistency_loss, *sample), with_gradient(plain, *sample)
    truths = with_gradient(plain, *[x.double() for x in sample[:4]], sample[4])
    for result, other, truth in zip(results, plains, truths, strict=True):
        within_budget(result, other, truth, terms=size[2])
    assert results[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert results[1].dtype == results[2].dtype == dtype


def test_by_hand(device):
    """One labeled row without change, two unlabeled rows that go from (1/2, 1/2) to (3/4, 1/4)."""
    zeros = torch.zeros(1, 2, device=device)
    weak, strong = zeros.expand(2, 2)[None], torch.tensor([3.0, 1.0], device=device).log().expand(1, 2, 2)
    for match in (None, torch.tensor([[True, True]], device=device), torch.tensor([[False, True]], device=device)):
        loss = ops.delta_consistency_loss(zeros, zeros, weak, strong, match)
        assert loss.item() == pytest.approx(1 / 16)


def test_equals_the_term_of_the_whole_loss(device):
    lw, ls, uw, us, _ = example(device, (5, 3, 6))
    rows = torch.cat([lw[:, None], uw, ls[:, None], us], 1).flatten(0, 1)
    labels = torch.arange(5, device=device)
    for delta, match in (("mean", None), ("per_class", uw.argmax(-1) == labels[:, None])):
        term = ops.interlude_loss(rows, labels, mu=3, delta=delta).delta
        torch.testing.assert_close(ops.delta_consistency_loss(lw, ls, uw, us, match), term)


@pytest.mark.parametrize("match", MATCHES)
def test_gradcheck(device, match):
    lw, ls, uw, us, chosen = example(device, dtype=torch.float64, match=match)
    leaves = uw.requires_grad_(), us.requires_grad_()
    assert torch.autograd.gradcheck(lambda u, v: ops.delta_consistency_loss(lw, ls, u, v, chosen), leaves)


def test_labeled_logits_have_no_gradient(device):
    lw, ls, *rest = example(device)
    assert not ops.delta_consistency_loss(lw.requires_grad_(), ls.requires_grad_(), *rest).requires_grad


@pytest.mark.rules
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("match", MATCHES[:2])
def test_opcheck(device, match):
    for size in ((3, 2, 4), (1, 1, 1)):
        sample = example(device, size, match=match)
        torch.library.opcheck(OP.delta_consistency_loss.default, sample)
        sample[2].requires_grad_(), sample[3].requires_grad_()
        torch.library.opcheck(OP.delta_consistency_loss.default, sample)


@pytest.mark.usefixtures("kernels")
def test_second_derivative_is_refused(device):
    sample = example(device)
    loss = ops.delta_consistency_loss(*sample[:2], sample[2].requires_grad_(), *sample[3:])
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, sample[2], create_graph=True)


def test_any_strides(device):
    sample = example(device, (5, 3, 6))
    views = [x.repeat_interleave(2, -1)[..., ::2] for x in sample[:2]]
    views += [x.transpose(0, 2).contiguous().transpose(0, 2) for x in sample[2:4]]
    views.append(sample[4].t().contiguous().t())
    results = with_gradient(ops.delta_consistency_loss, *views)
    torch.testing.assert_close(results, with_gradient(ops.delta_consistency_loss, *sample), rtol=0, atol=0)


@pytest.mark.parametrize("match", MATCHES[:3])
@pytest.mark.parametrize(("bad", "classes"), [(NAN, 1), (-INF, slice(None))])
@pytest.mark.parametrize("which", range(4))
def test_what_is_not_a_number_reaches_the_loss(device, which, bad, classes, match):
    sample = example(device, match=match)
    sample[which][1, ..., classes] = bad
    assert ops.delta_consistency_loss(*sample).isnan()
    assert plain(*sample).isnan()


def test_an_impossible_class_and_large_logits(device):
    sample = example(device, (4, 3, 5), torch.float64)
    for logits in sample[:4]:
        logits[..., 2] = -INF
        logits += 1e4
    torch.testing.assert_close(with_gradient(ops.delta_consistency_loss, *sample), with_gradient(plain, *sample))


BAD = [
    (TypeError, "unlabeled_weak", Tensor.long),
    (ValueError, "unlabeled_weak", lambda x: x[0]),
    (ValueError, "unlabeled_weak", lambda x: x[:0]),
    (ValueError, "unlabeled_weak", lambda x: x[:, :0]),
    (ValueError, "unlabeled_weak", lambda x: x[..., :0]),
    (ValueError, "unlabeled_strong", lambda x: x[:, 1:]),
    (TypeError, "unlabeled_strong", Tensor.double),
    (ValueError, "labeled_weak", lambda x: x[1:]),
    (TypeError, "labeled_weak", Tensor.bfloat16),
    (ValueError, "labeled_strong", lambda x: x[None]),
    (TypeError, "match", Tensor.float),
    (ValueError, "match", lambda x: x[0]),
]
OTHER_DEVICE = [(ValueError, name, lambda x: x.to("meta")) for name in NAMES if name != "unlabeled_weak"]


def changed(device: torch.device, name: str, change) -> list[Tensor | None]:
    return [change(x) if known == name else x for known, x in zip(NAMES, example(device), strict=True)]


@pytest.mark.parametrize(("error", "name", "change"), BAD + OTHER_DEVICE)
def test_bad_arguments(device, error, name, change):
    with pytest.raises(error, match=f"^{name} "):
        ops.delta_consistency_loss(*changed(device, name, change))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("error", "name", "change"), BAD)
def test_bad_arguments_of_direct_calls(device, error, name, change):
    with pytest.raises(error, match=f"{name}|the four logits"):
        OP.delta_consistency_loss(*changed(device, name, change))


@pytest.mark.rules
@pytest.mark.parametrize("match", MATCHES[:2])
def test_compiles_whole_with_gradient(device, match):
    sample = example(device, match=match)
    compiled = torch.compile(ops.delta_consistency_loss, fullgraph=True, backend="aot_eager")
    results = with_gradient(compiled, *sample)
    torch.testing.assert_close(results, with_gradient(ops.delta_consistency_loss, *sample), rtol=0, atol=0)
