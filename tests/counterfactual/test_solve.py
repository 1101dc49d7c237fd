"""The scenario's policy against the exact oracle, on transitions weighted by their exact
probabilities, and on draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from irl import tabular
from irl.bellman import Nests
from irl.config import InputError
from irl.counterfactual import forward
from irl.counterfactual.intervention import compile_scenario
from irl.counterfactual.solve import TOLERANCE, solve
from irl.counterfactual.timing import solve_path
from irl.draws import drawn
from irl.scenario import Timing, scenario_from
from irl.transitions import Reached

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
    many, intervention = world.everywhere(1000), world.intervention(change)
    draws = drawn(world.model.dynamics, intervention, many, seed=0)
    for source, tolerance in ((world.transitions().of_segment, 1e-5), (draws.of_segment, 0.02)):
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
    mixed = replace(rows, segment=halves, reached=Reached.by(rows.next_state, halves))
    policy = solved(world, mixed.of_segment, change)
    reward = world.reward.clone()
    reward[:3, :, 1] += 1.0
    north, south = policy_at(policy, world, segment=0), policy_at(policy, world, segment=1)
    assert torch.allclose(north[ALL_FREE], exact(world, reward=reward)[ALL_FREE], atol=1e-5)
    assert torch.allclose(south[ALL_FREE], exact(world)[ALL_FREE], atol=1e-5)
    states, both = world.states().repeat(2, 1), torch.arange(2).repeat_interleave(10)
    mixed_q = policy.q(states, both)
    assert torch.allclose(mixed_q[:10], policy.q(states[:10], both[:10]), rtol=1e-5)
    assert torch.allclose(mixed_q[10:], policy.q(states[10:], both[10:]), rtol=1e-5)


def test_transitions_drawn_from_changed_dynamics(moving_world):
    world = moving_world
    change = {"feature": {"name": "tier", "set": 1}}
    intervention = world.intervention(change)
    assert intervention.changes_dynamics
    many = world.everywhere(1000)
    policy = solved(world, drawn(world.model.dynamics, intervention, many, seed=0).of_segment, change)
    oracle = exact(world, tier=1)
    assert torch.allclose(policy_at(policy, world)[ALL_FREE], oracle[ALL_FREE], atol=0.02)
    # the old dynamics under the new tier: something else
    logged_only = solved(world, world.transitions().of_segment, change)
    assert not torch.allclose(policy_at(logged_only, world)[ALL_FREE], oracle[ALL_FREE], atol=0.04)


@pytest.mark.parametrize("change", [{"like": {"tier": 1}, "where": {"tier": 0}}, {"shift": -0.8}])
def test_changed_dynamics(moving_world, change):
    """Against the world whose transitions are changed by hand; places count as levels in their order."""
    world = moving_world
    schema = replace(world.schema, columns=(replace(world.schema.columns[0], kind="ordinal"), world.schema.columns[1]))
    scenario = scenario_from({"name": "x", "changes": [{"dynamics": {"name": "place", **change}}]})
    intervention = compile_scenario(scenario, schema)
    transition = world.transition.clone()
    if "like" in change:
        transition[:, 0] = transition[:, 1]
    else:
        transition = transition * (change["shift"] * torch.arange(5)).exp()
        transition /= transition.sum(-1, keepdim=True)
    oracle, unchanged = exact(replace(world, transition=transition)), exact(world)
    rows = drawn(world.model.dynamics, intervention, world.everywhere(1000), seed=0)
    policy = solve(world.model, intervention, rows.of_segment, ridge_rows=1e-5)
    assert torch.allclose(policy_at(policy, world)[ALL_FREE], oracle[ALL_FREE], atol=0.02)
    assert not torch.allclose(oracle[ALL_FREE], unchanged[ALL_FREE], atol=0.04)  # else this shows nothing


def with_another(world, *, nest, facing=None, then=None):
    """The exact problem with a fourth action: monthly where there is a choice, at the reward of tier ``facing``, from
    which members go to place ``then``."""
    mdp = world.mdp()
    reward = world.reward[:, :, 1] if facing is None else world.reward[:, facing : facing + 1, 1].expand(-1, 2)
    menu = torch.tensor([True] * 6 + [False] * 4)
    goes = torch.stack([mdp.expectation(column) for column in torch.eye(10, dtype=torch.float64)], -1)  # [S, A, S']
    new = goes[:, 1]
    if then is not None:  # the whole mass, at the same tier
        new = torch.nn.functional.one_hot(then * 2 + torch.arange(10) % 2, 10).double()
    return tabular.FiniteMDP(
        torch.cat([mdp.reward, reward.reshape(10, 1)], 1),
        torch.cat([mdp.available, menu.unsqueeze(1)], 1),
        tabular.dense_expectation(torch.cat([goes, new.unsqueeze(1)], 1)),
        mdp.discount,
        mdp.temperature,
        Nests((0, 1, 2, 1), (1.0, 1 - nest, 1.0)),
    )


@pytest.mark.parametrize(("nest", "facing"), [(0.0, None), (0.6, None), (0.6, 1)])
def test_an_added_action(world, nest, facing):
    change = {"action": "student", "like": "monthly", "nest": nest, "where": {"place": ["out", "in", "deep"]}}
    change |= {} if facing is None else {"facing": {"tier": facing}}
    policy = solved(world, world.transitions().of_segment, {"add": change})
    oracle = tabular.solve(with_another(world, nest=nest, facing=facing))
    assert policy.converged and policy.weights.shape[1] == 3  # what follows is what follows monthly
    assert torch.allclose(policy_at(policy, world)[ALL_FREE], oracle.policy[ALL_FREE], atol=1e-5)
    states, segments = world.states(), torch.zeros(10, dtype=torch.long)
    value = policy.value(states, policy.menu(states, segments), segments)
    assert torch.allclose(value[ALL_FREE], oracle.value[ALL_FREE], atol=1e-4)


def test_an_added_action_that_leads_elsewhere(world):
    change = {"action": "dive", "like": "monthly", "nest": 0.3, "then": {"place": "deep"}}
    intervention = world.intervention({"add": change | {"where": {"place": ["out", "in", "deep"]}}})
    rows = drawn(world.model.dynamics, intervention, world.everywhere(1000), seed=0)
    policy = solve(world.model, intervention, rows.of_segment, ridge_rows=1e-5)
    oracle = tabular.solve(with_another(world, nest=0.3, then=2)).policy
    assert torch.allclose(policy_at(policy, world)[ALL_FREE], oracle[ALL_FREE], atol=0.02)
    alike = tabular.solve(with_another(world, nest=0.3)).policy
    assert not torch.allclose(oracle[ALL_FREE], alike[ALL_FREE], atol=0.04)  # else this shows nothing


def test_convergence_is_returned_and_not_assumed(world):
    change = {"reward": {"action": "monthly", "add": 2.0}}
    policy = solved(world, world.transitions().of_segment, change, max_rounds=1)
    assert (policy.rounds, policy.converged) == (1, False)
    assert policy.change > 1e-5
    policy = solved(world, world.transitions().of_segment, change)
    assert policy.converged and 1 < policy.rounds < 10 and policy.change <= TOLERANCE


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


def test_every_policy_of_a_scenario_is_compiled_as_it_is_asked(world):
    follow, timing = world.transitions().of_segment, Timing(start=1, length=2, announced=True)
    base = solve(world.model, world.intervention(), follow, compile="kernels")
    for when in (Timing(), timing):
        path = solve_path(base, world.intervention(DEARER), when, lambda intervention: follow)
        assert {path.at(t).forward._pass for t in range(4)} == {forward.compiled("kernels")}
    assert solve(world.model, world.intervention(), follow).forward._pass is forward.passed


DEARER = {"reward": {"action": "annual", "add": -1.0}}
