"""Recovery of a known truth: a small simulated market, its exact rewards, and its exact answer to other prices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from irl import membership
from irl.config import load_config
from irl.counterfactual import outcomes, simulate
from irl.data import panel_from_frame
from irl.estimation.pipeline import estimate
from irl.estimation.training import Workbench
from irl.membership.scenarios import exact_outcomes, scenario_edit
from irl.report import recovery
from irl.scenario import cases, scenario_from

PRICES = [67.2, 100.8]
PERIODS = 12


@pytest.fixture(scope="module")
def study():
    """Market, its solution, a panel, the model fitted on it, and the metrics."""
    options = ["estimation.dynamics.max_epochs=10", "estimation.refit.rows=2000"]
    config = load_config("configs/membership.yaml", options)
    market = membership.Market(price_factors=(0.8, 1.2))
    solution = membership.solve(market)
    frame = membership.simulate(solution, members=2000, periods=36, seed=0)
    bench = Workbench(device=torch.device("cpu"), seed=0)
    model, metrics = estimate(config, panel_from_frame(frame, config), bench=bench)
    return market, solution, frame, model, metrics


def scores(model, solution, frame):
    cells = frame["segment"].astype(str) + " " + frame["status"].astype(str)
    truth = membership.true_reward(solution, frame).drop(columns="none")
    return recovery(model.reward(frame).drop(columns="none"), truth, cells)


def test_rewards_by_p_q_r_alone(study):
    _, solution, frame, model, metrics = study
    found = scores(replace(model, refit=None), solution, frame)
    assert metrics["anchor_q"]["converged"]
    assert found.loc["pooled", "r2"] >= 0.975
    assert found.loc["monthly", "within"] >= 0.75
    assert found.loc["annual", "within"] >= 0.2


def test_rewards_by_the_refit(study):
    _, solution, frame, model, metrics = study
    found = scores(model, solution, frame)
    assert metrics["refit"]["converged"]
    assert (model.reward(frame)["none"] == 0).all()
    assert found.loc["pooled", "r2"] >= 0.985
    assert found.loc["monthly", "within"] >= 0.85
    assert found.loc["annual", "within"] >= 0.75


def test_plan_shares_at_another_price(study, monkeypatch):
    """Levels and the effect of the price by segment and plan, means over a year. With 4,000 members, the bar is 2."""
    market, _, frame, model, _ = study
    monkeypatch.setattr(outcomes, "MOST_DRAWN", 4000)
    change = {"feature": {"name": "price_annual", "set": PRICES}}
    scenario = scenario_from({"name": "price", "periods": PERIODS, "members": 8000, "changes": [change]})
    table = simulate(model, scenario, frame)
    start = frame.groupby("member_id").head(1)
    levels = {}
    for label, case in cases(scenario).items():
        edit = scenario_edit(market, case)
        exact = exact_outcomes(
            membership.solve(market, cells=membership.cells_of(start), edit=edit), start, periods=PERIODS
        )
        exact = exact.groupby("segment")[["share_none", "share_monthly", "share_annual"]].mean()
        mine = table[(table["case"] == label) & table["outcome"].isin(list(exact)) & (table["segment"] != "all")]
        mine = mine.pivot_table(index="segment", columns="outcome", values="scenario", observed=True)
        levels[label] = (exact, mine[list(exact)])
    (cheap, cheap_found), (dear, dear_found) = levels.values()
    assert (cheap - dear)["share_annual"].min() > 0.08  # else the next lines show nothing
    assert ((cheap_found - dear_found) - (cheap - dear)).abs().max().max() < 0.04
    assert max((cheap_found - cheap).abs().max().max(), (dear_found - dear).abs().max().max()) < 0.05
