"""What draws of the reward's parameters do to values, shares and surplus, against the world solved anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from irl import tabular
from irl.counterfactual.intervals import slopes
from irl.counterfactual.outcomes import ask, axes_of
from irl.counterfactual.rates import arrays, levels
from irl.counterfactual.rollout import GAIN, Starts, rollout
from irl.counterfactual.solve import solve
from irl.refitted import Refitted

STEP = 1e-4
SEEN = [0, 1, 2, 3, 4, 5]  # place and tier, where there is a choice
PERIODS = 5


@pytest.fixture(scope="module")
def refitted(world):
    """The world with its reward as a refit, and two directions [2, A, Dx] of its parameters."""
    x = world.model.terms(world.states()).double()
    refit = Refitted(0, 3, x.shape[1], world.model.basis(world.states()).shape[1])
    refit.theta.copy_(torch.linalg.lstsq(x[SEEN], world.reward.reshape(10, 3)[SEEN], driver="gelsd").solution.T)
    draws = torch.randn(2, 3, x.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws[:, 0] = 0
    return replace(world, model=replace(world.model, refit=refit)), draws


def exact(world, draw, *, fifth=False):
    """Solutions at the reward a small step along the draw, and against it."""
    x = world.model.terms(world.states()).double()
    found = []
    for step in (STEP, -STEP):
        reward = world.reward.reshape(10, 3) + step * x @ draw.T
        reward[6:] = world.reward.reshape(10, 3)[6:]
        if fifth:
            reward[:, 2] = torch.where(world.menu().sum(1) > 1, 1.2 * reward[:, 2], reward[:, 2])
        found.append(tabular.solve(world.mdp(reward=reward.view(5, 2, 3))))
    return found


def solved(world, draws, *changes):
    return solve(
        world.model, world.intervention(*changes), world.transitions().of_segment, ridge_rows=1e-6, draws=draws
    )


SCALED = {"reward": {"action": "annual", "scale": 1.2}}


@pytest.mark.parametrize("fifth", [False, True])
def test_values_move_with_the_parameters_as_they_should(refitted, fifth):
    world, draws = refitted
    policy = solved(world, draws, *([SCALED] if fifth else []))
    state, menu = world.states()[SEEN], world.menu()[SEEN]
    found = policy.q_draws(state, torch.zeros(len(state), dtype=torch.long))
    for b, draw in enumerate(draws):
        up, down = exact(world, draw, fifth=fifth)
        expected = (up.q - down.q)[SEEN] / (2 * STEP)
        assert torch.allclose(found[..., b][menu], expected[menu], atol=1e-2)
        assert expected[menu].abs().max() > 1.5


def test_under_a_reference_policy_the_mean_reward_does_not_move(refitted):
    """Policy and draws when it is 1/3 none and 2/3 monthly whose mean reward is known."""
    world, draws = refitted
    schema = replace(world.schema, anchor=None, anchor_weights=(1.0, 2.0, 0.0))
    x = world.model.terms(world.states()).double()
    refit = Refitted(None, 3, x.shape[1], world.model.basis(world.states()).shape[1])
    refit.theta.copy_(world.model.refit.theta)
    refit.theta[0] = 0
    changed = replace(world, model=replace(world.model, schema=schema, refit=refit))
    mu = torch.tensor([1 / 3, 2 / 3, 0], dtype=torch.float64)
    utility = x @ refit.theta.T

    def of(utility):
        reward = utility - (utility @ mu).unsqueeze(1) + 0.3
        reward[6:] = world.reward.reshape(10, 3)[6:]
        return tabular.solve(world.mdp(reward=reward.view(5, 2, 3)))

    policy = solved(changed, draws)
    state, menu, segment = world.states()[SEEN], world.menu()[SEEN], torch.zeros(len(SEEN), dtype=torch.long)
    assert torch.allclose(policy.q(state, segment)[menu], of(utility).q[SEEN][menu], atol=1e-2)
    found = policy.q_draws(state, segment)
    for b, draw in enumerate(draws):
        up, down = (of(utility + step * x @ draw.T) for step in (STEP, -STEP))
        expected = (up.q - down.q)[SEEN] / (2 * STEP)
        assert torch.allclose(found[..., b][menu], expected[menu], atol=1e-2)
        assert expected[menu].abs().max() > 0.5


def test_shares_and_surplus_move_with_the_parameters_as_they_should(refitted):
    world, draws = refitted
    policy = solved(world, draws)
    members = 120_000
    index = torch.arange(members)
    starts = Starts(torch.stack([(index % 3).float(), (index // 3 % 2).float()], 1), torch.zeros_like(index))
    counts = rollout(world.model, {"baseline": policy}, starts, periods=PERIODS, seed=0)["baseline"]
    mass = torch.bincount((starts.state[:, 0] * 2 + starts.state[:, 1]).long(), minlength=10).double() / members
    axes = axes_of(policy, (), reported=0, paid=False)

    def shares_of(sums):  # share_<action> come first
        return np.stack([outcome.values[0] for outcome in levels(sums, axes)[:3]]).ravel()

    found = slopes(shares_of, [arrays(counts)], [arrays(counts.slopes)])
    for b, draw in enumerate(draws):
        shares, values = [], []
        for solution in exact(world, draw):
            paths = tabular.propagate(world.mdp(), solution.policy, mass, periods=PERIODS)
            shares.append(torch.stack([(m.unsqueeze(1) * solution.policy).sum(0) / m[:8].sum() for m in paths]))
            values.append(float(mass @ solution.value))
        expected = ((shares[0] - shares[1]) / (2 * STEP)).numpy()  # [T, A]
        shown = found[:, b].reshape(3, PERIODS).T
        assert np.abs(shown - expected).max() < 0.02
        assert np.abs(expected).max() > 0.2
        surplus = float(counts.slopes.value[0, b]) / members
        assert surplus == pytest.approx((values[0] - values[1]) / (2 * STEP), abs=2e-2)


def test_as_many_gain_and_lose_more_as_a_draw_makes(refitted):
    world, draws = refitted
    base, case = solved(world, draws), solved(world, draws, SCALED)
    state = world.states()[SEEN]
    starts = Starts(state.repeat(50, 1), torch.zeros(50 * len(state), dtype=torch.long))
    slopes_of = rollout(world.model, {"baseline": base, "case": case}, starts, periods=1, seed=0)["case"].slopes
    before, after = (exact(world, 0 * draws[0], fifth=fifth)[0].value[SEEN] for fifth in (False, True))
    moves = []
    for b, draw in enumerate(draws):
        (up, down), (dear_up, dear_down) = exact(world, draw), exact(world, draw, fifth=True)
        moved = ((dear_up.value - dear_down.value) - (up.value - down.value))[SEEN] / (2 * STEP)
        gain, drawn = (g * (1 - world.model.config.discount) for g in (after - before, after - before + moved))
        for sums, sign in ((slopes_of.gained, 1), (slopes_of.lost, -1)):
            more = (sign * drawn > GAIN).double().sum() - (sign * gain > GAIN).double().sum()
            moves.append(float(more))
            assert float(sums[0, b]) == 50 * moves[-1]
    assert any(moves)


def test_intervals_are_as_wide_as_the_parameters_uncertainty(refitted, panel_and_frame):
    world, draws = refitted
    _, frame = panel_and_frame
    refit = world.model.refit
    assert not world.model.has_standard_errors
    free = draws[:, 1:].flatten(1)
    refit.covariance.copy_(free.T @ free / 2)
    scenario = {"name": "x", "periods": 4, "members": 3000, "changes": [SCALED]}
    outcomes = ask(world.model, scenario, frame).answer().outcomes
    shares = outcomes["outcome"].str.startswith("share_") | (outcomes["outcome"] == "surplus")
    squares = [(outcomes["high"] - outcomes["low"])[shares] ** 2]
    for _ in range(2):
        refit.covariance.copy_(refit.covariance / 4)
        halved = ask(world.model, scenario, frame).answer().outcomes
        squares.append((halved["high"] - halved["low"])[shares] ** 2)
    refit.covariance.zero_()
    assert (squares[0] > squares[1]).all() and (squares[2] > 0).all()
    # what the parameters add to the square of the width is a quarter; what luck adds stays
    assert np.allclose(squares[0] - squares[1], 4 * (squares[1] - squares[2]), rtol=1e-3)
    assert np.median(squares[0] / squares[2]) > 4
    middle = (outcomes["high"] + outcomes["low"])[shares] / 2
    assert np.allclose(middle, outcomes.loc[shares, "change"])
    assert outcomes.loc[outcomes["outcome"].isin(["gainers", "losers"]), ["low", "high"]].notna().all(axis=None)
    without = ask(world.model, scenario, frame).answer().outcomes
    assert without[["low", "high"]].isna().all(axis=None)


def test_draws_have_the_covariance_they_should():
    refit = Refitted(1, 3, 2, 4)
    root = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    refit.covariance.copy_(root @ root.T)
    exactly = refit.draws(6, seed=0)
    assert exactly.shape == (6, 3, 2) and (exactly[:, 1] == 0).all()
    free = exactly[:, [0, 2]].flatten(1)
    assert torch.allclose(free.T @ free / 6, refit.covariance)
    few = refit.draws(3, seed=0)[:, [0, 2]].flatten(1)
    assert not torch.equal(few, refit.draws(3, seed=1)[:, [0, 2]].flatten(1))
    x = torch.tensor([[1.0, 2.0]])
    error = refit.standard_error(x, torch.tensor([[0.0, 1.0, 0.0]]))
    assert error[0, 1] == 0
    assert float(error[0, 2]) == pytest.approx(float((x.double() @ refit.covariance[2:, 2:] @ x.double().T).sqrt()))
