"""Draws of what follows: forced states are run through, numbers are stratified, and programmes share them."""

from __future__ import annotations

import pytest
import torch

from irl import tabular
from irl.config import InputError
from irl.counterfactual.solve import solve
from irl.draws import FEW, drawn, representative, spanned, stratified
from irl.transitions import DRAWS, States, Unchanged

ALL_FREE = slice(0, 6)  # out, in, deep at both tiers


def follow(world, rows, *changes, seed=0, draws=2):
    return drawn(world.model.dynamics, world.intervention(*changes), rows, seed=seed, draws=draws)


def test_paths_run_through_forced_states_to_the_next_choice_or_end(world):
    found = follow(world, world.everywhere(2000), seed=1)
    places = found.next_state[:, :, 0]
    assert found.next_state.shape == (len(found.state), 2, 2) and found.steps.shape == places.shape
    assert not (places == 3).any()  # locked: nothing is chosen there
    assert torch.equal(found.ends, places == 4)
    assert not (found.state[:, 0] == 3).any()
    # one row for every action on the menu of every state
    assert len(found.state) == 2000 * int(world.menu()[ALL_FREE].sum())
    # durations: 1 + the number of months locked, whose distribution is known
    lock, stay = world.transition[0, 0, 2, 3], world.transition[3, 0, 1, 3]
    mine = (found.state[:, 0] == 0) & (found.action == 2)
    shares = [float((found.steps[mine] == k).double().mean()) for k in (1, 2, 3)]
    exact = [float(1 - lock), float(lock * (1 - stay)), float(lock * stay * (1 - stay))]
    assert shares == pytest.approx(exact, abs=0.02)


def test_states_are_left_as_before_the_changes(moving_world):
    """The kernel applies the changes itself: a state that had them already would be changed twice."""
    found = follow(moving_world, moving_world.everywhere(20), {"feature": {"name": "tier", "set": 1}})
    assert set(found.state[:, 1].tolist()) == {0.0, 1.0}
    assert torch.equal(found.state[:, 1:].expand(-1, 2), found.next_state[:, :, 1])


def test_draws_are_common_to_programmes_and_repeat_with_the_seed(world):
    rows = world.everywhere(20)
    first, second = (follow(world, rows, seed=seed) for seed in (0, 1))
    assert torch.equal(first.next_state, follow(world, rows).next_state)
    assert not torch.equal(first.next_state, second.next_state)
    fewer = follow(world, rows, {"remove": {"action": "annual"}})
    assert torch.equal(first.next_state[first.action != 2], fewer.next_state)


def test_the_programme_as_it_is_is_the_empty_intervention(world):
    rows = world.everywhere(20)
    plain = drawn(world.model.dynamics, Unchanged(world.schema), rows, seed=0, draws=2)
    assert torch.equal(plain.next_state, follow(world, rows).next_state)
    assert torch.equal(plain.action, follow(world, rows).action)


def test_numbers_are_stratified_row_by_row_and_coordinate_by_coordinate():
    within = torch.rand(50, 3, generator=torch.Generator().manual_seed(1))
    uniform = stratified(within, 8, torch.Generator().manual_seed(0))
    parts = (uniform * 8).long().sort(1).values
    torch.testing.assert_close(uniform * 8 % 1, within.unsqueeze(1).expand(-1, 8, -1), rtol=0, atol=1e-4)
    assert torch.equal(parts, torch.arange(8).view(1, 8, 1).expand(50, 8, 3))
    assert len({tuple(row) for row in (uniform[:, :, 0] * 8).long().tolist()}) > 40  # the order is drawn afresh


def test_more_draws_leave_less_noise_in_means(world):
    """The mean of an indicator over 8 stratified draws: its variance falls by far more than by 8."""
    rows = world.everywhere(500)
    variance = {}
    for draws in (1, 8):
        found = follow(world, rows, draws=draws)
        mine = (found.state[:, 0] == 1) & (found.action == 0)
        reached = (found.next_state[mine][:, :, 0] == 0).double().mean(1)
        variance[draws] = float(reached.var())
    assert 0 < variance[8] < variance[1] / 20


