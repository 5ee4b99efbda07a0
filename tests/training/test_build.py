"""Networks and optimizers as a run builds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from interlude_fast.config import merge_config
from interlude_fast.errors import ConfigError
from interlude_fast.evaluation.evaluate import evaluate_run
from interlude_fast.experiment.run import train_run
from interlude_fast.methods import TaskInfo, build_method
from interlude_fast.models import Shape
from interlude_fast.options import OptimConfig
from interlude_fast.training.network import build_network
from interlude_fast.training.optim import learning_rate_factor, parameter_groups
from interlude_fast.training.setup import prepare
from interlude_fast.training.step import step_seed
from tests.helpers import small_config


def network(seed: int = 0) -> nn.Module:
    method = build_method("supervised", {}, TaskInfo(10))
    return build_network(small_config(seed=seed), method, Shape(10, 1, 16))


def test_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    a, b, c = (network(seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(a.conv1.weight, b.conv1.weight)
    assert not torch.equal(a.conv1.weight, c.conv1.weight)


def test_layer_decay_scales_the_learning_rate_from_the_head_down() -> None:
    net = network()
    names = {p: n for n, p in net.named_parameters()}
    groups = parameter_groups(net, OptimConfig(layer_decay=0.5))
    scales = {names[p]: g["scale"] for g in groups for p in g["params"]}
    assert scales["fc.weight"] == scales["bn1.bias"] == 1
    assert scales["block3.layer.0.conv1.weight"] == 0.5
    assert scales["conv1.weight"] == 0.5**4
    with pytest.raises(ConfigError, match="no known order"):
        parameter_groups(nn.Linear(2, 2), OptimConfig(layer_decay=0.5))


@pytest.mark.parametrize("decay_all", [False, True])
def test_vectors_do_not_decay_unless_asked(decay_all: bool) -> None:
    net = network()
    groups = parameter_groups(net, OptimConfig(decay_all=decay_all))
    decayed = {p for g in groups for p in g["params"] if g["weight_decay"]}
    assert all((p in decayed) == (decay_all or p.ndim > 1) for p in net.parameters())


def test_schedules() -> None:
    def at(step: int, **options) -> float:
        return learning_rate_factor(OptimConfig(**options), step, 1000)

    assert at(0) == 1
    assert at(0, warmup=100) == 0
    assert at(50, warmup=100) == 0.5
    assert at(100, warmup=100) == 1
    assert at(1000, schedule="cosine") == pytest.approx(0)
    assert at(999, schedule="constant") == 1
    steps = {"schedule": "steps", "milestones": [300, 350]}
    assert [at(s, **steps) for s in (300, 301, 350, 351)] == pytest.approx([1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"schedule": "steps"}, "wants optim.milestones"),
        ({"milestones": [5]}, "read by optim.schedule = steps, not cosine_7_16"),
        ({"warmup": 8}, "a run of 8 steps never reaches optim.lr"),
    ],
)
def test_schedules_that_contradict_themselves(optim: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(small_config(optim=optim))


def test_every_label_of_a_split_file_but_what_it_holds_out(tmp_path: Path) -> None:
    few = train_run(
        small_config(train={"steps": 1}, data={"labels": 30, "split": {"validation": 10}}), tmp_path / "few"
    )
    file = few.directory / "split.json"
    config = small_config(method={"name": "fully_supervised"}, train={"steps": 2})
    config = merge_config(config, [{"data": {"labels": None, "split": {"file": str(file)}}}])
    run = train_run(config, tmp_path / "all")
    splits = [json.loads((tmp_path / name / "split.json").read_text()) for name in ("few", "all")]
    few_labels, all_labels = (len(split["labeled"]["index"]) for split in splits)
    assert (few_labels, all_labels) == (30, 1437 - 10)
    assert evaluate_run(run.directory).scores == run.scores
    assert train_run(config, tmp_path / "all", resume=True).scores == run.scores


def test_a_method_knows_the_learning_rate_of_every_step() -> None:
    run = prepare(small_config(method={"name": "semimeta", "reference": True}, train={"mu": 1}))
    rate = run.state.method.task.learning_rate
    assert [rate(k) for k in (0, 7)] == [
        run.config.optim.lr * learning_rate_factor(run.config.optim, k, 8) for k in (0, 7)
    ]
    assert run.state.method.steps.tolist() == [rate(k) for k in range(8)]


def test_seeds_of_steps_differ_in_the_bits_that_torch_reads() -> None:
    low = {step_seed(seed, step) % 2**32 for seed in range(50) for step in range(200)}
    assert len(low) > 9990


@pytest.mark.parametrize("optim", [{"name": "adam", "lr": 0.002, "shrink": 0.02}, {"name": "adamw", "lr": 0.001}])
def test_adam_resumes_exactly(optim: dict, tmp_path) -> None:
    from interlude_fast.training.step import train_step

    config = small_config(optim=optim, method={"name": "supervised"})
    a, b = prepare(config), prepare(config)
    for step in range(6):
        train_step(a.state, a.pipeline.batch(step))
        if step == 2:
            b.state.load_state_dict({k: v.clone() for k, v in a.state.state_dict().items()}, 3)
    for step in range(3, 6):
        train_step(b.state, b.pipeline.batch(step))
    theirs = b.state.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in a.state.state_dict().items())


def test_parameters_shrink_after_the_average_has_taken_them() -> None:
    from interlude_fast.training.step import train_step

    calm = {"name": "adam", "lr": 1e-12, "shrink": 1e9, "ema_decay": 0.0}
    run = prepare(small_config(optim=calm, method={"name": "supervised"}))
    before = run.state.model.fc.weight.detach().clone()
    train_step(run.state, run.pipeline.batch(0))
    torch.testing.assert_close(run.state.ema.model.fc.weight, before, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(run.state.model.fc.weight.detach(), before * (1 - 1e-3), rtol=1e-5, atol=1e-8)


def test_one_image_at_a_time_is_refused_where_there_are_batch_norms() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch = 1: supervised would show wideresnet one image"):
        prepare(small_config(method={"name": "supervised"}, train={"batch": 1}))
    prepare(small_config(train={"batch": 1}))  # InterLUDE shows ten rows together
