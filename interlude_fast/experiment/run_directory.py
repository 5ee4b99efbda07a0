"""A run's folder: config.yaml, passport.json, split.json, preprocessing.json, metrics.jsonl, result.json, log.txt,
frozen.json (what a linear head was worth before training, where there was one), checkpoints/last,
weights/{raw,ema,best_on_validation}.safetensors and TensorBoard events. Never overwritten."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from interlude_fast.config import ExperimentConfig, stored_config
from interlude_fast.errors import CheckpointError
from interlude_fast.settings_files import read_yaml
from interlude_fast.training.checkpoint import load_tensors, write_atomically
from interlude_fast.training.selection import BY_VALIDATION

# What stands in a run directory before the first checkpoint.
UNSTARTED = (
    *("config.yaml", "passport.json", "split.json", "preprocessing.json", "frozen.json"),
    *("log.txt", "metrics.jsonl", "tensorboard"),
)


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """A run directory that cannot be looked into, as CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"run directory {path} cannot be read: {error.strerror or error}") from None


class RunDirectory:
    """Paths and small files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "checkpoints" / "last"
        self.metrics = path / "metrics.jsonl"
        self.split = path / "split.json"
        self.result = path / "result.json"
        self.imported = path / "imported.json"

    @classmethod
    def create(cls, path: Path) -> RunDirectory:
        """A new folder.

        Raises:
            CheckpointError: it exists, or cannot be made.
        """
        cls.refuse_existing(path)
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise CheckpointError(f"run directory {path} cannot be made: {error.strerror}") from None
        return cls(path)

    @classmethod
    def refuse_existing(cls, path: Path | None) -> None:
        """Raises CheckpointError where there is something already; None is a directory still to be chosen."""
        if path is None:
            return
        with _one_line(path):
            if not path.exists():
                return
            resumable = (path / "config.yaml").is_file() and not cls(path).imported.exists()
        again = f", or go on with it: --run-dir {path} --resume" if resumable else ""
        raise CheckpointError(
            f"run directory {path} exists and is never overwritten; choose another --run-dir{again}"
        )

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """A folder that a run has made.

        Raises:
            CheckpointError: there is none, it is not a run's, or it cannot be read.
        """
        with _one_line(path):
            is_run = (path / "config.yaml").is_file()
        if not is_run:
            raise CheckpointError(f"{path} is not a run directory: it holds no config.yaml")
        return cls(path)

    def refuse_started(self) -> None:
        """Raises CheckpointError where the folder holds more than a run leaves that ended before its first
        checkpoint."""
        with _one_line(self.path):
            files = [p.relative_to(self.path) for p in self.path.rglob("*") if not p.is_dir()]
        for file in files:
            if file.parts[0] not in UNSTARTED and not file.name.endswith(".partial"):
                raise CheckpointError(f"{self.path} is in the way: it holds {file}, and no run that could go on")

    def discard_unstarted(self) -> None:
        """Remove what a run left that ended before its first checkpoint, if anything.

        Raises:
            CheckpointError: as refuse_started, or it cannot be removed.
        """
        self.refuse_started()
        try:
            if self.path.exists():
                shutil.rmtree(self.path)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be removed: {error.strerror or error}") from None

    def config(self) -> ExperimentConfig:
        values = read_yaml(self.path / "config.yaml")
        if not values:
            raise CheckpointError(f"{self.path / 'config.yaml'} is empty: the run's settings are lost")
        return stored_config(values)

    def weights(self, network: str) -> Path:
        return self.path / "weights" / f"{network}.safetensors"

    def write(self, name: str, content: str | dict[str, Any]) -> None:
        """A text or JSON file, atomically."""
        text = content if isinstance(content, str) else to_json(content) + "\n"
        write_atomically(self.path / name, text.encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Raises CheckpointError where the file is missing or cut short."""
        try:
            values = json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path / name} is missing or damaged: {error}") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{self.path / name} is damaged: it holds no mapping")
        return values

    def append_metrics(self, row: dict[str, Any]) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Rows written so far; a last line that was cut short by a kill is left out.

        Raises:
            CheckpointError: it cannot be read, or another line is not a row; the file is left as it is.
        """
        rows: list[dict[str, Any]] = []
        with _one_line(self.path):
            lines = self.metrics.read_bytes().splitlines() if self.metrics.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                rows.append({**row, "step": int(row["step"])})
            except (ValueError, TypeError, KeyError):
                if number < len(lines):
                    raise CheckpointError(f"{self.metrics}, line {number}, is not a row of metrics") from None
        return rows

    def rewind_metrics(self, step: int) -> None:
        """Drop rows of steps that a resumed run will do again."""
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        write_atomically(self.metrics, "".join(json.dumps(row) + "\n" for row in rows).encode())


def to_json(values: Any, indent: str = "") -> str:
    """Indented JSON whose lists of numbers and names, such as a matrix's rows, stay on a line each."""
    inner = indent + "  "
    if isinstance(values, dict) and values:
        lines = [f"{json.dumps(str(key))}: {to_json(value, inner)}" for key, value in values.items()]
        return "{\n" + ",\n".join(inner + line for line in lines) + f"\n{indent}}}"
    if isinstance(values, (list, tuple)) and any(isinstance(value, (dict, list, tuple)) for value in values):
        lines = [to_json(value, inner) for value in values]
        return "[\n" + ",\n".join(inner + line for line in lines) + f"\n{indent}]"
    return json.dumps(values)


def load_weights(network: nn.Module, folder: RunDirectory, name: str) -> None:
    """Put a finished run's "raw", "ema" or "best_on_validation" weights into a network.

    Raises:
        CheckpointError: they are missing, damaged, or another network's.
    """
    file = folder.weights(name)
    if not file.exists() and name == BY_VALIDATION and folder.weights("ema").exists():
        raise CheckpointError(f"{folder.path} kept no network by validation: it has no validation images")
    if not file.exists():
        raise CheckpointError(
            f"{file} does not exist: the run has not finished; "
            f"go on with it: interlude-fast train --run-dir {folder.path} --resume"
        )
    tensors, _ = load_tensors(file)
    try:
        network.load_state_dict(tensors)
    except RuntimeError:
        raise CheckpointError(f"{file} holds another network than {folder.path}/config.yaml") from None
