"""The configuration of an experiment: one typed tree, its YAML files, and how flags override them.

Order of precedence, later wins: the defaults of options.py, the dataset's `configs/<dataset>/base.yaml`, what the
method's paper trains with (`training_defaults` of its options), the published setting `<method>-<labels>.yaml` or
`<method>.yaml` of `configs/<dataset>/`, the user's `--config`, then `--set` and flags. A `--config` out of
`configs/` has no other preset under it.

Everything is typed here, once: the sections of the method, the network and the dataset are instances of their own
option classes, and every rule that needs no data is one of their validators. An unknown key is an error that names
the nearest known one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializationInfo,
    SerializeAsAny,
    field_validator,
    model_serializer,
    model_validator,
)

from .data.datasets import dataset_options
from .data.pipelines import PIPELINES
from .errors import ConfigError, nearest
from .methods import METHODS
from .methods import resolve_options as resolve_method_options
from .models import resolve_options as resolve_model_options
from .options import AugmentConfig, DataConfig, OptimConfig, Strict, TrainConfig, validate
from .presets import dataset_base, for_network, preset, read_user_file
from .settings_files import merge
from .unread import unread_settings

DEFAULT_DATASET, DEFAULT_METHOD, DEFAULT_NETWORK = "digits", "interlude", "wideresnet"


class NamedOptions(BaseModel):
    """A registered part: its name, and its own typed options. In files and flags they are one flat section."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    section: ClassVar[str]
    default: ClassVar[str]

    name: str
    options: SerializeAsAny[Strict]

    @classmethod
    def type_options(cls, name: str, values: dict[str, Any]) -> Strict:
        raise NotImplementedError

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, values: Any) -> Any:
        if not isinstance(values, dict) or isinstance(values.get("options"), Strict):
            return values
        name = values.get("name", cls.default)
        if not isinstance(name, str):
            raise ConfigError(f"{cls.section}.name is a name, got {name!r}")
        return {"name": name, "options": cls.type_options(name, {k: v for k, v in values.items() if k != "name"})}

    @model_serializer
    def _to_flat(self, info: SerializationInfo) -> dict[str, Any]:
        return {"name": self.name, **self.options.model_dump(mode=info.mode)}


class MethodSection(NamedOptions):
    section, default = "method", DEFAULT_METHOD

    @classmethod
    def type_options(cls, name: str, values: dict[str, Any]) -> Strict:
        return resolve_method_options(name, values)


class ModelSection(NamedOptions):
    section, default = "model", DEFAULT_NETWORK

    @classmethod
    def type_options(cls, name: str, values: dict[str, Any]) -> Strict:
        return resolve_model_options(name, values)


