"""Labels do not depend on how a value is stored."""

from __future__ import annotations

import datetime
import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from irl.data.encode import label, labelled, natural_order, numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (3.0, "3"),
        (np.float32(3), "3"),
        (-0.0, "0"),
        (0.5, "0.5"),
        (np.float32(0.8), "0.8"),
        (True, "True"),
        (np.False_, "False"),
        ("3.0", "3.0"),
        (b"in", "in"),
        (decimal.Decimal("1.50"), "1.5"),
        (decimal.Decimal("2.00"), "2"),
        (pd.Timestamp("2024-01-31"), "2024-01-31"),
        (datetime.date(2024, 1, 31), "2024-01-31"),
        (float("inf"), "inf"),
    ],
)
def test_label(value, text):
    assert label(value) == text


def test_natural_order():
    assert natural_order(["10", "9", "-1"]) == ("-1", "9", "10")
    assert natural_order(["10", "9", "b"]) == ("10", "9", "b")


def test_values_with_one_label_share_a_code():
    codes, labels = labelled(pd.Series([1, "1", 1.0, None, "2", np.nan], dtype=object))
    assert codes.tolist() == [0, 0, 0, -1, 1, -1] and labels == ["1", "2"]


def test_labels_of_unused_categories_are_left_out():
    assert labelled(pd.Series(["a"], dtype=pd.CategoricalDtype(["z", "a"])))[1] == ["a"]


def test_arrow_nan_is_missing():
    values = pd.Series(pd.arrays.ArrowExtensionArray(pa.array([1.0, float("nan"), None])))
    assert labelled(values)[0].tolist() == [0, -1, -1]


@pytest.mark.parametrize(
    ("values", "read", "strange"),
    [
        ([1, 2], [1, 2], [False, False]),
        (["1.5", "x"], [1.5, np.nan], [False, True]),
        (["1.5", None], [1.5, np.nan], [False, False]),
        ([True, False], [1, 0], [False, False]),
        ([decimal.Decimal("1.5"), None], [1.5, np.nan], [False, False]),
        (pd.to_datetime(["2024-01-31", None]), [np.nan, np.nan], [True, False]),
        (pd.Categorical([2, 3]), [2, 3], [False, False]),
        (pd.array([1, None], dtype="Int64"), [1, np.nan], [False, False]),
        (pd.array([1.5, None], dtype="double[pyarrow]"), [1.5, np.nan], [False, False]),
    ],
)
def test_numbers(values, read, strange):
    result, not_numbers = numbers(pd.Series(values))
    np.testing.assert_array_equal(result, read)
    assert not_numbers.tolist() == strange
