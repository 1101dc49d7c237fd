"""What a panel says of its own sampling: every check where it fires and where it does not."""

from __future__ import annotations

from math import erfc, sqrt

import numpy as np
import pandas as pd
import pytest

from irl.config import Config, InputError
from irl.data import panel_from_frame
from irl.data.sampling import sampling

MEMBERS, PERIODS = 400, 12


def study(**data) -> Config:
    return Config.model_validate(
        {
            "data": {
                "path": "none.parquet", "member": "id", "period": "month", "action": "plan",
                "actions": ["none", "member"], "segment": "region",
                "state": {
                    "region": {"kind": "category", "dynamics": "static"},
                    "status": {"kind": "category", "dynamics": "table", "parents": ["status"]},
                },
            } | data,
            "anchor": {"action": "none"}, "discount": 0.9,
        }
    )  # fmt: skip


def people(*, newcomers: bool = True, seed: int = 0) -> pd.DataFrame:
    """Who chose `none` is out a month later, who chose `member` is in; ``newcomers`` begin out, the others anywhere."""
    rng = np.random.default_rng(seed)
    status, rows = np.zeros(MEMBERS, dtype=int) if newcomers else rng.integers(0, 2, MEMBERS), []
    for month in range(PERIODS):
        action = (rng.random(MEMBERS) < 0.3 + 0.4 * status).astype(int)
        names = {"status": np.array(["out", "in"])[status], "plan": np.array(["none", "member"])[action]}
        rows.append(pd.DataFrame({"id": np.arange(MEMBERS), "month": month, **names}))
        status = action
    return pd.concat(rows, ignore_index=True).assign(region=lambda f: np.where(f["id"] % 2, "north", "south"))


def ending(frame: pd.DataFrame, leaves: np.ndarray) -> pd.DataFrame:
    """The rows of each member up to the first for which ``leaves`` holds."""
    frame = frame.assign(leaves=leaves).sort_values(["id", "month"], ignore_index=True)
    gone = frame.groupby("id")["leaves"].transform(lambda x: x.astype(int).cumsum().shift(fill_value=0) > 0)
    return frame[~gone].reset_index(drop=True)


def leaving_at_random(frame: pd.DataFrame) -> pd.DataFrame:
    return ending(frame, np.random.default_rng(1).random(len(frame)) < 0.05)


def of(frame: pd.DataFrame, **data):
    config = study(**data)
    return sampling(panel_from_frame(frame, config), config.data)


def test_a_panel_without_any_of_it():
    found = of(people(), entry="flow")
    assert not found.warnings and found.p is None and found.worth is None and found.exits is None
    assert (found.single, found.begun, found.ended) == (0, 0, 0)
    assert found.leaving == {"none": 0.0, "member": 0.0}
    assert "members with one row" in str(found) and "exits" not in str(found)


def test_members_who_had_begun_before():
    frame = people(newcomers=False)
    began = int((frame[frame["month"] == 0]["status"] == "in").sum())
    for entry, warned in (("flow", True), ("stock", False), (None, False)):
        found = of(frame, entry=entry)
        assert found.begun == began > MEMBERS / 3
        assert bool(found.warnings) == warned
    assert f"{began:,} of {MEMBERS:,} members begin in a state" in of(frame, entry="flow").warnings[0]


def test_where_the_anchor_is_the_end_nobody_can_be_seen_to_have_begun():
    frame = people()
    frame = ending(frame, (frame["plan"] == "none").to_numpy())
    gone = frame[frame["plan"] == "none"].assign(status="gone", month=lambda f: f["month"] + 1)
    frame = pd.concat([frame.assign(status="in"), gone[gone["month"] < PERIODS]])
    assert of(frame.sort_values(["id", "month"], ignore_index=True), terminal={"status": "gone"}).begun is None


def test_late_members_in_the_middle_are_seen_too():
    frame = people()
    late = frame[(frame["id"] >= 300) & (frame["month"] < 6)].index
    found = of(frame.drop(index=late), entry="flow")
    assert 20 < found.begun < 100 and len(found.warnings) == 1


def test_without_a_column_that_choices_move_there_is_nothing_to_tell():
    state = {"region": {"kind": "category", "dynamics": "static"}}
    found = of(people(newcomers=False), entry="flow", state=state)
    assert found.begun is None and not found.warnings


