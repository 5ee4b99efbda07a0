"""Learning rates and ramps beside those of the released codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from interlude_fast.config import ExperimentConfig, dump, load
from interlude_fast.errors import ConfigError
from interlude_fast.methods.parts import ramp
from interlude_fast.methods.semimeta import SemiMetaOptions
from interlude_fast.options import OptimConfig
from interlude_fast.settings_files import parse_assignment
from interlude_fast.training.optim import learning_rate_factor
from tests.methods.golden import close, golden

G = golden("schedules")


def factors(steps: torch.Tensor, of: int, **options) -> torch.Tensor:
    config = OptimConfig(**options)
    return torch.tensor([learning_rate_factor(config, step, of) for step in steps.tolist()], dtype=torch.float64)


@pytest.mark.parametrize(
    ("milestones", "warmup"), [([300_000, 350_000], 4000), ([0.75, 0.875], 0.01)], ids=["steps", "shares"]
)
def test_warmup_and_milestones_of_semimeta(milestones: list[float], warmup: float) -> None:
    steps = {"schedule": "steps", "milestones": milestones, "warmup": warmup}
    close(0.1 * factors(G["semimeta_steps"], 400_000, **steps), G["semimeta_lr"])
    weights = [ramp(step, 4000) for step in G["semimeta_steps"]]
    close(torch.stack(weights), G["semimeta_weight"])


def test_cosine_with_and_without_warmup() -> None:
    close(factors(G["cosine_steps"], G["cosine_K"].item()), G["cosine_factor"])
    warmup = G["cosine_warm_W"].item()
    close(factors(G["cosine_warm_steps"], G["cosine_warm_K"].item(), warmup=warmup), G["cosine_warm_factor"])


def test_the_ramp_of_semimeta_is_the_papers_share() -> None:
    assert SemiMetaOptions().ramp * 400_000 == 4000


def test_shares_are_of_the_whole_run() -> None:
    shares = OptimConfig(schedule="steps", milestones=[0.5, 0.75], warmup=0.1)
    factors = [learning_rate_factor(shares, step, 40) for step in (0, 1, 4, 20, 21, 30, 31)]
    assert factors == pytest.approx([0, 0.25, 1, 1, 0.1, 0.1, 0.01])
    cosine = OptimConfig(schedule="cosine", warmup=0.5)
    assert [learning_rate_factor(cosine, step, 40) for step in (10, 20, 30)] == pytest.approx([0.5, 1, 0.5])
    assert learning_rate_factor(OptimConfig(warmup=1), 1, 40) == 1  # a step, not the whole run


def test_numbers_of_steps_stay_whole_and_shares_stay_shares() -> None:
    asked = ["optim.schedule=steps", "optim.milestones=[0.75, 1.0e+4]", "optim.warmup=5e2", "train.steps=20000"]
    written = dump(load(None, [parse_assignment(text) for text in asked]))
    assert "warmup: 500\n" in written
    assert "milestones:\n  - 0.75\n  - 10000\n" in written
    assert dump(ExperimentConfig.model_validate(yaml.safe_load(written))) == written


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("warmup=1.5", r"optim.warmup: 1.5 is neither a number of steps nor a share"),
        ("warmup=-0.5", "optim.warmup = -0.5: input should be greater than or equal to 0"),
        ("warmup=soon", "optim.warmup: 'soon' is neither"),
        ("warmup=.nan", r"optim.warmup.* finite number"),
        ("warmup=.inf", "optim.warmup: inf is neither"),
        ("warmup=[5]", "optim.warmup"),
        ("milestones=[10, 20.5]", "optim.milestones: 20.5 is neither"),
        ("milestones=[0]", r"optim.milestones.0 = 0: input should be greater than 0"),
        ("milestones=5", "optim.milestones = 5: input should be a valid list"),
    ],
)
def test_neither_steps_nor_shares(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(None, [parse_assignment(f"optim.{setting}")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"milestones": [50, 98]}, None),
        ({"milestones": [50, 99]}, "has 99: the learning rate would never fall there in a run of 100 steps"),
        ({"milestones": [300_000, 50]}, "has 300000: the learning rate would never fall there"),
        ({"milestones": [0.5, 0.98]}, None),
        ({"milestones": [0.5, 0.995]}, "has 0.995: the learning rate would never fall there"),
        ({"milestones": [50], "warmup": 0.999}, None),
        ({"milestones": [50], "warmup": 100}, "never reaches optim.lr"),
    ],
)
def test_milestones_that_a_run_does_not_pass(settings: dict[str, Any], refused: str | None) -> None:
    if refused is None:
        OptimConfig(schedule="steps", **settings).check_steps(100)
        return
    with pytest.raises(ConfigError, match=refused) as caught:
        OptimConfig(schedule="steps", **settings).check_steps(100)
    assert "\n" not in str(caught.value)
