"""Handwritten digits: 1,797 scans of 8x8 pixels that scikit-learn ships, so no download is needed."""

from __future__ import annotations

import numpy as np

from interlude_fast.data.split import choose
from interlude_fast.options import DataConfig

from . import Dataset, LoadContext, from_arrays

Options = DataConfig
TEST_IMAGES = 36  # of every class
TEST_SEED = 1797  # a fixed split, whatever the run's seed


def load(options: DataConfig, context: LoadContext | None = None) -> Dataset:
    """1,437 training and 360 test images, uint8 [N, 16, 16, 1]; the scans enlarged twice, bilinearly."""
    import sklearn.datasets
    from PIL import Image

    bunch = sklearn.datasets.load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.stack([np.asarray(Image.fromarray(g).resize((16, 16), Image.Resampling.BILINEAR)) for g in grey])
    images, labels = images[..., None], bunch.target.astype(np.int64)
    test = np.zeros(len(images), dtype=bool)
    for k in range(10):
        test[choose(np.flatnonzero(labels == k), TEST_IMAGES, TEST_SEED, key=k)] = True
    train, held_out = (images[~test], labels[~test]), (images[test], labels[test])
    return from_arrays("digits", train, held_out, [str(d) for d in range(10)], flip=False)
