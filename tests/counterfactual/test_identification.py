"""The table of what the anchor identifies, on a problem of six states and four actions solved exactly; and verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from irl import tabular
from irl.bellman import Nests
from irl.counterfactual.identification import classify, shaped, spread
from irl.scenario import Timing, scenario_from

PLACES, SEGMENTS, ACTIONS = 3, 2, 4  # state = 3 * segment + place; a segment is a static feature
NONE, EXACT, VISIBLE = 1e-10, 1e-12, 0.01


@pytest.fixture(scope="module")
def problem():
    """The problem and its transitions [6, 4, 6]; nobody leaves a segment."""
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(SEGMENTS, PLACES, ACTIONS, PLACES, generator=generator, dtype=torch.float64)
    inside = inside / inside.sum(-1, keepdim=True)
    transition = torch.zeros(6, ACTIONS, 6, dtype=torch.float64)
    for segment in range(SEGMENTS):
        rows = slice(3 * segment, 3 * segment + 3)
        transition[rows, :, rows] = inside[segment]
    reward = torch.randn(6, ACTIONS, generator=generator, dtype=torch.float64)
    available = torch.ones(6, ACTIONS, dtype=torch.bool)
    return tabular.FiniteMDP(reward, available, tabular.dense_expectation(transition), 0.9, 0.7), transition


@pytest.fixture(scope="module")
def potentials():
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def lump_sum(mdp, transition):
    added = torch.zeros_like(mdp.reward)
    added[1:4, 2] = 0.8
    return replace(mdp, reward=mdp.reward + added)


def removal(mdp, transition):
    available = mdp.available.clone()
    available[::2, 3] = False
    return replace(mdp, available=available)


def duplicate(mdp, transition):
    def twice(values):
        return torch.cat([values, values[:, 1:2]], 1)

    expectation = tabular.dense_expectation(twice(transition))
    return tabular.FiniteMDP(twice(mdp.reward), twice(mdp.available), expectation, mdp.discount, mdp.temperature)


def nested_copy(mdp, transition):
    """A copy that shares part of its shock, and is worth .3 more."""
    copied = duplicate(mdp, transition)
    reward = copied.reward.clone()
    reward[:, -1] += 0.3
    return replace(copied, reward=reward, nests=Nests((0, 1, 2, 3, 1), (1.0, 0.4, 1.0, 1.0)))


def copy_that_leads_elsewhere(mdp, transition):
    copied = duplicate(mdp, transition)
    moved = torch.cat([transition, transition[:, :1]], 1)
    return replace(copied, expectation=tabular.dense_expectation(moved))


def temperature(mdp, transition):
    return replace(mdp, temperature=2 * mdp.temperature)


def scale_all(mdp, transition):
    return replace(mdp, reward=1.5 * mdp.reward)


def static_set(mdp, transition):
    """Everybody is as in segment 1: its rewards and dynamics."""
    moved = transition.clone()
    moved[:3, :, :3] = transition[3:, :, 3:]
    return replace(mdp, reward=mdp.reward[3:].repeat(2, 1), expectation=tabular.dense_expectation(moved))


def scale_some(mdp, transition):
    reward = mdp.reward.clone()
    reward[:, 2] *= 1.5
    return replace(mdp, reward=reward)


def dynamics(mdp, transition):
    return replace(mdp, expectation=tabular.dense_expectation(transition[:, [1, 0, 2, 3]]))


def moving_price(mdp, transition):
    """The static feature (here a segment) is another only while the place says so."""
    reward = mdp.reward.clone()
    reward[0] = mdp.reward[3]
    return replace(mdp, reward=reward)


def discount(mdp, transition):
    return replace(mdp, discount=0.8)


def new_action(mdp, transition):
    """Worth .5 everywhere, and leads where action 0 does."""
    reward = torch.cat([mdp.reward, torch.full_like(mdp.reward[:, :1], 0.5)], 1)
    expectation = tabular.dense_expectation(torch.cat([transition, transition[:, :1]], 1))
    menu = torch.ones(6, ACTIONS + 1, dtype=torch.bool)
    return tabular.FiniteMDP(reward, menu, expectation, mdp.discount, mdp.temperature)


def swap(mdp, transition):
    """Each segment has the other's rewards, and keeps its dynamics."""
    return replace(mdp, reward=mdp.reward.roll(3, 0))


