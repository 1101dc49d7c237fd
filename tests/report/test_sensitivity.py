"""What the report says of assumptions, on differences worked by hand."""

from __future__ import annotations

import math

import pytest

from irl import runs
from irl.report import load_record, write_latex, write_report
from irl.report import sensitivity as module
from irl.report.sensitivity import profile, profile_table, sentences, tables_by_discount, tables_by_shift
from irl.report.words import cautions

GROUPS = 100
EVEN = [-5.0] * GROUPS
WORSE = [-5.0, -5.2] * (GROUPS // 2)
"""Behind EVEN by 0 and .2 in turns: 10 in all; the differences' sd is .1 sqrt(100/99), the error 10 times that."""
NOISY = [-4.0, -6.02] * (GROUPS // 2)
"""Behind by -1 and 1.02 in turns: 1 in all, with an error of 10.15."""


def point(discount, held_out, *, shift=0.0, reward=-1.0, p=0.5, converged=True):
    rewards = {a: dict.fromkeys(("north", "south", "all"), reward) for a in ("none", "monthly", "annual")}
    return {
        "discount": discount, "shift": shift, "log_likelihood": -480.0, "effective_parameters": 12.0,
        "held_out": held_out, "probabilities": [p, 1 - p], "policy_change": 1e-4, "condition": 1e6,
        "converged": converged, "rewards": rewards,
        "contributions": {"annual": {"all": {"price": reward / 2}}},
        "coefficients": [{"action": "monthly", "name": "constant", "estimate": reward / 4}], "seconds": 1.0,
    }  # fmt: skip


@pytest.fixture
def answered(make_run, config, metrics):
    """``answered(*points)``: the record of a run (discount .9 a quarter) with these points."""
    config["reward"] = {"benefits": ["price"]}
    folder = make_run(config, metrics)

    def answer(*points):
        about = {"panel": "x", "periods_per_year": 4}
        content = {"about": about, "study": 0.9, "actions": config["data"]["actions"], "points": list(points)}
        runs.write_json(folder / "sensitivity.json", content)
        return load_record(folder)

    return answer


def test_the_profile_by_hand(answered):
    low, high = profile(answered(point(0.95, WORSE, reward=-2), point(0.9, EVEN, p=0.4)))
    assert (low.discount, high.discount) == (0.9, 0.95)
    assert low.annual == pytest.approx(0.9**4) and low.study and not high.study
    assert (low.behind, low.error, low.tied) == (0, 0, True)
    assert high.behind == pytest.approx(10) and high.error == pytest.approx(math.sqrt(100 / 99))
    assert high.worse and high.penalised == 0
    assert high.moved == pytest.approx(0.1) and low.moved == 0


def test_when_the_panel_can_tell(answered):
    record = answered(point(0.9, EVEN), point(0.95, NOISY), point(0.5, WORSE))
    said = sentences(record)
    assert said[0] == (
        "The panel favours an annual discount factor of 0.656 (0.9 a period), and cannot tell it from 0.815; it speaks "
        "against 0.0625 (worse by more than 2 standard errors)."
    )
    assert "is among those that cannot be told from the best" in said[1] and "Magnac" in said[2]
    assert cautions(record) == []


def test_when_it_cannot(answered):
    said = sentences(answered(point(0.9, EVEN), point(0.95, NOISY), point(0.5, NOISY)))
    assert said[0] == "The panel cannot tell annual discount factors between 0.0625 and 0.815 apart."


def test_a_study_the_panel_speaks_against_is_warned_of(answered):
    record = answered(point(0.9, WORSE), point(0.95, EVEN))
    expected = (
        "The study's own discount factor, 0.656 a year (0.9 a period), fits worse than the best one tried, by 10.0 "
        "nats (standard error 1.0)."
    )
    assert cautions(record) == [expected] and expected in sentences(record)
    assert profile_table(record).flagged == {0}


def test_what_was_not_solved_takes_no_part_and_is_flagged(answered):
    record = answered(point(0.9, WORSE), point(0.95, EVEN, converged=False))
    assert profile(record)[0].behind == 0
    assert "could be solved for" in sentences(record)[0]
    assert cautions(record) == ["At 0.815 a year the refit's equations were not solved to accuracy."]
    table = profile_table(record)
    assert table.flagged == {1} and table.rows[1][-1] == "not solved to accuracy"
    assert tables_by_discount(record)["rewards_by_discount"].header[-1] == "0.815, not solved"


def test_few_members_get_no_verdict(answered):
    record = answered(point(0.9, WORSE[:40]), point(0.95, EVEN[:40]))
    assert sentences(record)[0].startswith("40 groups of members are too few")
    assert cautions(record) == [] and profile_table(record).flagged == set()


def test_what_the_maximisation_leaves_is_no_difference(answered):
    a_little = [x - 1e-4 for x in EVEN]  # behind by .01 nats with no error at all
    assert "cannot tell" in sentences(answered(point(0.9, EVEN), point(0.95, a_little)))[0]


def test_tables_by_discount_and_by_shift(answered):
    record = answered(
        point(0.9, EVEN, reward=-1.0), point(0.95, EVEN, reward=-2.0),
        point(0.9, EVEN, shift=0.5, reward=-0.5, p=0.49), point(0.9, EVEN, shift=-1.0, reward=-2.5),
    )  # fmt: skip
    tables = tables_by_discount(record) | tables_by_shift(record)
    assert tables["rewards_by_discount"].header == ("action", "segment", "0.656 (study)", "0.815")
    assert tables["rewards_by_discount"].rows[0] == ("monthly", "north", "−1.00", "−2.00")
    assert tables["contributions_by_discount"].rows == (("annual", "price", "−0.50", "−1.00"),)
    assert tables["rewards_by_anchor"].header == ("action", "segment", "−1.00", "as in the study", "+0.50")
    assert tables["rewards_by_anchor"].rows[-1] == ("annual", "all", "−2.50", "−1.00", "−0.50")
    assert tables["coefficients_by_anchor"].rows == (("monthly", "constant", "−0.62", "−0.25", "−0.12"),)
    *_, by_discount, moved = sentences(record)
    assert by_discount == (
        "From 0.656 to 0.815 a year mean rewards move: that of “monthly” from −1.00 to −2.00 and that of “annual” from "
        "−1.00 to −2.00, and choice probabilities by at most 0.00 points on average."
    )
    assert moved.startswith("Another reward of “none”, up to 1 away, moves choice probabilities by at most 1.00 points")


def test_the_section_of_the_report(answered):
    folder = answered().folder
    (folder / "sensitivity.json").unlink()
    html = write_report(load_record(folder), "no truth").read_text(encoding="utf-8")
    assert "What the answers rest on, and how far" in html and "scripts/sensitivity.py --run" in html
    record = answered(point(0.9, EVEN), point(0.95, WORSE), point(0.9, EVEN, shift=1.0, reward=0.0))
    html = write_report(record, "no truth").read_text(encoding="utf-8")
    assert "The panel favours an annual discount factor of 0.656" in html and module.HOW_TO not in html
    assert "Twice the nats behind the best, by annual discount: 0.656 (study) 0.0" in html
    assert html.index('id="anchor"') < html.index('id="assumptions"') < html.index('id="steps"')
    names = {path.stem for path in write_latex(record)}
    assert {"discount", "rewards_by_discount", "rewards_by_anchor", "coefficients_by_anchor"} <= names
