"""Changes inside contracts against the exact oracle: the small world's `locked`, where there is only `monthly`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from irl import tabular
from irl.counterfactual import contracts
from irl.counterfactual.solve import solve
from irl.counterfactual.timing import solve_path
from irl.declared import Reward
from irl.draws import drawn
from irl.estimation.contracts import contracts as found_of
from irl.scenario import Timing

FREE = slice(0, 6)  # out, in, deep at both tiers
IN, LOCKED = 1, 3
MONTHLY, ANNUAL = 1, 2
INSIDE = {"place": "locked"}
LIKE = {"monthly": {"action": "annual", "at": {"place": "in"}}}


def declared(world):
    """The world, whose study says that a period in `locked` gives what `annual` gives in `in`."""
    reward = Reward.model_validate({"same_flow_as": LIKE})
    return replace(world, model=replace(world.model, config=world.model.config.model_copy(update={"reward": reward})))


def by_period(world):
    """reward[5, 2, 3] whose lumps are the world's rewards: what a period in `locked` gives is taken out of them."""
    gamma, flow = world.model.config.discount, world.reward[IN, :, ANNUAL]
    staying = world.transition[LOCKED, :, MONTHLY, LOCKED]
    reward = world.reward - gamma * world.transition[..., LOCKED] * (flow / (1 - gamma * staying)).unsqueeze(-1)
    reward[LOCKED, :, MONTHLY] = flow
    return reward


def answer(world, *changes, times=150, timing=None):
    """pi[10, 3] and V[10] at every state, on draws."""
    intervention, rows = world.intervention(*changes), world.everywhere(times)
    follow = partial(contracts.followed, world.model, seed=0)
    policy = solve(world.model, intervention, lambda g: follow(intervention, rows.of_segment(g)), ridge_rows=1e-5)
    if timing is not None:
        before = solve(world.model, world.intervention(), lambda g: follow(world.intervention(), rows.of_segment(g)))
        path = solve_path(before, intervention, timing, lambda i: lambda g: follow(i, rows.of_segment(g)))
        policy = path.at(0)
    states, segment = world.states(), torch.zeros(10, dtype=torch.long)
    faced = policy.intervention.state(states, segment)
    menu = policy.menu(faced, segment)
    return policy.log_policy(faced, menu, segment).exp(), policy.value(faced, menu, segment).double()


def agrees(found, oracle, tolerance=0.02):
    (policy, value), exact = found, oracle
    assert torch.allclose(policy[FREE], exact.policy[FREE], atol=tolerance), (policy[FREE] - exact.policy[FREE]).abs()
    assert torch.allclose(value[FREE], exact.value[FREE], atol=10 * tolerance), (value[FREE] - exact.value[FREE]).abs()


def test_the_lump_says_nothing_of_its_periods(world):
    """The oracle of the tests below makes the same choices as the one that pays lumps."""
    lumps, periods = (tabular.solve(world.mdp(reward=r)) for r in (world.reward, by_period(world)))
    assert torch.allclose(lumps.policy[FREE], periods.policy[FREE]) and torch.allclose(
        lumps.value[FREE], periods.value[FREE]
    )


def test_what_is_added_inside_a_contract_needs_no_declaration(world):
    change = {"reward": {"action": "monthly", "add": 3.0, "where": INSIDE}}
    reward = world.reward.clone()
    reward[LOCKED, :, MONTHLY] += 3.0
    oracle = tabular.solve(world.mdp(reward=reward))
    agrees(answer(world, change), oracle)
    assert (oracle.policy - tabular.solve(world.mdp()).policy)[FREE].abs().max() > 0.06  # else this shows nothing
    assert not contracts.problems_of(world.model, world.intervention(change), world.everywhere(1))


def test_what_is_added_for_a_time_counts_in_contracts_signed_then(world):
    change = {"reward": {"action": "monthly", "add": 3.0, "where": INSIDE}}
    reward = world.reward.clone()
    gamma, staying = world.model.config.discount, world.transition[LOCKED, :, MONTHLY, LOCKED]
    reward += gamma * world.transition[..., LOCKED] * (3.0 / (1 - gamma * staying)).unsqueeze(-1)
    known = tabular.solve(world.mdp()).value
    (value, policy) = tabular.backwards(world.mdp(reward=reward), known, periods=1)[0]
    found = answer(world, change, timing=Timing(length=1))
    assert torch.allclose(found[0][FREE], policy[FREE], atol=0.02) and torch.allclose(
        found[1][FREE], value[FREE], atol=0.2
    )


@pytest.mark.parametrize("where", [INSIDE, {}], ids=["inside", "everywhere"])
def test_scaled_flows_and_other_movements_with_a_declaration(moving_world, where):
    world = declared(moving_world)
    changes = [
        {"dynamics": {"name": "place", "like": {"tier": 1}, "where": {"tier": 0}}},
        {"reward": {"action": "monthly", "scale": 1.5, "add": 0.2, "where": where}},
    ]
    reward, transition = by_period(world), world.transition.clone()
    reward[slice(None) if not where else LOCKED, :, MONTHLY] *= 1.5
    reward[slice(None) if not where else LOCKED, :, MONTHLY] += 0.2
    transition[:, 0] = transition[:, 1]
    oracle = tabular.solve(replace(world, transition=transition).mdp(reward=reward))
    agrees(answer(world, *changes), oracle)
    without = tabular.solve(replace(world, transition=transition).mdp(reward=world.reward))
    assert (oracle.policy - without.policy)[FREE].abs().max() > 0.04


