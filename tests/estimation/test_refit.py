"""The refit against a small market solved exactly: rewards, policy, value, groups that explain nothing, its report."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from irl import tabular
from irl.config import Config
from irl.data.panel import panel_from_frame
from irl.estimation import refit
from irl.estimation.logit import Choices, evidence, maximised
from irl.estimation.pipeline import estimate
from irl.estimation.refit import fit_refit
from irl.estimation.training import Workbench
from irl.fitted import load_model

LEVELS, SEGMENTS, GAMMA = 4, ("north", "south"), 0.9
WORTH = torch.tensor([[-1.2, -0.4, 0.3, 0.8], [-0.3, -0.2, 0.0, 0.1]], dtype=torch.float64)
"""Reward of `member` by segment and level of use."""
TINY = {"hidden": [16], "max_epochs": 12, "batch_size": 512, "weight_decay": 0.1}
STUDY = {
    "data": {
        "path": "none.parquet", "member": "id", "period": "month", "action": "plan", "actions": ["none", "member"],
        "segment": "region",
        "state": {
            "region": {"kind": "category", "dynamics": "static"},
            "use": {"kind": "ordinal", "levels": LEVELS, "dynamics": "table"},
            "noise": {"kind": "ordinal", "levels": 3, "dynamics": "table"},
        },
    },
    "anchor": {"action": "none", "reward": 0.5},
    "discount": GAMMA,
    "temperature": 0.8,
    "estimation": {"policy": TINY, "anchor_q": TINY | {"rounds": 2}, "reward": TINY, "dynamics": TINY},
}  # fmt: skip


def market() -> tuple[tabular.Solution, np.ndarray]:
    """The exact policy by segment and level, and transition[LEVELS, 2, LEVELS]: use rises with membership."""
    up, down = np.eye(LEVELS, k=1), np.eye(LEVELS, k=-1)
    up[-1, -1] = down[0, 0] = 1
    moves = np.stack([0.6 * np.eye(LEVELS) + 0.4 * down, 0.5 * np.eye(LEVELS) + 0.5 * up], axis=1)
    transition = torch.block_diag(*[torch.from_numpy(moves[:, a]) for a in (0, 1) for _ in SEGMENTS])
    size = LEVELS * len(SEGMENTS)
    transition = torch.stack([transition[:size, :size], transition[size:, size:]], dim=1)
    reward = torch.stack([torch.full((size,), 0.5, dtype=torch.float64), WORTH.flatten()], dim=1)
    available = torch.ones(size, 2, dtype=torch.bool)
    mdp = tabular.FiniteMDP(reward, available, tabular.dense_expectation(transition), GAMMA, 0.8)
    return tabular.solve(mdp), moves


def panel(members: int, periods: int, seed: int) -> pd.DataFrame:
    solution, moves = market()
    rng = np.random.default_rng(seed)
    region, use = rng.integers(0, 2, members), rng.integers(0, LEVELS, members)
    rows = []
    for month in range(periods):
        action = (rng.random(members) < solution.policy[region * LEVELS + use, 1].numpy()).astype(int)
        columns = {"id": np.arange(members), "month": month, "region": np.array(SEGMENTS)[region], "use": use}
        columns |= {"noise": rng.integers(0, 3, members), "plan": np.array(["none", "member"])[action]}
        rows.append(pd.DataFrame(columns))
        use = (rng.random(members)[:, None] > moves[use, action].cumsum(1)).sum(1).clip(0, LEVELS - 1)
    return pd.concat(rows)


@pytest.fixture(scope="module")
def study():
    config = Config.model_validate(STUDY)
    frame = panel(1500, 16, seed=0)
    data = panel_from_frame(frame, config)
    model, metrics = estimate(config, data, bench=Workbench(device=torch.device("cpu"), seed=0))
    return config, frame, data, model, metrics


def test_rewards_are_recovered_better_than_by_the_r_step(study):
    _, frame, _, model, _ = study
    truth = WORTH.numpy()[(frame["region"] == "south").astype(int), frame["use"]]
    plain = replace(model, refit=None).reward(frame)["member"] - truth
    refitted = model.reward(frame)["member"] - truth
    assert np.sqrt((refitted**2).mean()) < 0.06
    assert (refitted**2).mean() < 0.5 * (plain**2).mean()
    assert (model.reward(frame)["none"] == 0.5).all()


def test_policy_and_value_are_those_of_the_oracle(study):
    _, frame, _, model, _ = study
    solution, _ = market()
    cell = ((frame["region"] == "south") * LEVELS + frame["use"]).to_numpy().copy()
    assert np.abs(model.policy(frame)["member"] - solution.policy[cell, 1].numpy()).max() < 0.03
    assert np.abs(model.value(frame) - solution.value[cell].numpy()).max() < 0.5


def test_a_column_without_effect_is_shrunk_away(study):
    _, frame, _, model, metrics = study
    moved = [model.reward(frame.assign(noise=level))["member"] for level in (0, 2)]
    assert np.abs(moved[0] - moved[1]).max() < 0.03
    use = [model.reward(frame.assign(use=level))["member"] for level in (0, 2)]
    assert np.abs(use[0] - use[1]).min() > 0.2
    assert metrics["refit"]["effective_parameters"] < 12  # of 36


def test_the_report_says_how_it_ended(study):
    _, _, data, _, metrics = study
    report = metrics["refit"]
    assert report["choices"] == int(data.free.sum()) and report["converged"]
    assert report["held_out_log_likelihood"] >= -metrics["policy"]["held_out_loss"] - 1e-3
    first, second = report["policy_change"]
    assert second < first / 3  # the pseudo-likelihood settles


def test_a_reward_whose_form_misses_something_is_told_from_one_that_does_not(study):
    """The policy network knows use; a reward of the region alone does not, and held-out members say so."""
    config, _, data, _, metrics = study
    gap, se = metrics["refit"]["form_gap"], metrics["refit"]["form_gap_se"]
    assert gap < 3 * se and 0 < se < 0.01
    blind = config.model_copy(update={"reward": config.reward.model_copy(update={"columns": ("region",)})})
    _, missed = estimate(blind, data, bench=Workbench(device=torch.device("cpu"), seed=0))
    assert missed["refit"]["form_gap"] > 6 * missed["refit"]["form_gap_se"] > 0


def test_the_refit_is_saved_and_loaded(study, tmp_path):
    _, frame, _, model, _ = study
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    for name in ("reward", "policy", "value"):
        assert np.allclose(getattr(again, name)(frame.head(50)), getattr(model, name)(frame.head(50)), atol=1e-12)


def test_without_rounds_there_is_no_refit(study):
    config, frame, data, _, _ = study
    plain = config.model_copy(update={"estimation": config.estimation.model_copy(
        update={"refit": config.estimation.refit.model_copy(update={"rounds": 0})})})  # fmt: skip
    model, metrics = estimate(plain, data, bench=Workbench(device=torch.device("cpu"), seed=0))
    assert model.refit is None and "refit" not in metrics
    assert np.isfinite(model.reward(frame.head(5))["member"]).all()


class Parabola:
    """A log-likelihood with its maximum at 2 for every weight: what ``maximised`` needs of a logit, in closed form."""

    def log_likelihood(self, theta, choices):
        return float(-0.5 * 3 * (theta - 2).square().sum())

    def gradient(self, theta, choices):
        return -3 * (theta - 2)

    def information(self, theta, choices):
        return 3 * torch.eye(len(theta), dtype=torch.float64)


def test_newton_finds_the_penalised_maximum(study):
    _, _, data, model, _ = study
    choices = Choices(model, data, torch.arange(100), {})
    theta, information = maximised(Parabola(), choices, torch.zeros(2).double(), torch.tensor([0.0, 3.0]).double())
    assert theta.tolist() == pytest.approx([2.0, 1.0])  # 3 (2 - x) = penalty x
    assert torch.allclose(information, 3 * torch.eye(2).double() * 1.0)


def test_of_many_choices_some_say_how_much_to_shrink_and_all_say_what(study, monkeypatch):
    _, _, data, model, metrics = study
    seen = []
    monkeypatch.setattr(refit, "EVIDENCE_ROWS", 8000)
    monkeypatch.setattr(refit, "evidence", lambda logit, some, *rest: seen.append(some) or evidence(logit, some, *rest))
    slopes = []

    def inspect(logit, choices, theta, penalty):
        slopes.append((logit.gradient(theta, choices) - penalty * theta) / choices.mass)

    options = model.config.estimation.refit
    arguments = {"bench": Workbench(device=torch.device("cpu"), seed=0), "inspect": inspect}
    found, report = fit_refit(copy.deepcopy(model), data, data.member % 5 == 0, options, **arguments)
    assert {len(some.rows) for some in seen} == {8000} and report.choices == 24_000
    assert slopes[0].abs().max() < 1e-4  # at the maximum of all choices
    assert report.log_likelihood == pytest.approx(metrics["refit"]["log_likelihood"], abs=2e-4)
    assert (found.theta - model.refit.theta).abs().max() < 0.1
