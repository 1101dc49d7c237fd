"""The market's exact contributions and removal effects: against a simulation, and against a market without a taste."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from irl import membership
from irl.membership import Market, MarketSolution
from irl.membership.attribution import exact_contributions, exact_removals

GAMMA = 0.8


@pytest.fixture(scope="module")
def solution() -> MarketSolution:
    full = Market(discount=GAMMA, price_factors=(1.0,), contract_months=4)
    segments = {name: replace(full.segments[name], saturation=1.0) for name in ("gen_z", "rural_india")}
    return membership.solve(replace(full, segments=segments, seasons={b: full.seasons[b] for b in ("video", "gaming")}))


def chosen(solution: MarketSolution, panel: pd.DataFrame) -> np.ndarray:
    reward = membership.true_reward(solution, panel)
    return reward.to_numpy()[np.arange(len(panel)), reward.columns.get_indexer(panel["plan"])]


def test_contributions_are_what_simulated_members_collect(solution: MarketSolution):
    panel = membership.simulate(solution, members=4000, periods=40, seed=1)
    exact = exact_contributions(solution, panel[panel["period"] == 0])
    assert list(exact) == ["video", "gaming"]
    for name in exact:
        own = chosen(solution, panel) - chosen(solution, panel.assign(**{name: 0}))
        collected = (own * GAMMA ** panel["period"]).groupby(panel["member_id"]).sum()
        by = collected.groupby(panel.groupby("member_id")["segment"].first()).agg(["mean", "sem"])
        assert ((by["mean"] - exact[name]).abs() < 4 * by["sem"] + 1e-3).all()
        assert (by["sem"] < 0.1 * exact[name]).all()


def test_removal_is_a_market_without_that_taste(solution: MarketSolution):
    start = membership.simulate(solution, members=300, periods=1, seed=2)
    exact, market = exact_removals(solution, start), solution.market
    for name in exact:
        tasteless = {
            s: replace(own, benefits={**own.benefits, name: replace(own.benefits[name], taste=0.0)})
            for s, own in market.segments.items()
        }
        without = membership.solve(replace(market, segments=tasteless))
        loss = membership.true_value(solution, start) - membership.true_value(without, start)
        pd.testing.assert_series_equal(exact[name], loss.groupby(start["segment"]).mean(), check_names=False)
        assert (exact[name] > 0.01).all()
