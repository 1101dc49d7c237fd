"""Money, tenure and elasticities as a reader sees them."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from irl.report.answers import elasticity_table, price_coefficient_table, welfare_table, whole_table
from irl.report.html import page
from irl.report.record import load_record
from irl.report.words import headlines, scenario_cautions

NAME = "Dearer annual plan"
MONEY = {
    "currency": "USD",
    "price_coefficients": {
        "north": {"value": 0.03, "se": 0.004, "prices": {"price": {"value": 0.03, "se": 0.004}}},
        "south": {"value": 0.01, "se": 0.02, "prices": {"price": {"value": 0.01, "se": 0.02}}},
    },
    "notes": ["south: surplus in USD is left out"],
}


@pytest.fixture
def record(run, scenario, add_scenario, make_outcomes):
    table = make_outcomes((NAME,))
    rows = [
        ("north", pd.NA, "revenue_total", 100.0, 120.0, 15.0, 25.0),
        ("all", pd.NA, "revenue_total", 90.0, 100.0, 6.0, 14.0),
        ("all", pd.NA, "margin_total", 50.0, 61.0, 7.0, 15.0),
        ("north", pd.NA, "surplus_money", 0.0, -0.7, -1.0, -0.4),
        ("north", pd.NA, "elasticity_share_annual", 0.0, -0.8, -1.1, -0.5),
        ("north", 1, "elasticity_share_annual", 0.0, -0.9, -1.2, -0.6),
        ("all", pd.NA, "elasticity_membership", 0.0, -0.2, float("nan"), float("nan")),
    ]
    more = pd.DataFrame(rows, columns=["segment", "period", "outcome", "baseline", "scenario", "low", "high"])
    more["period"] = more["period"].astype("Int64")
    more = more.assign(case=NAME, change=more["scenario"] - more["baseline"])
    folder = add_scenario(run, scenario, pd.concat([table, more], ignore_index=True))
    about = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    (folder / "metrics.json").write_text(json.dumps(about | {"money": MONEY}), encoding="utf-8")
    return load_record(run)


def test_tenure_and_money_over_all_periods(record):
    table = whole_table(record, record.scenarios[0])
    assert table.header == (
        "segment", "tenure, periods as a member from joining", "revenue, USD per member", "margin, USD per member",
    )  # fmt: skip
    assert table.rows[0] == ("north", "4.00 → 3.50 (−0.50)", "100.00 → 120.00\n(+20.00 [+15.00, +25.00])", "–")
    assert "over 2 periods" in table.note and "undiscounted" in table.note


def test_surplus_in_money_and_who_loses(record):
    table = welfare_table(record, record.scenarios[0])
    assert table.header[2:] == ("surplus, USD per period", "better off, % of members", "worse off, % of members")
    assert table.rows[0][1:] == ("−0.028", "−0.70 [−1.00, −0.40]", "0.6", "40.0")
    assert table.rows[1][2] == "–"  # south


def test_elasticities_over_all_periods_and_at_the_last(record):
    scenario = record.scenarios[0]
    table = elasticity_table(record, scenario)
    assert table.header == ("segment", "annual", "membership")
    assert table.rows == (("north", "−0.80 [−1.10, −0.50]", "–"), ("all", "–", "−0.20"))
    last = elasticity_table(record, scenario, 1)
    assert last.header == ("segment", "annual") and last.rows == (("north", "−0.90 [−1.20, −0.60]"),)
    assert elasticity_table(record, scenario, 0) is None


def test_price_coefficients_and_what_is_missing(record):
    table = price_coefficient_table(record.scenarios[0])
    assert table.title == "Price coefficients, reward units per USD" and table.header[1:] == ("weighted mean", "price")
    assert table.rows[0] == ("north", "0.0300 (0.0040)", "0.0300 (0.0040)")
    assert scenario_cautions(record.scenarios[0]) == ["south: surplus in USD is left out."]


def test_the_headline_and_the_page_have_the_money(record):
    (headline,) = headlines(record.scenarios[0])
    assert headline.endswith(
        " Revenue +10.00 [+6.00, +14.00] USD per member over 2 periods; margin +11.00 [+7.00, +15.00] USD per member "
        "over 2 periods."
    )
    shown = page(record, "")
    for text in ("Over all periods", "Price elasticities of the shares over all periods", "Price coefficients"):
        assert text in shown
    assert "Members&#x27; surplus, USD per period, change by segment: north -0.70." in shown


def test_shares_of_members_are_no_less_than_none_and_no_more_than_all(run, scenario, add_scenario, make_outcomes):
    table = make_outcomes((NAME,))
    table.loc[table["outcome"] == "losers", ["low", "high"]] = -0.2, 1.3
    add_scenario(run, scenario, table)
    record = load_record(run)
    assert welfare_table(record, record.scenarios[0]).rows[0][2:] == ("0.6", "40.0 [0.0, 100.0]")
