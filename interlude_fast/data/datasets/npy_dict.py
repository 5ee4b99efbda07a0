"""Named arrays of .npz archives and of .npy files that hold a dictionary (`np.save(file, {"images": ...})`).

Such a dictionary is pickled, and unpickling runs whatever a file names. Here nothing of a file runs: the few names
that arrays of numbers and strings need stand for the classes below, any other name is refused, and the arrays'
memory is laid out by numpy.frombuffer, whose checks numpy's own unpickling of a forged dtype would skip.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from interlude_fast.errors import DataError


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The named arrays of a file; what it is, its first bytes tell, not its name.

    Raises:
        DataError: not such a file, damaged, or a pickle that names anything but arrays.
    """
    try:
        with path.open("rb") as file:
            start = file.read(6)
            file.seek(0)
            if start[:2] == b"PK":
                return _read_archive(file, path)
            if start != np.lib.format.MAGIC_PREFIX:
                raise DataError(f"{path} is neither a .npz archive nor a .npy file")
            value = _read_member(file, path)
            if not isinstance(value, dict):
                raise DataError(f"{path} holds no dictionary of named arrays; save one, or use np.savez")
            return {str(key): _as_array(item) for key, item in value.items()}
    except DataError:
        raise
    except Exception as error:  # whatever a damaged or forged file makes zipfile, numpy and pickle raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"cannot read {path}: {reason.splitlines()[0]}") from None


def _read_archive(file: IO[bytes], path: Path) -> dict[str, np.ndarray]:
    found = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                found[name.removesuffix(".npy")] = _as_array(_read_member(member, path))
    return found


def _read_member(file: IO[bytes], path: Path) -> Any:
    """The array of a .npy stream, or what its 0-dimensional array of an object holds."""
    version = np.lib.format.read_magic(file)
    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in header:
        raise ValueError(f"version {version} of the .npy format is for records, not for images")
    if not header[version](file)[2].hasobject:
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    value = _plain(_Unpickler(file, path).load())
    return value.item() if isinstance(value, np.ndarray) and value.shape == () else value


def _as_array(value: Any) -> np.ndarray:
    """Lists of numbers or strings, and object arrays of strings, as plain arrays; else as they are."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    return np.asarray(value)


class _StandIn:
    """What a name in a pickle stands for. A pickle may set the state of anything that it has in hand, so all of
    them, also as classes, answer to that."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise ValueError("forged pickle")


class _Dtype(_StandIn):
    """numpy.dtype: of numbers or strings, or of objects, which are then listed one by one."""

    __slots__ = ("value",)

    def __init__(self, name: str, align: Any = False, copy: Any = False) -> None:
        self.value = np.dtype(str(name))
        if self.value.kind not in "biufSUO":
            raise ValueError(f"arrays of {self.value} are not read")

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        if order in ("<", ">"):
            self.value = self.value.newbyteorder(order)


class _Array(_StandIn):
    """numpy.ndarray, before and after its state is set."""

    __slots__ = ("value",)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        order: Any = "F" if fortran else "C"
        if dtype.value.kind != "O":
            self.value: Any = np.frombuffer(content, dtype.value).reshape(shape, order=order)
            return
        if not isinstance(content, list):
            raise ValueError("forged pickle")
        self.value = np.empty(len(content), dtype=object)
        for i, item in enumerate(content):
            self.value[i] = item
        self.value = self.value.reshape(shape, order=order)


class _Reconstruct(_StandIn):
    """numpy._core.multiarray._reconstruct: an array whose state follows."""

    def __new__(cls, kind: Any, shape: Any, code: Any) -> Any:
        if kind is not _Array:
            raise ValueError("forged pickle")
        return _Array()


class _Scalar(_StandIn):
    """numpy._core.multiarray.scalar."""

    def __new__(cls, dtype: _Dtype, content: bytes) -> Any:
        if dtype.value.kind == "O":
            raise ValueError("forged pickle")
        return np.frombuffer(content, dtype.value)[0].item()


class _Encode(_StandIn):
    """_codecs.encode, by which the oldest pickles write bytes."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding != "latin1":
            raise ValueError("forged pickle")
        return text.encode("latin1")


ALLOWED: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    ALLOWED |= {(_module, "_reconstruct"): _Reconstruct, (_module, "scalar"): _Scalar}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> type:
        return ALLOWED.get((module, name)) or self._refuse(module, name)

    def _refuse(self, module: str, name: str) -> NoReturn:
        raise DataError(
            f"{self.path} wants to call {module}.{name}, which arrays do not need: not read. If you trust the "
            "file, save its arrays with np.savez"
        )


def _plain(value: Any) -> Any:
    """The stand-ins inside an unpickled value, replaced by what they hold."""
    if isinstance(value, _Array):
        value = value.value
        if value.dtype == object:
            for i in np.ndindex(value.shape):
                value[i] = _plain(value[i])
        return value
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (str, bytes, int, float, type(None))):
        return value
    raise ValueError(f"holds a {type(value).__name__}, not only arrays")
