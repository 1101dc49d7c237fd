"""Codes, conditions and menus on numbers worked by hand."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from irl.config import InputError
from irl.data import StateSchema, fit_schema
from irl.data.schema import UNSEEN
from irl.declared import Between


@pytest.fixture
def schema(study, frame):
    return fit_schema(frame, study())


def test_fit(schema):
    status, left, uses, price = schema.columns
    assert status.labels == ("gone", "in", "locked", "out") and status.parents == (0, 1)
    assert left.labels == ("0", "1", "2") and left.parents == (1,)
    assert (left.minimum, left.maximum) == (0, 2)
    assert uses.labels == () and (uses.minimum, uses.maximum, uses.centre) == (0, 5, 2.0)
    assert uses.scale == pytest.approx(np.std([0, 4, 4, 2, 0, 0, 1, 5]))
    assert price.assigned == "randomised" and price.parents == ()
    assert (schema.anchor, schema.available[2]) == (0, (2, {"status": ("out",)}))


def test_a_constant_number_has_scale_one(study, frame):
    column = fit_schema(frame.assign(price=0.1), study()).columns[3]
    assert (column.centre, column.scale) == (pytest.approx(0.1), 1.0)


def test_encode_decode(schema, frame):
    state = schema.encode(frame)
    assert state.dtype == torch.float32
    assert state[:, 0].tolist() == [3, 2, 2, 1, 0, 3, 3, 1]
    assert state[1].tolist() == [2.0, 2.0, 4.0, np.float32(0.8)]
    decoded = schema.decode(state)
    assert decoded["status"].tolist() == frame["status"].tolist()
    assert decoded["left"].tolist() == ["0", "2", "1", "0", "0", "0", "0", "0"]
    assert decoded["uses"].tolist() == frame["uses"].tolist()
    assert torch.equal(schema.encode(decoded), state)


def test_encode_needs_only_state_columns_in_any_order_and_keeps_rows(schema, frame):
    shuffled = frame[["price", "uses", "left", "status"]].iloc[::-1]
    assert torch.equal(schema.encode(shuffled), schema.encode(frame).flip(0))


def test_an_unseen_category_gets_the_reserved_code(schema, frame):
    state = schema.encode(frame.assign(status="paused"))
    assert state[:, 0].tolist() == [4.0] * 8
    assert schema.decode(state)["status"].tolist() == [UNSEEN] * 8
    assert torch.equal(schema.encode(schema.decode(state)), state)
    assert not schema.matches(state, {"status": ("gone", "in", "locked", "out")}).any()
    assert schema.menu(state).sum() == 0


@pytest.mark.parametrize(
    "stored",
    [
        lambda s: s.astype("category"),
        lambda s: s.astype(object),
        lambda s: s.astype("string"),
        lambda s: s.convert_dtypes(dtype_backend="pyarrow"),
        lambda s: s.convert_dtypes(),
    ],
)
def test_storage_does_not_change_codes(schema, study, frame, stored):
    other = frame.apply(stored)
    assert torch.equal(schema.encode(other), schema.encode(frame))
    assert fit_schema(other, study()) == schema
    floats = frame.assign(left=frame["left"].astype("float32"), uses=frame["uses"].astype(float))
    assert torch.equal(schema.encode(floats), schema.encode(frame))


def test_encode_names_every_problem(schema, frame):
    bad = frame.astype({"uses": float}).rename(columns={"status": "statuss"})
    bad["left"] = [0, 1, 2, 3, None, 0, 0, 0]
    bad.loc[0, "uses"], bad.loc[1, "uses"] = -1, 0.5
    bad["price"] = ["dear", None, float("inf"), 1, 1, 1, 1, 1]
    with pytest.raises(InputError) as caught:
        schema.encode(bad)
    message = str(caught.value)
    for part in (
        "no state column 'status'; did you mean 'statuss'?",
        "'left': missing values (1 row; first: row 5: missing)",
        "not among its levels 0, 1, 2 (1 row; first: row 4: '3')",
        "'uses' (count): negative or fractional values (2 rows; first: row 1: '-1'; row 2: '0.5')",
        "'price' (numeric): values that are not numbers (1 row; first: row 1: 'dear')",
        "'price': missing or infinite values (2 rows; first: row 2: missing; row 3: 'inf')",
    ):
        assert part in message, message


def test_matches(schema, frame):
    state = schema.encode(frame)

    def held(condition):
        return schema.matches(state, condition).int().tolist()

    assert held({}) == [1] * 8
    assert held({"status": ("in", "gone")}) == [0, 0, 0, 1, 1, 0, 0, 1]
    assert held({"left": (0,), "uses": (0, 5.0)}) == [1, 0, 0, 0, 1, 1, 0, 1]
    assert held({"left": ("1", 2)}) == [0, 1, 1, 0, 0, 0, 0, 0]
    assert held({"price": (0.8,)}) == [1, 1, 1, 1, 1, 0, 0, 0]  # 0.8 is not a float32: compared with tolerance
    assert held({"price": Between(max=0.8)}) == [1, 1, 1, 1, 1, 0, 0, 0]
    assert held({"price": Between(min=1.2, max=2)}) == [0, 0, 0, 0, 0, 1, 1, 1]
    assert held({"uses": Between(min=4)}) == [0, 1, 1, 0, 0, 0, 0, 1]
    assert held({"left": Between(min=1)}) == [0, 1, 1, 0, 0, 0, 0, 0]
    tenths = schema.encode(frame.assign(price=0.1))
    assert schema.matches(sum([tenths] * 10), {"price": (1.0,)}).all()  # sums to 1.0000001
    assert schema.matches(sum([tenths] * 10), {"price": Between(max=1)}).all()
    assert schema.matches(state.view(2, 4, 4), {"left": (0,)}).shape == (2, 4)


def test_booleans_match_booleans(study, frame):
    state = study().data.state | {"student": {"kind": "category", "dynamics": "static"}}
    schema = fit_schema(frame.assign(student=frame["id"] == 7), study(state=state))
    assert schema.columns[-1].labels == ("False", "True")
    encoded = schema.encode(frame.assign(student=[True, False] * 4))
    assert schema.matches(encoded, {"student": (True,)}).tolist() == [True, False] * 4
    assert schema.matches(encoded, {"student": ("False",)}).tolist() == [False, True] * 4


def test_levels_may_be_listed_in_their_own_order(study, frame):
    state = {"price": {"kind": "ordinal", "dynamics": "static", "levels": [1.2, 0.8]}}
    schema = fit_schema(frame, study(state=state, available={}, terminal={}))
    assert schema.columns[0].labels == ("1.2", "0.8")
    for dtype in ("float32", "float64", "Float32", "float[pyarrow]"):
        assert schema.encode(frame.astype({"price": dtype}))[:, 0].tolist() == [1] * 5 + [0] * 3


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"statsu": ("in",)}, "unknown state column 'statsu'; did you mean 'status'"),
        ({"status": ("locekd",)}, "'locekd' never occurs in the data; did you mean 'locked'"),
        ({"status": (True,)}, "'True' never occurs in the data .YAML reads yes"),
        ({"left": (3,)}, "'3' is not one of the levels"),
        ({"price": ("dear",)}, "'dear' is not a number"),
        ({"status": Between(min=1)}, "a range needs numbers"),
        ({"price": Between(min=2, max=1)}, "empty range"),
    ],
)
def test_conditions_that_cannot_hold_are_refused(schema, frame, condition, message):
    with pytest.raises(InputError, match=message):
        schema.matches(schema.encode(frame), condition)


def test_index_suggests(schema):
    assert schema.index("price") == 3
    with pytest.raises(InputError, match="did you mean 'price'"):
        schema.index("prices")


def test_json_round_trip_is_plain(study, frame):
    available = {"annual": {"price": {"min": 0.5}, "left": [0]}}
    schema = fit_schema(frame, study(available=available))
    plain = schema.to_json()
    assert json.loads(json.dumps(plain)) == plain
    assert StateSchema.from_json(plain) == schema
    assert StateSchema.from_json(plain).available[0][1]["price"] == Between(min=0.5)


def test_a_missing_state_column_is_refused(schema):
    with pytest.raises(InputError, match="no state column 'left'"):
        schema.encode(pd.DataFrame({"status": ["in"], "uses": [1], "price": [1.0]}))
