"""What the report says of a scenario that depends on the anchor's reward: the verdict, and never without the band."""

from __future__ import annotations

import pytest

from irl.report.answers import anchor_band_table, convergence_table
from irl.report.html import page
from irl.report.record import load_record
from irl.report.words import anchored, headlines

NAME = "Dearer annual plan"
PLAIN = {"rounds": 4, "converged": True, "policy_change": 2e-6, "condition": 3e8, "changes_dynamics": False}
FREE = {"behaviour": True, "welfare": True, "why": "neither depends", "changes": []}
WHY = "choices and surplus depend on the anchor's reward: some are scaled"
BAND = {
    "error": 0.5,
    "outcomes": {
        "share_none": {"north": [0.02, -0.01, 0.05], "south": [0.0, 0.0, 0.0], "all": [0.01, -0.005, 0.025]},
        "surplus": {"north": [-0.03, -0.04, -0.02], "south": [0.1, 0.0, 0.2]},
    },
}


def record_of(run, scenario, add_scenario, make_outcomes, found):
    solved = {
        "baseline": PLAIN | {"identification": FREE, "anchor_band": None, "outside": {"share": 0.0, "mostly": []}},
        NAME: PLAIN | found | {"outside": {"share": 0.123, "mostly": ["price", "segment"]}},
    }
    add_scenario(run, scenario, make_outcomes((NAME,)), solved=solved)
    return load_record(run)


@pytest.fixture
def dependent(run, scenario, add_scenario, make_outcomes):
    found = {"identification": {"behaviour": False, "welfare": False, "why": WHY, "changes": []}, "anchor_band": BAND}
    return record_of(run, scenario, add_scenario, make_outcomes, found)


def test_what_depends_is_shown_with_its_band(dependent):
    table = anchor_band_table(dependent, dependent.scenarios[0])
    assert table.title == "If the anchor's reward is off by up to 0.50 reward units"
    assert table.header == ("segment", "none, %", "surplus, reward units per period")
    assert table.rows[0] == ("north", "+2.0 [−1.0, +5.0]", "−0.030 [−0.040, −0.020]")
    assert table.rows[-1] == ("all", "+1.0 [−0.5, +2.5]", "–")
    shown = page(dependent, "")
    assert "Choices and surplus depend on the anchor&#x27;s reward: some are scaled." in shown
    assert "If the anchor&#x27;s reward is off by up to 0.50 reward units" in shown
    (headline,) = headlines(dependent.scenarios[0])
    assert headline.endswith("some are scaled. See how far under this scenario.")


def test_what_does_not_depend_has_no_band(run, scenario, add_scenario, make_outcomes):
    found = {"identification": FREE | {"welfare": False, "why": "choices do not, the surplus does"}}
    record = record_of(run, scenario, add_scenario, make_outcomes, found | {"anchor_band": None})
    assert anchor_band_table(record, record.scenarios[0]) is None
    assert anchored(record.scenarios[0]) == ["Choices do not, the surplus does."]
    assert "surplus does" not in headlines(record.scenarios[0])[0]


def test_where_the_data_are_left_is_in_the_table_of_solves(dependent):
    table = convergence_table(dependent.scenarios[0])
    assert table.header[-1] == "in states unlike any in the data, % of member-periods"
    assert [row[-1] for row in table.rows] == ["0.0", "12.3"]
