"""The page of assumptions, on moves worked by hand."""

from __future__ import annotations

import pytest
import yaml

from irl import runs
from irl.report import load_record, write_report
from irl.report.assumptions import rests_table

COLUMNS = ("tested", "relaxed", "rewards", "shares", "surplus")


def answer(variant, change, surplus):
    rows = [
        {"case": "dearer", "segment": "all", "outcome": "membership", "change": change},
        {"case": "dearer", "segment": "north", "outcome": "share_annual", "change": 2 * change},
        {"case": "dearer", "segment": "north", "outcome": "surplus", "change": surplus},
    ]
    return {"scenario": "dearer", "variant": variant, "about": "x", "rows": rows}


def of(record):
    table = rests_table(record)[0]
    return {row[0]: dict(zip(COLUMNS, row[2:], strict=True)) for row in table.rows}


def row(rows, words):
    (found,) = [cells for said, cells in rows.items() if words in said]
    return found


def test_without_anything_tried_every_move_is_a_dash(run):
    (table,) = rests_table(load_record(run))
    assert all(set(cells[2:]) == {"–"} for cells in table.rows) and len(table.rows) >= 7


def test_moves_are_the_largest_of_what_was_tried(run):
    variants = {"patient": {"discount": [0.9, 0.95]}, "two": {"types.number": [1, 2]}}
    answers = [answer("", -0.05, -0.02), answer("patient", -0.04, -0.05), answer("two", -0.08, -0.01)]
    runs.write_json(run / "assumptions.json", {"variants": variants, "answers": answers})
    checks = [{"name": "hidden types", "p": 0.002}, {"name": "iia", "p": None}]
    runs.write_json(run / "falsification.json", {"checks": checks})
    record = load_record(run)
    rows = of(record)
    patience, types = row(rows, "discount factor"), row(rows, "hidden")
    assert (patience["shares"], patience["surplus"]) == ("2.00", "0.030")
    assert (types["shares"], types["surplus"], types["relaxed"], types["tested"]) == ("6.00", "0.010", "two", "0.002")
    assert row(rows, "logit")["tested"] == "–"
    answers_table = rests_table(record)[1]
    assert answers_table.rows == (("dearer", "dearer", "membership", "−5.00", "−4.00", "−8.00"),)
    assert "types.number 2 instead of 1" in answers_table.note


def test_bands_and_nests_count(run, add_scenario, scenario, make_outcomes):
    table = make_outcomes(("new nest 0.0", "new nest 0.5"))
    own = (table["case"] == "new nest 0.5") & (table["outcome"] == "share_annual") & (table["segment"] == "north")
    table.loc[own, "change"] -= 0.03
    band = {"error": 0.5, "outcomes": {"share_annual": {"north": [-0.07, -0.09, -0.06]}}}
    add_scenario(run, scenario, table, solved={"new nest 0.0": {"anchor_band": band}, "new nest 0.5": {}})
    rows = of(load_record(run))
    assert row(rows, "logit")["shares"] == "3.00" and row(rows, "logit")["surplus"] == "0.000"
    assert row(rows, "reward of “none”")["shares"] == "2.00"


def test_rewards_move_as_in_the_sensitivity(run):
    def point(discount, shift, reward, converged=True):
        rewards = {"annual": {"north": reward, "south": -1.0}}
        return {"discount": discount, "shift": shift, "rewards": rewards, "converged": converged}

    points = [point(0.9, 0, -1.0), point(0.8, 0, -1.4), point(0.7, 0, -9.0, converged=False), point(0.9, -1, -1.9)]
    points[0]["held_out"] = []
    runs.write_json(run / "sensitivity.json", {"about": {"periods_per_year": 4}, "study": 0.9, "points": points})
    rows = of(load_record(run))
    assert row(rows, "discount factor")["rewards"] == "0.40" and row(rows, "reward of “none”")["rewards"] == "0.90"
    assert row(rows, "discount factor")["relaxed"] == "0.41 to 0.656 a year"


def test_a_run_without_scenarios_says_how_to_ask(run):
    page = write_report(load_record(run), "no market").read_text(encoding="utf-8")
    assert "scripts/assumptions.py --run RUN answers them again" in page and "What the answers rest on" in page


pytestmark = pytest.mark.filterwarnings("error")


def test_that_prices_share_a_coefficient_is_said_and_tested(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    runs.write_json(run / "falsification.json", {"checks": [{"name": "money", "p": 0.25}]})
    assert row(of(load_record(run)), "unrelated to taste")["tested"] == "–"  # one price, and no money
    price = config["data"]["state"]["price"]
    config["data"]["state"]["fee"] = price
    config["money"] = {"currency": "USD", "price": {"monthly": "price", "annual": "fee"}}
    for shared, said in ((True, "0.250"), (False, "–")):
        config["money"]["one_coefficient"] = shared
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        assert row(of(load_record(run)), "unrelated to taste")["tested"] == said