@pytest.mark.parametrize(
    "change, behaviour, welfare",
    [
        (lump_sum, True, True),
        (removal, True, True),
        (duplicate, True, True),  # in the design's table welfare is "no", which the algebra contradicts
        (nested_copy, True, True),
        (copy_that_leads_elsewhere, False, False),
        (temperature, True, True),  # the same, as long as welfare is in reward units
        (scale_all, True, False),
        (static_set, True, False),
        (scale_some, False, False),
        (dynamics, False, False),
        (moving_price, False, False),
        (discount, False, False),
        (new_action, False, False),
        (swap, False, False),
    ],
)
def test_every_rule_of_the_table(problem, potentials, change, behaviour, welfare):
    mdp, transition = problem
    found = spread(mdp, lambda equivalent: change(equivalent, transition), potentials)
    assert found.behaviour <= NONE if behaviour else found.behaviour > VISIBLE
    assert found.welfare <= NONE if welfare else found.welfare > VISIBLE
    assert found.level > VISIBLE  # values are never identified


@pytest.mark.parametrize("change, free", [(lump_sum, True), (removal, True), (scale_all, False), (static_set, False)])
def test_for_a_time_only_what_shifts_no_value_is_free_of_the_anchor(problem, potentials, change, free):
    mdp, transition = problem
    answers = []
    for c in potentials:
        equivalent = shaped(mdp, c)
        before = tabular.policy_iteration(equivalent)[0]
        value, policy = tabular.backwards(change(equivalent, transition), before, periods=2)[0]
        answers.append((policy, value - before))
    for moved in map(torch.stack, zip(*answers, strict=True)):
        range_ = (moved.amax(0) - moved.amin(0)).max()
        assert range_ <= NONE if free else range_ > VISIBLE


def test_the_rewards_compared_fit_the_same_choices(problem, potentials):
    mdp = problem[0]
    value, policy = tabular.policy_iteration(mdp)
    for c in potentials:
        moved, same = tabular.policy_iteration(shaped(mdp, c))
        assert (same - policy).abs().max() < EXACT
        assert (moved - value - c).abs().max() < 1e-11
        assert (shaped(mdp, c).reward - mdp.reward).abs().max() > 0.1


def test_welfare_under_another_temperature_is_free_of_the_anchor_in_reward_units_only(problem, potentials):
    mdp, _ = problem
    gains = []
    for c in potentials:
        equivalent = shaped(mdp, c)
        after = tabular.policy_iteration(replace(equivalent, temperature=1.4))[0]
        gains.append(after / 1.4 - tabular.policy_iteration(equivalent)[0] / 0.7)
    assert (torch.stack(gains).amax(0) - torch.stack(gains).amin(0)).max() > VISIBLE


def test_a_constant_error_of_the_anchor_is_harmless_unless_actions_are_scaled_or_new(problem):
    mdp, transition = problem
    constant = torch.tensor([[-10.0], [10.0]], dtype=torch.float64).expand(2, 6)  # the anchor's reward is off by 1
    for change in (discount, dynamics, moving_price, swap):
        assert spread(mdp, lambda e, change=change: change(e, transition), constant).behaviour <= NONE, change
    for change in (scale_some, new_action):
        assert spread(mdp, lambda e, change=change: change(e, transition), constant).behaviour > VISIBLE, change


def test_where_a_state_is_terminal_a_constant_error_is_not_harmless(problem):
    mdp, transition = problem
    available = mdp.available.clone()
    available[2] = False
    ends = replace(mdp, available=available)
    constant = torch.tensor([[-10.0], [10.0]], dtype=torch.float64).expand(2, 6)
    assert spread(ends, lambda e: discount(e, transition), constant).behaviour > VISIBLE
    assert spread(ends, lambda e: lump_sum(e, transition), constant).behaviour <= NONE


