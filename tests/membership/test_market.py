"""The simulated market: its rewards and mechanics on hand-worked rows, its solution, and the members drawn from it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markets import small_market

from irl import membership
from irl.config import InputError, load_config
from irl.membership import ACTIONS, Cell, Market, MarketSolution, tastes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def small() -> MarketSolution:
    return membership.solve(small_market())


@pytest.fixture(scope="module")
def panel(small: MarketSolution) -> pd.DataFrame:
    return membership.simulate(small, members=4000, periods=14, seed=1)


def row(**changes: object) -> pd.DataFrame:
    """One state of the full market: a gen_z non-member in January who uses nothing and faces list prices."""
    idle = dict.fromkeys(Market().benefits, 0)
    state = {"segment": "gen_z", "status": "out", "months_left": 0, "price_monthly": 10.0, "price_annual": 84.0}
    return pd.DataFrame([{**state, **idle, "month": 0, **changes}])


def test_rewards_by_hand():
    market = Market()
    solution = membership.solve(market, cells=membership.cells_of(row()), tolerance=1e-6)

    def reward(**changes: object) -> list[float]:
        return membership.true_reward(solution, row(**changes)).iloc[0].tolist()

    # base -.9, price .03 per dollar, joining .8, commitment 2.65, perk .35
    assert reward() == pytest.approx([0, -0.9 - 0.3 - 0.8, -0.9 + 0.35 - 2.65 - 2.52 - 0.8])
    assert reward(status="monthly") == pytest.approx([0, -0.9 - 0.3, -0.9 + 0.35 - 2.65 - 2.52])
    assert reward(status="annual", months_left=11) == pytest.approx([0, np.nan, -0.9 + 0.35], nan_ok=True)
    # video .8, in December 1.2 times that, saturating at 5; half of gaming (.9, in July 1.45 times)
    december = -0.9 - 0.3 + 5 * (1 - np.exp(-0.8 * 1.2 / 5))
    assert reward(status="monthly", video=2, month=11)[1] == pytest.approx(december)
    july = -0.9 - 0.3 + 5 * (1 - np.exp(-0.45 * 1.45 / 5))
    assert reward(status="monthly", gaming=1, month=6)[1] == pytest.approx(july)


def test_the_anchor_is_exactly_zero_and_unavailable_actions_are_marked(small: MarketSolution, panel: pd.DataFrame):
    reward, policy = membership.true_reward(small, panel), membership.true_policy(small, panel)
    inside = panel["status"] == "annual"
    assert (reward["none"] == 0).all()
    assert list(reward) == list(policy) == list(ACTIONS) and reward.index.equals(panel.index)
    assert reward["monthly"].isna().equals(inside) and (policy["monthly"] == 0).equals(inside)
    assert reward["annual"].notna().all()
    np.testing.assert_allclose(policy.sum(axis=1), 1, atol=1e-12)


def test_contract_mechanics(panel: pd.DataFrame):
    def after(status: str, months_left: int, plan: str) -> tuple[str, int]:
        if plan == "annual":
            if status != "annual":
                return "annual", 3
            return ("annual", months_left - 1) if months_left > 1 else ("monthly", 0)
        return ("monthly", 0) if plan == "monthly" else ("out", 0)

    following = panel.groupby("member_id").shift(-1)
    kept = following["status"].notna()
    expected = [after(*state) for state in zip(panel["status"], panel["months_left"], panel["plan"], strict=True)]
    found = list(zip(following["status"], following["months_left"], strict=True))
    assert [f for f, k in zip(found, kept, strict=True) if k] == [e for e, k in zip(expected, kept, strict=True) if k]
    assert set(expected) == {("out", 0), ("monthly", 0), ("annual", 3), ("annual", 2), ("annual", 1)}
    assert not ((panel["status"] == "annual") & (panel["plan"] == "monthly")).any()
    assert (following["month"][kept] == (panel["month"][kept] + 1) % 12).all()
    assert (panel["month"] == panel["period"] % 12).all()


@pytest.mark.parametrize("discount", [0.95, 0.999])
def test_bellman_equation_on_dense_transitions(discount: float):
    """V = log sum exp(r + gamma P V) with the whole transition matrix built here, not by the solver's operator."""
    market = small_market(discount)
    cell = market.cells()[5]
    solution = membership.solve(market, cells=[cell])
    contract = np.zeros((3, 5, 5))  # action, from, to: out, monthly, annual with 1, 2, 3 months left
    contract[0, :, 0] = contract[1, :, 1] = 1
    contract[2, [0, 1, 2, 3, 4], [4, 4, 1, 2, 3]] = 1
    benefits = market.segments[cell.segment].benefits
    reward, menu = solution.reward[0].numpy(), solution.available[0].numpy()
    value = solution.value[0].numpy()
    q = np.full(reward.shape, -np.inf)
    for a in range(3):
        video, gaming = (level_kernel(benefits[name], a > 0) for name in ("video", "gaming"))
        moves = np.kron(contract[a], np.kron(video, gaming))
        np.testing.assert_allclose(moves.sum(1), 1)
        q[..., a] = np.where(menu[:, a], reward[..., a] + discount * np.roll(value, -1, axis=0) @ moves.T, -np.inf)
    np.testing.assert_allclose(value, np.logaddexp.reduce(q, axis=-1), atol=1e-10)
    np.testing.assert_allclose(solution.policy[0].numpy(), np.exp(q - value[..., None]), atol=1e-9)
    assert solution.error <= 1e-10


