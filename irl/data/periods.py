"""Periods as consecutive integers, from integers or dates.

- Integers stay as they are, unless all of them look like ``YYYYMM`` (190001 to 210012) or like ``YYYYMMDD`` (19000101
  to 21001231, each a date of the calendar): then they are months, or dates. Text of digits is read as integers.
- Dates (datetimes, dates, ISO 8601 text such as ``2024-01-31`` or ``2024-01``, quarters such as ``2024Q1``) are
  counted in the coarsest of year, quarter, month, week (from Monday) and day that keeps each member's rows apart; rows
  that repeat a member and a date exactly are set aside while deciding, and reported as duplicates by the caller.

Limits: nothing finer than a day; dates written ``31/01/2024`` are refused, since their order of day and month is not
known; fortnights count as two weeks, so declare a `duration` for them.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.typing import NaTType

from irl.data.encode import Bools, Finding, Ints, factorized, finding, numbers

FIRST_YEAR, LAST_YEAR = 1900, 2100
A_YEAR = (1.0, 4.0, 12.0, 365.25 / 7, 365.25)
"""Years, quarters, months, weeks, days in a year: the units of dates."""


@dataclass(frozen=True)
class Calendar:
    """How a panel's period column is counted: integers as they are, integers as months (``YYYYMM``), or dates, text and
    ``YYYYMMDD`` alike, in the unit at this place of ``A_YEAR``."""

    kind: Literal["integers", "months", "dates"]
    unit: int = 0

    @property
    def periods_per_year(self) -> float | None:
        """None where integers do not tell."""
        return {"integers": None, "months": 12.0, "dates": A_YEAR[self.unit]}[self.kind]

    def shown(self, period: Ints) -> Ints | NDArray[np.datetime64]:
        """Periods[N] as a column would have them: integers, or the first day of each."""
        if self.kind == "months":
            return period // 12 * 100 + period % 12 + 1
        if self.kind == "integers":
            return period
        month = {0: 12 * period, 1: 3 * period, 2: period}.get(self.unit)
        if month is not None:
            return month.astype("datetime64[M]").astype("datetime64[us]")
        return (7 * period - 3 if self.unit == 3 else period).astype("datetime64[D]").astype("datetime64[us]")


def calendar_of(values: pd.Series, member: Ints) -> Calendar:
    """How a whole panel counts its periods; member[N] is -1 if unknown."""
    dates = _dates(values)
    if dates is not None:
        return Calendar("dates", units_apart(dates, member, dates.notna().to_numpy(dtype=bool)).index(True))
    whole, strange = _integers(values)
    good = ~values.isna().to_numpy(dtype=bool) & ~strange
    dates = _compact_dates(whole, good)
    if dates is not None:
        return Calendar("dates", units_apart(dates, member, good).index(True))
    return Calendar("months" if _are_months(whole, good) else "integers")


def period_numbers(
    values: pd.Series, member: Ints, calendar: Calendar | None = None
) -> tuple[Ints, Bools, list[Finding]]:
    """period[N] as integers, where they can be used, and what is wrong with the others. member[N] is -1 if unknown.

    ``calendar``: how the whole panel counts them, if these are a part of its rows.
    """
    calendar = calendar or calendar_of(values, member)
    missing = values.isna().to_numpy(dtype=bool)
    what = f"period column {values.name!r}"
    findings = finding(f"{what}: missing values", missing, values=values)
    dates = moments_of(values) if calendar.kind == "dates" else None
    if dates is not None and _dates(values) is not None:
        good = dates.notna().to_numpy(dtype=bool)
        remedy = "Give ISO dates (2024-01-31)"
        findings += finding(f"{what}: not a date", ~good & ~missing, values=values, remedy=remedy)
        return np.where(good, _units(dates)[calendar.unit], 0), good, findings
    whole, strange = _integers(values)
    bad = ~missing & strange
    remedy = "Give integers or ISO dates (2024-01-31)"
    findings += finding(f"{what}: neither a whole number nor a date", bad, values=values, remedy=remedy)
    good = ~missing & ~bad
    if dates is not None:
        return np.where(good, _units(dates)[calendar.unit], 0), good, findings
    return whole // 100 * 12 + whole % 100 - 1 if calendar.kind == "months" else whole, good, findings


def periods_per_year(values: pd.Series, member: Ints) -> float | None:
    """Periods in a year where ``values`` are dates, in the unit that :func:`period_numbers` counts them in; None where
    they are integers, which do not tell (``YYYYMM`` does: 12)."""
    return calendar_of(values, member).periods_per_year


def moments_of(values: pd.Series) -> pd.Series:
    """A column of dates or of ``YYYYMMDD`` as datetimes, NaT where unreadable."""
    dates = _dates(values)
    if dates is not None:
        return dates
    whole, strange = _integers(values)
    compact = _compact_dates(whole, ~values.isna().to_numpy(dtype=bool) & ~strange)
    return pd.Series(pd.NaT, index=range(len(values)), dtype="datetime64[us]") if compact is None else compact


def _dates(values: pd.Series) -> pd.Series | None:
    """The values as datetimes (NaT where unreadable), or None if the column holds numbers."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    if isinstance(values.dtype, pd.PeriodDtype):
        return pd.Series(values.dt.start_time)
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return pd.Series(values.dt.tz_localize(None)) if values.dt.tz is not None else values
    if pd.api.types.is_numeric_dtype(values.dtype):
        return None
    codes, uniques = factorized(values)
    read = [_date(value) for value in uniques]
    if all(date is pd.NaT for date in read):
        return None
    table = pd.Series([*read, pd.NaT], dtype="datetime64[us]")
    return table.iloc[codes].reset_index(drop=True)


