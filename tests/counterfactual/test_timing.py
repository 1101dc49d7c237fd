"""Changes that come later, end, or are announced, against backward induction on the small world."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from irl import tabular
from irl.counterfactual.intervention import Intervention, compile_scenario
from irl.counterfactual.rollout import Starts, rollout
from irl.counterfactual.scenario_policy import ScenarioPolicy
from irl.counterfactual.solve import solve
from irl.counterfactual.timing import PolicyPath, remembered, solve_path
from irl.draws import drawn
from irl.scenario import Timing, scenario_from

FREE = slice(0, 6)  # out, in, deep at both tiers
UP = {"reward": {"action": "annual", "add": 1.5, "where": {"place": "out"}}}
RIDGE = 1e-6


def rows(world):
    return lambda intervention: world.transitions().of_segment


def baseline(world, **options):
    return solve(world.model, world.intervention(), world.transitions().of_segment, ridge_rows=RIDGE, **options)


def path(world, **timing):
    return solve_path(baseline(world), world.intervention(UP), Timing(**timing), rows(world), ridge_rows=RIDGE)


def changed(world):
    reward = world.reward.clone()
    reward[0, :, 2] += 1.5
    return world.mdp(reward=reward)


def exact(world, *, start=0, length=None, announced=False):
    """policy[10, 3] by period until nothing changes any more, the last for good; and the value in the first period."""
    before, after = (tabular.solve(mdp) for mdp in (world.mdp(), changed(world)))
    last = after if length is None else before
    during = tabular.backwards(changed(world), last.value, periods=length or 0)
    known = tabular.backwards(world.mdp(), during[0][0] if during else last.value, periods=start)
    first = known if announced else [(before.value, before.policy)] * start
    return [policy for _, policy in (*first, *during)] + [last.policy], (*first, *during, (last.value, None))[0][0]


def at(policy, world):
    states, segments = world.states(), torch.zeros(10, dtype=torch.long)
    return policy.log_policy(states, policy.menu(states, segments), segments).exp()


TIMINGS = [
    {"start": 3},
    {"start": 3, "announced": True},
    {"length": 2},
    {"start": 2, "length": 2},
    {"start": 2, "length": 2, "announced": True},
]


@pytest.mark.parametrize("timing", TIMINGS, ids=str)
def test_every_period_against_backward_induction(world, timing):
    found, (policies, value) = path(world, **timing), exact(world, **timing)
    assert isinstance(found, PolicyPath)
    for t, policy in enumerate(policies):
        assert torch.allclose(at(found.at(t), world)[FREE], policy[FREE], atol=2e-5), t
    states, segments = world.states(), torch.zeros(10, dtype=torch.long)
    first = found.at(0)
    own = first.value(states, first.menu(states, segments), segments)
    assert torch.allclose(own[FREE], value[FREE], atol=1e-4)
    assert found.news == (0 if timing.get("announced") else timing.get("start", 0))


def test_announced_is_not_surprise(world):
    policies = [exact(world, start=2, length=2, announced=told)[0][1][FREE] for told in (True, False)]
    assert (policies[0] - policies[1]).abs().max() > 0.02  # else the test above shows nothing


def test_from_the_start_for_good_is_the_plain_solution(world):
    assert isinstance(path(world), ScenarioPolicy)


def test_draws_of_the_parameters_are_carried_back(world, monkeypatch):
    """The slope of every period's Q along a draw is the difference of paths at rewards moved along it."""
    step, draws = 1e-3, torch.zeros(1, 3, world.model.terms.width, dtype=torch.float64)
    draws[0, 1, 0], draws[0, 2, 0] = 0.7, -0.4
    timing = Timing(start=1, length=2, announced=True)
    about = {"rows": rows(world), "ridge_rows": RIDGE}
    found = solve_path(baseline(world, draws=draws), world.intervention(UP), timing, **about)
    real, sides = type(world.model).reward_of, []
    for sign in (step, -step):
        moved = torch.tensor([0.0, 0.7, -0.4]) * sign
        monkeypatch.setattr(
            type(world.model), "reward_of", lambda self, state, g=None, m=moved: real(self, state, g) + m
        )
        plain = solve_path(baseline(world), world.intervention(UP), timing, **about)
        sides.append([plain.at(t).q(world.states()[FREE], torch.zeros(6, dtype=torch.long)) for t in range(4)])
        monkeypatch.undo()
    menu = world.menu()[FREE]
    for t in range(4):
        slope = found.at(t).q_draws(world.states()[FREE], torch.zeros(6, dtype=torch.long))[..., 0]
        numeric = (sides[0][t] - sides[1][t]) / (2 * step)
        assert torch.allclose(slope[menu], numeric[menu].double(), atol=5e-3), t


