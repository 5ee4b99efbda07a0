from __future__ import annotations

import re
from pathlib import Path

import pytest

from interlude_fast.config import load
from interlude_fast.errors import ConfigError
from interlude_fast.reference.augment import USB_FORM
from interlude_fast.settings_files import configs_folder, parse_assignment
from interlude_fast.training.setup import prepare
from tests.helpers import small_config

PRESETS = sorted(configs_folder().rglob("*.yaml"))


def test_defaults_train_the_digits_with_interlude() -> None:
    config = load()
    assert (config.data.dataset, config.data.labels, config.method.name) == ("digits", 40, "interlude")
    assert config.method.options.alpha == 0.1


def test_precedence_flags_over_file_over_preset(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("train: {steps: 7, batch: 20}\noptim: {lr: 1.0e-3}\n")
    config = load(file, [parse_assignment("train.steps=9"), {"train": {"batch": 10}}])
    assert (config.train.steps, config.train.batch, config.optim.lr) == (9, 10, 1e-3)
    assert config.train.mu == load().train.mu


def test_extends_reads_the_file_beside(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {steps: 5, batch: 3}\n")
    (tmp_path / "child.yaml").write_text("extends: base.yaml\ntrain: {steps: 6}\n")
    config = load(tmp_path / "child.yaml")
    assert (config.train.steps, config.train.batch) == (6, 3)


def test_options_do_not_carry_over_to_another_method() -> None:
    config = load(None, [{"method": {"name": "interlude", "tau": 0.9}}, {"method": {"name": "supervised"}}])
    assert config.method.name == "supervised"
    with pytest.raises(ConfigError, match="unknown key 'method\\.tau'"):
        (load(None, [{"method": {"name": "supervised", "tau": 0.9}}]))


def test_settings_of_the_views_reach_the_pipeline() -> None:
    usb = prepare(small_config(augment={"form": "usb", "cutout": 0.3})).pipeline
    assert (usb.make_views.form, usb.make_views.settings["square"]) == (USB_FORM, int(16 * 0.3 * 65536))
    assert usb.batch(0).images.isfinite().all()
    four = prepare(small_config(augment={"n": 4, "m": 5})).pipeline
    assert (four.make_views.form.ops, four.make_views.values.shape) == (4, (14, 4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.stepz=3", r"unknown key 'train.stepz'; did you mean 'steps'\?"),
        ("method.tua=0.9", r"unknown key 'method.tua'; did you mean 'tau'\?"),
        ("model.deepth=10", r"unknown key 'model.deepth'; did you mean 'depth'\?"),
        ("method.name=interlud", r"unknown method 'interlud'; did you mean 'interlude'\?"),
        ("model.name=resnet", r"unknown network 'resnet'"),
        ("method.alpha=1", "method.alpha = 1"),
        ("method.alpha=-0.1", "method.alpha = -0.1"),
        ("method.delta=median", "method.delta = 'median'"),
        ("train.mu=0", "train.mu = 0"),
        ("train.batch=0", "train.batch = 0"),
        ("train.steps=0", "train.steps = 0"),
        ("train.steps=many", "train.steps = 'many'"),
        ("train.precision=fp4", "train.precision = 'fp4'"),
        ("train.device=tpu", "train.device = 'tpu'"),
        ("optim.lr=.nan", "optim.lr = nan"),
        ("model.depth=11", "model.depth = 11"),
        ("nothing", "--set wants key=value"),
        ("data.dataset=3", "is a name, got 3"),
        ("data.dataset=null", "is a name, got None"),
        ("seed=2024-13-45", "is not YAML"),
        ("augment.form=randaugment", "augment.form = 'randaugment'"),
        ("augment.n=17", "augment.n = 17"),
        ("seed=-1", "seed = -1"),
        ("train.batch=1e9", "train.batch = 1000000000.0"),
        ("model.width=1000000", "model.width = 1000000"),
        ("train.device=cuda:99999999999", "train.device"),
        ("method=interlude", "method must be a section"),
    ],
)
def test_bad_settings_get_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(load(None, [parse_assignment(text)]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"augment": {"form": "usb", "m": 5}},
            "augment: m = 5 means nothing with form = usb, which draws magnitudes over the whole range; drop it",
        ),
        ({"augment": {"n": 0, "m": 5}}, "augment: m = 5 means nothing with n = 0, no operations; drop it"),
        (
            {"augment": {"n": 0, "cutout": 0, "form": "usb"}},
            "augment: form = usb means nothing with n = 0 and cutout = 0, no strong views; drop it",
        ),
        (
            {"optim": {"name": "adam", "momentum": 0.8}},
            "optim: momentum = 0.8 means nothing with name = adam, which has moments of its own; drop it",
        ),
        (
            {"optim": {"name": "adamw", "nesterov": False}},
            "optim: nesterov = False means nothing with name = adamw, which has moments of its own; drop it",
        ),
        (
            {"optim": {"weight_decay": 0, "decay_all": True}},
            "optim: decay_all = True means nothing with weight_decay = 0; drop it",
        ),
        (
            {"data": {"dataset": "folder"}, "optim": {"ema_decay": 0}},
            "optim: ema_warmup = true means nothing with ema_decay = 0; set ema_warmup=false too",
        ),
    ],
)
def test_settings_that_nothing_reads_are_refused(settings: dict, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, [settings])
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": {"form": "usb", "n": 2, "cutout": 0.3, "m": 10}},  # m at its default cannot be told from none
        {"augment": {"n": 0, "form": "usb"}},  # whose cutout is another
        {"augment": {"n": 0, "cutout": 0}},
        {"optim": {"name": "adamw", "momentum": 0.9, "nesterov": True}},
        {"optim": {"momentum": 0.0}},
        {"optim": {"ema_decay": 0}},
        {"data": {"dataset": "folder"}, "optim": {"ema_decay": 0, "ema_warmup": False}},
    ],
)
def test_settings_that_are_read_or_at_their_defaults_are_not(settings: dict) -> None:
    load(None, [settings])


@pytest.mark.parametrize("dataset", ["folder", "csv", "npz"])
def test_the_average_warms_up_for_own_images_alone(dataset: str) -> None:
    assert load(None, [{"data": {"dataset": dataset}}]).optim.ema_warmup
    assert not load().optim.ema_warmup


@pytest.mark.parametrize(
    "content", ["[1, 2]", "a: [", "\x00", "1: 2", "seed: 2024-13-45", "extends: bad.yaml", "extends: 3"]
)
def test_bad_files_get_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(str(file))):
        load(file)
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load(tmp_path / "missing.yaml")


def test_numbers_in_yaml_1_1_notation() -> None:
    assert parse_assignment("optim.lr=1e-3") == {"optim": {"lr": 1e-3}}
