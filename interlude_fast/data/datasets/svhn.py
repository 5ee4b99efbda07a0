"""SVHN, cropped digits of house numbers, from torchvision's local layout (`<root>/*_32x32.mat`), downloaded where
a network allows."""

from __future__ import annotations

from pydantic import Field

from interlude_fast.options import RootConfig

from . import TEST, TRAIN, Dataset, LoadContext, from_parts
from .torchvision_layout import open_dataset


class SvhnConfig(RootConfig):
    extra: bool = Field(False, description="svhn: the extra training images too")


Options = SvhnConfig


def load(options: SvhnConfig, context: LoadContext | None = None) -> Dataset:
    """73,257 training and 26,032 test images, uint8 [N, 32, 32, 3], label = digit; with `data.extra: true`
    531,131 easier training images after the training ones.

    A mirrored digit is no digit, so views are not flipped; the usual comparisons do flip: `augment.flip: true`.

    Raises:
        DataError: torchvision or scipy is not installed, or a file is neither there nor to be downloaded; the
            message names it and its folder.
    """
    names = [("train", TRAIN), *([("extra", TRAIN)] if options.extra else []), ("test", TEST)]
    parts = []
    for name, part in names:
        half = open_dataset("svhn", "SVHN", options.root, folder="", wanted=f"{name}_32x32.mat", split=name)
        parts.append((part, half.data.transpose(0, 2, 3, 1), half.labels))  # a view: torchvision's is [N, C, H, W]
    mean, std = (0.438, 0.444, 0.473), (0.1751, 0.1771, 0.1744)
    return from_parts("svhn", parts, [str(d) for d in range(10)], mean=mean, std=std, flip=False)
