"""The scenario's policy against the exact oracle, on transitions weighted by their exact
probabilities, and on draws."""

from __future__ import annotations

import pytest
import torch

from irl import tabular
from irl.config import InputError
from irl.counterfactual.solve import Transitions, drawn, logged, solve

ALL_FREE = slice(0, 6)  # out, in, deep at both tiers


def solved(world, rows, *changes, **options):
    return solve(world.model, world.intervention(*changes), rows, ridge_rows=1e-5, **options)


def policy_at(policy, world, *, segment=0):
    """pi[10, 3] at every state as members face it."""
    segments = torch.full((10,), segment)
    faced = policy.intervention.state(world.states(), segments)
    return policy.log_policy(faced, policy.menu(faced, segments), segments).exp()


def exact(world, **changed):
    return tabular.solve(world.mdp(**changed)).policy


def test_without_a_change_the_policy_is_the_oracle_s(world):
    policy = solved(world, world.transitions().of_segment)
    assert policy.converged
    assert policy.rounds <= 8
    assert torch.allclose(policy_at(policy, world)[ALL_FREE], exact(world)[ALL_FREE], atol=1e-5)


def test_its_values_are_the_oracle_s_too(world):
    policy = solved(world, world.transitions().of_segment)
    states, segments = world.states(), torch.zeros(10, dtype=torch.long)
    value = policy.value(states, policy.menu(states, segments), segments)
    oracle = tabular.solve(world.mdp())
    assert torch.allclose(value[ALL_FREE], oracle.value[ALL_FREE], atol=1e-4)
    on_menu = world.menu()[ALL_FREE]
    assert torch.allclose(policy.q(states, segments)[ALL_FREE][on_menu], oracle.q[ALL_FREE][on_menu], atol=1e-4)
    assert value[8:].tolist() == [0.0, 0.0]  # gone


def test_a_changed_reward(world):
    change = {"reward": {"action": "annual", "add": -1.5, "scale": 0.5, "where": {"place": "out"}}}
    policy = solved(world, world.transitions().of_segment, change)
    reward = world.reward.clone()
    reward[0, :, 2] = reward[0, :, 2] * 0.5 - 1.5
    assert torch.allclose(policy_at(policy, world)[ALL_FREE], exact(world, reward=reward)[ALL_FREE], atol=1e-5)


def test_a_removed_action(world):
    policy = solved(world, world.transitions().of_segment, {"remove": {"action": "monthly", "where": {"place": "in"}}})
    available = world.menu()
    available[2:4, 1] = False
    found = policy_at(policy, world)
    assert torch.allclose(found[ALL_FREE], exact(world, available=available)[ALL_FREE], atol=1e-5)
    assert (found[2:4, 1] == 0).all()


def test_an_action_removed_everywhere(world):
    policy = solved(world, world.transitions().of_segment, {"remove": {"action": "annual"}})
    available = world.menu()
    available[:, 2] = False
    assert torch.allclose(policy_at(policy, world)[ALL_FREE], exact(world, available=available)[ALL_FREE], atol=1e-5)


def test_a_menu_reduced_to_the_anchor_still_earns_the_anchor_s_reward(world):
    """A state with one action left is no contract: its reward is received, and its value is not skipped."""
    change = {"remove": {"action": "monthly", "where": {"place": "deep"}}}
    available = world.menu()
    available[4:6, 1] = False
    oracle = tabular.solve(world.mdp(available=available))
    many, intervention = world.everywhere(4000), world.intervention(change)
    sources = [(world.transitions().of_segment, 1e-5), (lambda s: drawn(world.model, intervention, many, seed=0), 0.02)]
    for source, tolerance in sources:
        policy = solved(world, source, change)
        states, segments = world.states(), torch.zeros(10, dtype=torch.long)
        value = policy.value(states, policy.menu(states, segments), segments)
        assert torch.allclose(policy_at(policy, world)[ALL_FREE], oracle.policy[ALL_FREE], atol=tolerance)
        assert torch.allclose(value[4:6], oracle.value[4:6], atol=10 * tolerance), (value, oracle.value)