def _date(value: object) -> pd.Timestamp | NaTType:
    """One value as a date, NaT if it is none. Time zones are dropped: a member's day is the day on their clock."""
    if isinstance(value, datetime.date):  # datetimes and Timestamps are dates too
        return pd.Timestamp(value).tz_localize(None)
    text = value.strip() if isinstance(value, str) else ""
    try:
        if re.fullmatch(r"\d{4}-?[Qq][1-4]", text):
            return pd.Timestamp(int(text[:4]), 3 * int(text[-1]) - 2, 1)
        if re.fullmatch(r"\d{4}-\d{2}", text):
            return pd.Timestamp(int(text[:4]), int(text[5:]), 1)
        if re.match(r"\d{4}-", text):
            return pd.Timestamp(datetime.datetime.fromisoformat(text)).tz_localize(None)
    except ValueError:
        pass
    return pd.NaT


def _integers(values: pd.Series) -> tuple[Ints, Bools]:
    read, strange = numbers(values)
    strange = strange | ~np.isfinite(read) | (read != np.round(read)) | (np.abs(read) > 2**52)
    return np.where(strange, 0, read).astype(np.int64), strange


def _compact_dates(whole: Ints, good: Bools) -> pd.Series | None:
    """YYYYMMDD integers as dates, or None if one of them is not."""
    inside = (whole >= FIRST_YEAR * 10000 + 101) & (whole <= LAST_YEAR * 10000 + 1231)
    if not good.any() or not inside[good].all():
        return None
    codes, uniques = pd.factorize(np.where(good, whole, whole[good][0]))
    read = pd.to_datetime(pd.Series(uniques.astype(str)), format="%Y%m%d", errors="coerce")
    if read.isna().any():
        return None
    return pd.Series(read.to_numpy()[codes])


def _are_months(whole: Ints, good: Bools) -> bool:
    year, month = whole // 100, whole % 100
    months = (year >= FIRST_YEAR) & (year <= LAST_YEAR) & (month >= 1) & (month <= 12)
    return bool(good.any() and months[good].all())


def _units(dates: pd.Series) -> tuple[Ints, ...]:
    """Dates as numbers of each unit of ``A_YEAR``."""
    moments = dates.to_numpy().astype("datetime64[us]")
    month = moments.astype("datetime64[M]").astype(np.int64)  # since January 1970
    day = moments.astype("datetime64[D]").astype(np.int64)  # 1970-01-01 was a Thursday
    return (month // 12, month // 3, month, (day + 3) // 7, day)


def units_apart(dates: pd.Series, member: Ints, good: Bools) -> list[bool]:
    """For each unit of ``A_YEAR``, whether no member has two different dates in one; days are the finest."""
    usable = good & (member >= 0)
    at = np.flatnonzero(usable)
    rows = pd.DataFrame({"member": member[at], "moment": dates.to_numpy().astype("datetime64[us]")[at]})
    keep = ~rows.duplicated().to_numpy()
    own, member = at[keep], member[at[keep]]
    apart = [not pd.DataFrame({"member": member, "unit": unit[own]}).duplicated().any() for unit in _units(dates)[:-1]]
    return [*apart, True]
