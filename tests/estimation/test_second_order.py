"""Second-order bias: its replicas move as the analytic errors say, and opposites nearly take each other out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from irl import tabular
from irl.config import Config
from irl.data.panel import panel_from_frame
from irl.estimation import second_order as module
from irl.estimation.evaluation_rows import evaluation_rows
from irl.estimation.inference import kernel_scores
from irl.estimation.parameters import reward_parameters
from irl.estimation.pipeline import estimate
from irl.estimation.resampling import equations_of
from irl.estimation.training import Workbench

MEMBERS, PERIODS = 200, 10
TINY = {"hidden": [4], "max_epochs": 3, "batch_size": 1024}


def study(use: dict) -> Config:
    return Config.model_validate(
        {
            "data": {
                "path": "(simulated)", "member": "id", "period": "month", "action": "plan",
                "actions": ["none", "member"],
                "state": {"region": {"kind": "category", "dynamics": "static"}, "use": use},
            },
            "anchor": {"action": "none", "reward": 0.0},
            "reward": {"structure": "linear"},
            "discount": 0.9,
            "estimation": {
                "policy": TINY, "anchor_q": TINY | {"rounds": 1}, "reward": TINY, "folds": 1,
                "refit": {"rows": 200, "rounds": 4, "standard_errors": False},
            },
        }
    )  # fmt: skip


def moves(south: int) -> np.ndarray:
    """P(use'|use, action): members use more than others, in the south twice as fast."""
    up, down, stay = np.eye(3, k=1), np.eye(3, k=-1), np.eye(3)
    up[-1, -1] = down[0, 0] = 1
    speed = 0.2 + 0.2 * south
    return np.stack([(1 - speed) * stay + speed * down, (1 - speed) * stay + speed * up], axis=1)


@pytest.fixture(scope="module")
def fitted():
    rng, reward = np.random.default_rng(0), torch.zeros(3, 2, dtype=torch.float64)
    reward[:, 1] = 0.7 * torch.arange(3) - 0.6
    menu = torch.ones(3, 2, dtype=torch.bool)
    policy = [
        tabular.solve(
            tabular.FiniteMDP(reward, menu, tabular.dense_expectation(torch.from_numpy(moves(s))), 0.9)
        ).policy
        for s in range(2)
    ]
    chosen, to = np.stack([p[:, 1].numpy() for p in policy]), np.stack([moves(s).cumsum(2) for s in range(2)])
    south, use, rows = rng.integers(0, 2, MEMBERS), rng.integers(0, 3, MEMBERS), []
    for month in range(PERIODS):
        member = (rng.random(MEMBERS) < chosen[south, use]).astype(int)
        columns = {"id": np.arange(MEMBERS), "month": month, "region": np.array(["north", "south"])[south], "use": use}
        rows.append(pd.DataFrame(columns | {"plan": np.array(["none", "member"])[member]}))
        use = (rng.random((MEMBERS, 1)) > to[south, use, member]).sum(1).clip(0, 2)
    config = study({"kind": "ordinal", "levels": 3, "dynamics": "table", "parents": ["use", "region"]})
    panel = panel_from_frame(pd.concat(rows), config)
    model, metrics = estimate(config, panel, bench=Workbench(device=torch.device("cpu"), seed=0))
    return model, panel, equations_of(model, panel, metrics["refit"]["precisions"])


def replicas_of(model, panel, e):
    states, _ = evaluation_rows(model.dynamics, panel, most=200, seed=0)
    own = reward_parameters(model, states)
    return list(module.replicas(model, panel, e.rows, own, e.theta, e.penalty, e.bread))


def test_replicas_move_as_the_errors_of_the_dynamics_say(fitted):
    model, panel, e = fitted
    found = replicas_of(model, panel, e)
    coin = 2 * torch.randint(2, (module.PAIRS, MEMBERS), generator=torch.Generator().manual_seed(0)).double() - 1
    errors = kernel_scores(model, panel, e.rows, e.logit.curvature(e.theta, e.choices) @ e.flat)
    spread = (e.bread @ (errors.T @ errors) @ e.bread).diagonal().sqrt()
    theta = torch.stack([r.theta for r in found])
    slope = (theta[1 : 1 + module.PAIRS] - theta[1 + module.PAIRS :]) / 2
    assert float(((slope + coin @ errors @ e.bread) / spread).abs().max()) < 0.1
    assert float((slope / spread).abs().max()) > 0.5
    middle = (theta[1 : 1 + module.PAIRS] + theta[1 + module.PAIRS :]) / 2 - theta[0]
    assert float((middle / spread).abs().max()) < 1  # the second order: of 200 members
    assert sum(r.factor for r in found) == pytest.approx(0)
    assert float(((theta[0] - e.theta) / e.bread.diagonal().sqrt()).abs().max()) < 0.01  # the fit itself


def test_replicas_are_models_of_their_own(fitted):
    """Each holds the refit at its theta; the model that they are replicas of stays as it is."""
    model, panel, e = fitted
    before = model.refit.theta.clone(), model.refit.weights.clone()
    found = replicas_of(model, panel, e)
    assert torch.equal(model.refit.theta, before[0]) and torch.equal(model.refit.weights, before[1])
    policies = torch.stack([r.model.log_policy_of(panel.state[:50], panel.menu[:50]) for r in found])
    assert float((policies[0] - model.log_policy_of(panel.state[:50], panel.menu[:50])).abs().max()) < 1e-3
    assert float((policies[1:] - policies[0]).abs().amax((1, 2)).min()) > 1e-3
    slack = torch.stack([r.slack for r in found]) * e.bread.diagonal().sqrt()
    assert float(slack.abs().max()) < 0.2  # of a standard error, after one Newton step


def test_dynamics_that_are_no_frequencies_are_taken_as_known(fitted, monkeypatch):
    model, panel, e = fitted
    monkeypatch.setattr(module, "counted", lambda model, rows, parameters: False)
    assert replicas_of(model, panel, e) == []
