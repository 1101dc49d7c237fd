"""What the report says of backtest.json."""

from __future__ import annotations

import pytest

from irl import runs
from irl.report import load_record, write_latex
from irl.report.backtest import error_table, record_tables, sentences
from irl.report.html import page
from irl.report.words import facts

PLANS = ("none", "monthly", "annual")


def cell(observed, low=0.2, high=0.4):
    """One value in two periods, forecast at .3."""
    path = {"observed": [observed] * 2, "model": [0.3] * 2, "low": [low] * 2, "high": [high] * 2}
    path |= {"logit": [0.35] * 2, "last": [0.1] * 2}
    one = {name: values[0] for name, values in path.items()}
    return path, one


def segment(observed, members):
    path, one = cell(observed)
    errors = {"model": 0.031, "logit": 0.02, "last": 0.2}
    return {
        "members": members,
        "at_risk": {plan: [50.0, 0.0] for plan in PLANS},
        "share": dict.fromkeys(PLANS, path),
        "mean_share": dict.fromkeys(PLANS, one),
        "leave": dict.fromkeys(PLANS, path),
        "leaves": dict.fromkeys(PLANS, one),
        "switches": dict.fromkeys(PLANS[1:], one),
        "length": {plan: {**one, "observed": None} for plan in PLANS},
        "errors": {
            "share": {name: {"mean": e, "worst": 2 * e} for name, e in errors.items()},
            "length": dict.fromkeys(errors),
        },
        "inside": {"share": [5, 6], "length": [0, 0]},
    }


@pytest.fixture
def answer():
    cells = {"north": segment(0.25, 600), "south": segment(0.5, 400), "all": segment(0.3, 1000)}
    return {
        "until": 11, "periods": ["12", "13"], "forecasts": ["model", "logit", "last"], "draws": 199,
        "parameters_drawn": True, "converged": True, "seed": 0, "segments": cells,
    }  # fmt: skip


@pytest.fixture
def tested(make_run, config, metrics, answer):
    config["data"] |= {"until": 11, "held_out": {"price": [1.2], "age": {"min": 30}}}
    run = make_run(config, metrics)
    arm = {**answer, "held_out": {}}
    runs.write_json(run / "backtest.json", {"backtest": answer, "experiment": arm})
    return load_record(run)


def test_errors_stand_in_points_with_the_least_marked(answer):
    table = error_table("backtest", answer)
    assert table.header == ("segment", "what", "forecast", "static logit", "last value", "in the interval")
    assert table.rows[0] == ("north", "plan shares by period, points", "3.10", "2.00 *", "20.00", "5 of 6")
    assert len(table.rows) == 3  # no lengths: of nobody


def test_values_outside_the_interval_are_flagged(tested):
    shares, *rest = record_tables(tested, "backtest")[1:]
    assert shares.rows[0] == ("north", "none", "25.0", "30.0 [20.0, 40.0]", "35.0", "10.0")
    assert shares.flagged == {3, 4, 5}  # south
    titles = [table.title for table in rest]
    assert "Backtest: rejoining by periods since leaving (none), all segments, % a period" in titles
    ages = rest[-1]
    assert ages.rows == (("1", "50", "30.0", "30.0 [20.0, 40.0]", "35.0", "10.0"),)  # nobody of the second age


def test_what_is_said(tested):
    first, error, wrong, lengths = sentences(tested, "backtest")
    assert "up to 11" in first and "1,000 members, 2 periods (12 to 13)" in first
    assert error.endswith("points: forecast 3.10, static logit 2.00, last value 20.00.")
    assert wrong == "The mean plan shares lie outside the forecast's 95 % interval in south (none, monthly, annual)."
    assert lengths == "The mean lengths of spells lie inside the forecast's 95 % interval everywhere."
    assert "without the members where age is at least 30 and price is 1.2;" in sentences(tested, "experiment")[0]
    tested.backtest["backtest"]["segments"]["south"]["length"]["none"]["observed"] = 3.0
    assert "in south (none): members may differ in ways" in sentences(tested, "backtest")[-1]
    tested.backtest["backtest"]["converged"] = False
    assert "did not converge" in sentences(tested, "backtest")[-1]


def test_what_was_left_out_is_among_the_facts(tested):
    said = dict(facts(tested))
    assert (
        said["last period fitted on"] == "11"
        and said["held out"] == "members where age is at least 30 and price is 1.2"
    )


def test_page_and_latex_have_both(tested):
    shown = page(tested, "no truth")
    assert 'id="backtest"' in shown and 'href="#experiment"' in shown and "Experiment held out" in shown
    assert shown.count("Plan shares in segment south in the last period") == 2
    assert {"backtest_errors", "experiment_errors"} <= {path.stem for path in write_latex(tested)}


def test_a_run_that_was_not_tested_says_nothing(run):
    assert "backtest" not in page(load_record(run), "no truth").lower()
