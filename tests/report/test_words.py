"""Sentences: changes in words, cautions that fire and that stay silent."""

from __future__ import annotations

import json

import pytest

from irl.report.changes import changes_in_words
from irl.report.estimates import anchor_table
from irl.report.html import page
from irl.report.record import ScenarioRecord, load_record
from irl.report.words import (
    adds_most,
    cautions,
    estimated,
    facts,
    headlines,
    identification,
    limits,
    scenario_cautions,
)
from irl.scenario import scenario_from


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {
                "add": {
                    "action": "quarterly",
                    "like": "annual",
                    "facing": {"price": 27},
                    "then": {"left": 2},
                    "nest": 0.5,
                }
            },
            "“quarterly” is offered, like “annual”, at its reward with price 27, leading to left 2, sharing 0.5 of its "
            "taste shock, for everyone, always.",
        ),
        (
            {"reward": {"action": "annual", "add": -1.08, "where": {"segment": "north", "status": ["out", "in"]}}},
            "The reward of “annual” is lowered by 1.08 reward units where segment is north and status is out or in.",
        ),
        (
            {"reward": {"action": "annual", "add": 1, "scale": 0.5}},
            "The reward of “annual” is multiplied by 0.5 and then raised by 1 reward unit for everyone, always.",
        ),
        (
            {"feature": {"name": "price", "set": [84, 92.5, -1]}},
            "“price” is set to 84, 92.5 or −1 (a sweep: one case each) for everyone, always.",
        ),
        (
            {"reward": {"action": "annual", "add": [-1, 1]}},
            "The reward of “annual” is changed by −1 or 1 reward units (a sweep: one case each) for everyone, always.",
        ),
        (
            {"remove": {"action": "monthly", "where": {"price": {"min": 3}}}},
            "“monthly” is taken off the menu where price is at least 3.",
        ),
        (
            {"remove": {"action": "monthly", "where": {"price": {"min": 3, "max": 4}}}},
            "“monthly” is taken off the menu where price is at least 3 and at most 4.",
        ),
        (
            {"dynamics": {"name": "shipping", "like": {"segment": "urban"}, "where": {"segment": "rural"}}},
            "“shipping” moves as it does for members with segment urban where segment is rural.",
        ),
        (
            {"dynamics": {"name": "video", "like": {"tier": 2, "plan": "a"}, "shift": [-0.5, 1]}},
            "“video” moves as it does for members with tier 2 and plan a and with its ups and downs shifted by −0.5 or "
            "1 (a sweep: one case each) for everyone, always.",
        ),
        (
            {"dynamics": {"name": "video", "shift": 0.5}},
            "“video” moves with its ups and downs shifted by 0.5 for everyone, always.",
        ),
    ],
)
def test_changes_in_words(change, words):
    record = ScenarioRecord("folder", scenario_from({"name": "x", "changes": [change]}))
    assert changes_in_words(record) == [words]


@pytest.mark.parametrize(
    ("timing", "words"),
    [
        ({"start": 3, "length": 4, "announced": True}, "for everyone, in periods 3 to 6, announced at the start."),
        ({"start": 3}, "for everyone, from period 3 on, as a surprise."),
        ({"start": 2, "length": 1}, "for everyone, in period 2, as a surprise."),
        ({"length": 2}, "for everyone, in periods 0 to 1."),
        ({"announced": True}, "for everyone, always."),
    ],
)
def test_when_changes_hold(timing, words):
    content = {"name": "x", "timing": timing, "changes": [{"remove": {"action": "monthly"}}]}
    record = ScenarioRecord("folder", scenario_from(content))
    assert changes_in_words(record) == [f"“monthly” is taken off the menu {words}"]


