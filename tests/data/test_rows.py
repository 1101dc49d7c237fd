"""Every problem of a panel is found, and all of them are told at once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from irl.config import Config, InputError
from irl.data import panel_from_frame
from irl.declared import Money


def problems(frame, config, **options) -> list[str]:
    with pytest.raises(InputError) as caught:
        panel_from_frame(frame, config, **options)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("the panel: " + ("1 problem (" if len(lines) == 1 else f"{len(lines)} problems ("))
    return [line.strip() for line in lines]


@pytest.mark.parametrize(
    ("row", "column", "value", "message"),
    [
        (1, "id", None, "member column 'id': missing values (1 row; first: row 2, member missing, period 2)"),
        (1, "month", None, "period column 'month': missing values (1 row; first: row 2, member 7, period missing"),
        (1, "month", 2.5, "period column 'month': neither a whole number nor a date (1 row; first: row 2, member 7, "),
        (0, "plan", None, "action column 'plan': missing values (1 row; first: row 1, member 7, period 1)"),
        (0, "plan", "anual", "unknown action 'anual'; did you mean 'annual'? (1 row; first: row 1, member 7"),
        (3, "plan", "annual", "the chosen action is not available (1 row; first: row 4, member 7, period 4: 'annual')"),
        (0, "status", None, "state column 'status': missing values (1 row; first: row 1, member 7, period 1: missing)"),
        (0, "left", 3, "values that are not among its levels 0, 1, 2 (1 row; first: row 1, member 7, period 1: '3')"),
        (0, "uses", -2, "state column 'uses' (count): negative or fractional values (1 row; first: row 1, member 7"),
        (0, "price", np.nan, "state column 'price': missing or infinite values (1 row; first: row 1, member 7"),
        (0, "price", 1e39, "state column 'price': missing or infinite values (1 row"),  # too large for float32
        (0, "region", "all", "a segment is called 'all', which is what the rows over all segments are called; rename"),
        (0, "region", None, "segment column 'region': missing values (1 row; first: row 1, member 7"),
        (3, "month", 3, "several rows for one member and period ('id', 'month') (2 rows; first: row 3, member 7"),
        (7, "status", "sleeping", "no action is available (1 row; first: row 8, member 9, period 4)"),
        (2, "status", "gone", "rows after a terminal state (1 row; first: row 3, member 7, period 3)"),
    ],
)
def test_one_bad_cell_is_one_problem(study, frame, row, column, value, message):
    bad = frame.astype({column: object})
    bad.loc[row, column] = value
    if column == "month":
        bad = bad.astype({"month": float})
    found = problems(bad, study())
    assert len(found) == 1 and message in found[0], found


@pytest.mark.parametrize("value", [0, -1, np.nan, np.inf, "heavy"])
def test_weights_must_be_positive(study, frame, value):
    found = problems(frame.assign(w=[value, *[1] * 7]), study(weight="w"))
    assert len(found) == 1 and "weight column 'w': not a positive number (1 row; first: row 1" in found[0]


@pytest.mark.parametrize(
    ("lasts", "message"),
    [
        ([0, 1, 1, 1, 1, 2, 1, 1], "not a positive whole number (1 row; first: row 1"),
        ([1.5, 1, 1, 1, 1, 2, 1, 1], "not a positive whole number (1 row; first: row 1"),
        ([1, 1, 1, 1, 1, np.nan, 1, 1], "missing before a next row (1 row; first: row 6, member 9, period 1)"),
        ([1, 2, 1, 1, 1, 2, 1, 1], "longer than the time to the member's next row (1 row; first: row 2"),
    ],
)
def test_durations_must_fit(study, frame, lasts, message):
    found = problems(frame.assign(lasts=lasts), study(duration="lasts"))
    assert any("duration column 'lasts'" in line and message in line for line in found), found


def test_anchor_reward_must_be_a_number(study, frame):
    config = study(anchor={"action": "none", "reward": "g"})
    found = problems(frame.assign(g=[np.nan, *[0] * 6, np.inf]), config)
    assert len(found) == 1 and "anchor reward column 'g'" in found[0] and "2 rows; first: row 1" in found[0]


def test_the_anchor_must_be_available_where_there_is_a_choice(study, frame):
    found = problems(frame, study(anchor={"action": "annual"}))
    assert found == [
        "the anchor 'annual' is not available where there is a choice (2 rows; first: row 4, member 7, period 4; "
        "row 8, member 9, period 4). Widen its `available`, or choose another anchor"
    ]


def test_no_transition_at_all(study, frame):
    found = problems(frame.iloc[[0, 3, 5]].assign(month=[0, 3, 0]), study(terminal={}, available={}))
    assert found == [
        "no member has two consecutive periods (their rows are mostly 3 apart). Check the member and period columns, "
        "or declare a `duration`"
    ]
    found = problems(frame.iloc[[0, 5]], study(terminal={}, available={}))
    assert "each has one row" in found[0]


def test_empty(study, frame):
    assert problems(frame.iloc[:0], study()) == ["there are no rows"]


def test_wrong_column_names_are_all_named(study, frame):
    renamed = frame.rename(columns={"id": "idd", "plan": "plans", "region": "regions", "price": "prices"})
    found = problems(renamed, study())
    assert [line.split(";")[0] for line in found] == [
        f"there is no column {name!r}" for name in ("id", "plan", "price", "region")
    ]
    assert "did you mean 'prices'" in found[2]


def test_a_column_that_appears_twice(study, frame):
    found = problems(pd.concat([frame, frame[["price"]]], axis=1), study())
    assert found == ["column 'price' appears twice"]


def test_conditions_must_name_what_occurs(study, frame):
    config = study(
        available={"annual": {"status": ["outt"]}, "monthly": {"left": [0, 7]}}, terminal={"status": ["exited"]}
    )
    assert problems(frame.assign(plan="none"), config) == [
        "terminal.status: 'exited' never occurs in the data; known: gone, in, locked, out",
        "available.annual.status: 'outt' never occurs in the data; did you mean 'out'?",
        "available.monthly.left: '7' is not one of the levels; known: 0, 1, 2",
    ]


def test_when_money_is_paid_must_be_something_that_occurs(study, frame):
    flow = {"amount": 1.0, "where": {"status": "outt"}}
    config = study().model_copy(update={"money": Money(currency="USD", price={"monthly": 1, "annual": flow})})
    said = "money.price.annual.where.status: 'outt' never occurs in the data; did you mean 'out'?"
    assert problems(frame, config) == [said]


def test_the_state_whose_flow_is_declared_must_be_one(study, frame):
    plain = study().model_dump()
    plain["reward"]["same_flow_as"] = {"monthly": {"action": "annual", "at": {"status": "outt", "left": 7, "uses": -1}}}
    with pytest.raises(InputError) as caught:
        panel_from_frame(frame, Config.model_validate(plain))
    for said in ("reward.same_flow_as.monthly.at: 'outt' never occurs", "'7' is not one of the levels", "is a count"):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "kind", "refused"), [(21, "category", True), (20, "category", False), (21, "ordinal", False)]
)
def test_a_category_that_says_who_a_member_is(study, labels, kind, refused):
    frame = pd.DataFrame({"id": np.arange(80).repeat(2), "month": [0, 1] * 80, "plan": "none", "region": "north"})
    frame = frame.assign(card=frame["id"] % labels)
    card = {"kind": kind, "dynamics": "static"} | ({"levels": labels} if kind == "ordinal" else {})
    config = study(state={"card": card}, available={}, terminal={})
    if not refused:
        assert panel_from_frame(frame, config).n_members == 80
        return
    said = "state column 'card': a static category of 21 labels for 80 members says who a member is, not what members "
    assert problems(frame, config) == [said + "have in common; leave it out, or group its labels"]


def test_a_segment_unknown_to_the_model(study, frame):
    schema = panel_from_frame(frame, study()).schema
    found = problems(frame.assign(region="noth"), study(), schema=schema)
    assert len(found) == 1 and "segment 'noth' was not in the panel" in found[0] and "'north'?" in found[0]


def test_everything_at_once(study, frame):
    bad = frame.astype({"uses": float, "id": object}).rename(columns={"region": "regoin"})
    bad.loc[1, "id"] = None
    bad.loc[2, "status"] = None
    bad.loc[3, "plan"] = "monthy"
    bad.loc[4, "price"] = np.inf
    bad.loc[6, "month"] = 1
    bad.loc[6, "uses"] = 0.5
    bad.loc[7, "plan"] = "annual"
    found = problems(bad.assign(w=0), study(weight="w"))
    expected = (
        "no column 'region'; did you mean 'regoin'",
        "member column 'id'",
        "'status': missing",
        "'uses' (count)",
        "'price': missing or infinite",
        "'monthy'; did you mean 'monthly'",
        "chosen action is not available (1 row; first: row 8",
        "weight column 'w': not a positive number (8 rows; first: row 1, member 7, period 1: '0'; row 2",
        "several rows for one member and period",
    )
    assert len(found) == len(expected), found
    for line, part in zip(found, expected, strict=True):
        assert part in line, (line, part)


def test_a_problem_of_a_row_makes_no_second_one_elsewhere(study, frame):
    lost = problems(frame.astype({"month": float}).assign(month=[np.nan, np.nan, 3, 4, 5, 1, 3, 4]), study())
    assert len(lost) == 1 and "period column 'month': missing values (2 rows" in lost[0]
    twice = problems(frame.assign(month=[1, 2, 2, 4, 5, 1, 3, 4], lasts=1), study(duration="lasts"))
    assert len(twice) == 1 and "several rows for one member and period" in twice[0]


def test_a_missing_action_is_allowed_only_where_no_decision_is_made(study, frame):
    panel_from_frame(frame, study())  # row 5, terminal
    found = problems(frame, study(terminal={}, available={}))
    assert len(found) == 1 and "action column 'plan': missing values (1 row; first: row 5" in found[0]
