"""Handwritten digits: 1,797 scans of 8x8 pixels that scikit-learn ships, so no download is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from interlude_fast.data.split import choose_labeled

from . import Source

TEST_IMAGES = 360  # the same number of every class
TEST_SEED = 1797  # a fixed split, whatever the run's seed


def load(root: Path | None = None) -> Source:
    """1,437 training and 360 test images, uint8 [N, 16, 16, 1]; the scans enlarged twice, bilinearly."""
    import sklearn.datasets
    from PIL import Image

    bunch = sklearn.datasets.load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(g).resize((16, 16), Image.Resampling.BILINEAR)) for g in grey])
    images = images[..., None]
    labels = bunch.target.astype(np.int64)
    test = np.zeros(len(images), dtype=bool)
    test[choose_labeled(torch.from_numpy(labels), TEST_IMAGES, 10, TEST_SEED).numpy()] = True
    scaled = images[~test] / 255.0
    return Source(
        name="digits",
        images=images[~test],
        labels=labels[~test],
        test_images=images[test],
        test_labels=labels[test],
        classes=tuple(str(d) for d in range(10)),
        mean=(float(scaled.mean()),),
        std=(float(scaled.std()),),
        flip=False,
    )
