"""Files of real data that other packages ship: found without running anything of these packages.

Data frames that were pickled are read by an unpickler that knows the few names such a frame is made of and puts inert
stand-ins in their place, so that nothing in the file can run; any other name is refused. What it understands is what
pandas 1.3 to 2 wrote for a frame of whole and floating-point numbers.
"""

from __future__ import annotations

import importlib.util
import io
import lzma
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from irl.config import InputError


def packaged(package: str, file: str, *, extra: str, what: str) -> Path:
    """Path of ``file`` in the installed ``package``, of which nothing is imported.

    Raises
    ------
    InputError
        If the package is not installed, or its version has no such file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{what} needs the package {package}: pip install 'anchor-irl[{extra}]'")
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.is_file():
        raise InputError(f"{what}: the installed version of {package} has no {file}; see scripts/constraints.txt")
    return path


def with_columns(frame: pd.DataFrame, wanted: Sequence[str], path: Path) -> pd.DataFrame:
    """The columns ``wanted`` of a frame read from ``path``; InputError if some are missing."""
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        raise InputError(f"{path}: has no column {', '.join(missing)}: is it another version of the data?")
    return frame[list(wanted)]


def unpickled_frame(path: Path) -> pd.DataFrame:
    """The data frame of numbers in an xz-compressed pickle, read without running any of it.

    Raises
    ------
    InputError
        If the file holds anything else.
    """
    try:
        found = _Restricted(io.BytesIO(lzma.decompress(path.read_bytes()))).load()
        blocks, axes = found.state["_mgr"]
        names, rows = axes
        columns: dict[str, NDArray[Any]] = {}
        for values, placement, _ in blocks:
            assert values.shape == (len(placement), rows), "a block for its columns, [columns, rows]"
            columns |= {names[int(place)]: row for place, row in zip(placement, values, strict=True)}
        return pd.DataFrame({name: columns[name] for name in names})
    except (pickle.UnpicklingError, lzma.LZMAError, EOFError, *_WRONG) as error:
        raise InputError(f"{path}: not a pickled data frame of numbers ({error})") from None


_WRONG = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


class _Held:
    """Stands for an object whose state is all that is wanted."""

    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Type(_Held):
    """Stands for a NumPy type: its code, and whether it is little-endian."""

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if code not in ("f8", "i8", "O8"):
            raise pickle.UnpicklingError(f"numbers of type {code!r}")
        self.code = code

    @property
    def dtype(self) -> np.dtype[Any]:
        if self.code == "O8" or self.state[1] != "<":
            raise pickle.UnpicklingError("numbers that are not little-endian")
        return np.dtype(f"<{self.code}")


def _from_buffer(buffer: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> NDArray[Any]:
    values = np.frombuffer(bytes(buffer), kind.dtype)
    return values.reshape(shape, order="F" if order == "F" else "C")


def _index(kind: str, about: dict[str, Any]) -> list[str] | int:
    """The labels of an index, or the length of a range."""
    if kind == "range":
        return len(range(about["start"], about["stop"], about["step"]))
    labels = about["data"].state[-1]
    if not isinstance(labels, list) or not all(isinstance(x, str) for x in labels):
        raise pickle.UnpicklingError("names of columns that are not text")
    return labels


def _fresh(*_: Any) -> _Held:
    return _Held()


def _tuple(*parts: Any) -> tuple[Any, ...]:
    return parts


_KNOWN: dict[tuple[str, str], Any] = {
    ("pandas.core.frame", "DataFrame"): _Held,
    ("pandas.core.internals.managers", "BlockManager"): _tuple,
    ("pandas._libs.internals", "_unpickle_block"): _tuple,
    ("pandas.core.indexes.base", "_new_Index"): _index,
    ("pandas.core.indexes.base", "Index"): "labels",
    ("pandas.core.indexes.range", "RangeIndex"): "range",
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): "array",
}
_KNOWN |= {(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")}
_KNOWN |= {(f"numpy.{core}.multiarray", "_reconstruct"): _fresh for core in ("core", "_core")}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None
