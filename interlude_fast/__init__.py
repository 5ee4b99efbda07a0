"""interlude-fast: semi-supervised image classification, fast.

    import interlude_fast as il

    result = il.train(dataset="digits", labels=40)
    result.error, result.scores["test"]["ema"], result.directory

Everything below is imported when it is asked for, as it brings torch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (
        compare,
        embed,
        evaluate,
        import_checkpoint,
        load_config,
        load_model,
        predict,
        probe,
        sweep,
        train,
    )
    from .data.datasets import Dataset, register_dataset
    from .evaluation.embeddings import Embeddings
    from .evaluation.predict import Predictions
    from .evaluation.trained_model import TrainedModel
    from .experiment.result import Result
    from .methods import Losses, Method, TaskInfo, register_method
    from .models import Network, NetworkOptions, register_network
    from .options import DataConfig, Strict

try:
    __version__ = version("interlude-fast")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+unknown"

# name -> module of this package
_PLACES = {
    **dict.fromkeys(("compare", "embed", "evaluate", "import_checkpoint", "load_config", "load_model"), "api"),
    **dict.fromkeys(("predict", "probe", "sweep", "train"), "api"),
    **dict.fromkeys(("Dataset", "register_dataset"), "data.datasets"),
    **dict.fromkeys(("Losses", "Method", "TaskInfo", "register_method"), "methods"),
    **dict.fromkeys(("Network", "NetworkOptions", "register_network"), "models"),
    **dict.fromkeys(("DataConfig", "Strict"), "options"),
    "Embeddings": "evaluation.embeddings",
    "Predictions": "evaluation.predict",
    "Result": "experiment.result",
    "TrainedModel": "evaluation.trained_model",
}

__all__ = [
    "DataConfig",
    "Dataset",
    "Embeddings",
    "Losses",
    "Method",
    "Network",
    "NetworkOptions",
    "Predictions",
    "Result",
    "Strict",
    "TaskInfo",
    "TrainedModel",
    "compare",
    "embed",
    "evaluate",
    "import_checkpoint",
    "load_config",
    "load_model",
    "predict",
    "probe",
    "register_dataset",
    "register_method",
    "register_network",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'interlude_fast' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value  # submodules of the same name, such as `train`, would else take its place
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
