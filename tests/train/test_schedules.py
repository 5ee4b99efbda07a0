"""Learning rates and ramps beside those of the released codes."""

from __future__ import annotations

import torch

from interlude_fast.config import OptimConfig
from interlude_fast.methods.parts import ramp
from interlude_fast.train.optim import learning_rate_factor
from tests.methods.golden import close, golden

G = golden("schedules")


def factors(steps: torch.Tensor, of: int, **options) -> torch.Tensor:
    config = OptimConfig(**options)
    return torch.tensor([learning_rate_factor(config, step, of) for step in steps.tolist()], dtype=torch.float64)


def test_warmup_and_milestones_of_semimeta() -> None:
    steps = {"schedule": "steps", "milestones": [300_000, 350_000], "warmup": 4000}
    close(0.1 * factors(G["semimeta_steps"], 400_000, **steps), G["semimeta_lr"])
    weights = [ramp(step, 4000) for step in G["semimeta_steps"]]
    close(torch.stack(weights), G["semimeta_weight"])


def test_cosine_with_and_without_warmup() -> None:
    close(factors(G["cosine_steps"], G["cosine_K"].item()), G["cosine_factor"])
    warmup = G["cosine_warm_W"].item()
    close(factors(G["cosine_warm_steps"], G["cosine_warm_K"].item(), warmup=warmup), G["cosine_warm_factor"])
