"""Score tests of what the refit assumes: their directions against derivatives, and a machine that wears out."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from irl import bellman, runs, tabular
from irl.bellman import Nests
from irl.config import Config, InputError
from irl.data.panel import panel_from_frame
from irl.draws import FEW
from irl.estimation import alternatives as module
from irl.estimation import falsification as falsification
from irl.estimation.falsification import RESULT, battery, falsify, residuals
from irl.estimation.logit import FREE
from irl.estimation.parameters import reward_parameters
from irl.estimation.pipeline import estimate, train
from irl.estimation.resampling import equations_of
from irl.estimation.second_order import PAIRS
from irl.estimation.training import Workbench
from irl.report.record import load_record
from irl.transitions import DRAWS, free_states

LEVELS, GAMMA, ACTIONS = 6, 0.9, ("replace", "patch", "keep")
TINY = {"hidden": [4], "max_epochs": 4, "batch_size": 1024}
STUDY = {
    "data": {
        "path": "(simulated)", "member": "id", "period": "t", "action": "choice", "actions": list(ACTIONS),
        "state": {
            "wear": {"kind": "ordinal", "levels": LEVELS, "dynamics": "table"},
            "price": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"},
        },
    },
    "anchor": {"action": "replace", "reward": -3.0},
    "reward": {"structure": "linear"},
    "money": {"currency": "USD", "price": {"patch": "price"}},
    "discount": GAMMA,
    "estimation": {
        "policy": TINY, "anchor_q": TINY | {"rounds": 1}, "reward": TINY, "dynamics": TINY, "folds": 1,
        "refit": {"standard_errors": False},
    },
}  # fmt: skip
CPU = torch.device("cpu")


def moves() -> torch.Tensor:
    """P(wear'|wear, action): keeping wears, a patch undoes a level, replacing all."""
    rise = 0.4 * np.eye(LEVELS) + 0.6 * np.eye(LEVELS, k=1)
    rise[-1, -1] = 1
    reset, patched = np.tile(rise[0], (LEVELS, 1)), rise[np.maximum(np.arange(LEVELS) - 1, 0)]
    return torch.from_numpy(np.stack([reset, patched, rise], axis=1))


def policy(price: float, wearing: float = 1.0, nest: float = 0.0, fee: float = 0.0) -> np.ndarray:
    wear = torch.arange(LEVELS).double()
    reward = torch.stack(
        [torch.full((LEVELS,), -3.0), -0.5 - price - 0.2 * wear, 0.3 - fee - 0.5 * wearing * wear], 1
    ).double()
    nests = Nests((0, 1, 1), (1.0, 1 - nest)) if nest else None
    menu = torch.ones(LEVELS, 3, dtype=torch.bool)
    mdp = tabular.FiniteMDP(reward, menu, tabular.dense_expectation(moves()), GAMMA, 1.0, nests)
    return tabular.solve(mdp).policy.numpy()


def machine(
    members: int, periods: int, seed: int, *, kinds=(1.0,), drift: float = 1.0, charged: float = 0.0, **options
) -> pd.DataFrame:
    """``kinds``: how much wearing costs, of as many hidden types; times ``drift`` in the later half. ``charged``: how
    much keeping is worth less for a fee of 1, asked of one half."""
    if charged:
        halves = [machine(members // 2, periods, seed + k, fee=k * charged, **options) for k in range(2)]
        return pd.concat(half.assign(fee=float(k), id=half["id"] + k * members) for k, half in enumerate(halves))
    rng, prices = np.random.default_rng(seed), np.array([0.2, 1.0, 1.8])
    half = periods // 2
    chosen = np.array([[[policy(p, k * d, **options) for p in prices] for k in kinds] for d in (1.0, drift)])
    kind, price = rng.integers(0, len(kinds), members), rng.integers(0, 3, members)
    wear, rows, to = rng.integers(0, LEVELS, members), [], moves().numpy().cumsum(-1)
    for t in range(-10, periods):
        pi = chosen[int(t >= half), kind, price, wear]
        action = (rng.random((members, 1)) > pi.cumsum(1)).sum(1).clip(0, 2)
        if t >= 0:
            about = {"id": np.arange(members), "t": t, "wear": wear, "price": prices[price]}
            rows.append(pd.DataFrame(about | {"choice": np.array(ACTIONS)[action]}))
        wear = (rng.random((members, 1)) > to[wear, action]).sum(1).clip(0, LEVELS - 1)
    return pd.concat(rows)


def asked(frame: pd.DataFrame, **changes):
    config = Config.model_validate(STUDY | changes)
    panel = panel_from_frame(frame, config)
    model, metrics = estimate(config, panel, bench=Workbench(device=CPU, seed=0))
    assert "falsification" not in metrics
    return model, panel, {c.name: c for c in battery(model, panel, metrics["refit"]["precisions"])}


@pytest.fixture(scope="module")
def correct():
    return asked(machine(600, 16, 0))


def test_a_correct_panel_is_not_rejected(correct):
    _, _, checks = correct
    names = ["stationarity", "common shocks", "hidden types", "attention", "iia", "money", "discount", "anchor"]
    assert list(checks) == names and checks["money"].p is None
    done = {name: c for name, c in checks.items() if c.p is not None}
    assert set(done) == {"stationarity", "common shocks", "hidden types", "attention", "iia"}
    assert all(c.p > 0.02 and not c.why for c in done.values()), done
    assert done["stationarity"].df == 3 and done["hidden types"].df == 2 and done["iia"].df == 1
    assert done["common shocks"].df == 15
    assert "leaves no column out" in checks["discount"].why and checks["anchor"].statistic is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "wrong"),
    [("stationarity", {"drift": 1.6}), ("hidden types", {"kinds": (0.4, 1.6)}), ("iia", {"nest": 0.7})],
)
def test_what_is_wrong_is_found(name, wrong):
    _, _, checks = asked(machine(600, 16, 1, **wrong))
    assert checks[name].p < 1e-3, checks


@pytest.mark.slow
def test_a_wrong_discount_shows_where_a_column_is_kept_out_of_the_reward():
    """Wear counts for the price of keeping only through what follows, if rewards are said not to depend on it."""
    columns = {"structure": "linear", "columns": ["price"]}
    _, _, checks = asked(machine(600, 16, 2), reward=columns)
    assert checks["discount"].p < 1e-3


@pytest.mark.slow
def test_a_price_that_is_felt_more_is_found():
    fee = {"kind": "numeric", "dynamics": "static", "assigned": "randomised"}
    data = STUDY["data"] | {"state": STUDY["data"]["state"] | {"fee": fee}}
    about = {"data": data, "money": {"currency": "USD", "price": {"patch": "price", "keep": "fee"}}}
    _, _, checks = asked(machine(800, 16, 3, charged=1.0), **about)
    assert checks["money"].df == 1 and checks["money"].p > 0.05
    _, _, checks = asked(machine(800, 16, 3, charged=2.0), **about)
    assert checks["money"].p < 1e-3
    about["money"] |= {"one_coefficient": False}
    _, _, checks = asked(machine(800, 16, 3, charged=2.0), **about)
    assert checks["money"].p is None and "share" in checks["money"].why


@pytest.mark.slow
def test_statistics_are_chi2_on_correct_panels():
    """Pooled over panels and tests, the mean of the statistic over its degrees of freedom is 1."""
    found = [c for seed in range(12) for c in asked(machine(250, 12, 10 + seed))[2].values() if c.p is not None]
    ratio = sum(c.statistic for c in found) / sum(c.df for c in found)
    assert 0.7 < ratio < 1.35, ratio  # 12 panels x 7 degrees of freedom: known to 15 %


def test_products_of_residuals_vary_as_the_model_says(correct):
    """On one panel of 600 members, within a third of the mean square of members' sums."""
    model, panel, _ = correct
    found = residuals(model, panel)
    z = module._other_residuals(found)
    by_row = 0.5 * torch.einsum("na,nak->nk", found.error, z)
    sums = by_row.new_zeros(panel.n_members, 2).index_add_(0, panel.member[found.rows], by_row)
    ratio = module.products_variance(found).diagonal() / sums.square().sum(0)
    assert ((ratio > 0.67) & (ratio < 1.5)).all(), ratio


def test_what_errors_of_the_dynamics_leave_in_the_mean_is_taken_off(correct, monkeypatch):
    """The mean over other dynamics less what the fitted ones give; the variances are what they were."""
    model, panel, _ = correct
    scores, others, tested, total = [], [], falsification._tested, falsification._total

    def kept(alternative, score, variance, clusters):
        scores.append((score, variance))
        return tested(alternative, score, variance, clusters)

    def other(replica, *about):
        others.append(total(replica, *about))
        return others[-1]

    monkeypatch.setattr(falsification, "_tested", kept)
    monkeypatch.setattr(falsification, "_total", other)
    precisions = [FREE] * (int(reward_parameters(model, free_states(panel, 1000, seed=0)).groups.max()) + 1)
    battery(model, panel, precisions)
    monkeypatch.setattr(falsification, "replicas", lambda *about: iter(()))
    battery(model, panel, precisions)
    half = len(scores) // 2
    taken, left = (torch.cat([score for score, _ in part]) for part in (scores[:half], scores[half:]))
    assert len(others) == 1 + 2 * PAIRS and len(taken) == len(others[0])
    torch.testing.assert_close(taken, left + others[0] - torch.stack(others[1:]).mean(0))
    error = torch.cat([variance.diagonal() for _, variance in scores[:half]]).sqrt()
    assert 0.02 < float(((taken - left) / error).abs().max()) < 1
    assert all(torch.equal(one[1], two[1]) for one, two in zip(scores[:half], scores[half:], strict=True))


def test_the_nests_direction_is_the_derivative_by_dissimilarity(correct):
    model, panel, _ = correct
    found = residuals(model, panel)
    z = module._dissimilarity(found)[:50, :, 0]
    q, menu = found.pi[:50].log(), torch.ones(50, 3, dtype=torch.bool)
    step = 1e-5
    near = bellman.log_policy(q, menu, 1.0, Nests((0, 1, 1), (1.0, 1.0 + step)))
    far = bellman.log_policy(q, menu, 1.0, Nests((0, 1, 1), (1.0, 1.0 - step)))
    score = z - (found.pi[:50] * z).sum(1, keepdim=True)
    torch.testing.assert_close((near - far) / (2 * step), score, rtol=0, atol=1e-6)


def test_the_default_is_the_last_action_and_its_direction_the_derivative_by_inattention(correct):
    model, panel, _ = correct
    found = residuals(model, panel)
    z = module._default(found)[..., 0]
    first = panel.period[found.rows] == 0
    assert (z[first] == 0).all() and ((z > 0).sum(1) == (~first).long()).all()
    last = panel.action[(found.rows - 1).clamp_min(0)]
    likely = found.pi.gather(1, last.unsqueeze(1)).squeeze(1) > module.LEAST_PROBABILITY
    row = int((~first & likely).nonzero()[0])
    default, pi = int(last[row]), found.pi[row]
    step = 1e-6
    mixed = ((1 - step) * pi + step * torch.eye(3).double()[default]).log()
    score = z[row] - (pi * z[row]).sum()
    expected = (mixed - pi.log()) / step
    torch.testing.assert_close(expected, score, rtol=0, atol=1e-4)


def test_the_default_is_what_most_do_who_did_the_same_in_the_same_status():
    """A contract that has run out goes on as another plan: here `keep` after `patch`, once the status is `over`."""
    state = STUDY["data"]["state"] | {"status": {"kind": "category", "dynamics": "table"}}
    config = Config.model_validate(STUDY | {"data": STUDY["data"] | {"state": state}})
    frame = pd.DataFrame(
        {"id": [0, 0, 0, 1, 1], "t": [0, 1, 2, 0, 1], "wear": 0, "price": 1.0,
         "status": ["on", "on", "over", "on", "over"], "choice": ["patch", "patch", "replace", "patch", "keep"]}
    )  # fmt: skip
    panel = panel_from_frame(frame, config)
    pi = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.8, 0.1], [0.3, 0.1, 0.6], [0.1, 0.6, 0.3], [0.6, 0.2, 0.2]]).double()
    found = SimpleNamespace(panel=panel, model=SimpleNamespace(schema=panel.schema), rows=torch.arange(5), pi=pi)
    default, known = module.default_action(found)
    assert default.tolist() == [1, 1, 0, 1, 0] and known.all()  # over: .9, .3 and .8 of replace, patch and keep