@pytest.mark.parametrize(
    ("population", "words"),
    [
        (
            {"where": {"segment": "north"}, "reweight": {"tier": {1: 0.25, 2: 0.625}}, "set": {"video": 2}},
            "Baseline and scenario are simulated for members where segment is north, drawn such that by tier the "
            "shares are 1: 25 %, 2: 62.5 %, starting with video 2.",
        ),
        ({"set": {"video": 2}}, "Baseline and scenario are simulated for members starting with video 2."),
    ],
)
def test_the_population_in_words(population, words):
    content = {"name": "x", "members": 9, "population": population, "changes": [{"remove": {"action": "monthly"}}]}
    record = ScenarioRecord("folder", scenario_from(content))
    assert changes_in_words(record)[1:] == [words]


def test_nothing_to_be_careful_about(run, scenario, add_scenario, make_outcomes):
    add_scenario(run, scenario, make_outcomes(("Dearer annual plan",)))
    assert cautions(load_record(run)) == []


def test_a_singular_solve_and_a_loss_that_broke_are_said(make_run, config, metrics):
    metrics["anchor_q"]["condition"] = 2e15
    metrics["policy"]["history"] = [0.7, float("inf")]
    folder = make_run(config, {})
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")  # with its Infinity
    first, second = cautions(load_record(folder))
    assert "P step's held-out loss was not finite" in first and "nearly singular" in second


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"converged": False, "fell_back": True}, "fitted iteration (`solver: fqi`) was used"),
        ({"unexplained": 0.62}, "left 62.0 % of a constant value's residual unexplained"),
    ],
)
def test_what_the_q_step_rests_on_is_said(make_run, config, metrics, found, said):
    metrics["anchor_q"] |= found
    (caution,) = cautions(load_record(make_run(config, metrics)))
    assert said in caution


@pytest.mark.parametrize(("apart", "said"), [(0.17, True), (0.03, False)])
def test_a_number_that_moves_otherwise_than_modelled_is_said(make_run, config, metrics, apart, said):
    metrics["dynamics"] = metrics.get("dynamics", {}) | {"misfit": {"spend": apart}}
    found = cautions(load_record(make_run(config, metrics)))
    assert [text.startswith("“spend” does not move as the transition model says: up to 17.0 %") for text in found] == (
        [True] if said else []
    )


def test_the_headline_names_the_segment_that_moves_most(run, scenario, add_scenario, make_outcomes):
    table = make_outcomes(("low", "high"))
    here = (table["segment"] == "south") & (table["outcome"] == "membership") & (table["case"] == "high")
    table.loc[here, ["scenario", "change"]] = [0.6, -0.2]
    add_scenario(run, scenario, table, solved={"low": {}, "high": {}})
    low, high = headlines(load_record(run).scenarios[0])
    assert low.startswith("Dearer annual plan, low: members 80.0 % → 75.0 % (−5.0 points) in period 1")
    assert high.endswith("most in south (−20.0 points).")


def test_what_is_assumed_and_what_is_not_known_is_said(make_run, config, metrics):
    config["anchor"]["reward"] = "price"
    record = load_record(make_run(config, metrics))
    said = identification(record)
    for part in ("“none” is given by the column “price”", "0.9", "logit", "no hidden state", "within a segment"):
        assert part in said
    assert not any("carry no intervals" in text for text in limits(record))  # there is no scenario
    assert not any("invented" in text for text in limits(record))