def test_leaving_by_choice_and_at_random():
    frame, rng = people(), np.random.default_rng(1)
    by_choice = ending(frame, (frame["plan"] == "none").to_numpy() & (rng.random(len(frame)) < 0.2))
    found = of(by_choice)
    assert found.p < 1e-6 and found.leaving["member"] == 0 and found.leaving["none"] == pytest.approx(0.2, abs=0.04)
    assert f"none {100 * found.leaving['none']:.1f} %, member 0.0 %; p < 0.001" in found.warnings[0]
    assert "hold members only" in found.warnings[0]
    at_random = of(leaving_at_random(frame))
    assert at_random.p > 0.01 and not at_random.warnings and at_random.ended > 100
    fewer = ending(frame, (frame["plan"] == "member").to_numpy() & (rng.random(len(frame)) < 0.2))
    assert "hold members only" not in of(fewer).warnings[0]


def test_leaving_that_differs_by_segment_is_not_by_choice():
    frame, rng = people(), np.random.default_rng(2)
    south = (frame["region"] == "south").to_numpy()
    frame["plan"] = np.where(south & (rng.random(len(frame)) < 0.8), "none", frame["plan"])  # who leaves more often
    found = of(ending(frame, rng.random(len(frame)) < np.where(south, 0.2, 0.02)))
    assert found.leaving["none"] > found.leaving["member"] + 0.03 and found.p > 0.01 and not found.warnings


def test_the_p_value_by_hand():
    """Two actions, one segment: 30 of 100 leave after none, 10 of 100 after member."""
    rows, member = [], 0
    for plan, left in (("none", 30), ("member", 10)):
        for i in range(100):
            months = (0,) if i < left else (0, 1)
            rows += [(member, month, plan if month == 0 else "none", "out", "north") for month in months]
            member += 1
    frame = pd.DataFrame(rows, columns=["id", "month", "plan", "status", "region"])
    n = np.array([[30, 70], [10, 90]])
    expected = n.sum(1, keepdims=True) * n.sum(0) / n.sum()
    statistic = 2 * (n * np.log(n / expected)).sum()
    assert of(frame).p == pytest.approx(erfc(sqrt(statistic / 2)), rel=1e-9)
    assert of(frame).single == 40


def test_declared_exits():
    frame = leaving_at_random(people())
    for exits in ("leaves", {"leaves": [True]}):
        found = of(frame, exit=exits)
        assert found.exits == int(frame["leaves"].sum()) and not found.warnings
    lost = frame[~((frame["id"] < 60) & (frame["month"] > 3))].reset_index(drop=True)
    found = of(lost, exit="leaves")
    assert "neither `exit` nor a terminal state" in found.warnings[0]
    assert not of(lost).warnings  # nothing was claimed
    panel = panel_from_frame(frame, study(exit="leaves"))
    assert not bool((panel.next_row >= 0)[panel.leaves].any())  # censored
    assert bool(panel.to("cpu").take_members(panel.member.unique() < 5).leaves is not None)
    assert panel_from_frame(frame, study()).leaves is None


def test_an_exit_in_the_middle_is_refused():
    frame = people().assign(left=lambda f: (f["id"] == 3) & (f["month"] == 5))
    with pytest.raises(InputError, match=r"rows after an exit \(1 row") as error:
        panel_from_frame(frame, study(exit="left"))
    assert "it holds in a member's last row" in str(error.value)
    with pytest.raises(InputError, match="no column 'lft'"):
        panel_from_frame(frame, study(exit="lft"))


def test_answers_need_no_exit_column():
    frame = leaving_at_random(people())
    config = study(exit="leaves")
    schema = panel_from_frame(frame, config).schema
    assert panel_from_frame(frame.drop(columns="leaves"), config, schema=schema).n_members == MEMBERS


def test_a_segment_that_is_not_always_there():
    frame = people()
    south = frame["region"] == "south"
    assert "periods 1 to 9 of 12 only: late ones" in of(frame[~south | (frame["month"] < 9)]).warnings[0]
    assert "periods 5 to 12 of 12 only: early ones" in of(frame[~south | (frame["month"] > 3)]).warnings[0]
    assert not of(frame[~south | (frame["month"] < 10)]).warnings


