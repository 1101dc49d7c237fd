"""Dates and integers as consecutive periods."""

from __future__ import annotations

import datetime

import numpy as np
import pandas as pd
import pytest

from irl.data.periods import period_numbers, periods_per_year


def periods(values, member=None) -> list[int]:
    values = pd.Series(values, name="t")
    owner = np.zeros(len(values), dtype=np.int64) if member is None else np.array(member)
    numbers, good, findings = period_numbers(values, owner)
    assert good.all() and not findings
    return (numbers - numbers[0]).tolist()


def dates(*texts) -> list[pd.Timestamp]:
    return [pd.Timestamp(t) for t in texts]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("2020-05-01", "2021-02-01", "2023-01-01"), [0, 1, 3]),  # years
        (("2020-11-30", "2021-02-01", "2021-09-30"), [0, 1, 3]),  # quarters: two dates in 2021
        (("2020-11-30", "2020-12-31", "2021-02-01"), [0, 1, 3]),  # months
        (("2024-01-01", "2024-01-14", "2024-01-15"), [0, 1, 2]),  # weeks begin on Mondays
        (("2024-01-01", "2024-01-02", "2024-01-04"), [0, 1, 3]),  # days
        (("1969-12-30", "1969-12-31", "1970-01-02"), [0, 1, 3]),
    ],
)
def test_the_coarsest_unit_that_keeps_rows_apart(texts, expected):
    assert periods(dates(*texts)) == expected
    assert periods(texts) == expected
    assert periods(pd.Series(dates(*texts)).dt.tz_localize("Asia/Kolkata")) == expected
    assert periods([datetime.date.fromisoformat(t) for t in texts]) == expected
    assert periods(pd.Series(texts).astype("category")) == expected


def test_rows_of_different_members_need_not_be_apart():
    assert periods(dates("2020-03-01", "2020-04-01", "2021-04-01"), member=[0, 1, 1]) == [0, 0, 1]


def test_exact_repeats_are_set_aside():
    assert periods(dates("2020-03-01", "2020-03-01", "2022-04-01")) == [0, 0, 2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3, 4, 7], [0, 1, 4]),
        ([3.0, 4.0, 7.0], [0, 1, 4]),
        (["3", "4", "7"], [0, 1, 4]),
        (["03", "04", "07"], [0, 1, 4]),
        ([1980, 1981, 1983], [0, 1, 3]),
        ([202311, 202312, 202401], [0, 1, 2]),  # months
        ([202311, 202313, 202401], [0, 2, 90]),  # not all are
        ([20231101, 20231201, 20240101], [0, 1, 2]),  # dates, counted in months
        ([20231101, 20231131, 20240101], [0, 30, 9000]),  # not all are
        (["2023-11", "2023-12", "2024-01"], [0, 1, 2]),
        (["2023Q3", "2023Q4", "2024-Q1"], [0, 1, 2]),
        (["2023-11-01T10:00:00", "2023-12-01 00:00", "2024-01-01T00:00:00Z"], [0, 1, 2]),
        (pd.PeriodIndex(["2023-11", "2023-12", "2024-01"], freq="M"), [0, 1, 2]),
        (pd.array([3, 4, 7], dtype="int64[pyarrow]"), [0, 1, 4]),
    ],
)
def test_integers_and_text(values, expected):
    assert periods(values) == expected


def test_what_is_neither_is_named():
    member = np.zeros(3, dtype=np.int64)
    _, good, findings = period_numbers(pd.Series(["2024-01-31", "31/01/2024", None], name="t"), member)
    assert good.tolist() == [True, False, False]
    text = [f.text(lambda row: f"row {row + 1}") for f in findings]
    assert text[0].startswith("period column 't': missing values (1 row; first: row 3")
    assert text[1].startswith("period column 't': not a date (1 row; first: row 2: '31/01/2024')")
    _, good, findings = period_numbers(pd.Series([1.5, np.inf, 2.0], name="t"), member)
    assert good.tolist() == [False, False, True]
    assert "neither a whole number nor a date (2 rows" in findings[0].text(str)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["2020-05-01", "2021-02-01", "2023-01-01"], 1),
        (["2020Q1", "2020Q2", "2021Q1"], 4),
        (["2020-11", "2020-12"], 12),
        ([202011, 202012, 202101], 12),
        (["2024-01-01", "2024-01-14", "2024-01-15"], 365.25 / 7),
        ([20240101, 20240102], 365.25),
        ([0, 1, 2], None),
        ([1980, 1981], None),
    ],
)
def test_periods_in_a_year(values, expected):
    assert periods_per_year(pd.Series(values), np.zeros(len(values), dtype=np.int64)) == expected