def test_a_changed_static_feature(world):
    policy = solved(world, world.transitions().of_segment, {"feature": {"name": "tier", "set": 1}})
    assert not policy.intervention.changes_dynamics
    assert torch.allclose(policy_at(policy, world)[ALL_FREE], exact(world, tier=1)[ALL_FREE], atol=1e-5)
    assert not torch.allclose(exact(world, tier=1)[0], exact(world)[0], atol=0.05)  # else this shows nothing


def test_a_segment_that_the_state_does_not_show_is_answered_on_its_own(world):
    """Without this, both segments would be given the policy of a half-changed reward."""
    change = {"reward": {"action": "monthly", "add": 1.0, "where": {"region": "north"}}}
    rows = world.transitions()
    halves = torch.arange(len(rows.state)) % 2
    mixed = Transitions(**{n: getattr(rows, n) for n in rows.__dataclass_fields__} | {"segment": halves})
    policy = solved(world, mixed.of_segment, change)
    reward = world.reward.clone()
    reward[:3, :, 1] += 1.0
    north, south = policy_at(policy, world, segment=0), policy_at(policy, world, segment=1)
    assert torch.allclose(north[ALL_FREE], exact(world, reward=reward)[ALL_FREE], atol=1e-5)
    assert torch.allclose(south[ALL_FREE], exact(world)[ALL_FREE], atol=1e-5)
    states, both = world.states().repeat(2, 1), torch.arange(2).repeat_interleave(10)
    mixed_q = policy.q(states, both)
    assert torch.equal(mixed_q[:10], policy.q(states[:10], both[:10]))
    assert torch.equal(mixed_q[10:], policy.q(states[10:], both[10:]))


def test_transitions_drawn_from_changed_dynamics(moving_world):
    world = moving_world
    change = {"feature": {"name": "tier", "set": 1}}
    intervention = world.intervention(change)
    assert intervention.changes_dynamics
    many = world.everywhere(4000)
    policy = solved(world, lambda segment: drawn(world.model, intervention, many.of_segment(segment), seed=0), change)
    oracle = exact(world, tier=1)
    assert torch.allclose(policy_at(policy, world)[ALL_FREE], oracle[ALL_FREE], atol=0.02)
    logged_only = solved(
        world, world.transitions().of_segment, change
    )  # the old dynamics under the new tier: something else
    assert not torch.allclose(policy_at(logged_only, world)[ALL_FREE], oracle[ALL_FREE], atol=0.04)


def test_drawn_runs_through_forced_states_to_the_next_choice_or_end(world):
    many = world.everywhere(4000)
    found = drawn(world.model, world.intervention(), many, seed=1)
    places = found.next_state[:, 0]
    assert not (places == 3).any()  # locked: nothing is chosen there
    assert torch.equal(found.ends, places == 4)
    assert not (found.state[:, 0] == 3).any()
    # one draw for every action on the menu of every row
    assert len(found.state) == 4000 * int(world.menu()[ALL_FREE].sum())
    # durations: 1 + the number of months locked, whose distribution is known
    lock, stay = world.transition[0, 0, 2, 3], world.transition[3, 0, 1, 3]
    mine = (found.state[:, 0] == 0) & (found.action == 2)
    shares = [float((found.steps[mine] == k).double().mean()) for k in (1, 2, 3)]
    assert shares == pytest.approx(
        [float(1 - lock), float(lock * (1 - stay)), float(lock * stay * (1 - stay))], abs=0.02
    )


def test_drawn_leaves_the_states_before_the_changes(moving_world):
    """The kernel applies the changes itself: a state that had them already would be changed twice."""
    rows = moving_world.transitions()
    found = drawn(moving_world.model, moving_world.intervention({"feature": {"name": "tier", "set": 1}}), rows, seed=0)
    assert set(found.state[:, 1].tolist()) == {0.0, 1.0}
    assert torch.equal(found.state[:, 1], found.next_state[:, 1])