def level_kernel(benefit: tastes.Benefit, member: bool) -> np.ndarray:
    up, down = (benefit.rise, benefit.drop) if member else (benefit.rise_out, benefit.drop_out)
    return np.array([[1 - up, up, 0], [down, 1 - up - down, up], [0, down, 1 - down]])


def test_members_follow_the_exact_policy(small: MarketSolution, panel: pd.DataFrame):
    policy = membership.true_policy(small, panel)
    groups = [panel["segment"], panel["price_annual"], panel["status"], panel["month"] // 4]
    statistic, cells = 0.0, 0
    for action in ACTIONS:
        probability = policy[action]
        gap = ((panel["plan"] == action) - probability).groupby(groups).sum()
        variance = (probability * (1 - probability)).groupby(groups).sum()
        z2 = (gap**2 / variance)[variance > 20]
        assert z2.max() < 15
        statistic, cells = statistic + z2.sum(), cells + len(z2)
    assert cells > 60 and 0.6 < statistic / cells < 1.4  # a mean of chi-squares with one degree of freedom each


def test_members_follow_the_season():
    market = replace(small_market(), seasons={"video": (-1.0,) * 6 + (3.0,) * 6, "gaming": (0.0,) * 12})
    solution = membership.solve(market)
    panel = membership.simulate(solution, members=4000, periods=14, seed=1)
    policy, january = (membership.true_policy(solution, f)["monthly"] for f in (panel, panel.assign(month=0)))
    shift = policy - january
    score = (((panel["plan"] == "monthly") - policy) * shift).sum()
    spread = np.sqrt((policy * (1 - policy) * shift**2).sum())
    power = (shift**2).sum() / spread  # about where |score / spread| would be if members always behaved as in January
    assert power > 8 and abs(score / spread) < 3


def test_engagement_moves_by_its_kernels(small: MarketSolution, panel: pd.DataFrame):
    following = panel.groupby("member_id").shift(-1)
    for (segment, member), rows in panel.groupby(["segment", panel["plan"] != "none"]):
        for name in small.market.benefits:
            later = following.loc[rows.index, name]
            counts = pd.crosstab(rows[name][later.notna()], later[later.notna()]).to_numpy()
            kernel = level_kernel(small.market.segments[segment].benefits[name], bool(member))
            expected = counts.sum(1, keepdims=True) * kernel
            spread = np.sqrt(np.maximum(expected * (1 - kernel), 1e-9))
            assert (counts[kernel == 0] == 0).all()
            assert (np.abs(counts - expected) / spread).max() < 4.5, (segment, member, name)


def test_prices_are_a_test_and_segments_have_their_shares(small: MarketSolution, panel: pd.DataFrame):
    first = panel[panel["period"] == 0]
    assert (panel.groupby("member_id")[["segment", "price_monthly", "price_annual"]].nunique() == 1).all(axis=None)
    counts = first.groupby(["price_monthly", "price_annual"]).size()
    assert list(counts.index) == [(8.0, 67.2), (8.0, 100.8), (12.0, 67.2), (12.0, 100.8)]
    assert counts.between(880, 1120).all()
    assert (first["segment"] == "gen_z").mean() == pytest.approx(0.27 / 0.47, abs=0.03)


def test_simulation_is_a_function_of_its_seed(small: MarketSolution):
    draws = [membership.simulate(small, members=30, periods=5, seed=seed) for seed in (7, 7, 8)]
    pd.testing.assert_frame_equal(draws[0], draws[1])
    assert not draws[0].equals(draws[2])
    assert len(draws[0]) == 150 and not draws[0].duplicated(["member_id", "period"]).any()


@pytest.mark.parametrize("discount", [0.9, 0.95, 0.99, 0.995])
def test_the_full_market_is_worth_studying(discount: float):
    """Every plan is chosen in every segment; benefits and season move the rewards within segment and status."""
    market = Market(discount=discount)
    cells = [Cell(segment, 10.0, 84.0) for segment in market.segments]
    solution = membership.solve(market, cells=cells)
    panel = membership.simulate(solution, members=600, periods=24, seed=0)
    shares = pd.crosstab(panel["segment"], panel["plan"], normalize="index")
    assert shares.shape == (4, 3) and shares.min(axis=None) > 0.08 and shares.max(axis=None) < 0.75
    available = solution.available.unsqueeze(1).expand(-1, 12, -1, -1)
    assert float(solution.policy[available].min()) > 1e-4
    if discount == 0.95:  # the study's own
        assert shares["none"].between(0.22, 0.6).all() and shares["annual"].between(0.15, 0.48).all()
        policy = membership.true_policy(solution, panel).groupby([panel["segment"], panel["status"]]).mean()
        assert policy.xs("annual", level=1)["none"].between(0.015, 0.06).all()
        assert policy.xs("out", level=1)["annual"].between(0.015, 0.08).all()
        spread = membership.true_reward(solution, panel).groupby([panel["segment"], panel["status"]]).std()
        assert spread.xs("monthly", level=1)["monthly"].between(0.3, 0.65).all()
        assert spread.xs("annual", level=1)["annual"].between(0.3, 0.65).all()


def test_locating_rows(small: MarketSolution, panel: pd.DataFrame):
    table = small.market.state_table(small.cells[3])
    cell, month, state = small.locate(table)
    assert (cell == 3).all()
    np.testing.assert_array_equal(month * small.market.states + state, np.arange(12 * 45))
    shuffled = panel.sample(frac=1, random_state=0)
    value = membership.true_value(small, shuffled)
    assert value.index.equals(shuffled.index)
    pd.testing.assert_series_equal(value.sort_index(), membership.true_value(small, panel))


@pytest.mark.parametrize(
    ("column", "wrong", "message"),
    [
        ("segment", "gen_x", "not solved for.*gen_x.*cells_of"),
        ("price_annual", 84.0, "not solved for.*84"),
        ("price_annual", np.nan, "not solved for.*nan"),
        ("status", "lapsed", "1 rows are not states.*first: 5"),
        ("months_left", 1, "1 rows are not states"),  # but not on the annual plan
        ("video", 3, "1 rows are not states"),
        ("month", 12, "1 rows are not states"),
    ],
)
def test_rows_outside_the_market_are_refused(
    small: MarketSolution, panel: pd.DataFrame, column: str, wrong: object, message: str
):
    frame = panel.head(20).copy()
    assert frame.loc[5, column] != wrong
    frame.loc[5, column] = wrong
    with pytest.raises(InputError, match=message):
        small.locate(frame)
    frame = panel[panel["status"] == "annual"].head(5).assign(months_left=4)
    with pytest.raises(InputError, match="5 rows are not states"):
        small.locate(frame)
    with pytest.raises(InputError, match=f"lacks the state columns {column}"):
        small.locate(panel.drop(columns=column))


def test_impossible_markets_are_refused():
    with pytest.raises(ValueError, match=r"no benefit 'chess'.*season of chess: 2 months.*contract_months is 1"):
        Market(seasons={"chess": (0.0, 0.0)}, contract_months=1)


def simulate_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "simulate.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def test_script_writes_the_panel_and_its_truth(tmp_path: Path):
    config = ROOT / "configs" / "membership.yaml"
    result = simulate_script("--config", str(config), "--out", str(tmp_path / "new"), "market.members=40", "seed=3")
    assert result.returncode == 0, result.stderr
    assert "plan shares" in result.stdout and "rural_india" in result.stdout
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "membership.parquet",
        "membership_truth.parquet",
    ]
    panel = pd.read_parquet(tmp_path / "new" / "membership.parquet")
    truth = pd.read_parquet(tmp_path / "new" / "membership_truth.parquet")
    study = load_config(config)
    columns = {study.data.member, study.data.period, study.data.action, *study.data.state}
    assert len(panel) == 40 * 36 and set(panel) == columns
    assert truth[["member_id", "period"]].equals(panel[["member_id", "period"]])
    assert list(truth)[2:] == [f"{kind}_{a}" for kind in ("reward", "policy") for a in ACTIONS] + ["value"]
    drawn = np.random.default_rng(3).choice(
        36, size=40, p=[s.share / 9 for s in Market().segments.values() for _ in range(9)]
    )
    cells = panel.drop_duplicates("member_id")[list(Cell._fields)].itertuples(index=False)
    assert [Cell(*cell) for cell in cells] == [Market().cells()[number] for number in drawn]
    log_odds = np.log(truth["policy_annual"] / truth["policy_none"])
    assert log_odds.corr(truth["value"]) > 0.3  # value and policy of the same rows


def test_script_refuses_in_one_message(tmp_path: Path):
    config = ROOT / "configs" / "membership.yaml"
    result = simulate_script("--config", str(config), "--out", str(tmp_path / "new"), "market=null")
    assert result.returncode == 2
    assert "no `market` section" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    result = simulate_script("--config", str(config), "--out", str(tmp_path / "file"))
    assert result.returncode == 2 and "cannot be used as a folder" in result.stderr