def test_an_action_that_a_segment_never_chose():
    frame, actions = people(), ["none", "member", "plus"]
    frame.loc[frame.index[frame["region"] == "north"][:30], "plan"] = "plus"
    south = int((frame["region"] == "south").sum())
    said = f"segment south never chose plus, though it was on the menu in {south:,} rows: its reward there is what"
    assert [text[: len(said)] for text in of(frame, actions=actions).warnings] == [said]
    few = frame[(frame["region"] == "north") | ((frame["id"] == 0) & (frame["month"] < 10))]
    assert "never chose" not in " ".join(of(few, actions=actions).warnings)
    off = {"plus": {"region": ["north"]}}
    assert not of(frame, actions=actions, available=off).warnings  # it was not on the menu
    assert "nobody chose plus" in " ".join(of(people(), actions=actions).warnings)
    assert not of(people().assign(plan="member", status="in")).warnings  # nobody chose the anchor: its reward is known


def test_weights_by_choice_and_by_segment():
    frame = people()
    frame["w"] = np.where(frame["region"] == "north", 3.0, 1.0)
    found = of(frame, weight="w")
    assert not found.warnings and found.by_choice == {"none": pytest.approx(1), "member": pytest.approx(1)}
    assert found.worth == pytest.approx(len(frame) * 16 / 20)  # (mean w)^2 / mean w^2
    frame["w"] = np.where(frame["plan"] == "none", 3.0, 1.0)
    found = of(frame, weight="w")
    assert "weights depend on what was chosen" in found.warnings[0] and found.by_choice["none"] > 1.2


def test_a_state_that_was_noted_after_the_choice():
    frame = people()
    late = frame.assign(status=np.where(frame["plan"] == "member", "in", "out"))
    assert "'status' says what is chosen in 100.0% of the decisions" in " ".join(of(late).warnings)
    often = np.random.default_rng(3).random(len(frame)) < 0.02  # habit is not knowledge
    assert "says what is chosen" not in " ".join(of(late.assign(status=late["status"].mask(often, "in"))).warnings)
    one = frame.assign(plan="none", status="out")  # nor is a choice that everybody makes
    one.loc[0, "plan"] = "member"
    assert "says what is chosen" not in " ".join(of(one).warnings)


def test_a_contract_that_the_menu_does_not_know():
    """A member who joins stays for two months more."""
    frame = people().sort_values(["id", "month"], ignore_index=True)
    left, plan = np.zeros(len(frame), dtype=int), (frame["plan"] == "member").to_numpy().copy()
    for i in range(1, len(frame)):
        if frame["id"][i] == frame["id"][i - 1]:
            left[i] = left[i - 1] - 1 if left[i - 1] else 2 * plan[i - 1]
            plan[i] |= left[i] > 0
    frame = frame.assign(left=left, plan=np.where(plan, "member", "none"))
    state = study().model_dump(mode="json")["data"]["state"]
    state = {"region": state["region"], "left": {"kind": "ordinal", "levels": 3, "dynamics": "table"}}
    said = "where 'left' is 1, 2, all decisions are 'member'"
    assert said in " ".join(of(frame, state=state).warnings)
    rarely = frame.assign(plan=frame["plan"].where(np.random.default_rng(0).random(len(frame)) > 0.02, "none"))
    assert said not in " ".join(of(rarely, state=state).warnings)
    known = {"none": {"left": 0}}
    assert said not in " ".join(of(frame, state=state, available=known).warnings)


def test_a_tested_price_that_is_the_same_for_some():
    price = {"price": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"}}
    state = study().model_dump(mode="json")["data"]["state"]
    for south, told in ((lambda i: 8.0, True), (lambda i: 8.0 + i % 4 // 2, False)):
        frame = people().assign(price=lambda f: [6.0 + i % 4 if i % 2 else south(i) for i in f["id"]])  # noqa: B023
        found = of(frame, state=state | price).warnings
        assert (
            any("'price' is assigned at random and yet 8 for all of region = south" in text for text in found) == told
        )
        assert not any("north" in text for text in found)
