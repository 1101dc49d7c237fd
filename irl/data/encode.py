"""Values of a data frame as labels and numbers, and what is wrong with them.

A label is the string form of a discrete value that does not depend on how a file stored it: ``3``, ``3.0`` and
``"3"`` are all ``"3"``; booleans are ``"True"`` and ``"False"``; a midnight is its date. Limits: text is taken as it
is, so ``"3.0"`` and ``"true"`` in a text column stay what they are.
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from irl.config import nearest

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ALL = "all"
"""What the rows and figures of all segments together are called."""
SHOWN = 3  # offending rows spelled out per problem


@dataclass(frozen=True)
class Finding:
    """One problem of a frame: what is wrong, at which rows (positions), with which values, and what to do."""

    what: str
    rows: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    values: Sequence[str] = ()
    remedy: str = ""

    def text(self, locate: Callable[[int], str]) -> str:
        """The problem as one line; ``locate`` names a row."""
        line = self.what
        if len(self.rows):
            first = [
                locate(int(row)) + (f": {self.values[i]}" if i < len(self.values) else "")
                for i, row in enumerate(self.rows[:SHOWN])
            ]
            plural = "row" if len(self.rows) == 1 else "rows"
            line += f" ({len(self.rows)} {plural}; first: {'; '.join(first)})"
        return f"{line}. {self.remedy}" if self.remedy else line


def finding(what: str, bad: Bools, *, values: pd.Series | None = None, remedy: str = "") -> list[Finding]:
    """One Finding if any row is bad, none otherwise."""
    rows = np.flatnonzero(bad)
    if not len(rows):
        return []
    texts = [] if values is None else [shown(v, quoted=True) for v in values.iloc[rows[:SHOWN]]]
    return [Finding(what, rows, texts, remedy)]


def label(value: Any) -> str:
    """The label of one value."""
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, decimal.Decimal):
        value = float(value)
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return str(value)


def shown(value: Any, *, quoted: bool = False) -> str:
    """A value as messages show it."""
    if _is_missing(value):
        return "missing"
    return repr(label(value)) if quoted else label(value)


def natural_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels sorted as numbers where all are numbers, as text otherwise."""
    listed = sorted(set(labels))
    try:
        return tuple(sorted(listed, key=float))
    except ValueError:
        return tuple(listed)


def factorized(values: pd.Series) -> tuple[Ints, list[Any]]:
    """Codes of the distinct values, -1 where missing, and those values in order of appearance.

    Values that cannot be hashed (lists in a Parquet column) are compared by their text.
    """
    try:
        codes, uniques = pd.factorize(values)
    except TypeError:
        codes, uniques = pd.factorize(values.map(str))
    listed: list[Any] = list(uniques)
    if pd.api.types.is_float_dtype(uniques.dtype):  # float32 keeps its own short form: 0.8, not 0.800000011920929
        kind: Any = getattr(uniques.dtype, "numpy_dtype", uniques.dtype)
        listed = list(pd.Series(uniques).to_numpy(dtype=kind, na_value=np.nan))
    missing = [i for i, value in enumerate(listed) if _is_missing(value)]
    codes = np.asarray(codes, dtype=np.int64)
    if missing:  # pyarrow-backed columns hold NaN beside NA, and factorize keeps it
        codes = np.where(np.isin(codes, missing), -1, codes)
    return codes, listed


def labelled(values: pd.Series) -> tuple[Ints, list[str]]:
    """Codes into a list of distinct labels, -1 where missing. codes[N]."""
    codes, uniques = factorized(values)
    place: dict[str, int] = {}
    recode = np.full(len(uniques) + 1, -1, dtype=np.int64)  # the last entry serves code -1
    for code in np.unique(codes[codes >= 0]):
        recode[code] = place.setdefault(label(uniques[code]), len(place))
    return recode[codes], list(place)


def segments_of(frame: pd.DataFrame, columns: Iterable[str]) -> tuple[NDArray[np.int64], list[str]]:
    """Codes into a list of segment labels, -1 where one of the columns is missing. codes[N]."""
    codes = np.zeros(len(frame), dtype=np.int64)
    labels: list[str] = []
    for name in columns:
        if name not in frame.columns:
            return np.full(len(frame), -1, dtype=np.int64), []
        own, own_labels = labelled(frame[name])
        if not labels:
            codes, labels = own, own_labels
            continue
        joint = np.where((codes >= 0) & (own >= 0), codes * len(own_labels) + own, -1)
        present = np.unique(joint[joint >= 0])
        labels = [f"{labels[j // len(own_labels)]} | {own_labels[j % len(own_labels)]}" for j in present]
        codes = np.where(joint >= 0, np.searchsorted(present, joint), -1)
    return codes, labels or [ALL]


def missing_columns(wanted: Iterable[str], frame: pd.DataFrame, what: str = "") -> list[Finding]:
    """One Finding per wanted column that is not there (with the nearest name) or is there twice."""
    present = [str(name) for name in frame.columns]
    findings = []
    for name in wanted:
        if name not in present:
            findings.append(Finding(f"there is no {what}column {name!r}{nearest(name, present)}"))
        elif present.count(name) > 1:
            findings.append(Finding(f"{what}column {name!r} appears twice"))
    return findings


def numbers(values: pd.Series) -> tuple[Floats, Bools]:
    """Values as float64[N], NaN where missing or not a number; and where something stands that is not a number."""
    if pd.api.types.is_datetime64_any_dtype(values.dtype) or pd.api.types.is_timedelta64_dtype(values.dtype):
        return np.full(len(values), np.nan), values.notna().to_numpy(dtype=bool)
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    parsed = pd.to_numeric(values, errors="coerce")
    result = parsed.to_numpy(dtype=np.float64, na_value=np.nan)
    unread = np.isnan(result)
    if unread.any():  # a value that was there and is not a NaN itself
        there = values.notna().to_numpy(dtype=bool) & unread
        there[there] = [not isinstance(v, (float, np.floating)) for v in values[there]]
        return result, there
    return result, unread


def _is_missing(value: Any) -> bool:
    return (
        value is None
        or value is pd.NA
        or value is pd.NaT
        or (isinstance(value, (float, np.floating)) and value != value)
    )