@pytest.mark.parametrize(
    ("anchor", "estimated_as", "given", "fact", "title"),
    [
        ({"action": "none"}, "“monthly” and “annual” are worth, relative to “none”, was",
         "the reward of “none”", ("anchor, its reward is known", "none"),
         "How often “none” (the anchor) was chosen"),
        ({"by_state": "status"}, "“none” and “monthly” and “annual” are worth, relative to the action in “status”, was",
         "the reward of the action in “status”",
         ("anchor, its reward is known", "the action in “status”"),
         "How often the action in “status” (the anchor) was chosen"),
        ({"policy": "uniform"}, "“annual” are worth, relative to the mean under the reference policy, was",
         "the mean reward under the reference policy",
         ("reference policy, its mean reward is known", "uniform over the menu"),
         "How far choices agree with the reference policy (the anchor)"),
        ({"policy": {"none": 0.5, "annual": "price"}}, "relative to the mean under the reference policy, was",
         "the mean reward under the reference policy",
         ("reference policy, its mean reward is known", "none 0.5, annual as column “price” says"),
         "How far choices agree with the reference policy (the anchor)"),
    ],
)  # fmt: skip
def test_the_forms_of_the_anchor_are_told_apart(make_run, config, metrics, anchor, estimated_as, given, fact, title):
    record = load_record(make_run(config | {"anchor": anchor}, metrics))
    assert estimated_as in estimated(record)
    assert f"once it is given that {given} is known to be" in identification(record)
    assert fact in facts(record)
    assert anchor_table(record).title == title
    content = page(record, "")
    assert f"The {given.removeprefix('the ')} is given, not estimated." in content


def test_without_members_the_headline_names_the_share_that_moves_most(run, scenario, add_scenario, make_outcomes):
    table = make_outcomes(("Dearer annual plan",))
    table = table[table["outcome"].str.startswith("share_")]
    here = (table["outcome"] == "share_monthly") & (table["segment"] == "all")
    table.loc[here, ["baseline", "scenario", "change"]] = [0.2, 0.9, 0.7]
    add_scenario(run, scenario, table)
    (said,) = headlines(load_record(run).scenarios[0])
    assert said.startswith("Dearer annual plan: “monthly” 20.0 % → 90.0 % (+70.0 points) in period 1")


def test_scenarios_without_intervals_say_so(run, scenario, add_scenario, make_outcomes):
    table = make_outcomes(("Dearer annual plan",))
    add_scenario(run, scenario, table)
    assert any("carry no intervals" in text for text in limits(load_record(run)))
    add_scenario(run, scenario, table.assign(low=-0.1, high=0.1), name="bounded")
    record = load_record(run)
    assert not any("carry no intervals" in text for text in limits(record))
    bounded = next(s for s in record.scenarios if s.folder == "bounded")
    assert "points [−10.0, +10.0])" in headlines(bounded)[0]


def test_how_members_were_sampled(make_run, config, metrics):
    config["data"] |= {"entry": "stock"}
    sampled = {
        "single": 12,
        "begun": 0,
        "ended": 34,
        "exits": None,
        "worth": 20_000.4,
        "warnings": ["something is off"],
    }
    metrics["panel"] |= {"sampling": sampled}
    record = load_record(make_run(config, metrics))
    told = dict(facts(record))
    assert told["members with one row, which serve choice probabilities only"] == "12"
    assert told["rows that the weights are worth"] == "20,000" and told["how members entered, as declared"] == "stock"
    assert not any("begin in a state" in name or "declared exits" in name for name in told)
    assert "Something is off." in cautions(record)


def test_the_benefit_that_adds_most_is_named_for_each_plan(make_run, config, metrics):
    metrics["contributions"] = {
        "monthly": {"all": {"video": {"mean": 0.1}, "music": {"mean": 0.25}}},
        "annual": {"all": {"video": {"mean": -0.3}}, "south": {"video": {"mean": 0.4}}},
    }
    (said,) = adds_most(load_record(make_run(config, metrics)))
    assert said.endswith("“music” to “monthly” (+0.25).") and "annual" not in said


def test_warnings_do_not_say_the_name_of_their_only_case(run, scenario, add_scenario, make_outcomes):
    own, other = "Dearer annual plan: it is far from the data", "baseline: so is this"
    solved = {"Dearer annual plan": {"converged": True, "warnings": [own, other]}}
    add_scenario(run, scenario, make_outcomes(("Dearer annual plan",)), solved=solved)
    found = scenario_cautions(load_record(run).scenarios[0])
    assert found == ["it is far from the data.", "baseline: so is this."]
