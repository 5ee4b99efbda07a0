"""Mean Teacher (Tarvainen and Valpola, NeurIPS 2017): predictions agree with those of the averaged weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from interlude_fast.data.batch import Batch
from interlude_fast.options import Strict

from .base import Losses, Method
from .parts import combine, frozen_statistics, ramp, wide


class MeanTeacherOptions(Strict):
    training_defaults: ClassVar[dict[str, Any]] = {"train": {"mu": 1}}

    lambda_u: float = Field(50.0, ge=0)
    ramp: float = Field(0.4, ge=0, description="share of the run in which lambda_u rises from 0, linearly")


def consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows and classes of the squared difference of softmaxes; logits [N, K], no gradient to teacher."""
    return F.mse_loss(student.softmax(-1), teacher.detach().softmax(-1))


@contextlib.contextmanager
def as_in_training(network: nn.Module) -> Iterator[None]:
    """Train mode without gradients or running statistics; every module's mode is restored."""
    modes = [(module, module.training) for module in network.modules()]
    network.train()
    try:
        with torch.no_grad(), frozen_statistics(network):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class MeanTeacher(Method):
    """L_u = mean (softmax(student of weak2) - softmax(teacher of weak))^2; the teacher is the run's EMA network in
    train mode. Labeled, student's and teacher's rows go through a network by themselves; running statistics follow
    the labeled ones alone."""

    Options = MeanTeacherOptions
    unlabeled_views = ("weak", "weak2")
    forwards = "apart"

    def forward(self, model: nn.Module, batch: Batch, ema: nn.Module) -> Losses:
        labeled_images, first, second = batch.split(batch.images)
        supervised = F.cross_entropy(wide(model(labeled_images)), batch.labels)
        with frozen_statistics(model):
            student = wide(model(second))
        with as_in_training(ema):
            teacher = wide(ema(first))
        weight = self.options.lambda_u * ramp(batch.step, self.options.ramp * self.task.steps)
        return combine(supervised, consistency(student, teacher), weight)
