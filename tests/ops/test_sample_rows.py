"""sample_rows: equal to the reference to the bit, permutations, distinct and uniform draws, bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interlude_fast import ops, reference

pytestmark = pytest.mark.usefixtures("one_thread")
OP = torch.ops.interlude_fast
SIZES = [  # labeled, unlabeled, batch, mu
    (1, 1, 1, 1),
    (1, 7, 5, 7),
    (2, 3, 7, 2),
    (9, 8, 4, 0),
    (10, 0, 3, 0),
    (40, 1437, 64, 7),
    (1437, 65537, 130, 3),
    (2**31, 2**31, 5, 2),
]
STEPS = [0, 1, 12345, 2**32 - 1, 2**33 + 5, 2**55]
SEEDS = [0, 1, -1, 2**32, 2**63 - 1, -(2**63)]


def sample(
    device, step: int, seed: int, labeled: int, unlabeled: int, batch: int, mu: int
) -> tuple[Tensor, Tensor]:
    k = torch.tensor(step, device=device)
    return ops.sample_rows(k, seed=seed, labeled=labeled, unlabeled=unlabeled, batch=batch, mu=mu)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("seed", SEEDS)
def test_equals_the_reference(device, seed, step, size):
    labeled_items, unlabeled_items = sample(device, step, seed, *size)
    labeled, unlabeled, batch, mu = size
    assert labeled_items.dtype == unlabeled_items.dtype == torch.int64
    assert labeled_items.device == unlabeled_items.device == torch.zeros(0, device=device).device
    assert labeled_items.shape == (batch,)
    assert unlabeled_items.shape == (batch, mu)
    expected = reference.sample_rows(torch.tensor(step), seed, *size)
    assert torch.equal(labeled_items.cpu(), expected[0])
    assert torch.equal(unlabeled_items.cpu(), expected[1])
    assert 0 <= labeled_items.min() <= labeled_items.max() < labeled
    assert mu == 0 or 0 <= unlabeled_items.min() <= unlabeled_items.max() < unlabeled


def test_frozen(device):
    """The numbers of csrc/tests/test_shuffle.cpp: if they change, every published run does."""
    labeled_items, unlabeled_items = sample(device, 2**33 + 5, -1, 1437, 1437, 3, 4)
    assert labeled_items.tolist() == [133, 990, 788]
    assert unlabeled_items.flatten().tolist() == [1100, 525, 104, 156, 1424, 86, 1110, 874, 119, 1372, 905, 410]
    key = {"size": 40, "seed": 1, "epoch": torch.tensor(0), "row": torch.tensor(0)}
    order = reference.permute(torch.arange(8), stream=reference.LABELED_ORDER, **key)
    assert order.tolist() == [35, 11, 23, 33, 38, 28, 12, 34]


def test_philox_known_answers():
    """The vectors of its authors' Random123 library, for the reference; csrc/tests holds them for the kernels."""
    pi = 0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344
    for counter, key, words in (
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (pi, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ):
        got = reference.philox4x32(tuple(torch.tensor(word) for word in counter), key)
        assert tuple(word.item() for word in got) == words


@pytest.mark.parametrize(("labeled", "batch"), [(1, 1), (7, 3), (40, 8), (1000, 64)])
def test_labeled_items_of_an_epoch_are_a_permutation(device, labeled, batch):
    rows = [sample(device, step, 3, labeled, 0, batch, 0)[0] for step in range(3 * labeled // batch + 3)]
    epochs = torch.cat(rows)[: 3 * labeled].reshape(3, labeled)
    assert torch.equal(epochs.sort(1).values, torch.arange(labeled, device=device).expand(3, -1))
    assert labeled < 40 or not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize(("unlabeled", "mu"), [(7, 7), (40, 7), (1437, 16), (2**31, 7)])
def test_partners_are_distinct(device, unlabeled, mu):
    items = sample(device, 11, 5, 10, unlabeled, 256, mu)[1].sort(1).values
    assert (items[:, 1:] > items[:, :-1]).all()


def test_partners_are_uniform(device):
    """Chi-square of one place, and of a pair of places, against its mean and standard deviation."""
    unlabeled, batch, steps = 50, 512, 40
    items = torch.stack([sample(device, step, 7, 10, unlabeled, batch, 7)[1] for step in range(steps)]).cpu()
    pair = items[..., 0] * unlabeled + items[..., 6]
    for values, cells in ((items[..., 3], unlabeled), (pair, unlabeled * (unlabeled - 1))):
        counts = torch.bincount(values.flatten(), minlength=unlabeled)
        mean = steps * batch / cells
        chi2 = (counts - mean).square().sum().item() / mean - (counts.numel() - cells) * mean
        assert abs(chi2 - (cells - 1)) < 4 * (2 * (cells - 1)) ** 0.5


def test_a_function_of_seed_and_step_alone(device):
    """Not of calls made before, of torch's generators, of the number of threads, or of the batch's end."""
    expected = sample(device, 9, 4, 1000, 5000, 300, 5)
    torch.manual_seed(1)
    torch.set_num_threads(3)
    again = sample(device, 9, 4, 1000, 5000, 300, 5)
    torch.testing.assert_close(again, expected, rtol=0, atol=0)
    assert torch.equal(sample(device, 9, 4, 1000, 5000, 20, 5)[1], expected[1][:20])
    assert torch.equal(sample(device, 9, 4, 1000, 5000, 300, 2)[1], expected[1][:, :2])
    for step, seed in ((10, 4), (9, 5), (9 + 2**32, 4), (9, 4 + 2**32)):
        other = sample(device, step, seed, 1000, 5000, 300, 5)
        assert (other[0] == expected[0]).float().mean() < 0.05
        assert (other[1] == expected[1]).float().mean() < 0.05


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
def test_shapes_of_a_step(device, shape):
    k = torch.full(shape, 5, device=device)
    results = ops.sample_rows(k, seed=1, labeled=40, unlabeled=90, batch=3, mu=2)
    torch.testing.assert_close(results, sample(device, 5, 1, 40, 90, 3, 2), rtol=0, atol=0)


@pytest.mark.rules
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("size", [(10, 20, 4, 3), (10, 0, 4, 0)], ids=str)
def test_opcheck(device, size):
    torch.library.opcheck(OP.sample_rows.default, (torch.tensor(3, device=device), 1, *size))


@pytest.mark.rules
@pytest.mark.usefixtures("kernels")
def test_compiles_whole(device):
    compiled = torch.compile(ops.sample_rows, fullgraph=True, backend="aot_eager")
    for step in (3, 2**40):
        results = compiled(torch.tensor(step, device=device), seed=-1, labeled=40, unlabeled=90, batch=3, mu=2)
        torch.testing.assert_close(results, sample(device, step, -1, 40, 90, 3, 2), rtol=0, atol=0)


GOOD = {"labeled": 10, "unlabeled": 20, "batch": 4, "mu": 3}
BAD = [
    (TypeError, "step", {"step": torch.tensor(3, dtype=torch.int32)}),
    (TypeError, "step", {"step": torch.tensor([3, 4])}),
    (TypeError, "step", {"step": torch.tensor([], dtype=torch.int64)}),
    (ValueError, "labeled", {"labeled": 0}),
    (ValueError, "labeled", {"labeled": 2**31 + 1}),
    (ValueError, "unlabeled", {"unlabeled": 2}),
    (ValueError, "unlabeled", {"unlabeled": -1, "mu": 0}),
    (ValueError, "unlabeled", {"unlabeled": 2**31 + 1}),
    (ValueError, "batch", {"batch": 0}),
    (ValueError, "mu", {"mu": -1}),
]


@pytest.mark.parametrize(("error", "message", "changes"), BAD)
def test_bad_arguments(device, error, message, changes):
    o = {"step": torch.tensor(3)} | GOOD | changes
    with pytest.raises(error, match=message):
        ops.sample_rows(o.pop("step").to(device), seed=0, **o)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("error", "message", "changes"), BAD)
def test_bad_arguments_of_direct_calls(device, error, message, changes):
    o = {"step": torch.tensor(3)} | GOOD | changes
    with pytest.raises(error, match=message):
        OP.sample_rows(o["step"].to(device), 0, o["labeled"], o["unlabeled"], o["batch"], o["mu"])