def test_draws_are_common_to_cases_and_repeat_with_the_seed(world):
    rows = world.transitions()
    draws = {seed: drawn(world.model, world.intervention(), rows, seed=seed).next_state for seed in (0, 1)}
    assert torch.equal(draws[0], drawn(world.model, world.intervention(), rows, seed=0).next_state)
    assert not torch.equal(draws[0], draws[1])
    fewer = drawn(world.model, world.intervention({"remove": {"action": "annual"}}), rows, seed=0)
    kept = drawn(world.model, world.intervention(), rows, seed=0).action != 2
    moved = draws[0][kept]
    agree = (moved[:, 0] == fewer.next_state[:, 0]).double().mean()
    assert agree == 1.0


def test_drawn_refuses_a_contract_without_end(world):
    model = world.model
    table = model.dynamics.table_0.clone()
    rows = world.transitions()
    try:
        model.dynamics.table_0[3] = torch.eye(5)[3]  # locked for ever
        with pytest.raises(InputError, match="without a choice for more than 600 periods"):
            drawn(model, world.intervention(), rows, seed=0)
    finally:
        model.dynamics.table_0.copy_(table)


def test_drawn_refuses_rows_without_any_choice(world):
    rows = world.transitions()
    locked = Transitions(
        **{n: getattr(rows, n) for n in rows.__dataclass_fields__} | {"state": torch.full_like(rows.state, 3.0)}
    )
    with pytest.raises(InputError, match="nobody has anything to choose"):
        drawn(world.model, world.intervention(), locked, seed=0)


def test_logged_are_the_panel_s_own_transitions(world, panel_and_frame):
    panel, frame = panel_and_frame
    rows = logged(panel)
    assert len(rows.state) == int((panel.next_choice >= 0).sum())
    assert not (rows.state[:, 0] >= 3).any() and not (rows.next_state[:, 0] == 3).any()
    assert torch.equal(rows.ends, rows.next_state[:, 0] == 4)
    assert float(rows.steps.max()) > 1
    first = frame[frame["id"] == 0].reset_index(drop=True)  # by hand: the first transition of the first member
    after = next(i for i in range(1, len(first)) if first.loc[i, "place"] != "locked")
    assert int(rows.steps[0]) == after
    assert world.schema.columns[0].labels[int(rows.next_state[0, 0])] == first.loc[after, "place"]


def test_convergence_is_returned_and_not_assumed(world):
    change = {"reward": {"action": "monthly", "add": 2.0}}
    policy = solved(world, world.transitions().of_segment, change, max_rounds=1)
    assert (policy.rounds, policy.converged) == (1, False)
    assert policy.change > 1e-5
    policy = solved(world, world.transitions().of_segment, change)
    assert policy.converged and 1 < policy.rounds < 10 and policy.change <= 1e-5


def test_of_two_groups_the_worse_end_is_returned(world):
    change = {"reward": {"action": "monthly", "add": 3.0, "where": {"region": "south"}}}
    both = solved(world, world.transitions().of_segment, change)
    south = solved(world, world.transitions().of_segment, {"reward": {"action": "monthly", "add": 3.0}})
    north = solved(world, world.transitions().of_segment)
    assert both.rounds == max(north.rounds, south.rounds)
    assert both.change == max(north.change, south.change)
    stopped = max(north.rounds, south.rounds) - 1
    assert not solved(world, world.transitions().of_segment, change, max_rounds=stopped).converged


def test_amounts_beyond_all_numbers_are_refused(world):
    change = {"reward": {"action": "monthly", "add": 1e39}}  # infinite as float32
    with pytest.raises(InputError, match="not finite"):
        solved(world, world.transitions().of_segment, change)


def test_an_action_nobody_has_left_to_take_is_refused(world):
    change = {"remove": {"action": "monthly"}}  # but locked members have nothing else
    policy = solved(world, world.transitions().of_segment, change)
    with pytest.raises(InputError, match=r"leaves nothing to choose in some states .*place locked"):
        policy_at(policy, world)
