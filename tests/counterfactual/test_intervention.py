"""What a scenario does to states, rewards and menus, and everything that is refused before it is solved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from irl.bellman import Nests
from irl.config import InputError
from irl.counterfactual.intervention import Intervention, cautions, compile_scenario
from irl.data.schema import Column, StateSchema
from irl.declared import Between
from irl.scenario import scenario_from

SCHEMA = StateSchema(
    columns=(
        Column(name="status", kind="category", dynamics="table", labels=("in", "out"), parents=(0,), maximum=1.0),
        Column(name="price", kind="numeric", dynamics="static", assigned="randomised", minimum=8.0, maximum=12.0),
        Column(name="paid", kind="numeric", dynamics="static", minimum=1.0, maximum=2.0),
        Column(name="fee", kind="numeric", dynamics="static", assigned="randomised", minimum=5.0, maximum=5.0),
        Column(name="family", kind="count", dynamics="static", minimum=0.0, maximum=6.0),
        Column(name="use", kind="ordinal", dynamics="learned", labels=("0", "5", "10"), maximum=2.0),
        Column(name="known", kind="numeric", dynamics="static", assigned="randomised", minimum=0.0, maximum=1.0),
    ),
    actions=("none", "monthly", "annual"),
    anchor=0,
    anchor_reward="known",
    segment_columns=("region", "age"),
    segments=("north | 30", "north | 60", "south | 30"),
    available=((2, {"status": ("out",)}),),
    terminal={},
)
STATUS, PRICE, PAID, FEE, FAMILY, USE, KNOWN = range(7)
STATE = torch.tensor([[0, 10.0, 1, 5, 2, 0, 0], [1, 10.0, 1, 5, 2, 1, 0], [1, 8.0, 2, 5, 3, 2, 1]])
SEGMENT = torch.tensor([0, 1, 2])


def intervention(*changes, schema=SCHEMA):
    return compile_scenario(scenario_from({"name": "x", "changes": list(changes)}), schema)


def refusal(*changes, schema=SCHEMA):
    with pytest.raises(InputError) as caught:
        intervention(*changes, schema=schema)
    return str(caught.value)


def feature(**options):
    return {"feature": options}


def test_the_empty_intervention_is_the_baseline():
    nothing = Intervention(SCHEMA, ())
    reward = torch.randn(3, 3)
    assert nothing.state(STATE, SEGMENT) is STATE
    assert nothing.reward(reward, STATE, SEGMENT) is reward
    assert torch.equal(nothing.menu(STATE, SEGMENT), SCHEMA.menu(STATE))
    assert not nothing.changes_dynamics
    assert nothing.groups == (0, 0, 0)
    assert cautions(nothing, STATE, SEGMENT) == []


@pytest.mark.parametrize(
    ("options", "prices"),
    [
        ({"scale": 1.2}, [12, 12, 9.6]),
        ({"add": -1}, [9, 9, 7]),
        ({"scale": 2, "add": 1}, [21, 21, 17]),  # scale first
        ({"set": 9}, [9, 9, 9]),
        ({"set": "9.5"}, [9.5, 9.5, 9.5]),
        ({"scale": 2, "where": {"status": "out"}}, [10, 20, 16]),
        ({"scale": 2, "where": {"price": {"min": 9}}}, [20, 20, 8]),
        ({"scale": 2, "where": {"region": "north"}}, [20, 20, 8]),
        ({"scale": 2, "where": {"region": "north", "age": 60}}, [10, 20, 8]),
        ({"scale": 2, "where": {"age": [30.0]}}, [20, 10, 16]),
        ({"scale": 2, "where": {"region": ["north", "south"], "status": "in"}}, [20, 10, 8]),
        ({"scale": 2, "where": {"use": [5, 10], "family": 3}}, [10, 10, 16]),
    ],
)
def test_a_feature_is_changed_where_the_condition_holds(options, prices):
    before = STATE.clone()
    changed = intervention(feature(name="price", **options)).state(STATE, SEGMENT)
    assert changed[:, PRICE].tolist() == pytest.approx(prices)
    others = [f for f in range(7) if f != PRICE]
    assert torch.equal(changed[:, others], STATE[:, others])
    assert torch.equal(STATE, before)  # the panel's own rows stay as they are


def test_a_level_is_set_by_its_label():
    assert intervention(feature(name="use", set=10)).state(STATE, SEGMENT)[:, USE].tolist() == [2, 2, 2]
    assert intervention(feature(name="status", set="in")).state(STATE, SEGMENT)[:, STATUS].tolist() == [0, 0, 0]


def test_features_change_in_order_and_conditions_read_the_state_before():
    both = intervention(
        feature(name="price", add=10, where={"status": "out"}),
        feature(name="price", scale=2, where={"price": 10}),  # 10 before any change
        feature(name="status", set="in"),
    )
    assert both.state(STATE, SEGMENT)[:, PRICE].tolist() == [20, 40, 18]


def test_rewards_and_menus_read_the_changed_state():
    dearer = feature(name="price", set=9, where={"status": "in"})
    reward = {"reward": {"action": "monthly", "add": 1, "where": {"price": 9}}}
    remove = {"remove": {"action": "monthly", "where": {"price": 9}}}
    both = intervention(dearer, reward, remove)
    faced = both.state(STATE, SEGMENT)
    assert both.reward(torch.zeros(3, 3), faced, SEGMENT).tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert both.menu(faced, SEGMENT).tolist() == [[True, False, False], [True, True, True], [True, True, True]]


def test_rewards_are_scaled_then_added_to_in_order():
    reward = torch.tensor([[0.0, 2.0, 3.0]]).expand(3, 3)
    changes = [
        {"reward": {"action": "annual", "scale": 2, "add": 1}},
        {"reward": {"action": "annual", "scale": 10, "where": {"region": "south"}}},
        {"reward": {"action": "monthly", "scale": 0}},
    ]
    changed = intervention(*changes).reward(reward, STATE, SEGMENT)
    assert changed.tolist() == [[0, 0, 7], [0, 0, 7], [0, 0, 70]]
    assert reward[0].tolist() == [0, 2, 3]


def test_an_empty_menu_is_refused_with_the_state():
    only_monthly = replace(SCHEMA, available=((0, {"status": ("out",)}), (2, {"status": ("out",)})))
    removed = intervention({"remove": {"action": "monthly"}}, schema=only_monthly)
    with pytest.raises(InputError, match=r"removing 'monthly' leaves nothing to choose .*status in, .*`where`"):
        removed.menu(STATE, SEGMENT)
    careful = intervention({"remove": {"action": "monthly", "where": {"status": "out"}}}, schema=only_monthly)
    assert careful.menu(STATE, SEGMENT).tolist()[0] == [False, True, False]


def test_terminal_states_have_no_menu():
    over = replace(SCHEMA, terminal={"status": ("in",)})
    removed = intervention({"remove": {"action": "monthly", "where": {"region": "north"}}}, schema=over)
    menu = removed.menu(STATE, SEGMENT)
    assert menu.tolist() == [[False, False, False], [True, False, True], [True, True, True]]


class Follows:
    """Dynamics that say what they are asked, and leave everything as it is but for how much is used."""

    def sample(self, state, action, uniform, movements=()):
        self.asked = (state, action.tolist(), movements)
        following = state.clone()
        following[:, USE] = torch.tensor([1.0, 1.0, 2.0])
        return following


def test_what_does_not_move_is_as_before_the_changes():
    dearer = intervention(feature(name="price", scale=2), feature(name="use", set=0))
    faced, dynamics = dearer.state(STATE, SEGMENT), Follows()
    following = dearer.follow(dynamics, STATE, faced, torch.tensor([0, 1, 2]), torch.zeros(3, 2), SEGMENT)
    assert torch.equal(dynamics.asked[0], faced)
    assert torch.equal(following[:, PRICE], STATE[:, PRICE])
    assert following[:, USE].tolist() == [1, 1, 2]
    assert torch.equal(dearer.state(following, SEGMENT)[:, PRICE], faced[:, PRICE])


def added(**options):
    return {"add": {"action": "student", "like": "monthly", "nest": 0.5, **options}}


def test_an_added_action_has_what_it_is_made_of():
    given = intervention(
        added(facing={"price": 4}, where={"age": 30}),
        {"remove": {"action": "monthly", "where": {"region": "south"}}},
        {"reward": {"action": "student", "add": 0.25, "where": {"region": "north"}}},
    )
    assert given.actions == ("none", "monthly", "annual", "student")
    assert given.like == (0, 1, 2, 1) and given.courses == (0, 1, 2, 1)
    assert given.nests == Nests(of=(0, 1, 2, 1), dissimilarity=(1.0, 0.5, 1.0))
    menu = [[True, True, False, True], [True, True, True, False], [True, False, True, True]]
    assert given.menu(STATE, SEGMENT).tolist() == menu
    whole = given.over_actions(lambda state: state[:, [PRICE]] * torch.tensor([0.0, 1.0, 100.0]), STATE)
    assert whole.tolist() == [[0, 10, 1000, 4], [0, 10, 1000, 4], [0, 8, 800, 4]]
    assert given.reward(whole, STATE, SEGMENT)[:, 3].tolist() == [4.25, 4.25, 4]
    assert not given.changes_dynamics and given.groups == (0, 1, 2)


def test_what_follows_an_added_action_is_what_follows_its_model_but_for_then():
    given = intervention(added(then={"use": 10}), added(action="other"))
    assert given.courses == (0, 1, 2, 3, 1) and given.changes_dynamics
    dynamics = Follows()
    following = given.follow(dynamics, STATE, STATE, torch.tensor([1, 3, 4]), torch.zeros(3, 2), SEGMENT)
    assert dynamics.asked[1] == [1, 1, 1]
    assert following[:, USE].tolist() == [1, 2, 2]  # the first and the last move as use does


def test_an_action_that_other_cases_add_is_on_no_menu():
    baseline = Intervention(SCHEMA, (), ("student",))
    assert baseline.actions[3] == "student" and baseline.nests is None
    assert not baseline.menu(STATE, SEGMENT)[:, 3].any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (added(like="mothly"), "did you mean 'monthly'?"),
        (added(action="annual"), "the study has an action 'annual' already"),
        (added(like="none"), "'none' is an anchor, at a reward known by assumption"),
        (added(facing={"paid": 1.5}), "its effect is not identified"),
        (added(facing={"prize": 1.5}), "did you mean 'price'?"),
        (added(then={"price": 9}), "'price' never changes for a member"),
        (added(then={"use": 7}), "'7'"),
    ],
)
def test_what_cannot_be_added(change, said):
    assert said in refusal(change)


def test_copies_of_one_action_are_one_nest():
    assert "give them the same `nest`" in refusal(added(), added(action="other", nest=0.2))
    assert "'student' is added twice" in refusal(added(), added())


@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ([feature(name="price", scale=2)], (0, 0, 0)),
        ([feature(name="price", scale=2, where={"status": "in"})], (0, 0, 0)),
        ([feature(name="price", scale=2, where={"region": "north"})], (0, 0, 2)),
        ([{"remove": {"action": "annual", "where": {"age": 60, "status": "in"}}}], (0, 1, 0)),
        (
            [
                {"reward": {"action": "annual", "add": 1, "where": {"age": 30}}},
                {"reward": {"action": "annual", "add": 1, "where": {"region": "south"}}},
            ],
            (0, 1, 2),
        ),
    ],
)
def test_segments_are_grouped_by_what_is_done_to_them(changes, groups):
    assert intervention(*changes).groups == groups


def test_what_changes_the_dynamics():
    price, family = feature(name="price", scale=1.1), feature(name="family", set=1)
    quiet = replace(SCHEMA, columns=tuple(c for c in SCHEMA.columns if c.name != "use"))
    assert not intervention(price).changes_dynamics  # randomised
    assert not intervention({"remove": {"action": "annual"}}).changes_dynamics
    assert intervention(family).changes_dynamics  # the learned use may depend on it
    assert not intervention(family, schema=quiet).changes_dynamics  # nothing learned: nothing depends on it
    assert intervention(feature(name="use", set=5)).changes_dynamics  # it moves itself
    parent = (replace(quiet.columns[0], parents=(FAMILY,)), *quiet.columns[1:])
    assert intervention(family, schema=replace(quiet, columns=parent)).changes_dynamics
    menu = replace(quiet, available=((2, {"family": Between(min=1)}),))
    assert intervention(family, schema=menu).changes_dynamics
    assert intervention(family, schema=replace(quiet, terminal={"family": (5,)})).changes_dynamics


def dynamics(**options):
    return {"dynamics": options}


def test_a_movement_is_compiled_at_the_changed_state():
    both = intervention(
        feature(name="price", set=9, where={"status": "in"}),
        dynamics(name="use", like={"status": "out", "price": 12}, shift=0.5, where={"price": 9}),
        dynamics(name="use", shift=1),
    )
    assert both.changes_dynamics
    faced = both.state(STATE, SEGMENT)
    first, second = both.movements(faced, SEGMENT)
    assert (first.column, first.shift, first.where.tolist()) == (USE, 0.5, [True, False, False])
    assert first.like[:, [STATUS, PRICE]].tolist() == [[1, 12]] * 3
    others = [f for f in range(7) if f not in (STATUS, PRICE)]
    assert torch.equal(first.like[:, others], faced[:, others])
    assert (second.like, second.shift, second.where.tolist()) == (None, 1.0, [True, True, True])
    by_segment = intervention(dynamics(name="use", shift=1, where={"region": "north"}))
    assert by_segment.groups == (0, 0, 2)
    assert by_segment.movements(STATE, SEGMENT)[0].where.tolist() == [True, True, False]
    assert Intervention(SCHEMA, ()).movements(STATE, SEGMENT) == ()


REMEDY = "say `assigned: randomised` for it and train again; else state the change in reward units"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reward": {"action": "anual", "add": 1}}, "change 1: unknown action 'anual'; did you mean 'annual'?"),
        ({"remove": {"action": "montly"}}, "change 1: unknown action 'montly'; did you mean 'monthly'?"),
        ({"remove": {"action": "none"}}, "the anchor 'none' cannot be removed"),
        ({"reward": {"action": "none", "add": 1}}, "the reward of the anchor 'none' is known by assumption"),
        (feature(name="prise", scale=1.1), "unknown state column 'prise'; did you mean 'price'?"),
        (feature(name="paid", scale=1.1), REMEDY),
        (feature(name="paid", set=1.5), REMEDY),
        (feature(name="fee", scale=1.1), "'fee' never varies in the panel"),
        (feature(name="known", set=1), "'known' is the anchor's reward, which is known by assumption"),
        (feature(name="status", scale=2), "'status' is of kind category: `set` it to a level"),
        (feature(name="use", add=1), "'use' is of kind ordinal: `set` it to a level"),
        (feature(name="status", set="inn"), "'inn' never occurs in the data; did you mean 'in'?"),
        (feature(name="use", set=7), "'7' is not one of the levels"),
        (feature(name="price", set="cheap"), "'cheap' is not a number"),
        (feature(name="price", set=True), "set it to a number"),
        (feature(name="family", set=-1), "is a count: set it to 0, 1, 2"),
        (feature(name="family", set=1.5), "is a count: set it to 0, 1, 2"),
        (feature(name="price", scale=2, where={"statis": "in"}), "unknown state or segment column 'statis'"),
        (feature(name="price", scale=2, where={"regoin": "north"}), "did you mean 'region'?"),
        (feature(name="price", scale=2, where={"region": "nort"}), "no segment 'nort'; did you mean 'north'?"),
        (feature(name="price", scale=2, where={"age": {"min": 40}}), "segments are labels; list them"),
        (feature(name="price", scale=2, where={"status": ["in", "of"]}), "'of' never occurs in the data"),
        (feature(name="price", scale=2, where={"status": {"min": 1}}), "a range needs numbers"),
        (feature(name="price", scale=2, where={"price": {"min": 3, "max": 1}}), "an empty range"),
        ({"remove": {"action": "annual", "where": {"price": "dear"}}}, "'dear' is not a number"),
        (dynamics(name="usee", shift=1), "change 1: unknown state column 'usee'; did you mean 'use'?"),
        (dynamics(name="price", shift=1), "'price' is static: it does not move; `feature: {name: price, set: ...}`"),
        (dynamics(name="status", shift=1), "'status' is a category: its levels have no order to `shift` along"),
        (dynamics(name="use", like={"statis": "in"}), "like: unknown state column 'statis'; did you mean 'status'?"),
        (dynamics(name="use", like={"status": "inn"}), "'inn' never occurs in the data; did you mean 'in'?"),
        (dynamics(name="use", like={"family": 1.5}), "'family' is a count: set it to 0, 1, 2"),
        (dynamics(name="use", like={"use": 5}), "its own value stays what it is; name other columns"),
        (dynamics(name="use", like={"region": "north"}), "'region' is no state column; list it under `data.state`"),
        (dynamics(name="status", like={"price": 9}), "it moves by its parents only (status), not by 'price'"),
        (dynamics(name="use", shift=1, where={"regoin": "north"}), "did you mean 'region'?"),
    ],
)
def test_refusals(change, said):
    assert said in refusal(change)


NAMED = Column(name="named", kind="category", dynamics="table", labels=("monthly", "none"), parents=(0,), maximum=1.0)
BY_STATE = replace(SCHEMA, columns=(*SCHEMA.columns, NAMED), anchor=None, anchor_by_state="named")
BY_POLICY = replace(SCHEMA, anchor=None, anchor_weights=(1.0, "family", 0.0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"remove": {"action": "none"}},
            "'none' is the anchor and has to be available where 'named' names it",
        ),
        ({"reward": {"action": "monthly", "add": 1}}, "leave these states out: `where: {named: [none]}`"),
        (
            {"reward": {"action": "none", "add": 1, "where": {"named": ["monthly", "none"]}}},
            "is known by assumption where",
        ),
        (feature(name="named", set="none"), "'named' says what the anchor is, which is given"),
    ],
)
def test_an_anchor_by_state_stays_as_it_is_where_it_is_one(change, said):
    assert said in refusal(change, schema=BY_STATE)


def test_clocks_and_the_anchor_s_column_move_as_they_do():
    clock = replace(
        SCHEMA, columns=(*SCHEMA.columns[:5], replace(SCHEMA.columns[5], dynamics="clock"), SCHEMA.columns[6])
    )
    assert "'use' is a clock: it moves by itself" in refusal(dynamics(name="use", shift=1), schema=clock)
    said = refusal(dynamics(name="named", like={"status": "in"}), schema=BY_STATE)
    assert "'named' says what the anchor is, which is given: its movement cannot be changed" in said


def test_an_anchor_by_state_may_change_elsewhere():
    where = {"named": "none"}
    changes = (
        {"remove": {"action": "monthly", "where": where}},
        {"reward": {"action": "monthly", "add": 1, "where": where}},
    )
    assert len(intervention(*changes, schema=BY_STATE).changes) == 2
    assert intervention({"reward": {"action": "annual", "add": 1}}, schema=BY_STATE).changes


def test_a_reference_policy_leaves_all_actions_free_but_not_its_weights():
    changes = ({"remove": {"action": "none", "where": {"status": "in"}}}, {"reward": {"action": "none", "scale": 2}})
    assert len(intervention(*changes, schema=BY_POLICY).changes) == 2
    assert "'family' says what the anchor is" in refusal(feature(name="family", set=2), schema=BY_POLICY)


def test_a_moving_number_can_only_be_set():
    moving = (*SCHEMA.columns[:1], replace(SCHEMA.columns[1], dynamics="learned"), *SCHEMA.columns[2:])
    schema = replace(SCHEMA, columns=moving)
    said = refusal(feature(name="price", scale=1.1), schema=schema)
    assert "moves by itself (learned); `add` and `scale` would compound" in said
    assert intervention(feature(name="price", set=9), schema=schema).changes_dynamics


def test_all_problems_come_in_one_message():
    said = refusal(
        {"reward": {"action": "anual", "add": 1, "where": {"statsu": "in"}}},
        feature(name="paid", scale=2),
        {"remove": {"action": "none", "where": {"age": 31}}},
    )
    assert said.startswith("scenario 'x':")
    assert [line.strip().split(":")[0] for line in said.splitlines()[1:]] == [
        "change 1.where", "change 1", "change 2", "change 3.where.age", "change 3",
    ]  # fmt: skip


def test_segment_labels_that_hide_their_parts():
    odd = replace(SCHEMA, segments=("north | 30", "south | up | 30"))
    assert "labels that contain ' | '" in refusal(feature(name="price", scale=2, where={"age": 30}), schema=odd)
    single = replace(SCHEMA, segment_columns=("region",), segments=("a | b", "c"))  # one column: nothing to take apart
    changed = intervention(feature(name="price", scale=2, where={"region": "a | b"}), schema=single)
    assert changed.state(STATE, torch.tensor([0, 1, 1]))[:, PRICE].tolist() == [20, 10, 8]


def test_cautions():
    said = cautions(intervention(feature(name="price", scale=1.2)), STATE, SEGMENT)
    assert said == []  # 12 is still inside what was seen
    said = cautions(intervention(feature(name="price", scale=1.3)), STATE, SEGMENT)
    assert said == [
        "price is put outside its observed range (8 to 12) in 67 % of the rows, where its effect is extrapolated"
    ]
    said = cautions(intervention(feature(name="family", set=1, where={"status": "in"})), STATE, SEGMENT)
    assert len(said) == 1 and "family is not declared `assigned: randomised`" in said[0]
    nowhere = {"reward": {"action": "annual", "add": 1, "where": {"status": "in", "age": 60}}}
    said = cautions(intervention(nowhere), STATE, SEGMENT)
    assert said == ["change 1 applies to no row of the panel: its `where` holds nowhere"]
