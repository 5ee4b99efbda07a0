"""Typed sections of the configuration, and how their complaints become one line.

What builds on them: config.py puts them together; a method, a network and a dataset have option classes of their
own, which extend `Strict` or a section here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .errors import ConfigError, nearest

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
Fit = Literal["crop", "pad", "stretch"]
Interpolation = Literal["bilinear", "bicubic", "lanczos", "box"]
SelectionMetric = Literal["accuracy", "balanced_accuracy", "macro_f1"]
SelectionNetwork = Literal["ema", "raw"]


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: Any) -> Any:
    """90, "90", "90s", "1.5m", "1h30m" -> seconds; anything else as it is, for pydantic to refuse."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no number")
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
AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class Strict(BaseModel):
    """A section whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    def refuse_unread(self, because: str, *names: str) -> None:
        """For validators: fields that are not at their defaults although nothing reads them."""
        for name in names:
            default = type(self).model_fields[name].default
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name} = {getattr(self, name)} means nothing {because}; drop it, or set it to {default}"
                )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        kinds = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
            raise ValueError(f"{str(value).lower()} is no number")
        return value


class SplitConfig(Strict):
    """How labeled, unlabeled, validation and test images are chosen (data/split.py)."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # classes may be called 0, 1, 2

    file: AbsolutePath | None = Field(None, description="a split to replay; the other settings are then not read")
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

    @model_validator(mode="after")
    def _check(self) -> SplitConfig:
        """Settings beside which others would be ignored."""
        if self.imbalance != 1 and self.kind != "long_tailed":
            raise ConfigError(f"data.split.imbalance = {self.imbalance:g} wants data.split.kind = long_tailed")
        if self.counts is not None and self.kind != "balanced":
            raise ConfigError(f"data.split.counts and kind = {self.kind} both say how many labels a class has")
        if self.unlabeled_largest is not None and self.unlabeled_imbalance is None:
            raise ConfigError("data.split.unlabeled_largest wants data.split.unlabeled_imbalance beside it")
        for name, share in (("validation", self.validation), ("test", self.test)):
            if share > 1 and share != int(share):
                raise ConfigError(f"data.split.{name} = {share:g} is neither a share below 1 nor a whole number")
        return self


class KeptConfig(Strict):
    """Kept views of a frozen front (data/kept.py): how many, and how large they may become."""

    weak: int = Field(4, ge=1, le=256, description="weak views an image")
    strong: int = Field(12, ge=1, le=256, description="strong views an image")
    most_gb: float = Field(
        4.0, gt=0, description="bytes on disk, in 10^9; where all do not fit there are fewer views"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the front; auto: the faster one, measured, and written into the run's config.yaml"
    )


class DataConfig(Strict):
    """Which images, and which of them are labeled. A dataset that reads more settings extends this class."""

    dataset: str = "digits"
    labels: int | None = Field(None, ge=1, description="labeled images in all; None: every one that has a label")
    unlabeled_includes_labeled: bool = True
    mean: list[float] | None = Field(
        None, description="per channel, of images in [0, 1]; None: a pretrained network's, else the dataset's"
    )
    std: list[PositiveFloat] | None = Field(None, description="the same")
    pipeline: str = Field("auto", description="auto, or one of data/pipelines")
    workers: int | None = Field(None, ge=0, description="processes or threads that make batches; None: all cores")
    kept: KeptConfig = Field(default_factory=KeptConfig)
    split: SplitConfig = Field(default_factory=SplitConfig)

    @model_validator(mode="after")
    def _check_data(self) -> DataConfig:
        if self.split.kind == "long_tailed" and self.labels is None and self.split.counts is None:
            raise ConfigError("data.split.kind = long_tailed wants data.labels, or data.split.counts instead")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, 3):
                raise ConfigError(f"data.{name} = {values}: images have 1 or 3 channels, a number for each")
        if self.mean and self.std and len(self.mean) != len(self.std):
            raise ConfigError(f"data.mean = {self.mean} and data.std = {self.std} are of different channels")
        return self


class RootConfig(DataConfig):
    """A dataset that lies in a folder or a file."""

    root: AbsolutePath | None = Field(
        None, description="folder or file of the local copy; None: the default place"
    )


