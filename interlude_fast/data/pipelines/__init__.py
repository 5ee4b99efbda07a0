"""Three ways to make a batch behind one interface, `batch(step) -> Batch`."""

from __future__ import annotations

from typing import Protocol

from interlude_fast.data.batch import Batch

from .resident import ResidentPipeline


class Pipeline(Protocol):
    """What the loop knows of a pipeline. The batch of a step does not depend on the steps before it."""

    def batch(self, step: int) -> Batch: ...


__all__ = ["Pipeline", "ResidentPipeline"]
