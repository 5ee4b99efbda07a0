"""The flags of the command line as keywords, and the settings that they override."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from interlude_fast.errors import ConfigError, nearest
from interlude_fast.settings_files import nested, parse_assignment

Place = str | Path
# More settings, as `--set` takes them: {"method.tau": 0.9} or ["method.tau=0.9"].
Settings = Mapping[str, Any] | Sequence[str]

# flag -> the setting that it overrides
FLAGS = {
    "dataset": "data.dataset",
    "labels": "data.labels",
    "data_root": "data.root",
    "labeled": "data.labeled",
    "unlabeled": "data.unlabeled",
    "test": "data.test",
    "split": "data.split.file",
    "pipeline": "data.pipeline",
    "method": "method.name",
    "model": "model.name",
    "pretrained": "model.pretrained",
    "weights": "model.weights",
    "seed": "seed",
    "steps": "train.steps",
    "device": "train.device",
    "precision": "train.precision",
    "compile": "train.compile",
    "capture": "train.capture",
    "budget": "train.budget",
}
# suffix of a file -> dataset
KINDS = {".csv": "csv", ".tsv": "csv", ".npz": "npz", ".npy": "npz"}


class Flags(TypedDict, total=False):
    """Settings that have a flag of their own; None is as if it were not given.

    dataset: digits (default), cifar10, cifar100, svhn, stl10, tmed2, folder, csv, npz, or a registered one.
    labels: labeled images in all; default: the preset's, or all that have one.
    data_root: folder or file of the dataset's local copy.
    labeled, unlabeled, test: folders of your images; labeled and test ones in class folders.
    split: a split to replay: split.json of a run, or what `data split` wrote.
    pipeline: auto, resident, host, dali, torchvision or kept (behind a frozen front).
    method: interlude (default), fixmatch, supervised and others, or a registered one.
    model: wideresnet (default), efficientnet_lite0 and others, timm:<name>, or a registered one.
    pretrained: start from the network's pretrained weights; weights: file to start from instead.
    seed: labels, weights, batches and views all follow from it. steps: training steps.
    device: auto, cpu, cuda or cuda:<i>. precision: auto, fp32, tf32, bf16 or fp16.
    compile, capture: torch.compile, and the step as one CUDA graph; default: where they are faster.
    budget: wall time, e.g. "30m" or seconds: the schedule is scaled to end in it.
    """

    dataset: str | None
    labels: int | None
    data_root: Place | None
    labeled: Place | None
    unlabeled: Place | None
    test: Place | None
    split: Place | None
    pipeline: str | None
    method: str | None
    model: str | None
    pretrained: bool | None
    weights: Place | None
    seed: int | None
    steps: int | None
    device: str | None
    precision: str | None
    compile: bool | None
    capture: bool | None
    budget: str | float | None


def overrides(set: Settings = (), flags: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """`set`, then the flags that are given, as nested settings; later ones win.

    Raises:
        ConfigError: an unknown flag, or an assignment that is none.
    """
    if isinstance(set, Mapping):
        if strange := [key for key in set if not isinstance(key, str)]:
            raise ConfigError(f"set: a setting has a name such as 'method.tau', got {strange[0]!r}")
        asked = [nested(key, str(value) if isinstance(value, Path) else value) for key, value in set.items()]
    else:
        asked = [parse_assignment(text) for text in ([set] if isinstance(set, str) else set)]
    for name, value in (flags or {}).items():
        if name not in FLAGS:
            raise ConfigError(f"unknown keyword '{name}'{nearest(name, FLAGS)}; other settings: set={{...}}")
        if value is not None:
            asked.append(nested(FLAGS[name], str(value) if isinstance(value, Path) else value))
    return asked


def data_argument(data: Place | None, flags: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where `data` says that the images are, and the kind of dataset that it is where no flag says it.

    Raises:
        ConfigError: other flags say where the images are, too.
    """
    if data is None:
        return []
    beside = [name for name in ("data_root", "labeled", "unlabeled", "test") if flags.get(name) is not None]
    if beside:
        flag = beside[0].replace("_", "-")
        raise ConfigError(f"{data} and --{flag} both say where the images are; drop one of them")
    kind = [] if flags.get("dataset") else [nested("data.dataset", KINDS.get(Path(data).suffix.lower(), "folder"))]
    return [*kind, nested("data.root", str(data))]