def test_where_nothing_changes_inside_contracts_the_rows_are_those_of_the_plain_programme(world):
    """Bit for bit: with a declaration or without, and where what is declared is held to what it was."""
    own, rows = declared(world), world.everywhere(20)
    plain = drawn(world.model.dynamics, world.intervention(), rows, seed=0)
    assert contracts.followed(own.model, own.intervention(), rows, seed=0).flow is None
    raised = own.intervention({"reward": {"action": "annual", "add": 1.0}})
    found = contracts.followed(own.model, raised, rows, seed=0)
    assert torch.equal(found.next_state, plain.next_state) and torch.equal(found.flow, torch.zeros_like(found.flow))


def test_draws_of_the_parameters_move_flows_as_the_rewards_do(moving_world, monkeypatch):
    world, step = declared(moving_world), 1e-3
    draws = torch.zeros(1, 3, world.model.terms.width, dtype=torch.float64)
    draws[0, 1, 0], draws[0, 2, 0] = 0.7, -0.4
    intervention = world.intervention(
        {"dynamics": {"name": "place", "like": {"tier": 1}, "where": {"tier": 0}}},
        {"reward": {"action": "monthly", "scale": 2.0, "where": INSIDE}},
    )
    rows, free = world.everywhere(30), world.states()[FREE]
    segment, menu = torch.zeros(6, dtype=torch.long), world.menu()[FREE]

    def solved(**options):
        found = contracts.followed(world.model, intervention, rows, seed=0, parameters=options.get("draws"))
        policy = solve(world.model, intervention, found.of_segment, ridge_rows=1e-6, **options)
        return found.flow, policy.q(free, segment).double(), policy

    (flow, _, policy), real, sides = solved(draws=draws), type(world.model).reward_of, []
    for sign in (step, -step):
        moved = torch.tensor([0.0, 0.7, -0.4]) * sign
        monkeypatch.setattr(
            type(world.model), "reward_of", lambda self, state, g=None, m=moved: real(self, state, g) + m
        )
        sides.append(solved())
        monkeypatch.undo()
    assert flow.shape[1] == 2 and flow[:, 1].abs().max() > 0.1
    assert torch.allclose(flow[:, 1], (sides[0][0] - sides[1][0])[:, 0] / (2 * step), atol=2e-3)
    slope = policy.q_draws(free, segment)[..., 0]
    numeric = (sides[0][1] - sides[1][1]) / (2 * step)
    assert torch.allclose(slope[menu], numeric[menu], atol=5e-3)


def test_what_cannot_be_told_is_refused_or_said(world, moving_world):
    inside = world.intervention({"reward": {"action": "monthly", "scale": 1.2, "where": INSIDE}})
    (refused,) = contracts.problems_of(world.model, inside, world.everywhere(1))
    assert "`add`" in refused and "same_flow_as: {monthly" in refused
    assert not contracts.problems_of(declared(world).model, inside, world.everywhere(1))
    whole = world.intervention({"reward": {"action": "monthly", "scale": 1.2}})
    assert not contracts.problems_of(world.model, whole, world.everywhere(1))
    assert "scales the lump of monthly" in contracts.cautions(world.model, whole, world.everywhere(1))[0]
    added = world.intervention({"add": {"action": "weekly", "like": "monthly", "nest": 0.0}})
    assert "inside a contract" in contracts.problems_of(world.model, added, world.everywhere(1))[0]
    elsewhere = {"action": "short", "like": "annual", "then": {"place": "out"}, "nest": 0.0}
    shorter = world.intervention({"add": elsewhere | {"where": {"place": ["out", "in"]}}})
    (refused,) = contracts.problems_of(world.model, shorter, world.everywhere(1))
    assert "short may lead to a contract of another length" in refused
    assert not contracts.problems_of(declared(world).model, shorter, world.everywhere(1))
    assert "the level of the flow" in contracts.cautions(declared(world).model, shorter, world.everywhere(1))[0]
    moving = moving_world.intervention({"dynamics": {"name": "place", "like": {"tier": 1}, "where": {"tier": 0}}})
    rows = moving_world.everywhere(1)
    (said,) = contracts.cautions(moving_world.model, moving, rows)
    assert "not identified" in said and "20%" in said
    assert not contracts.cautions(declared(moving_world).model, moving, rows)
    assert not contracts.cautions(world.model, world.intervention({"reward": {"action": "annual", "add": 1}}), rows)


def test_what_a_contract_is_made_of(world, panel_and_frame):
    panel, own = panel_and_frame[0], declared(world)
    (one,) = found_of(own.model, panel).items()
    inside = panel.state[:, 0] == LOCKED
    assert (
        one[0] == "monthly"
        and one[1]["like"] == "annual"
        and one[1]["share"] == pytest.approx(float(inside.double().mean()))
    )
    cell, tier, place = one[1]["segments"]["all"], panel.state[:, 1].long(), panel.state[:, 0].long()
    flow = world.reward[IN, :, ANNUAL]
    assert cell["flow"]["mean"] == pytest.approx(float(flow[tier[inside]].mean()), abs=1e-5)
    signing = (by_period(world)[..., MONTHLY] - flow)[place[panel.free], tier[panel.free]].mean()
    lump = world.reward[place[panel.free], tier[panel.free], MONTHLY].mean()
    assert cell["lump"] == pytest.approx(float(lump), abs=1e-5)
    assert cell["signing"] == pytest.approx(float(signing), abs=0.02)
    assert cell["lump"] == pytest.approx(cell["flows"] + cell["signing"])
    assert set(one[1]["segments"]) == {"north", "south", "all"}
    assert found_of(world.model, panel)["monthly"] == {"share": one[1]["share"], "like": None, "segments": {}}
