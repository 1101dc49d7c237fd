"""Forecasts against what happened, in a world whose rewards and dynamics are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from irl import tabular
from irl.config import InputError
from irl.counterfactual.backtest import backtest, check, experiment
from irl.counterfactual.forecast import (
    at_draw,
    choice_paths,
    compared,
    draws_of,
    observed_from,
    policy_for,
)
from irl.counterfactual.spells import Counts
from irl.data.panel import panel_from_frame
from irl.refitted import Refitted

PLACES, ACTIONS = ("out", "in", "deep", "locked", "gone"), ("none", "monthly", "annual")
GONE, HALF = 4, 6


def played(world, tiers, *, members, seed):
    """A panel of members who follow the exact policy of the tier[T] they face; one row a period until they are gone."""
    generator = np.random.default_rng(seed)
    policy = tabular.solve(world.mdp()).policy.view(5, 2, 3).numpy()
    move, rows = world.transition.numpy(), []
    for member in range(members):
        place = member % 3
        for period, tier in enumerate(tiers(member)):
            action = int(generator.choice(3, p=policy[place, tier] / policy[place, tier].sum())) if place < GONE else 0
            region = ("north", "south")[(member // 3) % 2]
            rows.append((member, period, ACTIONS[action], PLACES[place], tier, region))
            if place == GONE:
                break
            place = int(generator.choice(5, p=move[place, tier, action]))
    return pd.DataFrame(rows, columns=["id", "month", "plan", "place", "tier", "region"])


def asked(world, **data):
    """The world's model, told what it was not fitted on."""
    config = world.model.config
    return replace(world.model, config=config.model_copy(update={"data": config.data.model_copy(update=data)}))


@pytest.fixture(scope="module")
def repriced(world):
    """Everybody at tier 0, and half-way at tier 1."""
    frame = played(world, lambda member: [0] * HALF + [1] * 6, members=500, seed=1)
    return asked(world, until=HALF - 1), frame, backtest(asked(world, until=HALF - 1), frame, draws=39)


def test_the_truth_forecasts_a_known_change_and_nothing_else_does(repriced):
    _, frame, found = repriced
    assert found["periods"] == [str(p) for p in range(HALF, 2 * HALF)] and found["converged"]
    whole = found["segments"]["all"]
    assert whole["members"] == ((frame["month"] == HALF) & (frame["place"] != "gone")).sum()
    errors = {name: e["mean"] for name, e in whole["errors"]["share"].items()}
    assert errors["model"] < 0.03
    assert all(errors[name] > 2 * errors["model"] for name in ("last", "average", "logit"))
    inside, of = whole["inside"]["share"]
    assert of == 18 and inside >= 15
    rejoin = whole["leaves"]["none"]
    assert rejoin["low"] <= rejoin["observed"] <= rejoin["high"]


def test_intervals_are_as_wide_as_the_luck_of_so_many_members(repriced):
    _, _, found = repriced
    assert not found["parameters_drawn"]
    cell = found["segments"]["all"]
    one = cell["share"]["monthly"]
    p, width = one["model"][0], one["high"][0] - one["low"][0]
    assert width == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / cell["members"]), rel=0.3)


def test_what_happened_is_counted_from_the_rows(repriced):
    _, frame, found = repriced
    rows = frame[(frame["month"] >= HALF) & (frame["place"] != "gone") & (frame["region"] == "south")]
    shares = rows.groupby("month")["plan"].value_counts(normalize=True).unstack()
    for action in ACTIONS:
        assert found["segments"]["south"]["share"][action]["observed"] == pytest.approx(shares[action].to_list())
    before = frame[(frame["month"] == HALF - 1) & (frame["place"] != "gone") & (frame["region"] == "south")]
    assert found["segments"]["south"]["mean_share"]["none"]["last"] == pytest.approx((before["plan"] == "none").mean())


