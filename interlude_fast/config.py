"""The configuration: one typed tree, its YAML files, and how flags override them.

Order of precedence, later wins: the defaults here, the preset of the data set (`configs/<data set>/base.yaml`, or
the published setting `<method>-<labels>.yaml` or `<method>.yaml` that extends it), the user's `--config`, then
`--set` and flags. A `--config` out of `configs/` has no other preset under it.
An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import contextlib
import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from .errors import ConfigError, nearest

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
Fit = Literal["crop", "pad", "stretch"]
SelectionMetric = Literal["accuracy", "balanced_accuracy", "macro_f1"]
SelectionNetwork = Literal["ema", "raw"]


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: Any) -> Any:
    """90, "90", "90s", "1.5m", "1h30m" -> seconds; anything else as it is, for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    parts = re.fullmatch(r"(?:[0-9.]+[smhd])*(?:[0-9.]+)?", value.strip())
    if not parts or not value.strip():
        raise ValueError(f"'{value}' is no duration; write e.g. 90s, 30m, 1h30m")
    try:
        return sum(float(n) * _UNITS[unit] for n, unit in re.findall(r"([0-9.]+)([smhd]?)", value))
    except ValueError:
        raise ValueError(f"'{value}' is no duration; write e.g. 90s, 30m, 1h30m") from None


Seconds = Annotated[PositiveFloat, BeforeValidator(_seconds)]


class Strict(BaseModel):
    """A section whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    def refuse_unread(self, because: str, *names: str) -> None:
        """For validators: fields that are not at their defaults although nothing reads them."""
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} = {getattr(self, name)} means nothing {because}; drop it")


class SplitConfig(Strict):
    """How labeled, unlabeled, validation and test images are chosen (data/split.py)."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # classes may be called 0, 1, 2

    file: Path | None = Field(None, description="a split to replay; the other settings are then not read")
    kind: Literal["balanced", "proportional", "long_tailed"] = "balanced"
    counts: list[PositiveInt] | None = Field(None, description="labels of each class, instead of data.labels")
    imbalance: float = Field(
        1.0, ge=1e-6, le=1e6, description="long_tailed: labels of the first class over the last's"
    )
    unlabeled_imbalance: float | None = Field(
        None, ge=1e-6, le=1e6, description="the same for the unlabeled images"
    )
    unlabeled_largest: int | None = Field(None, ge=1, description="unlabeled images of the largest class")
    validation: float = Field(0.0, ge=0, description="labeled images held out: a share below 1, or a number")
    test: float = Field(0.0, ge=0, description="the same for data without test images of their own")
    unknown_classes: list[str] = Field([], description="open set: only ever seen unlabeled")
    fold: int | None = Field(None, ge=0, description="choose labels out of this predefined fold (stl10)")


class DataConfig(Strict):
    """Which images, and which of them are labeled."""

    # Settings that only some data sets read; a source names its own in USES.
    OF_SOME_DATASETS: ClassVar[tuple[str, ...]] = (
        *("root", "labeled", "unlabeled", "test", "extra", "size", "channels", "fit", "max_unreadable", "cache"),
    )

    dataset: str = "digits"
    root: Path | None = Field(None, description="folder or file of the local copy; None: the default place")
    labeled: Path | None = Field(None, description="folder: images in class folders, instead of root")
    unlabeled: Path | None = Field(None, description="folder: images without labels, at any depth")
    test: Path | None = Field(None, description="folder: test images in class folders")
    labels: int | None = Field(None, ge=1, description="labeled images in all; None: every one that has a label")
    unlabeled_includes_labeled: bool = True
    extra: bool = Field(False, description="svhn: the extra training images too")
    size: int | None = Field(
        None, ge=8, le=4096, description="side that files are resized to; None: from the files"
    )
    channels: Literal[1, 3] | None = Field(None, description="of files; None: 1 where all are grey, else 3")
    fit: Fit = Field("crop", description="how files become square (data/images.py)")
    max_unreadable: float = Field(0.05, ge=0, le=1, description="share of unreadable files that is only skipped")
    cache: Path | None = Field(None, description="folder of prepared images; None: data/cache.py's default")
    mean: list[float] | None = Field(None, description="per channel, of images in [0, 1]; None: the data set's")
    std: list[PositiveFloat] | None = Field(None, description="the same")
    pipeline: Literal["auto", "resident", "host", "dali", "torchvision"] = "auto"
    workers: int | None = Field(None, ge=0, description="processes or threads that make batches; None: all cores")
    split: SplitConfig = Field(default_factory=SplitConfig)


