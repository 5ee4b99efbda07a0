"""The default pipeline: the images lie on the device as uint8, and a batch is made there."""

from __future__ import annotations

from torch import Tensor

from interlude_fast.data.augment import ViewMaker
from interlude_fast.data.batch import Batch
from interlude_fast.data.sampler import Sampler

from .base import Ingredients


class ResidentPipeline:
    """Batches from a store on the device, one kernel each."""

    recordable = True

    def __init__(self, sampler: Sampler, make_views: ViewMaker) -> None:
        self.sampler, self.make_views = sampler, make_views

    def batch(self, step: int | Tensor) -> Batch:
        """Images come in channels-last memory format, in make_views' dtype."""
        plan = self.sampler.plan(step)
        return plan.batch(self.make_views(self.sampler.store.images, plan.items, plan.keys, plan.views, plan.step))

    def close(self) -> None: ...


def build(made_of: Ingredients) -> ResidentPipeline:
    return ResidentPipeline(made_of.sampler, made_of.view_maker())