def test_the_rollout_follows_the_path(world):
    """Members who start out: what they choose in each period, by its exact policy; worth counted at the news."""
    timing = {"start": 2, "length": 1}
    starts = Starts(torch.tensor([[0.0, 0.0]]).repeat(20_000, 1), torch.zeros(20_000, dtype=torch.long))
    counts = rollout(world.model, {"baseline": baseline(world), "x": path(world, **timing)}, starts, periods=5, seed=0)
    mass, policies = torch.zeros(10, dtype=torch.float64), exact(world, **timing)[0]
    mass[0] = 1
    steps = [next(iter(tabular.propagate(world.mdp(), policies[0], mass, periods=1)))]
    for policy in (*policies, policies[-1])[:4]:
        steps.append(list(tabular.propagate(world.mdp(), policy, steps[-1], periods=2))[1])
    value = [
        tabular.solve(world.mdp()).value,
        tabular.backwards(changed(world), tabular.solve(world.mdp()).value, periods=1)[0][0],
    ]
    for t, (here, policy) in enumerate(zip(steps, (*policies, policies[-1]), strict=False)):
        here = torch.where(world.menu().any(1), here, 0.0)
        share = (here.unsqueeze(1) * policy).sum(0) / here.sum()
        found = counts["x"].chose[0, t] / counts["x"].present[0, t]
        assert torch.allclose(found, share, atol=0.012), t
    assert torch.equal(counts["x"].chose[:, :2], counts["baseline"].chose[:, :2])
    choosing = steps[2][FREE]
    gain = float((counts["x"].value - counts["baseline"].value)[0] / counts["x"].valued[0])
    assert gain == pytest.approx(float((choosing * (value[1] - value[0])[FREE]).sum() / choosing.sum()), rel=0.02)
    assert float(counts["x"].valued[0]) == pytest.approx(20_000 * float(choosing.sum()), rel=0.02)


def test_rows_are_drawn_once(world):
    calls = []

    def drawn(intervention):
        return lambda segment: calls.append(segment) or world.transitions()

    follow, own, other = remembered(drawn), world.intervention(), world.intervention(UP)
    assert follow(own)(0) is follow(own)(0) and follow(own)(1) is not follow(other)(1)
    assert calls == [0, 1, 1]


NORTH = {"reward": {"action": "annual", "add": 1.5, "where": {"region": "north"}}}


@pytest.mark.parametrize("timing", [{}, {"start": 2, "announced": True}, {"start": 1, "length": 2}])
def test_segments_that_no_change_reaches_keep_their_policy_to_the_bit(world, timing):
    before, change = baseline(world), world.intervention(NORTH)
    assert change.reached == (True, False)
    policy = solve_path(before, change, Timing(**timing), rows(world), ridge_rows=RIDGE)
    states, south = world.states(), torch.ones(10, dtype=torch.long)
    moved = []
    for period in range(5):
        then = policy.at(period)
        assert torch.equal(then.q(states, south), before.q(states, south))
        moved.append(not torch.allclose(then.q(states, 0 * south), before.q(states, 0 * south)))
    assert any(moved)


def test_nor_do_they_move_with_others_where_the_state_shows_the_segment(world):
    """Values of all are projected on one basis."""
    tiers = replace(world.schema, segments=("0", "1"), segment_columns=("tier",))
    change = {"reward": {"action": "annual", "add": 1.5, "where": {"tier": 0}}}
    plain, change = (replace(each, schema=tiers) for each in (world.intervention(), world.intervention(change)))
    before = solve(world.model, plain, world.transitions().of_segment, ridge_rows=RIDGE)
    policy = solve_path(before, change, Timing(), rows(world), ridge_rows=RIDGE)
    states = world.states()
    own = states[:, 1].long()
    same = (policy.q(states, own) == before.q(states, own)).all(1)
    assert bool(same[own == 1].all()) and not bool(same[own == 0][:3].any())