class AugmentConfig(Strict):
    """Weak and strong views (docs/equations.md). Sides in fractions of the image's side."""

    flip: bool | None = Field(None, description="horizontal flips; None: what the data set says")
    crop: float = Field(0.125, ge=0, le=0.5, description="reflect padding of the random crop")
    form: Literal["fixmatch", "usb"] = Field("fixmatch", description="whose RandAugment and cutout")
    n: int | None = Field(None, ge=0, le=16, description="RandAugment operations; None: 2 of fixmatch, 3 of usb")
    m: int = Field(
        10, ge=2, le=10, description="fixmatch draws magnitudes from 1..m-1; usb uniform ones, without m"
    )
    cutout: float = Field(0.5, ge=0, le=1, description="side of a strong view's square; usb: its upper bound")
    paired: Literal["independent", "shared"] = "independent"


class Named(BaseModel):
    """A registered part: its name, and options that the part's own typed Options check."""

    model_config = ConfigDict(extra="allow", validate_assignment=True)
    name: str

    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class OptimConfig(Strict):
    """Optimizer, learning-rate schedule and EMA (train/optim.py, train/ema.py)."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(0.03, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd")
    nesterov: bool = Field(True, description="sgd")
    weight_decay: float = Field(5e-4, ge=0, description="not on biases and norms, unless decay_all")
    decay_all: bool = Field(False, description="weight decay on every parameter")
    shrink: float = Field(0.0, ge=0, description="after the EMA every parameter loses this share times lr")
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning rate of a layer over that of the next")
    schedule: Literal["cosine_7_16", "cosine", "constant", "steps"] = "cosine_7_16"
    warmup: int = Field(0, ge=0, description="steps in which the learning rate rises linearly from 0")
    milestones: list[PositiveInt] = Field([], description="steps: the learning rate falls to a tenth after each")
    ema_decay: float = Field(0.999, ge=0, lt=1)


class TrainConfig(Strict):
    """The loop."""

    steps: int = Field(2**20, ge=1, le=2**40)
    batch: int = Field(64, ge=1, le=2**16, description="B: labeled images in a step")
    mu: int = Field(7, ge=1, le=1024, description="unlabeled images per labeled image")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")
    precision: Precision = "auto"
    compile: bool | None = Field(None, description="torch.compile; None: where it is the fastest that works")
    capture: bool | None = Field(None, description="the step as one CUDA graph; None: the same")
    budget: Seconds | None = Field(None, description="wall time, e.g. 30m: the schedule is scaled to end in it")
    sync_batch_norm: bool = Field(False, description="batch norms see the rows of all processes of a job")
    log_every: int = Field(100, ge=1, description="steps between two lines of metrics.jsonl")
    eval_every: int = Field(5000, ge=1, description="steps between two evaluations")
    checkpoint_every: int = Field(5000, ge=1, description="steps between two checkpoints")
    eval_batch: int = Field(500, ge=1, le=2**20)
    select_by: SelectionMetric = Field("accuracy", description="validation score that chooses a step")
    select_network: SelectionNetwork = Field("ema", description="whose weights are kept at that step")


class Config(Strict):
    """Everything that a run depends on. Same configuration and seed, same run."""

    seed: int = Field(0, ge=0, lt=2**63)
    data: DataConfig = Field(default_factory=DataConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    model: Named = Field(default_factory=lambda: Named(name="wideresnet"))
    method: Named = Field(default_factory=lambda: Named(name="interlude"))
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)


def validate(cls: type[BaseModel], values: dict[str, Any], where: str = "") -> Any:
    """cls(**values), with pydantic's complaint as one ConfigError line."""
    try:
        return cls(**values)
    except ValidationError as error:
        raise ConfigError(_one_line(cls, error, where)) from None


def _one_line(cls: type[BaseModel], error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join([where, *path]).strip(".")
    if first["type"] == "value_error":  # raised by a validator of ours
        return f"{key}: {first['ctx']['error']}"
    if first["type"] != "extra_forbidden":
        got = first["input"]
        return f"{key} = {got!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    section: Any = cls
    for part in path[:-1]:
        section = section.model_fields[part].annotation
    return f"unknown key '{key}'{nearest(path[-1], section.model_fields)}"


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        # Another part's options do not carry over to the part that replaces it.
        replaced = both and "name" in value and merged[key].get("name", value["name"]) != value["name"]
        merged[key] = _merge(merged[key], value) if both and not replaced else value
    return merged


def read_yaml(path: Path, depth: int = 0) -> dict[str, Any]:
    """A YAML mapping; its `extends: <file beside it>` is read first."""
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that is none
        where = getattr(error, "problem_mark", None)
        raise ConfigError(
            f"configuration file {path} is not YAML{f', line {where.line + 1}' if where else ''}"
        ) from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"configuration file {path} must hold a mapping of named settings")
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str) or depth > 8:
        raise ConfigError(f"configuration file {path}: extends must name a file beside it, and end somewhere")
    return _merge(read_yaml(path.parent / base, depth + 1), values)


