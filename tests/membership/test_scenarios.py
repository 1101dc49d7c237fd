"""The market's exact answers to scenarios: against simulation, against markets changed by hand, and one identity."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from markets import small_market

from irl import membership
from irl.config import InputError
from irl.membership import ACTIONS, ANNUAL, MONTHLY, Market, MarketSolution, tastes
from irl.membership.scenarios import ExactAnswer, exact_answer, exact_outcomes, exact_surplus, scenario_edit
from irl.scenario import scenario_from


@pytest.fixture(scope="module")
def baseline() -> MarketSolution:
    return membership.solve(small_market())


@pytest.fixture(scope="module")
def start(baseline: MarketSolution) -> pd.DataFrame:
    return membership.simulate(baseline, members=200, periods=1, seed=2)


def changed(market: Market, *changes: dict[str, Any]) -> MarketSolution:
    edit = scenario_edit(market, {"name": "test", "changes": changes})
    return membership.solve(market, edit=edit)


def test_outcomes_agree_with_a_large_simulation(baseline: MarketSolution):
    panel = membership.simulate(baseline, members=20_000, periods=15, seed=4)
    exact = exact_outcomes(baseline, panel[panel["period"] == 0], periods=15).set_index(["segment", "period"])
    assert list(exact) == ["share_none", "share_monthly", "share_annual", "join", "renewal", "cancel"]
    groups = [panel["segment"], panel["period"]]
    was = panel.groupby("member_id")["plan"].shift().fillna(panel["status"].replace("out", "none"))
    plan, everyone = panel["plan"], panel["plan"].notna()
    seen = {f"share_{a}": (plan == a, everyone) for a in ACTIONS}
    seen |= {"join": (plan != "none", was == "none"), "renewal": (plan != "none", was != "none")}
    for name, (event, among) in seen.items():
        rate = event[among].groupby(groups).agg(["mean", "size"])
        z = (rate["mean"] - exact[name]).abs() / np.sqrt(exact[name] * (1 - exact[name]) / rate["size"])
        assert len(z) == 30 and z.max() < 4 and z.mean() < 1.3, name
    np.testing.assert_allclose(exact["cancel"], 1 - exact["renewal"])


def test_a_price_change_is_a_market_with_that_price(baseline: MarketSolution, start: pd.DataFrame):
    scenario = changed(baseline.market, {"feature": {"name": "price_annual", "scale": 1.25}})
    dearer = membership.solve(replace(baseline.market, list_annual=105.0))
    torch.testing.assert_close(scenario.reward, dearer.reward, equal_nan=True)
    torch.testing.assert_close(scenario.value, dearer.value)
    moved = start.assign(price_annual=start["price_annual"] * 1.25)
    pd.testing.assert_frame_equal(
        exact_outcomes(scenario, start, periods=4), exact_outcomes(dearer, moved, periods=4), rtol=1e-9
    )


def test_prices_that_no_member_of_the_panel_faced(baseline: MarketSolution, start: pd.DataFrame):
    frame = start.assign(price_annual=91.5)
    with pytest.raises(InputError, match="not solved for"):
        baseline.locate(frame)
    solution = membership.solve(baseline.market, cells=membership.cells_of(frame))
    assert len(solution.cells) == 4  # two segments, two monthly prices
    scenario = changed(baseline.market, {"feature": {"name": "price_annual", "set": 91.5}})
    np.testing.assert_allclose(
        membership.true_value(solution, frame), membership.true_value(scenario, start), atol=1e-9, rtol=0
    )


def test_changes_hold_only_where_they_should(baseline: MarketSolution):
    free = {"segment": "gen_z", "status": ["out", "monthly"], "months_left": 0, "month": {"min": 2, "max": 4}}
    scenario = changed(
        baseline.market,
        {"reward": {"action": "annual", "scale": 2, "add": -1.08, "where": free}},
        {"reward": {"action": "monthly", "add": 0.5, "where": {"price_annual": 100.8}}},
        {"feature": {"name": "price_annual", "add": 33.6, "where": {"segment": "rural_india", "price_annual": 67.2}}},
        {"remove": {"action": "monthly", "where": {"segment": ["rural_india"]}}},
    )
    for number, cell in enumerate(scenario.cells):
        table, old, new = baseline.market.state_table(cell), baseline.reward[number], scenario.reward[number]
        here = ((cell.segment == "gen_z") & (table["status"] != "annual") & table["month"].between(2, 4)).to_numpy()
        annual = old[..., ANNUAL].flatten().numpy()
        expected = np.where(here, 2 * annual - 1.08, annual)
        if cell.segment == "rural_india" and cell.price_annual == 67.2:
            expected = expected - np.where(table["status"] != "annual", 0.036 * 33.6, 0)
        np.testing.assert_allclose(new[..., ANNUAL].flatten().numpy(), expected)
        bonus = 0.5 if cell.price_annual == 100.8 or cell.segment == "rural_india" else 0.0  # at the new price
        torch.testing.assert_close(new[..., MONTHLY], old[..., MONTHLY] + bonus, equal_nan=True)
        removed = cell.segment == "rural_india"
        assert bool((scenario.policy[number, ..., MONTHLY] == 0).all()) == removed
    frame = baseline.market.state_table(scenario.cells[-1])
    assert membership.true_reward(scenario, frame)["monthly"].isna().all()
    assert (exact_outcomes(scenario, frame, periods=3)["share_monthly"] == 0).all()


def with_benefit(market: Market, segment: str, name: str, benefit: tastes.Benefit) -> Market:
    taste = market.segments[segment]
    return replace(
        market,
        segments={**market.segments, segment: replace(taste, benefits={**taste.benefits, name: benefit})},
    )


def test_a_benefit_that_moves_as_in_another_segment_is_a_market_where_it_does(
    baseline: MarketSolution, start: pd.DataFrame
):
    like = {"dynamics": {"name": "video", "like": {"segment": "gen_z"}, "where": {"segment": "rural_india"}}}
    rural, young = (baseline.market.segments[s].benefits["video"] for s in ("rural_india", "gen_z"))
    by_hand = with_benefit(baseline.market, "rural_india", "video", replace(young, taste=rural.taste))
    scenario, expected = changed(baseline.market, like), membership.solve(by_hand)
    torch.testing.assert_close(scenario.value, expected.value)
    assert not torch.allclose(scenario.value, baseline.value, atol=1e-3)
    pd.testing.assert_frame_equal(
        exact_outcomes(scenario, start, periods=6), exact_outcomes(expected, start, periods=6), rtol=1e-9
    )
    simulated = [membership.simulate(s, members=300, periods=2, seed=1, burn_in_years=1) for s in (scenario, expected)]
    pd.testing.assert_frame_equal(*simulated)


def test_a_shift_of_use_is_a_tilt_of_its_moves(baseline: MarketSolution):
    """From level 1 as a member: down .12, stay .70, up .18, times 1, e^.5, e^1, to sum 1; from 0 and 2 alike."""
    where = {"segment": "gen_z", "video": [1, 2], "price_annual": 67.2}
    scenario = changed(baseline.market, {"dynamics": {"name": "video", "shift": 0.5, "where": where}})
    b = baseline.market.benefits.index("video")
    for number, cell in enumerate(scenario.cells):
        new, old = scenario.kernels[number].clone(), baseline.kernels[number]
        if cell.segment == "gen_z" and cell.price_annual == 67.2:
            weights = np.array([0.12, 0.70 * np.exp(0.5), 0.18 * np.exp(1.0)])
            np.testing.assert_allclose(new[1, b, 1], weights / weights.sum())
            weights = np.array([0, 0.12 * np.exp(0.5), 0.88 * np.exp(1.0)])
            np.testing.assert_allclose(new[1, b, 2], weights / weights.sum())
            torch.testing.assert_close(new[1, b, 0], old[1, b, 0])
            new[:, b] = old[:, b]
        torch.testing.assert_close(new, old)
    assert float((scenario.value - baseline.value).max()) > 0.05
    torch.testing.assert_close(
        changed(baseline.market, {"dynamics": {"name": "video", "shift": 0}}).value, baseline.value
    )


def test_a_movement_where_a_changed_price_is_is_refused(baseline: MarketSolution):
    with pytest.raises(InputError, match="cannot be changed where a price is that is itself changed"):
        changed(
            baseline.market,
            {"feature": {"name": "price_annual", "set": 90, "where": {"status": "out"}}},
            {"dynamics": {"name": "video", "shift": 0.5, "where": {"price_annual": 90}}},
        )


def test_surplus_is_what_a_lower_price_saves():
    """Envelope: the surplus per month of a cent off is a cent times the discounted share of those who pay."""
    market = small_market(discount=0.9)
    baseline = membership.solve(market)
    start = membership.simulate(baseline, members=200, periods=1, seed=2)
    cheaper = changed(market, {"feature": {"name": "price_monthly", "add": -0.01}})
    outcomes = exact_outcomes(baseline, start, periods=200)
    discounted = 0.1 * 0.9 ** outcomes["period"] * outcomes["share_monthly"]
    paying = discounted.groupby(outcomes["segment"]).sum()
    np.testing.assert_allclose(exact_surplus(baseline, cheaper, start), 0.01 * paying, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"reward": {"action": "anual", "add": 1}},
            "unknown action other than the anchor 'anual'; did you mean 'annual'",
        ),
        ({"reward": {"action": "none", "add": 1}}, "unknown action other than the anchor 'none'"),
        ({"remove": {"action": "none"}}, "unknown action other than the anchor 'none'"),
        ({"feature": {"name": "video", "set": 2}}, "unknown price 'video'"),
        ({"remove": {"action": "monthly", "where": {"month": 3}}}, "cannot depend on the month"),
        ({"remove": {"action": "monthly", "where": {"segmnt": "gen_z"}}}, "did you mean 'segment'"),
        ({"remove": {"action": "monthly", "where": {"segment": "gen_x"}}}, "did you mean 'gen_z'"),
        ({"feature": {"name": "price_annual", "scale": [1.1, 1.2]}}, "sweep"),
        ({"dynamics": {"name": "vidoe", "shift": 1}}, "unknown benefit 'vidoe'; did you mean 'video'"),
        ({"dynamics": {"name": "video", "like": {"segment": "gen_x"}}}, "unknown label 'gen_x'; did you mean 'gen_z'"),
        ({"dynamics": {"name": "video", "like": {"status": "out"}}}, "unknown column 'status'"),
        ({"dynamics": {"name": "video", "shift": 1, "where": {"gaming": 2}}}, "cannot depend on 'gaming' here"),
    ],
)
def test_what_the_market_cannot_answer_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        scenario_edit(small_market(), {"name": "test", "changes": [change]})


def answer(members: pd.DataFrame, *changes: dict[str, Any], periods: int = 8, **timing: Any) -> ExactAnswer:
    content = {"name": "test", "periods": periods, "changes": changes, "timing": timing}
    return exact_answer(small_market(), scenario_from(content), members)


DEARER = {"feature": {"name": "price_annual", "scale": 1.25}}


def test_the_whole_answer_is_made_of_the_solved_markets(baseline: MarketSolution, start: pd.DataFrame):
    found, dearer = answer(start, DEARER), changed(baseline.market, DEARER)
    pd.testing.assert_frame_equal(found.baseline, exact_outcomes(baseline, start, periods=8), rtol=1e-9)
    pd.testing.assert_frame_equal(found.scenario, exact_outcomes(dearer, start, periods=8), rtol=1e-9)
    price = pd.Series({name: own.price for name, own in baseline.market.segments.items()})
    pd.testing.assert_series_equal(found.surplus, exact_surplus(baseline, dearer, start) * price, check_names=False)


def test_a_copy_instead_of_its_model_changes_nothing(start: pd.DataFrame):
    copy = {"add": {"action": "copy", "like": "monthly", "nest": 0.5}}
    found = answer(start, copy, {"remove": {"action": "monthly"}})
    np.testing.assert_allclose(found.scenario["share_copy"], found.baseline["share_monthly"], atol=1e-9)
    np.testing.assert_allclose(found.surplus, 0, atol=1e-9)
    beside = {nest: answer(start, {"add": {**copy["add"], "nest": nest}}) for nest in (0.0, 0.999)}
    np.testing.assert_allclose(beside[0.0].scenario["share_copy"], beside[0.0].scenario["share_monthly"], atol=1e-9)
    assert (beside[0.0].surplus > 0.05).all() and (beside[0.999].surplus.abs() < 1e-3).all()


def test_a_shorter_contract(start: pd.DataFrame):
    """A plan like the annual one at its reward that leads to a month left is monthly's contract at annual's price."""
    short = {"action": "short", "like": "annual", "nest": 0.0, "where": {"status": ["out", "monthly"]}}
    given = {**short, "facing": {"price_annual": 20}, "then": {"status": "annual", "months_left": 1}}
    found = answer(start, {"add": given}, {"remove": {"action": "annual", "where": {"status": ["out", "monthly"]}}})
    assert (found.scenario["share_short"] > 0.02).all()
    out = found.scenario[found.scenario["period"] > 3]  # contracts of before have run out: one month each
    assert (out["share_annual"] < out["share_short"]).all() and (out["share_annual"] > 0).all()
    same = {**short, "then": {"status": "monthly", "months_left": 0}}
    market = small_market()
    rules = market.rules(market.cells()[0], scenario_edit(market, {"name": "x", "changes": [{"add": same}]}))
    assert rules.moves[0].tolist() == [1] * market.contracts
    with pytest.raises(InputError, match="no contract of the market"):
        answer(start, {"add": {**short, "then": {"months_left": 0}}})


def test_changes_for_a_time(baseline: MarketSolution, start: pd.DataFrame):
    for_good, long = answer(start, DEARER), answer(start, DEARER, length=400)
    pd.testing.assert_frame_equal(for_good.scenario, long.scenario, atol=1e-7)
    np.testing.assert_allclose(for_good.surplus, long.surplus, atol=1e-7)
    late, told = (answer(start, DEARER, start=3, length=2, announced=a) for a in (False, True))
    assert list(late.scenario["period"]) == list(told.scenario["period"])
    early = late.scenario["period"] < 3
    pd.testing.assert_frame_equal(late.scenario[early], late.baseline[early])
    moved = (told.scenario["share_annual"] - told.baseline["share_annual"]).groupby(told.scenario["period"]).sum()
    assert 0 < moved[1] < moved[2] and moved[3] < 0  # a year bought in time
    assert (told.surplus > late.surplus).all()  # of losses: far ahead they weigh less


def test_a_surprise_is_worth_what_it_is_worth_when_it_comes(baseline: MarketSolution, start: pd.DataFrame):
    later = answer(start, DEARER, start=2)
    gain = changed(baseline.market, DEARER).value - baseline.value
    panel = membership.simulate(baseline, members=30_000, periods=3, seed=5)
    first = panel[panel["period"] == 0]
    exact = answer(first, DEARER, start=2, periods=3).surplus
    there = panel[panel["period"] == 2]
    seen = pd.Series(gain[baseline.locate(there)].numpy()).groupby(there["segment"].to_numpy()).mean() * 0.05
    np.testing.assert_allclose(exact, seen, rtol=0.02)
    assert (later.surplus < 0).all()