def test_an_arm_is_forecast_from_its_first_rows(world):
    frame = played(world, lambda member: [member // 6 % 2] * 8, members=400, seed=2)
    model = asked(world, held_out={"tier": (1,)})
    found = experiment(model, frame, draws=39)
    whole = found["segments"]["all"]
    assert found["held_out"] == {"tier": [1]} and len(found["periods"]) == 8
    assert whole["members"] == frame.loc[frame["tier"] == 1, "id"].nunique()
    errors = {name: e["mean"] for name, e in whole["errors"]["share"].items()}
    assert errors["model"] < 0.04 and errors["control"] > 2 * errors["model"]
    assert whole["inside"]["share"][0] >= 20  # of 24
    assert whole["leave"]["none"]["logit"][0] is None  # the reduced form says nothing of it
    control = frame[(frame["tier"] == 0) & (frame["place"] != "gone") & (frame["month"] == 3)]
    assert whole["share"]["none"]["control"][3] == pytest.approx((control["plan"] == "none").mean())


def test_draws_of_the_parameters_widen_the_interval(world, repriced):
    model, frame, found = repriced
    x = model.terms(world.states()).double()
    refit = Refitted(0, 3, x.shape[1], model.basis(world.states()).shape[1])
    seen = slice(0, 6)
    refit.theta.copy_(torch.linalg.lstsq(x[seen], world.reward.reshape(10, 3)[seen], driver="gelsd").solution.T)
    refit.covariance.copy_(0.05 * torch.eye(len(refit.covariance), dtype=torch.float64))
    wider = backtest(replace(model, refit=refit), frame, draws=39)
    assert wider["parameters_drawn"]

    def width(answer):
        one = answer["segments"]["all"]["mean_share"]["monthly"]
        return one["high"] - one["low"]

    assert width(wider) > 1.5 * width(found)


def test_a_draw_is_a_policy_of_its_own(world):
    """Its Q is that of the estimate and what the draw moves it by, to first order."""
    x = world.model.terms(world.states()).double()
    refit = Refitted(0, 3, x.shape[1], world.model.basis(world.states()).shape[1])
    refit.covariance.copy_(0.1 * torch.eye(len(refit.covariance), dtype=torch.float64))
    policy = policy_for(replace(world.model, refit=refit), *panel_and_observed(world), seed=0, draws=2)
    state, segment = world.states()[:6], torch.zeros(6, dtype=torch.long)
    on_menu = world.menu()[:6]
    moved = at_draw(policy, 1).q(state, segment) - policy.q(state, segment)
    assert float(moved[on_menu].abs().max()) > 0.1
    assert torch.allclose(moved[on_menu], policy.q_draws(state, segment)[..., 1][on_menu], atol=1e-6)


def test_members_are_followed_while_they_are_there(world):
    """One leaves the panel, one ends, one has a gap; history is kept, and what is simulated stands where it belongs."""
    frame = pd.DataFrame(
        [(0, t, "none", "out") for t in range(5)]
        + [(1, t, "monthly", "in") for t in range(3)]
        + [(2, 1, "none", "out"), (2, 2, "annual", "in"), (2, 3, "none", "gone")]
        + [(3, t, "none", "out") for t in (1, 2, 4)],
        columns=["id", "month", "plan", "place"],
    ).assign(tier=0, region="north")
    panel = panel_from_frame(frame, world.model.config, schema=world.schema)
    rows = (panel.period == 2).nonzero().squeeze(1)
    seen = observed_from(panel, rows, first=2)
    assert seen.action.tolist() == [[0] * 5, [1, 1, 1, -1, -1], [-1, 0, 2, -1, -1], [-1, 0, 0, -1, 0]]
    assert seen.start.tolist() == [2] * 4 and seen.periods == 3
    assert seen.followed[:, 2:].tolist() == [[True] * 3, [True, False, False], [True] * 3, [True, False, True]]
    after = seen.after(torch.tensor([[2, 1, 0]] * 3 + [[2, -1, -1]]))
    assert after.tolist() == [[0, 0, 2, 1, 0], [1, 1, 2, -1, -1], [-1, 0, 2, 1, 0], [-1, 0, 2, -1, -1]]


def test_paths_keep_to_the_menu_and_end(world):
    policy = policy_for(world.model, *panel_and_observed(world), seed=0, draws=3)
    segment = torch.zeros(600, dtype=torch.long)
    state = torch.tensor([[3.0, 0.0], [4.0, 0.0], [2.0, 1.0]]).repeat(200, 1)
    path = choice_paths(
        world.model.dynamics,
        lambda state, menu: policy.log_policy(state, menu, segment),
        state,
        periods=40,
        generator=torch.Generator().manual_seed(0),
    )
    assert (path[0::3, 0] == 1).all()  # locked: monthly only
    assert (path[1::3] == -1).all()  # gone
    assert (path[2::3, 0] != 2).all()  # deep: no annual
    ended = (path == -1).long()
    assert (ended[:, 1:] >= ended[:, :-1]).all() and ended[:, -1].float().mean() > 0.5


def panel_and_observed(world):
    frame = played(world, lambda member: [0] * 4, members=60, seed=3)
    panel = panel_from_frame(frame, world.model.config, schema=world.schema)
    return panel, observed_from(panel, (panel.period == 0).nonzero().squeeze(1))


def test_the_same_seed_gives_the_same_draws(world):
    panel, seen = panel_and_observed(world)
    policy = policy_for(world.model, panel, seen, seed=0, draws=3)
    one, two, other = (draws_of(policy, seen, seed=s, draws=2) for s in (5, 5, 6))
    assert all(np.array_equal(a.chose, b.chose) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[0].chose, other[0].chose)


def test_errors_and_bounds_by_hand(world):
    """39 draws: the interval runs from the smallest to the largest."""

    def counts(chosen):
        chose = np.zeros((3, 1, 3))
        chose[:, 0] = [chosen, [100 - c for c in chosen], [100] * 3]
        return Counts(chose, *np.zeros((3, 3, 3, 12)))

    draws = [counts([20 + b, 40 - b, 40]) for b in range(39)]
    found = compared(counts([30, 20, 50]), draws, {}, schema=world.schema, members=np.array([100, 0]))
    assert list(found) == ["north", "all"]
    north = found["north"]
    assert north["mean_share"]["none"] == pytest.approx({"observed": 0.3, "model": 0.39, "low": 0.2, "high": 0.58})
    assert north["inside"]["mean_share"] == [2, 3]  # annual: .5 of an interval [.4, .4]
    assert north["errors"]["mean_share"]["model"] == pytest.approx({"mean": (0.09 + 0.01 + 0.1) / 3, "worst": 0.1})
    assert north["errors"]["leave"]["model"] is None and north["length"]["none"]["observed"] is None


def test_nothing_left_out_is_refused(world):
    with pytest.raises(InputError, match="fitted on all rows"):
        check(world.model.config.data)
    frame = played(world, lambda member: [0] * 3, members=6, seed=0)
    with pytest.raises(InputError, match="nobody has a row in the period after 2"):
        backtest(asked(world, until=2), frame)
    with pytest.raises(InputError, match="holds for no row"):
        experiment(asked(world, held_out={"tier": (1,)}), frame)