def parse_assignment(text: str) -> dict[str, Any]:
    """`"method.tau=0.9"` -> `{"method": {"tau": 0.9}}`; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set wants key=value, got '{text}'")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--set {text}: the value is not YAML") from None
    return nested(key.strip(), as_number(parsed))


def as_number(value: Any) -> Any:
    """Text that is a number, as a number: YAML 1.1 reads 1e-3 as text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def nested(key: str, value: Any) -> dict[str, Any]:
    """`"method.tau", 0.9` -> `{"method": {"tau": 0.9}}`"""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def configs_folder() -> Path:
    """`configs/`: inside the installed package, or at the top of the source tree."""
    installed = Path(str(resources.files("interlude_fast"))) / "configs"
    return installed if installed.is_dir() else Path(__file__).resolve().parent.parent / "configs"


def preset(dataset: str, method: str, labels: int | None) -> dict[str, Any]:
    """The settings that `configs/` holds for a data set, and for this method and label count where it does.

    labels: None for the count that the data set's base.yaml names.
    """
    folder = configs_folder() / dataset
    if "/" in dataset or not (folder / "base.yaml").is_file():
        return {}
    base = read_yaml(folder / "base.yaml")
    labels = labels or base.get("data", {}).get("labels")
    claims = (folder / f"{method}{suffix}.yaml" for suffix in (f"-{labels}", ""))
    return next((read_yaml(claim) for claim in claims if claim.is_file()), base)


def _is_preset(file: Path | None) -> bool:
    return file is not None and file.resolve().is_relative_to(configs_folder().resolve())


def _section(values: dict[str, Any], key: str, example: str) -> dict[str, Any]:
    section = values.get(key, {})
    if not isinstance(section, dict):
        raise ConfigError(f"{key} must be a section, got {section!r}; e.g. {key}.{example}={section}")
    return section


def load(file: Path | None = None, overrides: list[dict[str, Any]] | None = None) -> Config:
    """The configuration of a run from presets, a file and overrides (nested dictionaries, later ones win)."""
    asked = read_yaml(file) if file else {}
    for values in overrides or []:
        asked = _merge(asked, values)
    data, method = (_section(asked, key, example) for key, example in (("data", "dataset"), ("method", "name")))
    if "dataset" not in data and any(data.get(key) for key in ("labeled", "unlabeled", "test")):
        asked = _merge(asked, {"data": {"dataset": "folder"}})
        data = asked["data"]
    dataset, name, labels = data.get("dataset", "digits"), method.get("name", "interlude"), data.get("labels")
    if not isinstance(dataset, str) or not isinstance(name, str):
        raise ConfigError(f"data.dataset and method.name are names, got {dataset!r} and {name!r}")
    base = {} if _is_preset(file) else preset(dataset, name, labels)
    values = _merge(base, asked)
    _one_way_to_choose_labels(asked, values)
    for key in ("model", "method"):
        if isinstance(values.get(key), dict):
            values[key].setdefault("name", getattr(Config(), key).name)
    return validate(Config, values)


def _one_way_to_choose_labels(asked: dict[str, Any], values: dict[str, Any]) -> None:
    """A split file or counts take the place of a preset's label count; what is asked beside them is refused."""
    data = asked.get("data", {})
    split = data.get("split") or {}
    if not isinstance(split, dict):
        return  # validation says so
    key = next((key for key in ("file", "counts") if split.get(key) is not None), None)
    if key is None:
        return
    beside = [f"data.split.{other}" for other in split if key == "file" and other != "file"]
    beside += ["data.labels"] if data.get("labels") is not None else []
    if beside:
        raise ConfigError(f"data.split.{key} says which images are labeled; drop {' and '.join(beside)}")
    values["data"] = {**values["data"], "labels": None}


def merge_config(config: Config, overrides: list[dict[str, Any]]) -> Config:
    """A configuration with nested settings laid over it."""
    values = config.model_dump(mode="json")
    for over in overrides:
        values = _merge(values, over)
    return validate(Config, values)


def dump(config: Config) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