def test_policy_iteration_is_the_fixed_point(problem):
    mdp, _ = problem
    menu = mdp.available.clone()
    menu[0, 1], menu[2] = False, False  # a smaller menu, and a terminal state
    for each in (mdp, replace(mdp, available=menu)):
        exact = tabular.solve(each, tolerance=1e-11)
        value, policy = tabular.policy_iteration(each)
        assert (value - exact.value).abs().max() < 1e-10
        assert (policy - exact.policy).abs().max() < 1e-10
    with pytest.raises(ValueError, match="without a clock"):
        tabular.policy_iteration(replace(mdp, reward=mdp.reward.unsqueeze(0)))


LUMP = {"reward": {"action": "annual", "add": 0.5, "where": {"place": "out"}}}
SCALED = {"reward": {"action": "annual", "scale": 1.2}}
REMOVED = {"remove": {"action": "annual"}}
TIER = {"feature": {"name": "tier", "set": 1, "where": {"region": "north"}}}
WHILE = {"feature": {"name": "tier", "set": 1, "where": {"place": "out"}}}
HELD = {"feature": {"name": "place", "set": "in"}}


@pytest.mark.parametrize(
    "changes, behaviour, welfare",
    [
        ([LUMP], True, True),
        ([{"reward": {"action": "annual", "add": 0.5, "scale": 1.0}}], True, True),
        ([REMOVED], True, True),
        ([LUMP, REMOVED], True, True),
        ([TIER], True, False),
        ([LUMP, TIER], True, False),
        ([SCALED], False, False),
        ([LUMP, SCALED], False, False),
        ([WHILE], False, False),
        ([HELD], False, False),
        ([TIER, HELD], False, False),
        ([{"add": {"action": "new", "like": "monthly", "nest": 0.5}}, LUMP], True, True),
        ([{"add": {"action": "new", "like": "monthly", "facing": {"tier": 1}}}], True, True),  # tier is randomised
        ([{"add": {"action": "new", "like": "monthly", "facing": {"place": "in"}}}], False, False),
        ([{"add": {"action": "new", "like": "monthly", "then": {"place": "in"}}}], False, False),
    ],
)
def test_verdicts(world, changes, behaviour, welfare):
    found = classify(scenario_from({"name": "x", "changes": changes}).changes, world.schema)
    assert (found.behaviour, found.welfare) == (behaviour, welfare)
    assert len(found.plain()["changes"]) == len(changes)


def test_verdicts_on_changes_for_a_time(world):
    def verdict(change, **timing):
        found = classify(scenario_from({"name": "x", "changes": [change]}).changes, world.schema, Timing(**timing))
        return found.behaviour, found.welfare

    assert verdict(LUMP, length=3) == verdict(REMOVED, start=2, announced=True) == (True, True)
    assert verdict(TIER, length=3) == verdict(TIER, start=2, announced=True) == (False, False)
    assert verdict(TIER, start=2) == verdict(TIER, announced=True) == (True, False)  # then for good, and at once


def test_all_actions_scaled_by_one_factor(world):
    """Possible where no action is the anchor."""
    schema = replace(world.schema, anchor=None, anchor_weights=(1.0, 1.0, 1.0))

    def verdict(*scales, where=None):
        each = zip(("none", "monthly", "annual"), scales, strict=False)
        changes = [{"reward": {"action": a, "scale": s, "where": where or {}}} for a, s in each]
        found = classify(scenario_from({"name": "x", "changes": changes}).changes, schema)
        return found.behaviour, found.welfare

    assert verdict(1.5, 1.5, 1.5) == (True, False)
    assert verdict(1.5, 1.5, 1.5, where={"tier": 1}) == (True, False)
    assert verdict(1.5, 1.5, 1.5, where={"place": "in"}) == (False, False)
    assert verdict(1.5, 1.5, 1.2) == verdict(1.5, 1.5) == (False, False)


def test_what_a_verdict_says(world):
    def said(*changes):
        return classify(scenario_from({"name": "x", "changes": list(changes)}).changes, world.schema).sentence()

    assert said(LUMP) == "neither choices nor the surplus depend on the anchor's reward"
    assert "choices do not depend on the anchor's reward, but the surplus does: a static feature" in said(LUMP, TIER)
    assert said(TIER, SCALED).startswith("choices and surplus depend on the anchor's reward: the rewards of some")
    assert "static" not in said(TIER, SCALED)