def test_frequencies_are_met_over_the_rows_of_a_level(world):
    """Up to a few of their 8,000 draws: by luck they would miss by four or more."""
    found = follow(world, world.everywhere(500), draws=8)
    misses = []
    for place in (0, 1, 2):
        mine = (found.state[:, 0] == place) & (found.action == 0)
        at_once = found.next_state[mine][:, :, 0][found.steps[mine] == 1]  # others run on from locked
        share = torch.bincount(at_once.long(), minlength=5) / (8 * int(mine.sum()))
        misses += [8000 * abs(share - world.transition[place, 0, 0])[q] for q in (0, 1, 2, 4)]
    assert torch.stack(misses).square().mean().sqrt() < 1.5


def test_a_contract_without_end_is_refused(world):
    model = world.model
    table = model.dynamics.table_0.clone()
    try:
        model.dynamics.table_0[3] = torch.eye(5)[3]  # locked for ever
        with pytest.raises(InputError, match="without a choice for more than 600 periods"):
            follow(world, world.everywhere(2))
    finally:
        model.dynamics.table_0.copy_(table)


def test_rows_without_any_choice_are_refused(world):
    locked = States(torch.tensor([[3.0, 0.0]]), torch.zeros(1, dtype=torch.long), torch.ones(1))
    with pytest.raises(InputError, match="nobody has anything to choose"):
        follow(world, locked)


def test_some_rows_are_taken_at_random_and_keep_their_order():
    rows = States(torch.arange(100.0).unsqueeze(1), torch.zeros(100, dtype=torch.long), torch.ones(100))
    some = rows.at_most(20, seed=0)
    taken = some.state.squeeze(1)
    assert len(taken.unique()) == 20 and torch.equal(taken, taken.sort().values)
    assert len(taken.diff().unique()) > 1  # no fixed stride
    assert rows.at_most(100, seed=0) is rows


def test_few_states_are_taken_all_with_what_is_reached_from_them(world):
    model, rows = world.model, world.everywhere(2000)
    programme, first = Unchanged(model.schema), rows.only(rows.state[:, 0] == 0)
    found = spanned(model.dynamics, [programme], [first], few=1000, seed=0)
    assert found is not None and len(found.state) > len(first.distinct().state)
    states = {tuple(s) for s in found.state.tolist()}
    assert len(states) <= len(found.state) <= len(rows.distinct().state)
    assert float(found.weight.min()) >= 1 and float(found.weight.sum()) >= float(first.weight.sum())
    following = drawn(model.dynamics, programme, found, seed=1)
    assert {tuple(s) for s in following.next_state.flatten(0, 1)[~following.ends.flatten()].tolist()} <= states
    assert spanned(model.dynamics, [programme], [first], few=1, seed=0) is None


def test_a_scenario_is_solved_on_every_state_where_these_are_few(world):
    """All members are out; what they answer hangs on states that none of them is in."""
    out, programme = world.everywhere(3000), world.intervention()
    out = out.only(out.state[:, 0] == 0)
    rows, draws = representative(world.model.dynamics, [programme], out, most=8000, seed=0)
    assert draws == FEW * DRAWS and len(rows.state) < 20
    exact, states, nobody = tabular.solve(world.mdp()).policy[:6], world.states(), torch.zeros(10, dtype=torch.long)

    def error(rows, draws):
        follow = drawn(world.model.dynamics, programme, rows, seed=0, draws=draws).of_segment
        policy = solve(world.model, programme, follow)
        found = policy.log_policy(states, policy.menu(states, nobody), nobody).exp()[:6]  # where there is a choice
        return float((found - exact).abs().max())

    sample, once = representative(world.model.dynamics, [programme], out, most=20, seed=0)
    assert once == DRAWS and len(sample.state) == 20
    assert error(rows, draws) < 0.05 < 0.1 < error(out.at_most(8000, seed=0), DRAWS)
