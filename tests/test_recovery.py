"""Recovery of a known truth: the three steps on a small simulated market, against its exact rewards."""

import torch

from irl import membership
from irl.config import load_config
from irl.data import panel_from_frame
from irl.estimation.pipeline import estimate
from irl.estimation.training import Workbench
from irl.report.tables import recovery


def test_rewards_of_a_small_market_are_recovered():
    config = load_config("configs/membership.yaml", ["estimation.dynamics.max_epochs=1"])
    market = membership.Market(price_factors=(0.8, 1.2))
    solution = membership.solve(market)
    frame = membership.simulate(solution, members=2000, periods=36, seed=0)
    model, metrics = estimate(
        config, panel_from_frame(frame, config), bench=Workbench(device=torch.device("cpu"), seed=0)
    )
    cells = frame["segment"].astype(str) + " " + frame["status"].astype(str)
    truth = membership.true_reward(solution, frame).drop(columns="none")
    found = recovery(model.reward(frame).drop(columns="none"), truth, cells)
    assert (model.reward(frame)["none"] == 0).all()
    assert metrics["anchor_q"]["converged"]
    assert found.loc["pooled", "r2"] >= 0.975
    assert found.loc["monthly", "within"] >= 0.75
    assert found.loc["annual", "within"] >= 0.2
