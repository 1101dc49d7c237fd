"""The report's numbers: recovery on hand-worked rewards, flags, sweeps, intervals, formats."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from irl import runs
from irl.report import recovery
from irl.report.answers import convergence_table, last_periods, movement_table, share_table, welfare_table
from irl.report.estimates import anchor_table, bootstrap_table, reward_table, step_table
from irl.report.markup import as_table
from irl.report.record import load_record
from irl.report.tables import Table, number, percent, scientific, signed  # fmt: skip
from irl.report.words import cautions

NAN = math.nan


def test_recovery_on_numbers_worked_by_hand():
    truth = pd.DataFrame({"monthly": [0.0, 2.0, 10.0, 12.0], "annual": [1.0, 3.0, NAN, NAN]})
    estimated = pd.DataFrame({"annual": [1.0, 3.0, 7.0, NAN], "monthly": [1.0, 3.0, 11.0, 13.0]})
    scores = recovery(estimated, truth, ["a", "a", "b", "b"])
    assert list(scores.index) == ["annual", "monthly", "pooled"]
    assert scores["pairs"].to_dict() == {"annual": 2, "monthly": 4, "pooled": 6}
    # every error is 1: the sum of squares is 4; around its mean 6 the truth has 104, around the cells' means 1 and 11
    # it has 4; the constant error is a miss of the cells' means, and counts
    assert scores.loc["monthly"].to_dict() == pytest.approx(
        {"pairs": 4, "rmse": 1.0, "sd": math.sqrt(26), "r2": 1 - 4 / 104, "within": 0.0}
    )
    assert scores.loc["annual", ["rmse", "r2", "within"]].tolist() == pytest.approx([0, 1, 1])
    # pooled: y = 0, 2, 10, 12, 1, 3; squares 258, mean 28/6; within cells of one action 4 + 2
    assert scores.loc["pooled", "r2"] == pytest.approx(1 - 4 / (258 - 28**2 / 6))
    assert scores.loc["pooled", "within"] == pytest.approx(1 - 4 / 6)


def test_recovery_pairs_rows_by_place_and_says_when_it_cannot():
    truth, estimated = pd.DataFrame({"x": [1.0, 2.0]}, index=[7, 8]), pd.DataFrame({"x": [1.0, 2.0]}, index=[1, 2])
    assert recovery(estimated, truth, pd.Series([("a", 1), ("a", 1)], index=[3, 4])).loc["x", "r2"] == 1
    with pytest.raises(ValueError, match="same rows"):
        recovery(estimated, truth.iloc[:1], ["a", "a"])
    with pytest.raises(ValueError, match="same actions"):
        recovery(estimated, truth.rename(columns={"x": "y"}), ["a", "a"])


def test_recovery_has_no_r2_where_the_truth_does_not_vary():
    scores = recovery(pd.DataFrame({"x": [1.0, 2.0]}), pd.DataFrame({"x": [3.0, 3.0]}), ["a", "b"])
    assert math.isnan(scores.loc["x", "r2"]) and math.isnan(scores.loc["x", "within"])
    assert scores.loc["x", "rmse"] == pytest.approx(math.sqrt(2.5))


@pytest.mark.parametrize(
    ("decisions", "share", "flagged"),
    [
        (12000, 0.3, False),
        (12000, 0.049, True),
        (12000, 0.05, False),
        (600, 0.3, True),
        (667, 0.3, False),
        (0, 0.0, True),
    ],
)
def test_a_thin_anchor_is_flagged(make_run, config, metrics, decisions, share, flagged):
    metrics["panel"]["segments"]["south"] = {"decisions": decisions, "anchor_share": share}
    table = anchor_table(load_record(make_run(config, metrics)))
    assert table.flagged == ({1} if flagged else set())
    assert (table.rows[1][-1] != "enough") == flagged


def test_rewards_leave_out_the_anchor_and_carry_units(run):
    table = reward_table(load_record(run))
    assert [row[:2] for row in table.rows] == [(a, s) for a in ("monthly", "annual") for s in ("north", "south", "all")]
    assert table.rows[0][2:] == ("−0.53", "0.50", "−1.53", "−0.53", "0.47", "75.0")
    assert "not a confidence interval" in table.note and "reward units" in table.title


def test_steps_without_a_loop_or_a_residual_show_a_dash(run):
    rows = {row[0]: row[1:] for row in step_table(load_record(run)).rows}
    assert rows["Q: value of the anchor"][1:] == ("3 (2)", "0.571", "1.6e+05", "3.0")
    assert rows["dynamics: how states move"][0].startswith("−2.295 nats")
    assert rows["dynamics: how states move"][1:4] == ("–", "–", "–")


def test_shares_are_shown_beside_each_other_at_the_last_period(run, scenario, add_scenario, make_outcomes):
    add_scenario(run, scenario, make_outcomes(("Dearer annual plan",)))
    record = load_record(run)
    (answered,) = record.scenarios
    assert last_periods(answered) == [1]
    table = share_table(record, answered, 1)
    assert table.header == ("segment", "none, %", "monthly, %", "annual, %", "members, %")
    assert [row[0] for row in table.rows] == ["north", "south", "all"]
    assert table.rows[0][1:] == ("20.0 → 25.0 (+5.0)", "30.0 → 32.0 (+2.0)", "50.0 → 43.0 (−7.0)", "80.0 → 75.0 (−5.0)")
    movement = movement_table(record, answered)
    assert "switch plan, % of members" not in movement.header  # nobody has it, so it is left out
    assert movement.header[-1] == "still a member 2 periods after joining, %"
    assert movement.rows[0][-1] == "81.0 → 64.0 (−17.0)"
    assert welfare_table(record, answered).rows[0] == ("north", "−0.028", "0.6", "40.0")


def test_the_twelfth_choice_is_shown_besides_the_last(run, scenario, add_scenario):
    row = {"case": "x", "segment": "all", "outcome": "share_none", "baseline": 0.5, "scenario": 0.5, "change": 0.0}
    table = pd.DataFrame([{**row, "period": t, "low": NAN, "high": NAN} for t in range(24)])
    add_scenario(run, scenario, table)
    assert last_periods(load_record(run).scenarios[0]) == [11, 23]


def test_a_sweep_has_a_row_per_segment_and_case_in_the_order_of_its_values(run, scenario, add_scenario, make_outcomes):
    cases = ("price scale 2.0", "price scale 1.2", "price scale 10.0")
    add_scenario(run, scenario, make_outcomes(cases))
    record = load_record(run)
    table = share_table(record, record.scenarios[0], 1)
    assert table.labels == 2
    assert [row[:2] for row in table.rows] == [(s, c) for s in ("north", "south", "all") for c in cases]


def test_intervals_are_shown_where_there_are_any(run, scenario, add_scenario, make_outcomes):
    table = make_outcomes(("Dearer annual plan",))
    here = (table["segment"] == "north") & (table["outcome"] == "share_none")
    table.loc[here, ["low", "high"]] = (0.034, 0.066)
    add_scenario(run, scenario, table)
    record = load_record(run)
    shown = share_table(record, record.scenarios[0], 1)
    assert shown.rows[0][1] == "20.0 → 25.0\n(+5.0 [+3.4, +6.6])"
    assert shown.rows[1][1] == "20.0 → 25.0 (+5.0)"
    assert "interval" in shown.note


def test_a_solve_that_did_not_converge_is_flagged(run, scenario, add_scenario, make_outcomes):
    good = {"rounds": 4, "converged": True, "policy_change": 1e-6, "condition": 1e8, "warnings": []}
    solved = {"baseline": good, "Dearer annual plan": {**good, "converged": False, "rounds": 30}}
    add_scenario(run, scenario, make_outcomes(("Dearer annual plan",)), solved=solved)
    table = convergence_table(load_record(run).scenarios[0])
    assert table.flagged == {1} and [row[1] for row in table.rows] == ["yes", "NO"]


def test_numbers_are_written_for_people():
    assert number(-1234.567, 1) == "−1,234.6" and number(-0.001) == "0.00" and number(NAN) == "–" == number(None)
    assert signed(0.25) == "+0.25" and signed(0.001) == "0.00" and signed(-0.25) == "−0.25"
    assert percent(0.1234) == "12.3 %" and scientific(2.5e-7) == "2.5e−07"


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"effective_sample": 150.0, "overlap": 0.5, "floored_share": 0.0}, "count as 150"),
        ({"effective_sample": 900.0, "overlap": 0.1, "floored_share": 0.0}, "overlap by 10 %"),
        ({"effective_sample": 900.0, "overlap": 0.5, "floored_share": 0.2}, "nearly never chosen at 20.0 %"),
        ({"effective_sample": 900.0, "overlap": 0.5, "floored_share": 0.01}, ""),
    ],
)
def test_thin_support_is_flagged_and_warned_about(make_run, config, metrics, figures, said):
    metrics["support"] = {"south": {**figures, "smallest_probability": 0.004}}
    record = load_record(make_run(config, metrics))
    table = anchor_table(record)
    assert table.flagged == ({1} if said else set())
    assert table.rows[1][3] == f"{figures['effective_sample']:.0f}" and table.rows[1][4] == "0.40"
    assert any(said in caution for caution in cautions(record)) if said else cautions(record) == []


def test_bootstrap_errors_are_shown_beside_the_analytic_ones(make_run, config, metrics):
    folder = make_run(config, metrics)
    assert bootstrap_table(load_record(folder)) is None
    row = {"kind": "reward", "action": "annual", "segment": "north", "name": "", "estimate": -2.66, "se": 0.1,
           "bootstrap_se": 0.12, "ratio": 1.2, "low": -2.9, "high": -2.4}  # fmt: skip
    part = {**row, "kind": "contribution", "name": "shipping", "se": None, "ratio": None}
    found = {"replicas": 50, "seed": 0, "clusters": 1000, "unconverged": 2, "seconds": 9.0, "quantities": [row, part]}
    runs.write_json(folder / "bootstrap.json", found)
    table = bootstrap_table(load_record(folder))
    expected = ("mean reward", "annual", "north", "−2.660", "0.100", "0.120", "1.20", "−2.900", "−2.400")
    assert table.rows[0] == expected
    assert table.rows[1][0] == "part of shipping" and table.rows[1][4] == table.rows[1][6] == "–"
    assert "known to 10 %" in table.note and "2 replicas did not converge" in table.note and "shrunk" in table.note


def test_long_cells_wrap_and_short_ones_do_not():
    table = Table(title="t", header=("a", "b", "c"), rows=(("x" * 40, "short", "a sentence, longer than a few words"),))
    html = as_table(table)
    assert html.count('class="long"') == 2 and "<td>short</td>" in html
