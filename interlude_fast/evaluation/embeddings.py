"""Embeddings of images, and the files that keep them."""

from __future__ import annotations

import importlib.util
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from interlude_fast.data.images import shown
from interlude_fast.errors import ConfigError

SUFFIXES = (".npz", ".parquet")


@dataclass(frozen=True)
class Embeddings:
    """What a frozen network makes of images.

    Attributes:
        paths: [N], of arrays their numbers. embeddings: float32 [N, D].
        network: its name: "ema" and its like of a run, or the name of a network of pretrained weights.
        classes: the K class names of a run; () of pretrained weights. probabilities: float32 [N, K], or None.
        skipped: (path, reason) of images that cannot be read; they have no row.
    """

    paths: tuple[str, ...]
    embeddings: np.ndarray
    network: str
    classes: tuple[str, ...] = ()
    probabilities: np.ndarray | None = None
    skipped: tuple[tuple[str, str], ...] = ()

    def encoded(self, suffix: str) -> bytes:
        """The content of a file of them: ".npz" or ".parquet".

        Raises:
            ConfigError: another suffix, or pyarrow is not installed.
        """
        check_suffix(Path(f"embeddings{suffix}"))
        return self._npz() if suffix == ".npz" else self._parquet()

    def _npz(self) -> bytes:
        content = io.BytesIO()
        arrays = {"paths": np.array(self.paths), "embeddings": self.embeddings, "network": np.array(self.network)}
        if self.probabilities is not None:
            arrays |= {"probabilities": self.probabilities, "classes": np.array(self.classes)}
        np.savez(content, **arrays)  # type: ignore[arg-type]
        return content.getvalue()

    def _parquet(self) -> bytes:
        """Columns `path` and `embedding`, of a run also `probabilities`; both are lists of fixed length, which
        DuckDB reads as FLOAT[D] and pandas as an array a row. Network and classes lie in the file's metadata."""
        import pyarrow as pa
        from pyarrow import parquet

        # Parquet's text is UTF-8; a name that is none is kept with escapes.
        columns = {"path": pa.array([shown(path) for path in self.paths], pa.string())}
        lists = {"embedding": self.embeddings, "probabilities": self.probabilities}
        for name, values in lists.items():
            if values is not None:
                flat = pa.array(np.ascontiguousarray(values, np.float32).reshape(-1))
                columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        about = {"network": self.network, "classes": json.dumps(self.classes)}
        content = io.BytesIO()
        parquet.write_table(pa.table(columns).replace_schema_metadata(about), content)
        return content.getvalue()


def check_suffix(out: Path) -> None:
    """Judge the name of a file of embeddings before any work.

    Raises:
        ConfigError: its suffix is neither .npz nor .parquet, or pyarrow, which .parquet needs, is not installed.
    """
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"{shown(out)}: embeddings are written as .npz or .parquet; name such a file")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(
            f"{shown(out)}: .parquet needs pyarrow: pip install 'interlude-fast[parquet]', or use .npz"
        )
