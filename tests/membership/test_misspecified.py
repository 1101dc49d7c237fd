"""Members whom the plain model does not describe: contracts, inattention, shared shocks, hidden types."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from irl import bellman, membership, tabular
from irl.config import Config, load_config
from irl.counterfactual import ask
from irl.data import panel_from_frame
from irl.declared import Reward
from irl.estimation.pipeline import estimate
from irl.estimation.training import Workbench
from irl.membership import ANNUAL, MONTHLY, NONE, Market, scenarios, types
from irl.scenario import scenario_from


def small_market(**options) -> Market:
    full = Market(price_factors=(1.0,), contract_months=4, list_annual=30.0, **options)
    return replace(
        full,
        segments={"gen_z": full.segments["gen_z"]},
        seasons={name: full.seasons[name] for name in ("video", "gaming")},
    )


def problem(inertia=None):
    generator = torch.Generator().manual_seed(0)
    transition = torch.rand(4, 3, 4, generator=generator, dtype=torch.float64)
    transition /= transition.sum(-1, keepdim=True)
    menu = torch.ones(4, 3, dtype=torch.bool)
    menu[1, 2] = False
    reward = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return tabular.FiniteMDP(reward, menu, tabular.dense_expectation(transition), 0.9, 0.7, inertia=inertia)


def test_inertia_by_iterating_its_equation():
    default, attention = torch.tensor([0, 2, 1, 2]), torch.tensor([0.4, 0.4, 1.0, 0.0], dtype=torch.float64)
    mdp = problem(bellman.Inertia(attention, default))
    value = torch.zeros(4, dtype=torch.float64)
    for _ in range(2000):
        q = mdp.reward + 0.9 * mdp.expectation(value)
        soft = bellman.soft_value(q, mdp.available, 0.7)
        passed = q[torch.arange(4), default]
        own = torch.where(torch.arange(4) == 1, 1.0, attention)  # in state 1 the default is not on the menu
        value = own * soft + (1 - own) * torch.where(own < 1, passed, 0.0)
    found = tabular.solve(mdp)
    torch.testing.assert_close(found.value, value, rtol=0, atol=1e-9)
    pi = bellman.log_policy(q, mdp.available, 0.7).exp()
    torch.testing.assert_close(found.policy[0], 0.4 * pi[0] + 0.6 * torch.tensor([1.0, 0.0, 0.0]).double())
    torch.testing.assert_close(found.policy[1], pi[1])
    torch.testing.assert_close(found.policy[3], torch.tensor([0.0, 0.0, 1.0]).double())
    last = tabular.backwards(mdp, value, periods=3)[0]
    torch.testing.assert_close(last[0], value, rtol=0, atol=1e-9)
    torch.testing.assert_close(last[1], found.policy)


def test_a_policy_with_inertia_has_no_shocks_of_its_own():
    mdp = problem(bellman.Inertia(torch.full((4,), 0.5, dtype=torch.float64), torch.zeros(4, dtype=torch.long)))
    with pytest.raises(ValueError, match="which shocks were received"):
        tabular.evaluate(mdp, tabular.solve(mdp).policy)


def test_a_contract_that_cannot_be_left():
    solution = membership.solve(small_market(commitment=True))
    panel = membership.simulate(solution, members=300, periods=24, seed=0)
    inside = panel["status"] == "annual"
    assert inside.sum() > 300 and (panel.loc[inside, "plan"] == "annual").all()
    free = membership.simulate(membership.solve(small_market()), members=300, periods=24, seed=0)
    assert (free.loc[free["status"] == "annual", "plan"] == "none").any()


def test_who_does_not_decide_renews():
    market = small_market(attention=0.3, reminded=0.2, attention_reminded=0.9)
    solution = membership.solve(market)
    assert market.mean_attention == pytest.approx(0.42) and market.columns[-1] == "reminded"
    panel = membership.simulate(solution, members=4000, periods=24, seed=0)
    assert panel["reminded"].mean() == pytest.approx(0.2, abs=0.01)
    monthly = panel[panel["status"] == "monthly"]
    cell, month, state = solution.locate(monthly)
    decided = solution.decided[cell, month, state].numpy()
    for told, attention in ((0, 0.3), (1, 0.9)):
        here = (monthly["reminded"] == told).to_numpy()
        expected = attention * decided[here].mean(0) + (1 - attention) * np.eye(3)[MONTHLY]
        seen = np.array([(monthly["plan"][here] == plan).mean() for plan in membership.ACTIONS])
        np.testing.assert_allclose(seen, expected, atol=0.02)
    happens = solution.policy[cell, month, state].numpy()
    np.testing.assert_allclose(happens, 0.42 * decided + 0.58 * np.eye(3)[MONTHLY])
    renewed = market.renewed().reshape(market.contracts, -1)
    assert renewed[:, 0].tolist() == [NONE, MONTHLY, *[ANNUAL] * (market.contracts - 2)]


def test_the_exact_answer_where_members_do_not_always_decide():
    market = small_market(attention=0.5, reminded=0.3, attention_reminded=0.9)
    panel = membership.simulate(membership.solve(market), members=6000, periods=8, seed=1)
    change = {"reward": {"action": "monthly", "add": -0.5, "where": {"status": ["monthly"]}}}
    scenario = scenario_from({"name": "a fee", "periods": 8, "changes": [change]})
    answer = scenarios.exact_answer(market, scenario, panel[panel["period"] == 0])
    seen = np.array([(panel["plan"] == plan).groupby(panel["period"]).mean() for plan in membership.ACTIONS]).T
    shares = answer.baseline[[f"share_{plan}" for plan in membership.ACTIONS]].to_numpy()
    np.testing.assert_allclose(shares, seen, atol=0.02)
    edited = membership.solve(market, edit=scenarios.scenario_edit(market, scenario))
    direct = scenarios.exact_outcomes(edited, panel[panel["period"] == 0], periods=8)
    np.testing.assert_allclose(answer.scenario["share_none"], direct["share_none"], atol=1e-9)
    assert (answer.scenario["share_none"] > answer.baseline["share_none"]).all() and (answer.surplus < 0).all()


def test_plans_that_share_their_shocks():
    plain, shared = (membership.solve(small_market(nest=nest)) for nest in (0.0, 0.7))
    torch.testing.assert_close(plain.reward, shared.reward, equal_nan=True)
    both = [
        s.policy[..., MONTHLY][s.available[:, None, :, MONTHLY].expand_as(s.policy[..., 0])] for s in (plain, shared)
    ]
    assert (both[0] - both[1]).abs().max() > 0.05  # shares go to the extremes within the nest


def test_hidden_types_are_in_no_column():
    market = small_market()
    solutions = types.solve_types(market, (0.3, 1.7))
    panel, kind = types.simulate_types(solutions, members=2001, periods=12, seed=3)
    assert list(panel.columns) == list(membership.simulate(solutions[0], members=2, periods=2, seed=0).columns)
    assert kind[::12].value_counts().to_dict() == {0: 1001, 1: 1000} and panel["member_id"].nunique() == 2001
    assert (kind.groupby(panel["member_id"]).nunique() == 1).all()
    share = (panel["plan"] != "none").groupby(kind).mean()
    assert share[1] > share[0] + 0.1
    assert (panel.groupby("member_id")["period"].agg(list).map(lambda p: p == list(range(12)))).all()
    found = types.truth(solutions, panel, kind)
    assert found.index.equals(panel.index) and found["type"].equals(kind.rename("type"))
    at = kind == 1
    expected = membership.true_reward(solutions[1], panel[at])["annual"]
    np.testing.assert_allclose(found.loc[at, "reward_annual"], expected)
    alone = types.simulate_types(solutions[:1], members=20, periods=3, seed=3)[0]
    pd.testing.assert_frame_equal(alone, membership.simulate(solutions[0], members=20, periods=3, seed=3))


def test_a_type_s_use_may_depend_on_its_taste():
    video = small_market().segments["gen_z"].of_type(1.3, use=0.5).benefits["video"]
    assert (video.taste, video.rise, video.drop) == pytest.approx((1.3 * 0.8, 0.09, 0.12))


def test_the_stock_of_members_is_who_was_one_when_the_panel_began():
    solution = membership.solve(small_market(entry="stock"))
    panel = membership.simulate(solution, members=500, periods=6, seed=0)
    everyone = membership.simulate(membership.solve(small_market()), members=2000, periods=1, seed=1)
    first = panel[panel["period"] == 0]
    assert len(first) == 500 and "out" not in set(first["status"]) and "out" in set(panel["status"])
    inside = everyone[everyone["status"] != "out"]
    assert (first["status"] == "annual").mean() == pytest.approx((inside["status"] == "annual").mean(), abs=0.07)
    solutions = types.solve_types(small_market(entry="stock"), (0.3, 1.7))
    _, kind = types.simulate_types(solutions, members=500, periods=2, seed=0)
    assert (kind == 1).mean() > 0.55  # who values benefits is a member


def test_a_mood_comes_and_goes_and_is_worth_its_range():
    market = small_market().moody(1.5)
    solution = membership.solve(market)
    panel = membership.simulate(solution, members=1500, periods=12, seed=0)
    worth = [membership.true_reward(solution, panel.assign(mood=m, video=0, gaming=0))["annual"] for m in (0, 1, 2)]
    plain = membership.true_reward(membership.solve(small_market()), panel.assign(video=0, gaming=0))["annual"]
    assert float((worth[2] - worth[0]).mean()) == pytest.approx(1.5, abs=0.25)  # less what saturates
    assert float((worth[0] - plain).mean()) == pytest.approx(-0.75)
    mood = panel["mood"].to_numpy().reshape(1500, 12)
    assert np.corrcoef(mood[:, :-1].ravel(), mood[:, 1:].ravel())[0, 1] == pytest.approx(0.9, abs=0.02)
    member = panel["status"] != "out"
    assert panel.loc[member, "mood"].mean() > panel.loc[~member, "mood"].mean() + 0.2


def test_a_study_names_its_market():
    about = {"types": [0.5, 1.5], "chosen_use": True, "entry": "stock", "shocks": 0.5, "nest": 0.3}
    config = load_config("configs/membership.yaml", ["discount=0.9", f"market={json.dumps(about)}"])
    market = membership.market_of(config)
    assert (market.discount, market.entry, market.nest, market.benefits[-1]) == (0.9, "stock", 0.3, "mood")
    own = [s.market.segments["gen_z"].benefits["video"] for s in types.solve_types(
        small_market(), (0.5, 1.5), chosen_use=True)]  # fmt: skip
    assert [b.rise for b in own] == pytest.approx([0.09, 0.27]) and [b.taste for b in own] == pytest.approx([0.4, 1.2])
    with pytest.raises(ValueError, match="above 1"):
        types.solve_types(small_market(), (6.0,), chosen_use=True)


@pytest.mark.parametrize("wrong", [{"attention": 1.5}, {"nest": 1.0}, {"attention": 0.0}])
def test_impossible_members_are_refused(wrong):
    with pytest.raises(ValueError, match=r"probability|nest"):
        small_market(**wrong)


def test_a_committed_market_from_panel_to_answer():
    """Trained with its contracts declared: flows near the truth, and an answer that says what it is about."""
    market = small_market(commitment=True)
    panel = membership.simulate(membership.solve(market), members=500, periods=16, seed=0)
    tiny = {"hidden": [8], "max_epochs": 4, "batch_size": 2048}
    free, out = {"status": ["out", "monthly"]}, {"months_left": 0}
    static, table = (
        {"kind": "category", "dynamics": "static"},
        {"dynamics": "table", "parents": ["status", "months_left"]},
    )
    use = {"kind": "ordinal", "levels": 3, "dynamics": "learned"}
    config = Config.model_validate(
        {
            "data": {
                "path": "x.parquet", "member": "member_id", "period": "period", "action": "plan",
                "actions": list(membership.ACTIONS), "available": {"none": free, "monthly": free}, "segment": "segment",
                "state": {
                    "segment": static, "status": {"kind": "category"} | table,
                    "months_left": {"kind": "ordinal", "levels": 4} | table,
                    "video": use, "gaming": use, "month": {"kind": "ordinal", "levels": 12, "dynamics": "clock"},
                },
            },
            "anchor": {"action": "none"}, "discount": 0.95,
            "reward": {"same_flow_as": {"annual": {"action": "monthly", "at": out | {"status": "monthly"}}}},
            "estimation": {k: tiny for k in ("policy", "reward", "dynamics")}
            | {"anchor_q": tiny | {"rounds": 1}, "folds": 1}
            | {"refit": {"rows": 300, "rounds": 1, "standard_errors": False}},
        }
    )  # fmt: skip
    bench = Workbench(device=torch.device("cpu"), seed=0)
    model, metrics = estimate(config, panel_from_frame(panel, config), bench=bench)
    inside = panel[panel["status"] == "annual"]
    found = metrics["contracts"]["annual"]
    assert found["share"] == pytest.approx(len(inside) / len(panel))
    cell = found["segments"]["gen_z"]
    assert cell["periods"] == 4
    like = inside.assign(status="monthly", months_left=0)  # what a month gives, less the price that is not paid inside
    true = membership.true_reward(membership.solve(market), like)["monthly"].mean()
    assert cell["flow"]["mean"] == pytest.approx(true, abs=0.15)
    change = {"dynamics": {"name": "gaming", "shift": 1.0}}
    some = panel[panel["member_id"] < "m040"]
    question = ask(model, {"name": "x", "periods": 3, "members": 200, "changes": [change]}, some)
    answer = question.answer(bands=False)
    assert "are inside a contract when they learn" in " ".join(answer.warnings())
    surplus = answer.outcomes.set_index("outcome").loc["surplus", "change"]
    plain = replace(model, config=config.model_copy(update={"reward": Reward()}))
    without = ask(plain, question.scenario, some).answer(bands=False)
    assert "not identified" in " ".join(without.warnings())
    assert 0 < without.outcomes.set_index("outcome").loc["surplus", "change"] < 0.97 * surplus
