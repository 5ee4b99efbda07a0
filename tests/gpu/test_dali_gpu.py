"""What only a GPU can show of the DALI pipeline: its GPU operators, nvJPEG, and batches on the current stream."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from interlude_fast.data.augment import Policy
from interlude_fast.data.batch import RowOrder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")

from tests.data.test_batches import BOTH, NO_CHANGE  # noqa: E402
from tests.data.test_dali import WEAK, array_source, file_source, make, scenes  # noqa: E402

CUDA = torch.device("cuda")
ORDER = RowOrder(64, 7, BOTH, BOTH, "interdigitated")


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_those_of_the_cpu(channels: int) -> None:
    dataset, policy = array_source(scenes(500, 32, channels)), Policy(flip=True)
    cpu = make("dali", dataset, ORDER, policy)
    gpu = make("dali", dataset, ORDER, policy, device=CUDA)
    for step in (0, 1, 5, 2):
        a, b = cpu.batch(step), gpu.batch(step)
        assert b.images.device.type == b.labels.device.type == b.unlabeled_items.device.type == "cuda"
        assert b.images.is_contiguous(memory_format=torch.channels_last)
        difference = (a.images - b.images.cpu()).abs()
        weak = cpu.sampler.views == 0
        assert float(difference[weak].max()) < 1e-3
        assert float((difference > 0.5).float().mean()) < 0.02
        assert torch.equal(a.labels, b.labels.cpu())
        assert torch.equal(a.unlabeled_items, b.unlabeled_items.cpu())
    for p in (cpu, gpu):
        p.close()


@pytest.mark.filterwarnings("ignore:pipeline dali decodes")
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_files_are_decoded_on_the_gpu(tmp_path: Path, fit: str) -> None:
    dataset = file_source(tmp_path, 3, fit)
    p = make("dali", dataset, RowOrder(24, 1, WEAK, ()), NO_CHANGE, labels=None, device=CUDA)
    items = p.sampler.plan(0).items.cpu()
    images = p.batch(0).images.cpu().permute(0, 2, 3, 1)
    p.close()
    difference = (images - torch.from_numpy(dataset.images)[items]).abs().mean((1, 2, 3))
    assert float(difference.max()) < 3  # nvJPEG rounds otherwise


def test_a_batch_stays_while_the_next_ones_are_made() -> None:
    p = make("dali", array_source(scenes(500)), ORDER, Policy(flip=True), device=CUDA)
    first = p.batch(0).images
    kept = first.clone()
    for step in range(1, 6):
        p.batch(step)
    assert torch.equal(first, kept)
    assert torch.equal(p.batch(0).images, kept)
    p.close()