def test_every_period_has_a_direction_of_its_own(correct, monkeypatch):
    model, panel, _ = correct
    found = residuals(model, panel)
    z = module._periods(found)
    assert z.shape == (len(found.rows), 3, 15) and (z[:, 0] == 0).all()
    assert torch.equal(z[:, 1].argmax(1)[panel.period > 0] + 1, panel.period[panel.period > 0])
    monkeypatch.setattr(module, "SPANS", 4)
    assert module._periods(found)[..., 0, 0].sum() == 0 and module._periods(found).shape[2] == 3


def test_prices_of_other_plans_are_kept_out_of_a_plans_reward(correct):
    model, panel, _ = correct
    z = module._other_prices(residuals(model, panel))
    assert z.shape[2] == 1 and (z[:, :2] == 0).all() and z[:, 2].std() == pytest.approx(1, rel=0.01)  # of keeping


def test_hidden_types_are_products_of_a_members_residuals(correct):
    model, panel, _ = correct
    found = residuals(model, panel)
    z = module._other_residuals(found)[..., 0]
    mine = panel.member[found.rows] == 3
    own = -found.error[mine][:, 0]  # of "not the base"
    by_hand = sum(own[s] * own[t] for s in range(len(own)) for t in range(len(own)) if s != t)
    assert float((found.error[mine] * z[mine]).sum()) == pytest.approx(float(by_hand))


