"""Options of a study: what is refused, with which words; overrides; conditions; frozen sections."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from irl.config import Config, InputError, load_config, nearest, unknown, validated
from irl.declared import Between

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
STUDY: dict[str, Any] = {
    "data": {
        "path": "panel.parquet",
        "member": "id",
        "period": "month",
        "action": "plan",
        "actions": ["none", "monthly", "annual"],
        "available": {"monthly": {"status": ["out", "in"]}},
        "segment": "region",
        "state": {
            "status": {"kind": "category", "dynamics": "table", "parents": ["status", "left"]},
            "left": {"kind": "ordinal", "levels": 3, "dynamics": "table"},
            "price": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"},
        },
    },
    "anchor": {"action": "none", "reward": 0.0},
    "discount": 0.95,
}


@pytest.fixture
def study():
    return copy.deepcopy(STUDY)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    return path


def refusal(content):
    with pytest.raises(InputError) as caught:
        validated(Config, content, "study.yaml")
    message = str(caught.value)
    assert message.startswith("study.yaml:\n  ")
    return message


MONEY = {"currency": "USD", "price": {"monthly": "price", "annual": {"amount": 99, "where": {"status": "out"}}}}


def test_a_flow_of_money_is_a_number_a_column_or_a_section(study):
    money = Config.model_validate(study | {"money": MONEY | {"cost": {"annual": {"per": {"left": 1.5}}}}}).money
    assert (money.price["monthly"].amount, money.price["monthly"].where) == ("price", {})
    assert (money.price["annual"].amount, money.price["annual"].where) == (99, {"status": ("out",)})
    assert (money.cost["annual"].amount, money.cost["annual"].per) == (0, {"left": 1.5})
    assert Config.model_validate(study).money is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"price": {}}, "money.price: Dictionary should have at least 1 item"),
        ({"currency": " "}, "money.currency: String should match pattern"),
        ({"price": {"monthy": 1}}, "money.price: unknown action 'monthy'; did you mean 'monthly'?"),
        ({"price": {"monthly": "prise"}}, "money.price.monthly: unknown state column 'prise'; did you mean 'price'?"),
        ({"price": {"monthly": "left"}}, "money.price.monthly: 'left' is not numeric: it has to hold amounts"),
        ({"cost": {"annual": {"per": {"status": 1}}}}, "money.cost.annual.per: 'status' is a category"),
        ({"cost": {"annual": {"where": {"state": "out"}}}}, "money.cost.annual.where: unknown state column 'state'"),
        ({"cost": {"annual": {"amout": 1}}}, "money.cost.annual.amout: unknown key; did you mean 'amount'?"),
        ({"cost": {"annual": float("inf")}}, "money.cost.annual: Input should be a finite number or a valid string"),
    ],
)
def test_money_that_does_not_fit_is_refused(study, changes, said):
    assert said in refusal(study | {"money": MONEY | changes})


def put(content, place, value):
    *parents, last = place.split(".")
    for name in parents:
        content = content.setdefault(name, {}) if isinstance(content, dict) else content[int(name)]
    content[last] = value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_the_shipped_studies_are_valid_and_survive_being_written(path):
    config = load_config(path)
    assert validated(Config, yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))), "again") == config


@pytest.mark.parametrize(
    ("place", "nearest_name"),
    [
        ("discont", "discount"),
        ("data.acton", "action"),
        ("data.state.status.kinds", "kind"),
        ("data.state.price.assinged", "assigned"),
        ("anchor.rewards", "reward"),
        ("estimation.valdation", "validation"),
        ("estimation.policy.learning_rat", "learning_rate"),
        ("estimation.anchor_q.solvr", "solver"),
        ("market.member", "members"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_at_any_depth(study, place, nearest_name):
    put(study, place, 1)
    assert refusal(study).endswith(f"\n  {place}: unknown key; did you mean {nearest_name!r}?")


@pytest.mark.parametrize(
    "anchor",
    [
        {"action": "none", "reward": "price"},
        {"by_state": "status"},
        {"policy": "uniform", "reward": -2},
        {"policy": {"none": 0.5, "monthly": "price"}},
    ],
)
def test_the_forms_of_the_anchor_survive_being_written(study, anchor):
    study["anchor"] = anchor
    config = validated(Config, study, "study")
    assert validated(Config, yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))), "again") == config
    assert config.anchor.model_dump(exclude_unset=True) == anchor


def test_the_weights_of_a_policy_are_in_the_order_of_the_actions(study):
    study["anchor"] = {"policy": {"monthly": "price", "none": 2}}
    config = validated(Config, study, "study")
    assert config.anchor.weights(config.data.actions) == (2.0, "price", 0.0)
    study["anchor"] = {"policy": "uniform"}
    assert validated(Config, study, "study").anchor.weights(config.data.actions) == (1.0, 1.0, 1.0)


def test_an_unknown_key_of_a_range_is_named_too(study):
    study["data"]["terminal"] = {"left": {"mim": 2}}
    assert refusal(study) == "study.yaml:\n  data.terminal.left.mim: unknown key; did you mean 'min'?"


def test_a_key_like_no_other_gets_the_list(study):
    study["anchor"]["zzzzzz"] = 1
    assert refusal(study).endswith("anchor.zzzzzz: unknown key; known: action, by_state, policy, reward")


@pytest.mark.parametrize("place", ["data", "anchor", "discount"])
def test_a_missing_key(study, place):
    del study[place]
    assert refusal(study) == f"study.yaml:\n  {place}: required, but missing"


def test_missing_keys_below(study):
    del study["data"]["member"], study["data"]["state"]["left"]["dynamics"]
    assert refusal(study).splitlines()[1:] == [
        "  data.member: required, but missing",
        "  data.state.left.dynamics: required, but missing",
    ]


def test_all_problems_come_in_one_message(study):
    study["discount"] = 1.5
    study["sede"] = 1
    del study["anchor"]["action"]
    put(study, "estimation.policy.max_epochs", 0)
    put(study, "data.state.left.kind", "ordnial")
    lines = refusal(study).splitlines()[1:]
    assert {line.strip().split(":")[0] for line in lines} == {
        "discount", "sede", "anchor", "estimation.policy.max_epochs", "data.state.left.kind",
    }  # fmt: skip
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("discount", 1.0, "discount: Input should be less than 1 (given 1.0)"),
        ("discount", 0, "discount: Input should be greater than 0 (given 0)"),
        ("discount", float("nan"), "discount: Input should be a finite number (given nan)"),
        ("temperature", -1, "temperature: Input should be greater than 0"),
        ("seed", 1.5, "seed: Input should be a valid integer"),
        ("data", None, "data: Input should be a mapping (key: value)"),
        ("data", [], "data: "),
        ("data.actions", ["none"], "data.actions: "),
        ("data.actions", "none", "data.actions: "),
        ("data.actions", ["none", False], "data.actions.1: Input should be a valid string (given False: YAML reads no"),
        ("data.actions", "none", "data.actions: Input should be a list (a dash before each item) (given 'none')"),
        ("data.state.price", "numeric", "data.state.price: Input should be a mapping (key: value) (given 'numeric')"),
        ("data.actions", [0, "one"], "(given 0: YAML reads it as a number; write a name in quotes)"),
        ("data.actions", ["none", "monthly", "annual", "none"], "data: `actions` lists an action twice"),
        ("data.state", {}, "data.state: "),
        ("data.member", 3, "data.member: Input should be a valid string"),
        ("data.segment", [1], "data.segment.0: Input should be a valid string"),
        ("data.state.price.kind", "number", "data.state.price.kind: Input should be 'category', 'ordinal', 'count'"),
        ("data.state.price.levels", 3, "`levels` is for ordinals; this is a numeric"),
        ("data.state.price.dynamics", "table", "`dynamics: table` counts levels"),
        ("data.state.price.parents", ["left"], "`parents` is for `dynamics: table`; this is static"),
        ("data.state.left.levels", None, "an ordinal needs `levels`"),
        ("data.state.left.levels", 1, "`levels` must be at least 2"),
        ("data.state.left.levels", ["a"], "at least two different values"),
        ("data.state.left.levels", ["a", "a"], "at least two different values"),
        ("data.state.status.parents", ["statsu"], "unknown state column 'statsu'; did you mean 'status'?"),
        ("data.state.status.parents", ["price"], "state.status.parents: 'price' is not a category or ordinal"),
        ("data.state.plan", {"kind": "category", "dynamics": "table"}, "the action to be explained cannot be state"),
        ("data.available.anual", {"status": "in"}, "unknown action 'anual'; did you mean 'annual'?"),
        ("data.available.annual", {"statu": "in"}, "available.annual: unknown state column 'statu'"),
        ("data.available.annual", {"status": []}, "available.annual.status: give an allowed value"),
        ("data.available.annual", {"status": None}, "available.annual.status: give an allowed value"),
        ("data.terminal", {"gone": True}, "terminal: unknown state column 'gone'"),
        ("anchor.action", "non", "anchor.action: unknown action 'non'; did you mean 'none'?"),
        ("anchor", {}, "anchor: give exactly one of `action`, `by_state`, `policy`"),
        ("anchor.by_state", "status", "anchor: give exactly one of `action`, `by_state`, `policy`"),
        ("anchor", {"by_state": "stats"}, "anchor.by_state: unknown state column 'stats'; did you mean 'status'?"),
        ("anchor", {"by_state": "left"}, "anchor.by_state: 'left' is not a category"),
        ("anchor", {"policy": "unifrom"}, "anchor.policy: Input should be 'uniform' or a mapping (key: value)"),
        ("anchor", {"policy": {"none": -1}}, "anchor.policy.none: Input should be greater than or equal to 0"),
        ("anchor", {"policy": {"non": 1}}, "anchor.policy: unknown action 'non'; did you mean 'none'?"),
        ("anchor", {"policy": {"none": 0}}, "anchor: `policy` needs an action with a positive weight"),
        (
            "anchor",
            {"policy": {"none": "pric"}},
            "anchor.policy.none: unknown state column 'pric'; did you mean 'price'?",
        ),
        ("anchor", {"policy": {"none": "status"}}, "anchor.policy.none: 'status' is not numeric"),
        ("anchor.reward", float("inf"), "anchor.reward: Input should be a finite number"),
        ("estimation.validation", 0, "estimation.validation: Input should be greater than 0"),
        ("estimation.policy.hidden", ["x"], "estimation.policy.hidden.0: Input should be a valid integer"),
        ("estimation.anchor_q.solver", "ltsd", "estimation.anchor_q.solver: Input should be 'lstd' or 'fqi'"),
        ("market.members", 0, "market.members: Input should be greater than 0"),
    ],
)
def test_values_that_cannot_be(study, place, value, said):
    put(study, place, value)
    message = refusal(study)
    assert said in message
    assert len(message.splitlines()) == 2, message  # one problem, one line


def test_several_cross_checks_at_once(study):
    put(study, "data.available.anual", {"statu": "in"})
    put(study, "data.terminal", {"lef": 0})
    message = refusal(study)
    assert [next(name for name in ("'anual'", "'statu'", "'lef'") if name in line) for line in message.splitlines()[1:]]
    assert all(line.startswith("  data: ") for line in message.splitlines()[1:])
    study = copy.deepcopy(STUDY) | {"anchor": {"action": "non"}}
    assert refusal(study) == "study.yaml:\n  anchor.action: unknown action 'non'; did you mean 'none'?"


def test_a_segment_is_one_column_or_several(study):
    assert validated(Config, study, "").data.segment == ("region",)
    study["data"]["segment"] = ["region", "age"]
    assert validated(Config, study, "").data.segment == ("region", "age")
    del study["data"]["segment"]
    assert validated(Config, study, "").data.segment == ()


def test_conditions(study):
    study["data"]["terminal"] = yaml.safe_load(
        "{status: gone, left: [0, 2], price: {min: 1}}",
    )
    found = validated(Config, study, "").data.terminal
    assert found == {"status": ("gone",), "left": (0, 2), "price": Between(min=1)}
    study["data"]["terminal"] = yaml.safe_load("{status: [yes, 1, 1.0, '1', 2024-02-29]}")
    found = validated(Config, study, "").data.terminal["status"]
    assert [(v, type(v)) for v in found] == [(True, bool), (1, int), (1.0, float), ("1", str), ("2024-02-29", str)]


def test_levels_are_a_number_or_listed(study):
    assert validated(Config, study, "").data.state["left"].levels == 3
    study["data"]["state"]["left"]["levels"] = ["low", "mid", 3]
    assert validated(Config, study, "").data.state["left"].levels == ("low", "mid", 3)


def test_everything_is_frozen(study):
    config = validated(Config, study, "")
    for section, name in ((config, "discount"), (config.data, "path"), (config.estimation.policy, "hidden")):
        with pytest.raises(ValidationError):
            setattr(section, name, 1)


def test_overrides_are_typed_by_yaml_and_reach_any_depth(file):
    config = load_config(
        file,
        [
            "discount=0.9",
            "estimation.policy.hidden=[8, 8]",
            "estimation.anchor_q.solver=fqi",
            "data.path=a=b.csv",  # only the first = counts
            "data.segment=[region, status]",
            "data.available.annual.status=out",
            "anchor.reward=rent",
            "seed=7",
        ],
    )
    assert config.discount == 0.9 and config.seed == 7
    assert config.estimation.policy.hidden == (8, 8)
    assert config.estimation.anchor_q.solver == "fqi"
    assert config.data.path == "a=b.csv"
    assert config.data.segment == ("region", "status")
    assert config.data.available["annual"] == {"status": ("out",)}
    assert config.data.available["monthly"] == {"status": ("out", "in")}
    assert config.anchor.reward == "rent"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("discount", "override 'discount': write it as key.path=value"),
        ("=3", "write it as key.path=value"),
        ("discount.x=3", "'discount' is not a section"),
        ("data.actions.0=x", "'actions' is not a section"),
        ("discount=[", "the value is not valid YAML"),
        ("anchor={action: none, action: annual}", "the value is not valid YAML"),
        ("discont=0.9", "discont: unknown key; did you mean 'discount'?"),
        ("data.stat.x=1", "data.stat: unknown key; did you mean 'state'?"),
        ("discount=high", "discount: Input should be a valid number"),
        ("discount=", "discount: Input should be a valid number"),
    ],
)
def test_overrides_that_cannot_be(file, override, said):
    with pytest.raises(InputError) as caught:
        load_config(file, [override])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected a mapping of options at the top level"),
        (b"just text", "expected a mapping"),
        (b"data: [", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"seed: 1\ndata: {}\nseed: 2", "the key 'seed' of line 3 is already in line 1: keep one"),
        (b"anchor:\n  action: a\n  action: a", "the key 'action' of line 3 is already in line 2"),
    ],
)
def test_files_that_are_no_studies(tmp_path, content, said):
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path)


def test_nearest_and_unknown():
    assert nearest("anual", ["none", "annual"]) == "; did you mean 'annual'?"
    assert nearest("zzz", ["none", "annual"]) == "; known: none, annual"
    assert nearest("zzz", []) == ""
    assert unknown("none", ["none"], "here", "action") == []
    assert unknown("nine", ["none"], "here", "action") == ["here: unknown action 'nine'; did you mean 'none'?"]


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ({"columns": ["pric"]}, "did you mean 'price'"),
        ({"benefits": ["lefty"]}, "did you mean 'left'"),
        ({"columns": ["left"], "benefits": ["price"]}, "benefits"),
        ({"structure": "additive"}, "needs `benefits`"),
        ({"select": True}, "`select` and `intercept` are for `structure: linear`"),
        ({"structure": "full", "intercept": False}, "`structure: linear`"),
        ({"structure": "liner"}, "linear"),
        ({"same_flow_as": {"anual": "monthly"}}, "did you mean 'annual'"),
        ({"same_flow_as": {"annual": "montly"}}, "did you mean 'monthly'"),
        ({"same_flow_as": {"annual": "annual"}}, "`at` which state its own is meant"),
        ({"same_flow_as": {"annual": {"action": "monthly", "at": {"lefty": 0}}}}, "did you mean 'left'"),
        ({"same_flow_as": {"annual": {"like": "monthly"}}}, "unknown key"),
    ],
)
def test_a_form_of_the_reward_that_makes_no_sense_is_refused(study, reward, said):
    study["reward"] = reward
    assert said in refusal(study)


def test_the_form_of_the_reward_is_the_refits(study):
    study["reward"] = {"structure": "linear"}
    study["estimation"] = {"refit": {"rounds": 0}}
    assert "estimation.refit.rounds" in refusal(study)
    study["reward"] = {"benefits": ["left"]}  # only asks what is reported
    validated(Config, study, "study.yaml")


def test_flows_inside_contracts(study):
    flow = {"action": "annual", "at": {"left": 0}}
    study["reward"] = {"same_flow_as": {"annual": flow, "monthly": "annual"}}
    study["estimation"] = {"refit": {"rounds": 0}}  # it is no form of the reward
    declared = Config.model_validate(study).reward.same_flow_as
    assert declared["annual"].model_dump() == flow | {"add": 0.0} and declared["monthly"].at == {}


def test_how_members_enter_and_leave(study):
    assert Config.model_validate(study).data.exit == {} and Config.model_validate(study).data.entry is None
    study["data"] |= {"entry": "stock", "exit": "left_us"}
    assert Config.model_validate(study).data.exit == {"left_us": (True, 1)}
    study["data"]["exit"] = {"reason": ["moved", "died"]}
    assert Config.model_validate(study).data.exit == {"reason": ("moved", "died")}
    study["data"]["entry"] = "flows"
    assert "'flow' or 'stock'" in refusal(study)