def test_an_action_that_is_added_elsewhere_leaves_the_policy_as_it_is(world):
    """Its course is one more of the continuation."""
    new = {"action": "student", "like": "monthly", "then": {"place": "deep"}, "where": {"region": "north"}}
    change = world.intervention({"add": new})
    plain = Intervention(world.schema, (), ("student",))
    about = {"ridge_rows": RIDGE}
    before = solve(world.model, plain, lambda segment: drawn_under(world, plain, segment), **about)
    policy = solve_path(before, change, Timing(), lambda now: lambda segment: drawn_under(world, now, segment), **about)
    states, south = world.states(), torch.ones(10, dtype=torch.long)
    assert policy.weights.shape[1] == before.weights.shape[1] + 1
    assert torch.equal(policy.q(states, south)[:, :3], before.q(states, south)[:, :3])
    assert bool(policy.menu(states, 0 * south)[0, 3]) and not bool(policy.menu(states, south)[:, 3].any())


def drawn_under(world, intervention, segment):
    return drawn(world.model.dynamics, intervention, world.everywhere(4).of_segment(segment), seed=0)


def test_which_segments_are_reached_is_read_from_columns_that_members_keep(world):
    tier = replace(world.schema, segments=("0", "1"), segment_columns=("tier",))
    where = {"where": {"tier": 1}}
    cases = {
        (False, True): [{"reward": {"action": "annual", "add": 1.0, **where}}],
        (True, True): [{"reward": {"action": "annual", "add": 1.0, "where": {"place": "out"}}}],
        (False, False): [],
    }
    for expected, changes in cases.items():
        assert replace(world.intervention(*changes), schema=tier).reached == expected
    moved = world.intervention({"feature": {"name": "tier", "set": 0, **where}})
    assert replace(moved, schema=tier).reached == (True, True)


def of_scenario(world, **about):
    change = {"feature": {"name": "tier", "set": 1, **about.pop("only", {})}}
    return compile_scenario(scenario_from({"name": "x", "changes": [change], **about}), world.schema)


def faced(policy, world):
    states, segments = world.states(), torch.zeros(10, dtype=torch.long)
    there = policy.intervention.state(states, segments)
    return policy.log_policy(there, policy.menu(there, segments), segments).exp()


def test_a_column_put_to_a_value_for_a_time_comes_back(world):
    """Members of both tiers face the second for two periods, and what follows is that of their own."""
    found = solve_path(baseline(world), of_scenario(world, timing={"length": 2}), Timing(length=2), rows(world),
                       ridge_rows=RIDGE)  # fmt: skip
    before = tabular.solve(world.mdp())
    during = tabular.backwards(world.mdp(tier=1), before.value, periods=2)
    for t, (_, policy) in enumerate(during):
        assert torch.allclose(faced(found.at(t), world)[FREE], policy[FREE], atol=2e-5), t
    assert (during[1][1][0] - during[1][1][1]).abs().max() > 1e-3  # else their own tiers would not matter


def test_a_column_put_to_a_value_in_some_states_comes_back_behind_them(world):
    intervention = of_scenario(world, only={"where": {"place": "out"}})
    found = solve(world.model, intervention, lambda s: rows(world)(intervention)(s), ridge_rows=RIDGE)
    reward, transition = world.reward.clone(), world.transition.clone()
    reward[0], transition[0] = reward[0, 1], transition[0, 1]
    exact_policy = tabular.solve(replace(world, transition=transition).mdp(reward=reward)).policy
    assert torch.allclose(faced(found, world)[FREE], exact_policy[FREE], atol=2e-5)
    assert intervention.state(world.states(), torch.zeros(10, dtype=torch.long)).shape == (10, 3)
    lasting = intervention.lasting(intervention.state(world.states(), torch.zeros(10, dtype=torch.long)))
    assert torch.equal(lasting, world.states())