class FilesConfig(RootConfig):
    """A dataset of image files, which are decoded and resized once."""

    size: int | None = Field(
        None,
        ge=8,
        le=4096,
        description="side of resized files; None: a pretrained network's, else from the files",
    )
    max_size: int | None = Field(
        None,
        ge=32,
        le=4096,
        description="without size: the side at most; smaller files keep theirs, from 32 on",
    )
    channels: Literal[1, 3] | None = Field(
        None, description="of files; None: a pretrained network's, else 1 where all are grey, else 3"
    )
    fit: Fit = Field("crop", description="how files become square (data/images.py)")
    interpolation: Interpolation | None = Field(
        None, description="filter that resizes files; None: a pretrained network's, else bilinear"
    )
    max_unreadable: float = Field(0.05, ge=0, le=1, description="share of unreadable files that is only skipped")
    cache: AbsolutePath | None = Field(
        None, description="folder of prepared images; None: data/cache.py's default"
    )

    @model_validator(mode="after")
    def _check_channels(self) -> FilesConfig:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and self.channels and len(values) != self.channels:
                raise ConfigError(f"data.{name} = {values}: data.channels = {self.channels} wants as many numbers")
        return self


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
    label_strong: bool = Field(
        False, description="labeled images are trained on in a strong view too, beside the weak one"
    )

    @model_validator(mode="after")
    def _refuse_unread(self) -> AugmentConfig:
        if self.form == "usb":
            self.refuse_unread("with form = usb, which draws magnitudes over the whole range", "m")
        if self.n == 0:
            self.refuse_unread("with n = 0, no operations", "m")
            if self.cutout == 0:
                self.refuse_unread("with n = 0 and cutout = 0, no strong views", "form")
        return self


def in_steps(value: float, steps: int) -> float:
    """A number of steps; strictly between 0 and 1 it is a share of all of them."""
    return value * steps if 0 < value < 1 else value


class OptimConfig(Strict):
    """Optimizer, learning-rate schedule and EMA (training/optim.py, training/ema.py)."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(0.03, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd")
    nesterov: bool = Field(True, description="sgd")
    weight_decay: float = Field(5e-4, ge=0, description="not on biases and norms, unless decay_all")
    decay_all: bool = Field(False, description="weight decay on every parameter")
    shrink: float = Field(0.0, ge=0, description="after the EMA every parameter loses this share times lr")
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning rate of a layer over that of the next")
    schedule: Literal["cosine_7_16", "cosine", "constant", "steps"] = "cosine_7_16"
    warmup: int | float = Field(
        0, ge=0, description="steps in which the learning rate rises linearly from 0; below 1: a share of all"
    )
    milestones: list[Annotated[int | float, Field(gt=0)]] = Field(
        [], description="the learning rate falls to a tenth after each of these steps; below 1: shares of all"
    )
    ema_decay: float = Field(0.999, ge=0, lt=1)
    ema_warmup: bool = Field(
        False,
        description="the decay of step k = 0, 1, ... is min(ema_decay, (1 + k) / (10 + k)), so that short runs "
        "have an average worth its name",
    )

    @field_validator("warmup", "milestones", mode="before")
    @classmethod
    def _steps_or_shares(cls, given: Any) -> Any:
        """1e4 -> 10000; what is neither whole nor a share is refused."""
        for value in given if isinstance(given, list) else [given]:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or (abs(value) > 1 and value % 1 != 0):
                raise ValueError(f"{value!r} is neither a number of steps nor a share of them between 0 and 1")
        if isinstance(given, list):
            return [cls._steps_or_shares(value) for value in given]
        return int(given) if given % 1 == 0 else given

    @model_validator(mode="after")
    def _refuse_unread(self) -> OptimConfig:
        if self.name != "sgd":
            self.refuse_unread(f"with name = {self.name}, which has moments of its own", "momentum", "nesterov")
        if self.weight_decay == 0:
            self.refuse_unread("with weight_decay = 0", "decay_all")
        if self.ema_decay == 0 and self.ema_warmup:  # the presets for own images set it
            raise ValueError("ema_warmup = true means nothing with ema_decay = 0; set ema_warmup=false too")
        return self

    @model_validator(mode="after")
    def _check_milestones(self) -> OptimConfig:
        if self.schedule == "steps" and not self.milestones:
            raise ConfigError(
                "optim.schedule = steps wants optim.milestones: steps, or shares of the run, such as [0.75, 0.875]"
            )
        if self.milestones and self.schedule != "steps":
            raise ConfigError(
                f"optim.milestones are read by optim.schedule = steps, not {self.schedule}; drop them, or set "
                "them to []"
            )
        return self

    def check_steps(self, steps: int) -> None:
        """Raises ConfigError for a warm-up or milestone that a run of `steps` does not get past."""
        for milestone in self.milestones:
            if in_steps(milestone, steps) >= steps - 1:
                raise ConfigError(
                    f"optim.milestones has {milestone}: the learning rate would never fall there in a run of "
                    f"{steps} steps; drop it, or write a share of the run, such as 0.75"
                )
        if self.warmup >= steps:
            raise ConfigError(
                f"optim.warmup = {self.warmup}: a run of {steps} steps never reaches optim.lr; set it below, "
                "or to 0"
            )


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


def validate(cls: type[BaseModel], values: dict[str, Any], where: str = "") -> Any:
    """cls(**values), with pydantic's complaint as one ConfigError line."""
    try:
        return cls(**values)
    except ValidationError as error:
        raise ConfigError(_one_line(cls, error, where)) from None


def _one_line(cls: type[BaseModel], error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    if isinstance(own := first.get("ctx", {}).get("error"), ConfigError):  # it names its key itself
        return str(own)
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
