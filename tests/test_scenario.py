"""Scenario files: what they may say, sweeps as cases, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from irl.config import InputError
from irl.declared import Between
from irl.scenario import NESTS, Scenario, cases, load_scenario, scenario_from

SCENARIOS = sorted((Path(__file__).resolve().parents[1] / "configs" / "scenarios").glob("*.yaml"))


def scenario(change, **options):
    return scenario_from({"name": "x", "changes": [change], **options})


def refusal(change, **options):
    with pytest.raises(InputError) as caught:
        scenario(change, **options)
    return str(caught.value)


def test_the_shipped_scenarios_are_read_and_have_folders_of_their_own():
    assert len(SCENARIOS) >= 2
    found = [load_scenario(path) for path in SCENARIOS]
    assert len({s.folder_name for s in found}) == len(found)


def test_everything_that_can_be_said():
    text = """
        name: annual plan dearer
        periods: 12
        members: 500
        start: last
        seed: 3
        changes:
          - reward: {action: annual, add: -1.08, scale: 0.5, where: {segment: in_urban, status: [out, monthly]}}
          - feature: {name: price, scale: [0.8, 1.2], add: 1, where: {left: {min: 2, max: 5}, tier: 3}}
          - feature: {name: status, set: out}
          - remove: {action: monthly, where: {joined: 2024-01-31}}
          - dynamics: {name: shipping, like: {segment: urban, tier: 2}, shift: -0.5, where: {segment: rural}}
        population: {where: {tier: 3}, reweight: {left: {2: 0.25, out: 0.5}}, set: {shipping: 2}}
    """
    said = scenario_from(yaml.safe_load(text))
    reward, price, status, remove, dynamics = said.changes
    assert (said.periods, said.members, said.start, said.seed) == (12, 500, "last", 3)
    assert (reward.reward.add, reward.reward.scale) == (-1.08, 0.5)
    assert reward.reward.where == {"segment": ("in_urban",), "status": ("out", "monthly")}
    assert price.feature.scale == (0.8, 1.2) and price.feature.add == 1
    assert price.feature.where == {"left": Between(min=2, max=5), "tier": (3,)}
    assert status.feature.set == "out"
    assert remove.remove.where == {"joined": ("2024-01-31",)}  # YAML's date, as the labels have it
    assert dynamics.dynamics.like == {"segment": "urban", "tier": 2}
    assert (dynamics.dynamics.shift, dynamics.dynamics.where) == (-0.5, {"segment": ("rural",)})
    assert said.population.where == {"tier": (3,)}
    assert said.population.reweight == {"left": {"2": 0.25, "out": 0.5}}
    assert said.population.set == {"shipping": 2}
    again = scenario_from(yaml.safe_load(yaml.safe_dump(said.model_dump(mode="json", exclude_none=True))))
    assert again == said


def test_defaults():
    said = scenario({"remove": {"action": "a"}})
    assert (said.periods, said.members, said.start, said.seed) == (36, "all", "first", 0)


def test_a_scenario_is_frozen():
    said = scenario({"remove": {"action": "a"}})
    with pytest.raises(ValidationError):
        said.periods = 3


def test_a_scenario_survives_being_written_and_read():
    said = scenario({"feature": {"name": "p", "scale": [1, 2], "where": {"a": {"min": 1}, "b": [True, 2, "x"]}}})
    again = scenario_from(yaml.safe_load(yaml.safe_dump(said.model_dump(mode="json", exclude_none=True))))
    assert again == said


@pytest.mark.parametrize(
    ("change", "labels"),
    [
        ({"feature": {"name": "price", "scale": [0.8, 1.2]}}, ["price scale 0.8", "price scale 1.2"]),
        ({"feature": {"name": "price", "add": [1, -1]}}, ["price add 1.0", "price add -1.0"]),
        ({"feature": {"name": "status", "set": ["in", "out"]}}, ["status set in", "status set out"]),
        ({"reward": {"action": "annual", "add": [1, 2, 3]}}, ["annual add 1.0", "annual add 2.0", "annual add 3.0"]),
        ({"reward": {"action": "annual", "scale": [0.5]}}, ["annual scale 0.5"]),
        ({"reward": {"action": "annual", "scale": 0.5}}, ["x"]),
        ({"dynamics": {"name": "video", "shift": [0.5, 1]}}, ["video shift 0.5", "video shift 1.0"]),
    ],
)
def test_a_sweep_is_a_case_for_each_value(change, labels):
    found = cases(scenario(change))
    assert list(found) == labels
    if len(labels) > 1:
        (kind,) = change
        option = next(k for k, v in change[kind].items() if isinstance(v, list))
        assert [getattr(getattr(c.changes[0], kind), option) for c in found.values()] == change[kind][option]
        assert all(len(cases(c)) == 1 for c in found.values())


def test_a_sweep_leaves_the_other_changes_as_they_are():
    said = scenario_from({"name": "x", "changes": [
        {"remove": {"action": "b"}}, {"feature": {"name": "p", "scale": [1, 2], "add": 3}},
    ]})  # fmt: skip
    for case in cases(said).values():
        assert case.changes[0] == said.changes[0]
        assert case.changes[1].feature.add == 3


@pytest.mark.parametrize(
    "changes",
    [
        [{"feature": {"name": "p", "scale": [1, 2], "add": [1, 2]}}],
        [{"feature": {"name": "p", "scale": [1, 2]}}, {"reward": {"action": "a", "add": [1, 2]}}],
    ],
)
def test_only_one_sweep(changes):
    with pytest.raises(InputError, match="only one number of one change may be a list"):
        scenario_from({"name": "x", "changes": changes})


@pytest.mark.parametrize("change", [{}, {"remove": {"action": "a"}, "reward": {"action": "a", "add": 1}}])
def test_a_change_is_exactly_one_thing(change):
    assert "changes.0: give exactly one of `reward`, `feature`, `remove`, `add`, `dynamics`" in refusal(change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reward": {"action": "a"}}, "changes.0.reward: give at least one of `add`, `scale`"),
        ({"feature": {"name": "a"}}, "changes.0.feature: give at least one of `set`, `add`, `scale`"),
        ({"feature": {"name": "a", "set": 1, "add": 1}}, "give either `set`, or `add` and `scale`"),
        ({"reward": {"add": 1}}, "changes.0.reward.action: required, but missing"),
        ({"reward": {"acton": "a", "action": "b", "add": 1}}, "reward.acton: unknown key; did you mean 'action'?"),
        ({"rewrad": {"action": "b", "add": 1}}, "changes.0.rewrad: unknown key; did you mean 'reward'?"),
        ({"feature": {"name": "p", "scael": 2}}, "changes.0.feature.scael: unknown key; did you mean 'scale'?"),
        ({"remove": "monthly"}, "changes.0.remove: "),
        ({"dynamics": {"name": "a"}}, "changes.0.dynamics: give at least one of `like`, `shift`"),
        ({"dynamics": {"name": "a", "lik": {"b": 1}, "shift": 1}}, "dynamics.lik: unknown key; did you mean 'like'?"),
        ({"dynamics": {"name": "a", "like": {"b": [1, 2]}}}, "dynamics.like: state columns, each with one level"),
        ({"dynamics": {"name": "a", "like": "b"}}, "dynamics.like: state columns, each with one level"),
        ({"dynamics": {"name": "a", "shift": "up"}}, "dynamics.shift: a finite number, or a list of them (a sweep)"),
        ({"remove": {"action": "a", "where": {"b": {"mn": 1}}}}, "where.b.mn: unknown key; did you mean 'min'?"),
        ({"remove": {"action": "a", "where": {"b": []}}}, "where.b: give an allowed value"),
        ({"remove": {"action": "a", "where": {"b": None}}}, "where.b: give an allowed value"),
        ({"remove": {"action": "a", "where": {"b": [["c"]]}}}, "where.b: give an allowed value"),
        ({"remove": {"action": "a", "where": {"b": {"min": "x"}}}}, "where.b.min: Input should be a valid number"),
        ({"remove": {"action": "a", "where": {"b": {"min": float("nan")}}}}, "where.b.min: Input should be a finite"),
    ],
)
def test_refusals_name_the_place(change, said):
    message = refusal(change)
    assert message.startswith("scenario:\n")
    assert said in message
    assert len(message.splitlines()) == 2, message  # one problem, one line: no branches of unions


@pytest.mark.parametrize("option", ["add", "scale"])
@pytest.mark.parametrize("value", [True, "two", [], [1, "x"], float("nan"), float("inf"), 10**400, {}, [[1]], [None]])
def test_amounts_that_are_no_numbers(option, value):
    for change in ({"reward": {"action": "a", option: value}}, {"feature": {"name": "a", option: value}}):
        message = refusal(change)
        (kind,) = change
        assert f"changes.0.{kind}.{option}: a finite number, or a list of them (a sweep)" in message
        assert len(message.splitlines()) == 2, message


@pytest.mark.parametrize("value", [[], [None], {}, float("nan"), [["a"]]])
def test_settings_that_are_no_levels(value):
    assert "set: a level or a finite number, or a list of them" in refusal({"feature": {"name": "a", "set": value}})


def test_a_value_twice_in_a_sweep():
    assert "the sweep lists a value twice" in refusal({"feature": {"name": "a", "scale": [1, 1.0]}})


def test_numbers_that_yaml_reads_as_text():
    assert scenario(yaml.safe_load("{reward: {action: a, add: 1e-3}}")).changes[0].reward.add == 0.001


def test_a_label_that_looks_like_a_truth_value_stays_one():
    said = scenario({"feature": {"name": "a", "set": True, "where": {"b": [False, 0, "0"]}}})
    assert said.changes[0].feature.set is True
    assert [type(v) for v in said.changes[0].feature.where["b"]] == [bool, int, str]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"members": 0}, "members: a whole number of at least 1, or `all`"),
        ({"members": True}, "members: a whole number of at least 1, or `all`"),
        ({"members": "al"}, "members: a whole number of at least 1, or `all`"),
        ({"members": 1.5}, "members: a whole number of at least 1, or `all`"),
        ({"periods": 0}, "periods: Input should be greater than or equal to 1"),
        ({"start": "middle"}, "start: Input should be 'first' or 'last'"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"name": ""}, "name: "),
        ({"name": " "}, "name: "),
        ({"name": 7}, "name: Input should be a valid string (given 7: YAML reads"),
        ({"name": "baseline"}, "what answers call the programme as it is"),
        ({"period": 3}, "period: unknown key; did you mean 'periods'?"),
        ({"changes": []}, "changes: "),
        ({"population": {}}, "population: give at least one of `where`, `reweight`, `set`"),
        ({"population": {"wher": {"a": 1}}}, "population.wher: unknown key; did you mean 'where'?"),
        ({"population": {"reweight": {"a": {"b": 1}}}}, "say how many, `members: 20000`, instead of `all`"),
        ({"members": 9, "population": {"reweight": {"a": {"b": 1}, "c": {"d": 1}}}}, "`reweight` one column"),
        ({"members": 9, "population": {"reweight": {"a": {"b": 0.7, "c": 0.4}}}}, "the shares add up to 1.1"),
        ({"members": 9, "population": {"reweight": {"a": {"b": -0.1}}}}, "each share is a number of at least 0"),
        ({"members": 9, "population": {"reweight": {"a": 0.5}}}, "reweight.a: labels, each with its share"),
        ({"population": {"set": {"a": [1]}}}, "population.set: state columns, each with one level"),
        ({"changes": {}}, "changes: "),
    ],
)
def test_options_that_cannot_be(options, said):
    message = refusal({"remove": {"action": "a"}}, **options)
    assert said in message
    assert len(message.splitlines()) == 2, message


def test_all_problems_come_in_one_message():
    change = {"feature": {"nam": "a", "add": "x"}}
    message = refusal(change, members=0, perods=3)
    for place in ("members", "perods", "changes.0.feature.name", "changes.0.feature.nam", "changes.0.feature.add"):
        assert f"\n  {place}: " in message, place


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("Annual plan, 20 % dearer!", "annual_plan_20_dearer"),
        ("../../etc", "etc"),
        ("価格", "価格"),
        ("...", "scenario"),
        ("x" * 300, "x" * 60),
    ],
)
def test_folder_names(name, folder):
    assert scenario({"remove": {"action": "a"}}, name=name).folder_name == folder


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a mapping"),
        ("- a", "expected a mapping"),
        ("a: [", "not valid YAML"),
        ("a: b: c", "not valid"),
        ("periods: 2\nperiods: 3", "'periods' of line 2 is already in line 1"),
    ],
)
def test_files_that_are_no_scenarios(tmp_path, text, said):
    path = tmp_path / "s.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said) as caught:
        load_scenario(path)
    assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_scenario(tmp_path / "none.yaml")


def test_a_scenario_is_taken_as_it_is():
    said = Scenario.model_validate({"name": "x", "changes": [{"remove": {"action": "a"}}]})
    assert scenario_from(said) is said


def adding(**options):
    return {"add": {"action": "student", "like": "monthly", **options}}


def test_an_added_action_without_a_nest_is_a_sweep():
    found = cases(scenario_from({"name": "x", "changes": [adding()]}))
    assert list(found) == [f"student nest {nest}" for nest in NESTS]
    assert [case.changes[0].add.nest for case in found.values()] == list(NESTS)
    assert list(cases(scenario_from({"name": "x", "changes": [adding(nest=0.3)]}))) == ["x"]


def test_what_a_nest_may_be():
    assert "`nest` is a part: at least 0 and below 1" in refusal(adding(nest=1))
    assert "`nest` is a part" in refusal(adding(nest=[0.5, -0.1]))
    with pytest.raises(InputError) as caught:
        scenario_from({"name": "x", "changes": [adding(), {"reward": {"action": "student", "add": [1, 2]}}]})
    said = str(caught.value)
    assert "may be a list (a sweep); an added action without a `nest` is one: give it a number" in said


def test_when_changes_hold():
    content = {"name": "x", "periods": 12, "changes": [adding(nest=0)]}
    timing = scenario_from(content | {"timing": {"start": 3, "length": 2, "announced": True}}).timing
    assert (timing.start, timing.length, timing.announced) == (3, 2, True)
    assert (scenario_from(content).timing.start, scenario_from(content).timing.length) == (0, None)
    for wrong, said in (({"start": 12}, "after the last of 12 periods"), ({"length": 0}, "timing.length")):
        with pytest.raises(InputError, match=said):
            scenario_from(content | {"timing": wrong})


def test_a_new_action_has_a_name_of_one_word_or_more():
    (change,) = scenario({"add": {"action": "student plan", "like": "annual", "nest": 0}}).changes
    assert change.add is not None and change.add.action == "student plan"
    assert "changes.0.add.action" in refusal({"add": {"action": " ", "like": "annual", "nest": 0}})
