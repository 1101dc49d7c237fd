"""Standard errors and findings: against the spread of estimates over panels, hand-made sums, and at the limits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from irl import tabular
from irl.config import Config, InputError
from irl.data.panel import panel_from_frame
from irl.estimation.pipeline import estimate
from irl.estimation.training import Workbench

GAMMA, PERIODS, LEVELS = 0.9, 10, 3
THETA = (-0.6, 0.7, -0.3)
"""Reward of `member`: constant, per level of use, in the south."""
TINY = {"hidden": [8], "max_epochs": 4, "batch_size": 512}
BENCH = Workbench(device=torch.device("cpu"), seed=0)


def study(**changes) -> Config:
    about = {
        "data": {
            "path": "none.parquet", "member": "id", "period": "month", "action": "plan", "actions": ["none", "member"],
            "segment": "region",
            "state": {
                "region": {"kind": "category", "dynamics": "static"},
                "use": {"kind": "ordinal", "levels": LEVELS, "dynamics": "table"},
            },
        },
        "anchor": {"action": "none", "reward": 0.0},
        "reward": {"structure": "linear", "benefits": ["use"]},
        "discount": GAMMA,
        "estimation": {"policy": TINY, "anchor_q": TINY | {"rounds": 1}, "reward": TINY, "refit": {"rows": 600}},
    }  # fmt: skip
    return Config.model_validate(about | changes)


def panel(seed: int, members: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    up, down = np.eye(LEVELS, k=1), np.eye(LEVELS, k=-1)
    up[-1, -1] = down[0, 0] = 1
    moves = np.stack([0.7 * np.eye(LEVELS) + 0.3 * down, 0.6 * np.eye(LEVELS) + 0.4 * up], axis=1)
    policies = []
    for south in (0, 1):
        reward = torch.zeros(LEVELS, 2, dtype=torch.float64)
        reward[:, 1] = THETA[0] + THETA[1] * torch.arange(LEVELS) + THETA[2] * south
        available = torch.ones(LEVELS, 2, dtype=torch.bool)
        mdp = tabular.FiniteMDP(reward, available, tabular.dense_expectation(torch.from_numpy(moves)), GAMMA)
        policies.append(tabular.solve(mdp).policy[:, 1].numpy())
    policy = np.stack(policies)
    south, use, rows = rng.integers(0, 2, members), rng.integers(0, LEVELS, members), []
    for month in range(PERIODS):
        action = (rng.random(members) < policy[south, use]).astype(int)
        columns = {"id": np.arange(members), "month": month, "region": np.array(["north", "south"])[south], "use": use}
        rows.append(pd.DataFrame(columns | {"plan": np.array(["none", "member"])[action]}))
        use = (rng.random(members)[:, None] > moves[use, action].cumsum(1)).sum(1).clip(0, LEVELS - 1)
    return pd.concat(rows)


@pytest.fixture(scope="module")
def panels():
    found = []
    for seed in range(40):
        frame = panel(seed)
        model, metrics = estimate(study(), panel_from_frame(frame, study()), bench=BENCH)
        found.append((frame, model, metrics))
    return found


def test_standard_errors_are_the_spread_of_the_estimates(panels):
    theta = torch.stack([model.refit.theta[1] for _, model, _ in panels])
    error = torch.stack([model.refit.covariance.diagonal().sqrt() for _, model, _ in panels])
    assert panels[0][1].terms.names == ("1", "region=south", "use")
    truth = torch.tensor([THETA[0], THETA[2], THETA[1]], dtype=torch.float64)
    spread = (theta - truth).square().mean(0).sqrt()
    ratio = error.mean(0) / spread  # of 40 panels: known to 11 %
    assert ((ratio > 0.72) & (ratio < 1.35)).all(), ratio
    covered = ((theta - truth).abs() < 1.96 * error).double().mean()
    assert covered > 0.88


def test_the_kernels_error_is_part_of_it(panels, monkeypatch):
    """Without it the standard error of what use is worth would be too small by a third or so."""
    import irl.estimation.inference as module

    frame, model, _ = panels[0]
    monkeypatch.setattr(module, "_cell_scores", lambda model, panel, rows, through: torch.zeros(1, 1).double())
    alone, _ = estimate(study(), panel_from_frame(frame, study()), bench=BENCH)
    ratio = alone.refit.covariance.diagonal().sqrt() / model.refit.covariance.diagonal().sqrt()
    assert 0.4 < float(ratio[2]) < 0.97, ratio


def test_observed_transitions_give_wider_or_equal_errors(panels, monkeypatch):
    import irl.estimation.inference as module

    frame, model, _ = panels[0]
    monkeypatch.setattr(module, "counted", lambda model, rows, parameters: False)
    free, _ = estimate(study(), panel_from_frame(frame, study()), bench=BENCH)
    ratio = free.refit.covariance.diagonal().sqrt() / model.refit.covariance.diagonal().sqrt()
    assert (ratio > 0.9).all() and (ratio < 1.6).all(), ratio


def test_doubling_the_members_as_copies_does_not_narrow_clustered_errors_beyond_root_two(panels):
    frame, model, _ = panels[0]
    twice = pd.concat([frame, frame.assign(id=frame["id"] + 10_000)])
    double, _ = estimate(study(), panel_from_frame(twice, study()), bench=BENCH)
    ratio = double.refit.covariance.diagonal().sqrt() / model.refit.covariance.diagonal().sqrt()
    assert ratio.tolist() == pytest.approx([1 / math.sqrt(2)] * 3, rel=0.06)


def test_findings_are_the_coefficients_at_the_panels_means(panels):
    frame, model, metrics = panels[0]
    theta, covariance = model.refit.theta[1], model.refit.covariance
    for region in ("north", "south"):
        use = frame.loc[frame["region"] == region, "use"].mean()
        x = torch.tensor([1.0, region == "south", use], dtype=torch.float64)
        found = metrics["reward_summary"]["member"][region]
        assert found["mean"] == pytest.approx(float(x @ theta), abs=1e-5)
        assert found["se"] == pytest.approx(float((x @ covariance @ x).sqrt()), rel=1e-4)
        assert found["high"] - found["low"] == pytest.approx(2 * 1.959964 * found["se"])
        added = metrics["contributions"]["member"][region]["use"]
        assert added["mean"] == pytest.approx(use * float(theta[2]), abs=1e-5)
        assert added["se"] == pytest.approx(use * float(covariance[2, 2].sqrt()), rel=1e-4)
    assert metrics["reward_summary"]["none"]["north"]["se"] == 0  # the anchor's reward is known
    rows = {row["name"]: row for row in metrics["coefficients"]}
    assert set(rows) == {"constant", "region=south", "use"}
    z = float(theta[2] / covariance[2, 2].sqrt())
    assert rows["use"]["z"] == pytest.approx(z) and rows["use"]["p"] == pytest.approx(math.erfc(abs(z) / 2**0.5))
    tests = {row["column"]: row for row in metrics["wald"]}
    assert tests["use"]["df"] == 1 and tests["use"]["chi2"] == pytest.approx(z**2)
    assert tests["use"]["p"] == pytest.approx(rows["use"]["p"], rel=1e-3)


def test_errors_of_rows_and_of_models_without(panels):
    frame, model, _ = panels[0]
    error = model.standard_error(frame.head(20))
    assert (error["none"] == 0).all() and (error["member"] > 0).all()
    x = model.terms(model.schema.encode(frame.head(1))).double()[0]
    assert error["member"].iloc[0] == pytest.approx(float((x @ model.refit.covariance @ x).sqrt()))
    with pytest.raises(InputError, match="standard_errors"):
        replace(model, refit=None).standard_error(frame)


def test_a_reward_without_intercept_has_none(panels):
    frame = panels[0][0]
    config = study(reward={"structure": "linear", "columns": ["use"], "intercept": False})
    model, metrics = estimate(config, panel_from_frame(frame, config), bench=BENCH)
    assert float(model.refit.theta[1, 0]) == 0
    assert [row["name"] for row in metrics["coefficients"]] == ["use"]
    assert model.reward(frame.assign(use=0))["member"].abs().max() < 1e-9


def test_selection_shrinks_what_explains_nothing(panels):
    frame = panels[0][0]
    rng = np.random.default_rng(5)
    noisy = frame.assign(**{f"dummy{i}": rng.integers(0, 2, len(frame)) for i in range(6)})
    data = study().data.model_dump()
    data["state"] |= {f"dummy{i}": {"kind": "ordinal", "levels": 2, "dynamics": "table"} for i in range(6)}
    sizes = {}
    for select in (False, True):
        config = study(data=data, reward={"structure": "linear", "select": select})
        model, _ = estimate(config, panel_from_frame(noisy, config), bench=BENCH)
        theta = dict(zip(model.terms.names, model.refit.theta[1].tolist(), strict=True))
        sizes[select] = sum(abs(theta[f"dummy{i}"]) for i in range(6)), theta["use"]
    assert sizes[True][0] < 0.75 * sizes[False][0]
    assert sizes[True][1] == pytest.approx(THETA[1], abs=0.15)


def test_errors_are_those_of_the_declared_clusters(panels):
    """Copies of members in one cluster with them tell nothing new; in clusters of their own they seem to."""
    frame, model, _ = panels[0]
    twice = pd.concat([frame, frame.assign(id=frame["id"] + 10_000)]).assign(town=lambda f: f["id"] % 10_000)
    data = study().data.model_dump() | {"cluster": "town"}
    config = study(data=data)
    clustered, _ = estimate(config, panel_from_frame(twice, config), bench=BENCH)
    ratio = clustered.refit.covariance.diagonal().sqrt() / model.refit.covariance.diagonal().sqrt()
    assert ratio.tolist() == pytest.approx([1.0] * 3, rel=0.06)
