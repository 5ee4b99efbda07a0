"""Which training images are labeled: a function of the seed."""

from __future__ import annotations

import torch
from torch import Tensor

from interlude_fast import reference
from interlude_fast.errors import DataError


def choose_labeled(labels: Tensor, count: int, num_classes: int, seed: int) -> Tensor:
    """`count` indices, count / K of each class, drawn by keyed permutations; sorted, int64 on the CPU.

    Args:
        labels: int64 [N] in [0, K), the classes of the training images.

    Raises:
        DataError: count is smaller than K, not divisible by K, or a class has too few images.
    """
    if count < num_classes:
        raise DataError(f"{count} labels for {num_classes} classes: every class needs at least one")
    if count % num_classes:
        below, above = count - count % num_classes, count - count % num_classes + num_classes
        raise DataError(f"{count} labels do not divide over {num_classes} classes; {below} or {above} do")
    if count > len(labels):
        raise DataError(f"{count} labels asked for, but there are only {len(labels)} training images")
    each = count // num_classes
    chosen = []
    for k in range(num_classes):
        members = (labels == k).nonzero().flatten()
        if len(members) < each:
            raise DataError(f"class {k} has {len(members)} training images, {each} labels per class asked for")
        zero = torch.zeros((), dtype=torch.int64)
        order = reference.permute(torch.arange(each), len(members), seed, zero, zero + k, reference.SPLIT)
        chosen.append(members[order])
    return torch.cat(chosen).sort().values