def test_a_run_keeps_its_tests(tmp_path, correct):
    frame = machine(150, 8, 5)
    config = Config.model_validate(STUDY | {"estimation": STUDY["estimation"] | {"falsification": True}})
    panel = panel_from_frame(frame, config)
    model = train(config, panel, tmp_path / "run", device=CPU)
    trained = load_record(tmp_path / "run").falsification
    assert not (tmp_path / "run" / RESULT).exists() and len(trained["checks"]) == 8
    assert falsify(tmp_path / "run", model, panel) > 0
    record = load_record(tmp_path / "run")
    assert record.falsification["panel"]
    for one, other in zip(record.falsification["checks"], trained["checks"], strict=True):
        near = {k: pytest.approx(other[k], rel=1e-9) for k in ("statistic", "p") if other[k] is not None}
        assert one == other | near
    before = (tmp_path / "run" / RESULT).read_bytes()
    other = panel_from_frame(machine(150, 8, 6), config, schema=panel.schema)
    with pytest.raises(InputError, match="not the panel"):
        falsify(tmp_path / "run", model, other)
    assert (tmp_path / "run" / RESULT).read_bytes() == before
    with pytest.raises(InputError, match="no refit"):
        battery(replace(model, refit=None), panel, [])
    with pytest.raises(InputError, match="one type of members"):
        battery(replace(model, schema=model.schema.with_types(2, dynamics=False)), panel, [])
    with pytest.raises(InputError, match="precisions"):
        battery(model, panel, [1.0] * 40)
    runs.complete_run(tmp_path / "run")


def test_where_states_are_few_the_refits_equations_are_taken_up_on_all_of_them():
    """On a sample of rows with a tenth of the draws its scores were .05 standard errors away from 0."""
    config = Config.model_validate(STUDY)
    panel = panel_from_frame(machine(300, 12, 0), config)
    model, metrics = estimate(config, panel, bench=Workbench(device=CPU, seed=0))
    equations = equations_of(model, panel, metrics["refit"]["precisions"])
    states, actions = 3 * LEVELS, len(ACTIONS)
    assert equations.rows.next_state.shape[:2] == (states * actions, FEW * DRAWS)
    assert float((equations.slack.abs() * equations.bread.diagonal().sqrt()).max()) < 0.005


def test_few_members_are_too_few():
    _, _, checks = asked(machine(30, 8, 7))
    assert "too few" in checks["stationarity"].why and checks["stationarity"].p is None
