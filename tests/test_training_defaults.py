"""Each method trains as its paper does, whatever the dataset and the number of labels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from interlude_fast.config import ExperimentConfig, load
from interlude_fast.errors import ConfigError
from interlude_fast.experiment.run import train_run
from interlude_fast.methods import METHODS
from interlude_fast.settings_files import configs_folder, find_setting
from tests.helpers import SMALL, small_config

SCRATCH = {"model": {"name": "wideresnet"}}  # own images without pretrained weights


def configured(dataset: str, method: str, labels: int | None = None, **more: Any) -> ExperimentConfig:
    return load(None, [{"data": {"dataset": dataset, "labels": labels}, "method": {"name": method}}, more])


@pytest.mark.parametrize(("dataset", "labels"), [("cifar10", 500), ("svhn", 100), ("folder", None), ("csv", 8)])
def test_mixup_lr_has_its_optimizer_and_one_unlabeled_image_a_labeled_one(dataset: str, labels: int) -> None:
    config = configured(dataset, "mixup_lr", labels, **(SCRATCH if dataset in ("folder", "csv") else {}))
    o = config.optim
    assert (o.name, o.lr, o.weight_decay, o.shrink, o.schedule) == ("adam", 0.002, 0, 0.02, "constant")
    assert config.train.mu == 1


def test_another_method_than_that_of_a_preset_file_trains_as_its_own_paper_does() -> None:
    folder = configs_folder()
    for file, method, name, mu, ema in (
        ("cifar10/interlude-250.yaml", "mixup_lr", "adam", 1, 0.999),
        ("cifar10/base.yaml", "mixmatch", "sgd", 1, 0.999),
        ("digits/interlude-40.yaml", "semimeta", "sgd", 1, 0),
        ("folder/scratch.yaml", "semimeta", "sgd", 1, 0),
    ):
        config = load(folder / file, [{"method": {"name": method}}])
        assert (config.optim.name, config.train.mu, config.optim.ema_decay) == (name, mu, ema)


def test_a_label_count_without_a_file_takes_the_nearest_published_setting() -> None:
    near = configured("cifar10", "mixup_lr", 500)
    assert near.model.options.form == "mixup_lr"
    assert near.data.labels == 500
    assert near.preset == "configs/cifar10/mixup_lr-250.yaml, the published setting nearest to 500 labels"
    semimeta = configured("cifar10", "semimeta", 1000)
    assert (semimeta.model.name, semimeta.optim.ema_decay, semimeta.optim.lr) == ("conv_large", 0, 0.1)
    assert configured("cifar10", "fixmatch", 300).preset.startswith("configs/cifar10/fixmatch-250.yaml, ")
    assert configured("cifar10", "fixmatch", 250).preset == "configs/cifar10/fixmatch-250.yaml"


@pytest.mark.parametrize("method", ["mixmatch", "mean_teacher", "vat", "pseudo_label"])
def test_methods_with_one_unlabeled_image_a_labeled_one(method: str) -> None:
    for dataset in ("folder", "csv", "npz", "tmed2"):
        config = configured(dataset, method, **SCRATCH)
        assert config.train.mu == 1
        file = "base" if dataset == "tmed2" else "scratch"
        assert f"configs/{dataset}/{file}.yaml, with {method}'s own defaults" == config.preset
    assert configured("folder", method, train={"mu": 3}, **SCRATCH).train.mu == 3


def test_semimeta_on_own_images_rises_and_falls_within_the_run() -> None:
    config = configured("folder", "semimeta", **SCRATCH)
    o = config.optim
    assert (o.lr, o.nesterov, o.decay_all, o.ema_decay, config.train.mu) == (0.1, False, True, 0, 1)
    assert all(0 < milestone < 1 for milestone in o.milestones)
    assert 0 < config.method.options.ramp < 1
    with pytest.raises(ConfigError, match=r"method\.ramp = 4000 steps: a run of 2500"):
        load(None, [{"method": {"name": "semimeta", "ramp": 4000}, "train": {"steps": 2500}}])


@pytest.mark.parametrize("dataset", ["folder", "csv", "npz"])
def test_own_images_take_a_pretrained_network_and_its_optimizer_whatever_the_method(dataset: str) -> None:
    for name in METHODS:
        config, own = configured(dataset, name), getattr(METHODS[name].Options, "training_defaults", {})
        assert (config.model.name, config.data.pipeline, config.model.options.head) == (
            "efficientnet_lite0",
            "kept",
            "probe",
        )
        assert (config.optim.name, config.optim.lr, config.train.batch) == ("adamw", 5e-4, 16)
        assert config.train.mu == own.get("train", {}).get("mu", 4)
    assert load(None, [{"data": {"dataset": dataset}}]).method.name == "fixmatch"


def test_another_pretrained_network_is_cut_too_and_one_without_weights_is_not() -> None:
    own = configured("folder", "fixmatch", model={"name": "timm:resnet18", "pretrained": True})
    assert (own.model.options.cut, own.model.options.norm, own.data.pipeline) == ("auto", "folded", "kept")
    for network in ({"name": "timm:resnet18"}, {"name": "wideresnet"}, {"pretrained": False}):
        plain = configured("folder", "fixmatch", model=network)
        assert (plain.model.options.cut, plain.model.options.norm, plain.data.pipeline) == (None, "train", "auto")
        assert plain.optim.name == "sgd"


def test_other_methods_share_the_recipe_of_fixmatch() -> None:
    for name in METHODS:
        if name == "probe":
            continue
        config = configured("folder", name, **SCRATCH)
        if not getattr(METHODS[name].Options, "training_defaults", {}):
            assert (config.optim.name, config.optim.lr, config.train.mu) == ("sgd", 0.03, 7)


def test_every_default_of_a_method_is_a_setting() -> None:
    settings = ExperimentConfig().model_dump(mode="json")
    for name in METHODS:
        for section, values in getattr(METHODS[name].Options, "training_defaults", {}).items():
            for key in values:
                assert find_setting(settings, f"{section}.{key}"), (name, section, key)


def test_the_run_says_which_preset_was_taken(tmp_path: Path) -> None:
    train_run(small_config(train={"steps": 2}), tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "preset: configs/digits/interlude-40.yaml, the published setting nearest to 20 labels" in log
    assert '"preset": "configs/digits' in (tmp_path / "run" / "passport.json").read_text()
    logging.getLogger().handlers.clear()


def test_a_setting_that_some_run_of_a_comparison_reads_is_no_error(tmp_path: Path) -> None:
    from interlude_fast.sweeps.grid import Axis, make_cells

    axis = Axis("method.name", ("fixmatch", "supervised"))
    cells = make_cells([axis], [0], [SMALL, {"train": {"mu": 3}}])
    assert [cell.configs[0].train.mu for cell in cells] == [3, 3]
    with pytest.raises(ConfigError, match=r"train\.mu = 3 means nothing to supervised"):
        make_cells([Axis("method.name", ("supervised",))], [0], [SMALL, {"train": {"mu": 3}}])
