"""The Q step: the orthogonal correction against a policy that is wrong, its floor, both solvers, cross-fitting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from irl import tabular
from irl.config import AnchorQStep, Config
from irl.data.panel import panel_from_frame
from irl.estimation.anchor_q import FLOOR, TORN, anchor_rows, fit_anchor_q, solve_head
from irl.estimation.pipeline import LEAST_PER_FOLD, estimate
from irl.estimation.training import Workbench
from irl.networks import AnchorValueNetwork

GAMMA, LEVELS, PERIODS = 0.9, 4, 12
BENCH = Workbench(device=torch.device("cpu"), seed=0)
TINY = {"hidden": [8], "max_epochs": 3, "batch_size": 512}
CONFIG = Config.model_validate(
    {
        "data": {
            "path": "none.parquet", "member": "id", "period": "month", "action": "plan", "actions": ["none", "member"],
            "state": {"use": {"kind": "ordinal", "levels": LEVELS, "dynamics": "table"}},
        },
        "anchor": {"action": "none", "reward": 0.2},
        "discount": GAMMA,
        "estimation": {"policy": TINY, "anchor_q": TINY | {"rounds": 1}, "reward": TINY, "refit": {"rounds": 0}},
    }
)  # fmt: skip


def market() -> tuple[tabular.Solution, np.ndarray]:
    up, down = np.eye(LEVELS, k=1), np.eye(LEVELS, k=-1)
    up[-1, -1] = down[0, 0] = 1
    moves = np.stack([0.6 * np.eye(LEVELS) + 0.4 * down, 0.5 * np.eye(LEVELS) + 0.5 * up], axis=1)
    reward = torch.tensor([[0.2, -1.0], [0.2, -0.4], [0.2, 0.1], [0.2, 0.5]], dtype=torch.float64)
    available = torch.ones(LEVELS, 2, dtype=torch.bool)
    mdp = tabular.FiniteMDP(reward, available, tabular.dense_expectation(torch.from_numpy(moves)), GAMMA)
    return tabular.solve(mdp), moves


def simulated(members: int, seed: int) -> pd.DataFrame:
    solution, moves = market()
    rng = np.random.default_rng(seed)
    use, rows = rng.integers(0, LEVELS, members), []
    for month in range(PERIODS):
        action = (rng.random(members) < solution.policy[use, 1].numpy()).astype(int)
        columns = {"id": np.arange(members), "month": month, "use": use}
        rows.append(pd.DataFrame(columns | {"plan": np.array(["none", "member"])[action]}))
        use = (rng.random(members)[:, None] > moves[use, action].cumsum(1)).sum(1).clip(0, LEVELS - 1)
    return pd.concat(rows)


@pytest.fixture(scope="module")
def panel():
    return panel_from_frame(simulated(8000, seed=1), CONFIG)


def solved(panel, log_pi, *, corrected: bool) -> torch.Tensor:
    """Q(., A) by level, from log_pi[LEVELS, 2], with tabular features."""
    network = AnchorValueNetwork(panel.schema, ()).double()
    nobody = torch.zeros(panel.n_rows, dtype=torch.bool)
    by_row = log_pi[panel.state[:, 0].long()]
    rows = anchor_rows(panel, by_row, nobody, discount=GAMMA, temperature=1.0, crossed=by_row)
    solve_head(network, rows, ridge=1e-9, target=int(corrected))
    return anchor_value(network)


def anchor_value(network) -> torch.Tensor:
    """Q(., A) by level."""
    levels = torch.arange(LEVELS).to(network.head.dtype).unsqueeze(1)
    anchor = torch.tensor([[1.0, 0.0]]).expand(LEVELS, 2)
    with torch.no_grad():
        return network(levels, anchor, torch.full((LEVELS,), 0.2))


def test_first_order_errors_of_the_policy_cancel(panel):
    solution, _ = market()
    exact = solution.q[:, 0]
    for error in (0.03, -0.03):
        wrong = solution.policy.clone()
        wrong[:, 0] += error
        wrong[:, 1] -= error
        plain, corrected = (solved(panel, wrong.log(), corrected=c) - exact for c in (False, True))
        assert plain.abs().min() > 0.3  # .03 / pi, amplified by 1 / (1 - gamma) along the way
        assert corrected.abs().max() < 0.3 * plain.abs().min()
        assert (plain > 0).all() == (error < 0)


def test_with_the_true_policy_the_correction_is_only_noise(panel):
    solution, _ = market()
    plain, corrected = (solved(panel, solution.log_policy, corrected=c) for c in (False, True))
    assert (plain - solution.q[:, 0]).abs().max() < 0.1
    assert (corrected - plain).abs().max() < 0.15


def test_rare_anchors_are_floored_and_counted(panel):
    rare = torch.full((panel.n_rows, 2), 0.5).log()
    rare[panel.state[:, 0] == 3, 0] = -8.0
    nobody = torch.zeros(panel.n_rows, dtype=torch.bool)
    rows = anchor_rows(panel, rare, nobody, discount=GAMMA, temperature=1.0, crossed=rare)
    assert torch.equal(rows.floored, rows.next_state[:, 0] == 3)
    assert float(rows.targets[:, 1].max()) <= GAMMA * (0.2 + 8.0 + np.exp(-8.0) / FLOOR) + 1e-4
    assert float(rows.targets[:, 1].min()) >= GAMMA * (0.2 - 1 / FLOOR)


@pytest.mark.parametrize("solver", ["lstd", "fqi"])
def test_both_solvers_come_near_the_anchors_value(panel, solver):
    solution, _ = market()
    log_pi = solution.log_policy.float()[panel.state[:, 0].long()]
    held_out = panel.member % 5 == 0
    options = AnchorQStep(hidden=(16,), solver=solver, rounds=2 if solver == "lstd" else 60, max_epochs=2)
    network, report = fit_anchor_q(
        panel, log_pi, held_out, options, discount=GAMMA, temperature=1.0, bench=BENCH, crossed=log_pi
    )
    error = anchor_value(network) - solution.q[:, 0]
    assert error.abs().max() < (0.25 if solver == "lstd" else 0.6)
    assert report.floored_share == 0.0
    assert (report.condition is None) == (solver == "fqi")


@pytest.mark.parametrize(("error", "corrected"), [(0.0, False), (0.2, True), (-0.2, True)])
def test_the_correction_is_used_where_it_helps(panel, error, corrected):
    solution, _ = market()
    few = panel.take_members(torch.arange(panel.n_members) < 400)
    log_pi = solution.log_policy[:, :1] + error  # of the anchor
    log_pi = torch.cat([log_pi, torch.log1p(-log_pi.exp())], 1).float()[few.state[:, 0].long()]
    options = AnchorQStep(hidden=(), rounds=1, max_epochs=1)
    network, report = fit_anchor_q(
        few, log_pi, few.member % 5 == 0, options, discount=GAMMA, temperature=1.0, bench=BENCH, crossed=log_pi
    )
    assert report.corrected == corrected
    # an error of .2 is worth .2 x .9 / .1 = 1.8 if it is not corrected
    assert (anchor_value(network) - solution.q[:, 0]).abs().max() < 0.8


def test_values_that_explode_end_the_step(panel):
    solution, _ = market()
    few = panel.take_members(torch.arange(panel.n_members) < 400)
    log_pi = solution.log_policy.float()[few.state[:, 0].long()]
    options = AnchorQStep(hidden=(8,), solver="fqi", rounds=30, max_epochs=1, learning_rate=50.0, weight_decay=0.0)
    with pytest.raises(FloatingPointError, match=r"anchor_q: .*(Bellman residual|held-out loss) is"):
        fit_anchor_q(few, log_pi, few.member % 5 == 0, options, discount=GAMMA, temperature=1.0, bench=BENCH)


def test_a_trunk_that_is_torn_from_the_solved_layer_is_trained_more_slowly(panel):
    solution, _ = market()
    few = panel.take_members(torch.arange(panel.n_members) < 400)
    log_pi = solution.log_policy.float()[few.state[:, 0].long()]
    options = AnchorQStep(hidden=(8,), rounds=2, max_epochs=4, learning_rate=30.0, weight_decay=0.0, batch_size=128)
    losses = []
    bench = replace(BENCH, tick=lambda step, epoch, of, loss: losses.append(loss))
    _, report = fit_anchor_q(few, log_pi, few.member % 5 == 0, options, discount=GAMMA, temperature=1.0, bench=bench)
    assert max(losses) > TORN and report.trained.epochs == 8 and max(report.trained.history) < TORN


def test_fitted_iteration_takes_over_where_the_equations_are_singular(panel):
    solution, _ = market()
    log_pi = solution.log_policy.float()[panel.state[:, 0].long()]
    # an indicator of every level and a constant: without a ridge their sum cannot be told from it
    options = AnchorQStep(hidden=(8,), ridge=0.0, rounds=1, max_epochs=1)
    network, report = fit_anchor_q(
        panel, log_pi, panel.member % 5 == 0, options, discount=GAMMA, temperature=1.0, bench=BENCH
    )
    assert report.fell_back and report.converged is False and report.condition > 1e12
    assert (anchor_value(network) - solution.q[:, 0]).abs().max() < 0.8


def test_the_policy_of_a_fold_does_not_know_its_members(panel):
    few = panel.take_members(torch.arange(panel.n_members) < 2 * LEAST_PER_FOLD)
    _, metrics = estimate(CONFIG, few, bench=BENCH)
    assert {"policy_fold_1", "policy_fold_2"} <= set(metrics)
    fewer = panel.take_members(torch.arange(panel.n_members) < 2 * LEAST_PER_FOLD - 1)
    _, metrics = estimate(CONFIG, fewer, bench=BENCH)
    assert "policy_fold_1" not in metrics and not metrics["anchor_q"]["corrected"]