class ExperimentConfig(Strict):
    """Everything that a run depends on. Same configuration and seed, same run.

    Attributes:
        method, model: `.name`, and `.options` of the part's own class. data: of the dataset's own class.
        preset: in words, what lies under that which was asked for. It is not dumped.
    """

    seed: int = Field(0, ge=0, lt=2**63)
    data: SerializeAsAny[DataConfig] = Field(default_factory=DataConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    model: ModelSection = Field(default_factory=lambda: ModelSection.model_validate({}))
    method: MethodSection = Field(default_factory=lambda: MethodSection.model_validate({}))
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    _preset: str = PrivateAttr("")

    @property
    def preset(self) -> str:
        return self._preset

    def __eq__(self, other: object) -> bool:
        """Of the settings, wherever they are from."""
        return isinstance(other, ExperimentConfig) and self.model_dump() == other.model_dump()

    @field_validator("data", mode="before")
    @classmethod
    def _type_data(cls, values: Any) -> Any:
        return dataset_options(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _check_sections_together(self) -> ExperimentConfig:
        """Rules about more than one section, as far as they need no data."""
        pipeline, known = self.data.pipeline, ["auto", *PIPELINES]
        if pipeline not in known:
            raise ConfigError(f"unknown pipeline '{pipeline}' in data.pipeline{nearest(pipeline, known)}")
        if pipeline == "kept" and getattr(self.model.options, "cut", None) is None:
            raise ConfigError(
                "data.pipeline = kept wants a frozen front: set model.cut, e.g. --set model.cut=auto"
            )
        self._check_fitted(METHODS.find(self.method.name).fitted)
        if self.train.precision == "fp16" and self.optim.shrink and self.optim.name != "sgd":
            # A step whose gradients overflow would shrink the weights all the same.
            raise ConfigError(
                f"optim.shrink with optim.name = {self.optim.name} has no fp16; use precision bf16 or fp32"
            )
        return self

    def _check_fitted(self, fitted: bool) -> None:
        """Raises ConfigError where a method without steps has something to train, or features are random."""
        options, name = self.model.options, self.method.name
        if fitted and (getattr(options, "cut", None), getattr(options, "head", None)) != ("classifier", "probe"):
            raise ConfigError(
                f"{name} fits nothing but a classifier: set model.cut=classifier and model.head=probe"
            )
        own = getattr(options, "weights", None) or getattr(options, "pretrained", False)
        if not own and getattr(options, "head", None) == "probe":
            raise ConfigError(
                f"model.head = probe wants pretrained features, and {self.model.name} starts from random ones: "
                "use --model efficientnet_lite0, --pretrained with a network of timm, or --weights FILE"
            )

    def check_steps(self) -> None:
        """Raises ConfigError where the schedule or the method's options do not fit the length of the run."""
        self.optim.check_steps(self.train.steps)
        METHODS.find(self.method.name).check_steps(self.method.options, self.train.steps)


def _section(values: dict[str, Any], key: str, example: str) -> dict[str, Any]:
    section = values.get(key, {})
    if not isinstance(section, dict):
        raise ConfigError(f"{key} must be a section, got {section!r}; e.g. {key}.{example}={section}")
    return section


def load(
    file: Path | None = None,
    overrides: Iterable[dict[str, Any]] | None = None,
    *,
    unread: dict[str, str] | None = None,
) -> ExperimentConfig:
    """The configuration of a run from presets, a file and overrides (nested dictionaries, later ones win), typed,
    with every default written out and every path absolute.

    Args:
        unread: is given those settings that are asked for and read by nothing (unread_settings); None: one is an
            error.

    Raises:
        ConfigError: an unknown key or name, a value out of range, or settings that contradict each other.
    """
    asked, under, note = _layers(file, overrides or ())
    values = merge(under, asked)
    _one_way_to_choose_labels(asked, values)
    config = from_dict(values)
    config._preset = note
    config.check_steps()
    method, network = config.method, config.model.options
    label_strong = config.augment.label_strong
    found = unread_settings(asked, under, method.name, method.options, network, label_strong=label_strong)
    if unread is None and found:
        raise ConfigError(next(iter(found.values())))
    if unread is not None:
        unread.update(found)
    return config


def _layers(file: Path | None, overrides: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any], str]:
    """(what the user asks for, the preset below it, where that is from in words)."""
    over: dict[str, Any] = {}
    for values in overrides:
        over = merge(over, values)
    named = _section(over, "method", "name").get("name")
    of_file, is_preset = read_user_file(file, DEFAULT_METHOD, named) if file else ({}, False)
    asked = over if is_preset else merge(of_file, over)
    data, method = (_section(asked, key, example) for key, example in (("data", "dataset"), ("method", "name")))
    if "dataset" not in data and any(data.get(key) for key in ("labeled", "unlabeled", "test")):
        asked = merge(asked, {"data": {"dataset": "folder"}})
        data = asked["data"]
    dataset = data.get("dataset", DEFAULT_DATASET)
    if not isinstance(dataset, str):
        raise ConfigError(f"data.dataset is a name, got {dataset!r}")
    if is_preset:
        return asked, of_file, str(file)
    network = _section(asked, "model", "name")
    base = dataset_base(dataset, network)
    name = method.get("name", base.settings.get("method", {}).get("name", DEFAULT_METHOD))
    if not isinstance(name, str):
        raise ConfigError(f"method.name is a name, got {name!r}")
    labels = validate(DataConfig, {"labels": data.get("labels")}, "data").labels
    under, note = preset(base, name, labels)
    return asked, for_network(under, network), note


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


def merge_config(config: ExperimentConfig, overrides: Iterable[dict[str, Any]]) -> ExperimentConfig:
    """A configuration with nested settings laid over it.

    Raises:
        ConfigError: as load.
    """
    values = config.model_dump(mode="json")
    for over in overrides:
        values = merge(values, over)
    return from_dict(values)


def stored_config(values: dict[str, Any]) -> ExperimentConfig:
    """The configuration that a run's config.yaml holds, also one of an earlier version, which took settings that
    nothing read: they are left out.

    Raises:
        ConfigError: as load.
    """
    optim, augment = (_section(values, key, example) for key, example in (("optim", "lr"), ("augment", "n")))
    unread = {
        **dict.fromkeys(("momentum", "nesterov"), optim.get("name", "sgd") != "sgd"),
        "decay_all": optim.get("weight_decay") == 0,
        "m": augment.get("form") == "usb" or augment.get("n") == 0,
        "form": augment.get("n") == 0 and augment.get("cutout") == 0,
    }
    cleaned = {
        name: {key: value for key, value in section.items() if not unread.get(key)}
        for name, section in (("optim", optim), ("augment", augment))
    }
    return from_dict({**values, **cleaned})


def from_dict(values: dict[str, Any]) -> ExperimentConfig:
    """A configuration of nested settings, with no preset below.

    Raises:
        ConfigError: as load.
    """
    data, method = (_section(values, key, example) for key, example in (("data", "dataset"), ("method", "name")))
    name = method.get("name", DEFAULT_METHOD)
    if isinstance(name, str) and METHODS.find(name).every_label:  # none is chosen
        split = data.get("split")
        data = {
            **data,
            "labels": None,
            **({"split": {**split, "counts": None}} if isinstance(split, dict) else {}),
        }
        values = {**values, "data": data}
    config: ExperimentConfig = validate(ExperimentConfig, values)
    return config


def dump(config: ExperimentConfig) -> str:
    """The configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
