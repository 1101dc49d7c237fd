"""What a study is fitted on and what it is checked with: members held out (an experiment's arm), and later periods.

``data.held_out`` is a condition on columns of the rows, state or not; a member for whom it holds in any row is held out
whole. ``data.until`` is the last period that is fitted on, written as the period column has it. Neither kind of row is
seen by anything that is fitted, labels, means and ranges of the columns included.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from irl.config import InputError, unknown
from irl.data.column import TOLERANCE
from irl.data.encode import Bools, Ints, factorized, label, labelled, numbers
from irl.data.periods import Calendar, period_numbers
from irl.declared import Between, Condition, Data, Period, Values


def fitted_rows(frame: pd.DataFrame, data: Data, calendar: Calendar | None = None) -> pd.DataFrame:
    """The rows that a study is fitted on: those of members not held out, up to ``data.until``; ``calendar``: how the
    whole panel counts its periods, if the frame holds a part of its members (none of its rows may then be left).

    Raises
    ------
    InputError
        If a column of ``held_out`` is missing, ``until`` is not a period, or no row is left.
    """
    keep = np.ones(len(frame), dtype=bool)
    if data.held_out:
        keep &= ~held_out(frame, data)
    if data.until is not None:
        keep &= ~later(frame, data, calendar)
    if len(frame) and not keep.any() and calendar is None:
        raise InputError("no row is left to fit on: `data.held_out` and `data.until` leave out everything")
    return frame if keep.all() else frame[keep].reset_index(drop=True)


def held_out(frame: pd.DataFrame, data: Data) -> Bools:
    """bool[N]: rows of the members for whom ``data.held_out`` holds in any row; errors as :func:`fitted_rows`."""
    problems = [p for name in data.held_out for p in unknown(name, frame.columns, "data.held_out", "column")]
    if problems:
        raise InputError("\n".join(problems))
    here = holding(frame, data.held_out)
    member = factorized(frame[data.member])[0] if data.member in frame.columns else np.arange(len(frame))
    return np.isin(member, member[here])


def later(frame: pd.DataFrame, data: Data, calendar: Calendar | None = None) -> Bools:
    """bool[N]: rows after ``data.until``; errors as :func:`fitted_rows`."""
    if data.period not in frame.columns or data.until is None:  # a missing column is reported where columns are
        return np.zeros(len(frame), dtype=bool)
    period, usable, until = _numbered(frame, data, calendar)
    return np.asarray(usable & (period > until))


def numbered(frame: pd.DataFrame, data: Data) -> tuple[Ints, int]:
    """period[N] as a panel of these rows counts them, and ``data.until`` among them; errors as :func:`fitted_rows`."""
    period, _, until = _numbered(frame, data, None)
    return period, until


def _numbered(frame: pd.DataFrame, data: Data, calendar: Calendar | None) -> tuple[Ints, Bools, int]:
    assert data.until is not None
    member = factorized(frame[data.member])[0] if data.member in frame.columns else np.arange(len(frame))
    found, usable, _ = period_numbers(_with(frame[data.period], data.until), np.append(member, -1), calendar)
    if not usable[-1]:
        raise InputError(f"data.until: {data.until!r} is not a period of column {data.period!r}; write it as there")
    return found[:-1], usable[:-1], int(found[-1])


def _with(period: pd.Series, until: Period) -> pd.Series:
    """The periods and, last, ``until``, in one column of the same kind."""
    last: object = until
    if pd.api.types.is_datetime64_any_dtype(period.dtype):
        last = pd.to_datetime(str(until), errors="coerce", utc=period.dt.tz is not None)
    elif pd.api.types.is_numeric_dtype(period.dtype):
        last = pd.to_numeric(str(until), errors="coerce")
    elif isinstance(period.dtype, pd.PeriodDtype):
        period, last = period.dt.start_time, pd.to_datetime(str(until), errors="coerce")
    else:
        last = str(until)
    return pd.concat([period, pd.Series([last], name=period.name)], ignore_index=True)


def holding(frame: pd.DataFrame, condition: Condition) -> Bools:
    """bool[N]: the rows for which a condition on any columns, all of which are there, holds."""
    here = np.ones(len(frame), dtype=bool)
    for name, allowed in condition.items():
        here &= _holds(frame[name], allowed)
    return here


def _holds(values: pd.Series, allowed: Values) -> Bools:
    """bool[N]: where one column of the rows has an allowed value."""
    number = numbers(values)[0]
    if isinstance(allowed, Between):
        low = -np.inf if allowed.min is None else allowed.min
        high = np.inf if allowed.max is None else allowed.max
        return np.asarray((number >= low) & (number <= high))
    codes, labels = labelled(values)
    found = np.zeros(len(values), dtype=bool)
    for value in allowed:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(number).any():
            found |= np.isclose(number, value, rtol=TOLERANCE, atol=1e-12)
        elif label(value) in labels:
            found |= codes == labels.index(label(value))
    return found
