"""Maximum likelihood given the market's form: the bound that estimates are held against."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from markets import small_market

from irl import membership
from irl.membership.likelihood import FLOWS, likeliest, tastes, with_tastes


def test_tastes_go_in_and_out_of_a_market():
    market = small_market()
    theta = {"gen_z": torch.arange(7, dtype=torch.float64)}
    changed = with_tastes(market, theta)
    assert changed.segments["gen_z"].perk == FLOWS.index("perk")
    assert changed.segments["gen_z"].benefits["gaming"].taste == 6
    assert tastes(changed, "gen_z").tolist() == theta["gen_z"].tolist()
    assert changed.segments["rural_india"] == market.segments["rural_india"]


def test_the_likeliest_market_explains_its_panel_better_than_the_truth_and_is_near_it():
    solution = membership.solve(small_market())
    frame = membership.simulate(solution, members=3000, periods=12, seed=0)
    found = likeliest(solution, frame)
    fitted = membership.solve(with_tastes(solution.market, found))

    def log_likelihood(of: membership.MarketSolution) -> float:
        policy = membership.true_policy(of, frame).to_numpy()
        chosen = [membership.ACTIONS.index(a) for a in frame["plan"]]
        return float(np.log(policy[np.arange(len(frame)), chosen]).sum())

    gain = log_likelihood(fitted) - log_likelihood(solution)
    parameters = sum(map(len, found.values()))
    assert 0 < gain < 2 * parameters  # twice the gain is chi2 with 14 degrees of freedom: mean 14, sd 5.3
    for name, theta in found.items():
        true = tastes(solution.market, name)
        assert theta[1].item() == pytest.approx(true[1].item(), abs=0.01)  # a dollar
        assert theta[5:].tolist() == pytest.approx(true[5:].tolist(), abs=0.25)  # the benefits
