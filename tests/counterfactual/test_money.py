"""Money paid and cost by hand; price coefficients against differences of rewards; a world where nothing ever moves, so
that choices are one logit draw a period, and revenue, surplus in money and elasticities are known exactly."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from irl.config import Config, InputError
from irl.counterfactual import ask
from irl.counterfactual.money import check_money, paid, price_coefficients
from irl.data.fit import fit_schema
from irl.data.panel import panel_from_frame
from irl.declared import Money
from irl.fitted import new_networks
from irl.transitions import States

MONEY = {
    "currency": "USD",
    "price": {"monthly": "price", "annual": {"amount": "fee", "where": {"status": "out"}}},
    "cost": {"monthly": {"amount": 2.0, "per": {"hours": 0.5}}, "annual": 1.0},
}
STATE = {
    "price": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"},
    "fee": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"},
    "status": {"kind": "category", "dynamics": "static"},
    "hours": {"kind": "ordinal", "levels": [0, 10, 20], "dynamics": "static"},
}
THETA = [[0.0, 0, 0, 0, 0], [1.0, -0.2, 0, 0.3, 0.01], [0.5, 0, -0.02, 0.0, 0.02]]
"""Of none, monthly and annual, times 1, price, fee, whether out, and hours."""


def frame_of(members=240):
    i = np.arange(members)
    columns = {
        "id": i, "month": 0, "plan": "none", "region": np.where(i % 5 < 2, "north", "south"),
        "price": np.array([8.0, 10, 12])[i % 3], "fee": np.array([80.0, 100])[i % 2],
        "status": np.where(i % 7 < 3, "in", "out"), "hours": np.array([0, 10, 20])[i % 3],
    }  # fmt: skip
    return pd.DataFrame(columns)


def model_of(frame, *, reward=None, state=None, error=0.003, money=MONEY, available=None):
    """A model with ``THETA`` and an error of its parameters in proportion to 1 / the size of their column."""
    config = Config.model_validate(
        {
            "data": {
                "path": "none.parquet", "member": "id", "period": "month", "action": "plan",
                "actions": ["none", "monthly", "annual"], "segment": "region", "state": state or STATE,
                "available": available or {},
            },
            "anchor": {"action": "none", "reward": 0.0},
            "reward": reward or {"structure": "linear"},
            "money": money,
            "discount": 0.9,
            "estimation": {name: {"hidden": [8]} for name in ("policy", "anchor_q", "reward", "dynamics")},
        }
    )  # fmt: skip
    model = new_networks(config, fit_schema(frame, config))
    if reward is None:
        model.refit.theta.copy_(torch.tensor(THETA))
    else:
        generator = torch.Generator().manual_seed(0)
        model.refit.theta[1:] = torch.randn(2, model.terms.width, generator=generator, dtype=torch.float64)
    free = len(model.refit.covariance)
    model.refit.covariance.copy_(torch.diag(torch.linspace(0.5, 1.5, free, dtype=torch.float64) * error**2))
    return model


def rows_of(model, frame):
    panel = panel_from_frame(frame, model.config, schema=model.schema)
    return States(panel.state, panel.segment, panel.weight)


def draws_of(model):
    return model.refit.draws(len(model.refit.covariance), seed=0)


def test_what_is_paid_and_what_it_costs():
    frame = frame_of(4).assign(price=8.0, fee=[80.0, 80, 100, 100], status=["out", "in", "out", "in"], hours=20)
    model = model_of(frame_of())
    state = model.schema.encode(frame)
    for action, expected in {
        0: [[0, 0]] * 4, 1: [[8, 12]] * 4, 2: [[80, 1], [0, 1], [100, 1], [0, 1]]
    }.items():  # fmt: skip
        found = paid(model.schema, model.config.money, state)[:, action]
        assert found.tolist() == pytest.approx(np.array(expected, dtype=float))


def test_conditions_and_columns_have_to_fit():
    model = model_of(frame_of())
    wrong = {
        "currency": "USD",
        "price": {"annual": {"amount": "fee", "where": {"status": "away"}}},
        "cost": {"annual": {"per": {"hour": 1.0}}},
    }
    with pytest.raises(InputError, match=r"money.cost.annual.per: unknown state column 'hour'; did you mean 'hours'"):
        check_money(Money.model_validate(wrong), model.config.data, model.schema)
    wrong["cost"] = {}
    with pytest.raises(InputError, match=r"money.price.annual.where.status: 'away' never occurs in the data"):
        check_money(Money.model_validate(wrong), model.config.data, model.schema)
    assert check_money(None, model.config.data, model.schema) is None


def test_price_coefficients_of_a_linear_reward():
    """-.2 from one price, -.02 from the other, by hand; combined by their precisions."""
    frame = frame_of()
    model = model_of(frame)
    found = price_coefficients(model, model.config.money, rows_of(model, frame), draws_of(model))
    var = model.refit.covariance.diagonal().view(2, 5)
    errors = {"price": float(var[0, 1]), "fee": float(var[1, 2])}
    weight = {name: (1 / v) / sum(1 / u for u in errors.values()) for name, v in errors.items()}
    for segment, value in zip(("north", "south"), found.value.tolist(), strict=True):
        assert value == pytest.approx(weight["price"] * 0.2 + weight["fee"] * 0.02)
        about = found.estimates[segment]
        assert about["value"] == pytest.approx(value)
        assert {k: v["value"] for k, v in about["prices"].items()} == pytest.approx({"price": 0.2, "fee": 0.02})
        assert about["prices"]["fee"]["se"] == pytest.approx(errors["fee"] ** 0.5)
        assert about["se"] == pytest.approx(sum(weight[k] ** 2 * v for k, v in errors.items()) ** 0.5)
    said = "its prices disagree on what a unit of USD is worth (0.2 by price, 0.02 by fee)"
    assert [said in note for note in found.notes] == [True, True]
    agreeing = model_of(frame, error=0.2)  # by their own lights
    agreeing.refit.covariance[-3, -3] = 1e-4
    found = price_coefficients(agreeing, agreeing.config.money, rows_of(agreeing, frame), draws_of(agreeing))
    assert not any("disagree" in note for note in found.notes)
    # as many draws as parameters: their second moments are the covariance
    assert found.slopes[0].square().mean().sqrt() == pytest.approx(found.estimates["north"]["se"])


def test_price_coefficients_are_mean_differences_of_rewards_where_it_is_paid():
    frame = frame_of()
    state = STATE | {"region": {"kind": "category", "dynamics": "static"}}
    model = model_of(
        frame, reward={"structure": "full"}, state=state, error=1e-6, available={"annual": {"hours": [0, 10]}}
    )
    money = Money.model_validate(MONEY | {"price": {"annual": MONEY["price"]["annual"]}})
    rows = rows_of(model, frame)
    weight = torch.linspace(1, 3, len(frame))
    found = price_coefficients(model, money, replace(rows, weight=weight), draws_of(model))
    dear, cheap = (model.reward(frame.assign(fee=fee))["annual"].to_numpy() for fee in (100.0, 80.0))
    differs = []
    for region in ("north", "south"):
        pays = ((frame["region"] == region) & (frame["status"] == "out") & (frame["hours"] < 20)).to_numpy()
        exact = -np.average((dear - cheap)[pays] / 20, weights=weight.numpy()[pays])
        differs.append(exact)
        assert found.estimates[region]["value"] == pytest.approx(exact, rel=1e-4)
    assert abs(differs[0] - differs[1]) > 0.01
    assert [not np.isnan(v) for v in found.value.tolist()] == [d > 0 for d in differs]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"error": 0.5}, "north: surplus in USD is left out, here and for all: that a higher price lowers the reward"),
        ({"money": MONEY | {"price": {"monthly": 8.0}}}, "no price is a column declared `assigned: randomised`"),
        ({"error": 0.0}, "the model has no standard errors"),
    ],
)
def test_where_money_s_worth_is_not_clear_it_is_left_out(changes, why):
    frame = frame_of()
    model = model_of(frame, **changes)
    answer = ask(model, {"name": "x", "periods": 2, "changes": [CHEAPER]}, frame).answer()
    assert "surplus_money" not in set(answer.outcomes["outcome"])
    assert {"surplus", "revenue"} <= set(answer.outcomes["outcome"])
    assert any(why in text for text in answer.warnings())


CHEAPER = {"feature": {"name": "fee", "scale": 0.8}}
PERIODS = 4


@pytest.fixture(scope="module")
def answered():
    """20,000 members who face the fee, and .8 times it."""
    frame = frame_of()
    model = model_of(frame)
    scenario = {"name": "cheaper", "periods": PERIODS, "members": 20_000, "changes": [CHEAPER]}
    return frame, model, ask(model, scenario, frame).answer()


def exact(frame, scale):
    """By member: choice probabilities, price faced, soft value; the truth of a world in which nothing moves."""
    out = (frame["status"] == "out").to_numpy(float)
    x = np.stack([np.ones(len(frame)), frame["price"], scale * frame["fee"], out, frame["hours"]], 1)
    reward = x @ np.array(THETA).T
    value = np.log(np.exp(reward).sum(1))
    return np.exp(reward - value[:, None]), x[:, 2], value / (1 - 0.9)


def test_revenue_and_margin_are_those_of_the_exact_choices(answered):
    frame, _, answer = answered
    table = answer.outcomes.set_index(["outcome", "segment", "period"]).sort_index()
    for side, scale in (("baseline", 1.0), ("scenario", 0.8)):
        share, fee, _ = exact(frame, scale)
        revenue = share[:, 1] * frame["price"] + share[:, 2] * fee * (frame["status"] == "out")
        margin = revenue - share[:, 1] * (2 + 0.5 * frame["hours"]) - share[:, 2]
        for segment in ("north", "south", "all"):
            mine = (frame["region"] == segment) | (segment == "all")
            for name, by in (("revenue", revenue), ("margin", margin)):
                found = table.loc[(name, segment), side]
                monthly = found[found.index.notna()]
                assert len(monthly) == PERIODS
                assert monthly.to_numpy() == pytest.approx(by[mine].mean(), abs=0.9)
                total = table.loc[(f"{name}_total", segment), side].iloc[0]
                assert total == pytest.approx(monthly.sum())
                assert total == pytest.approx(PERIODS * by[mine].mean(), rel=0.04)


def test_intervals_have_the_luck_of_the_simulation(answered):
    """With parameters as good as known: no wider than of members with random numbers of their own, and not nothing."""
    frame, _, _ = answered
    scenario = {"name": "cheaper", "periods": 1, "members": 4000, "changes": [CHEAPER]}
    table = ask(model_of(frame, error=1e-9), scenario, frame).answer().outcomes
    row = table[(table["outcome"] == "share_annual") & (table["segment"] == "all")].iloc[0]
    independent = np.sqrt((row["baseline"] * (1 - row["baseline"]) + row["scenario"] * (1 - row["scenario"])) / 4000)
    assert 0.2 < (row["high"] - row["low"]) / 2 / (2.13 * independent) < 1


def test_surplus_in_money_is_the_exact_value_over_kappa(answered):
    frame, _, answer = answered
    table = answer.outcomes[answer.outcomes["outcome"] == "surplus_money"].set_index("segment")
    gain = 0.1 * (exact(frame, 0.8)[2] - exact(frame, 1.0)[2])
    kappa = answer.money["price_coefficients"]["north"]["value"]
    for segment in ("north", "south", "all"):
        mine = (frame["region"] == segment) | (segment == "all")
        assert table.loc[segment, "change"] == pytest.approx(gain[mine].mean() / kappa, rel=0.02)
    assert (table["low"] < table["change"]).all() and (table["baseline"] == 0).all()
    assert answer.money["currency"] == "USD"


def test_elasticities_are_those_of_the_exact_choices(answered):
    frame, _, answer = answered
    table = answer.outcomes[answer.outcomes["outcome"].str.startswith("elasticity_")]
    before, after = exact(frame, 1.0), exact(frame, 0.8)
    for segment in ("north", "south", "all"):
        mine = (frame["region"] == segment) | (segment == "all")
        old, new = before[1][mine].mean(), after[1][mine].mean()
        price = (new - old) / ((new + old) / 2)
        q0, q1 = (each[0][mine].mean(0) for each in (before, after))
        shares = dict(zip(["share_none", "share_monthly", "share_annual"], (q1 - q0) / ((q1 + q0) / 2), strict=True))
        m0, m1 = 1 - q0[0], 1 - q1[0]
        for name, change in (shares | {"membership": (m1 - m0) / ((m1 + m0) / 2)}).items():
            rows = table[(table["outcome"] == f"elasticity_{name}") & (table["segment"] == segment)]
            assert rows["period"].isna().tolist() == [True, False] and rows["period"].max() == PERIODS - 1
            assert rows["change"].to_numpy() == pytest.approx(change / price, abs=0.12)
            assert (rows["low"] < rows["change"]).all()
    own = table[(table["outcome"] == "elasticity_share_annual") & table["period"].isna()]
    assert (own["change"] < -0.7).all()


@pytest.mark.parametrize(
    "changes",
    [
        [CHEAPER, {"feature": {"name": "price", "scale": 0.9}}],
        [CHEAPER, {"reward": {"action": "annual", "add": 0.1}}],
        [{"reward": {"action": "annual", "add": 0.1}}],
    ],
)
def test_no_elasticity_where_more_than_one_price_changes(changes):
    frame = frame_of()
    answer = ask(model_of(frame), {"name": "x", "periods": 2, "changes": changes}, frame).answer()
    assert not answer.outcomes["outcome"].str.startswith("elasticity_").any()


def test_no_elasticity_in_a_segment_whose_price_stays():
    frame = frame_of()
    change = {"feature": {"name": "fee", "scale": 0.8, "where": {"region": "north"}}}
    table = ask(model_of(frame), {"name": "x", "periods": 2, "changes": [change]}, frame).answer().outcomes
    assert set(table["segment"][table["outcome"] == "elasticity_share_annual"]) == {"north", "all"}


def test_a_scenario_may_say_what_is_paid():
    frame = frame_of()
    scenario = {"name": "x", "periods": 2, "changes": [CHEAPER], "money": {"currency": "EUR", "price": {"monthly": 5}}}
    answer = ask(model_of(frame), scenario, frame).answer()
    table = answer.outcomes.set_index(["outcome", "segment", "period"])["baseline"]
    share = table.loc[("share_monthly", "all", 1)]
    assert table.loc[("revenue", "all", 1)] == pytest.approx(5 * share)
    assert answer.money["currency"] == "EUR"
    with pytest.raises(InputError, match=r"money.price: unknown action 'weekly'"):
        ask(model_of(frame), scenario | {"money": {"currency": "EUR", "price": {"weekly": 5}}}, frame)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"feature": {"name": "fee", "scale": -1.0}}, "x: the price 'fee' becomes -100 (in the panel 80 to 100)"),
        ({"feature": {"name": "fee", "add": [10, -90]}}, "the price 'fee' becomes -10 "),
        ({"add": {"action": "new", "like": "monthly", "facing": {"price": -1.0}}}, "the price 'price' becomes -1 "),
    ],
)
def test_a_price_below_0_is_refused(change, said):
    frame = frame_of()
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        ask(model_of(frame), {"name": "x", "changes": [change]}, frame)
    assert str(caught.value).count("becomes") == 1
    ask(model_of(frame), {"name": "x", "changes": [{"feature": {"name": "fee", "scale": 0.0}}]}, frame)


def test_a_number_that_is_below_0_in_the_panel_may_be():
    frame = frame_of().assign(fee=lambda x: x["fee"] - 90)
    ask(model_of(frame), {"name": "x", "changes": [{"feature": {"name": "fee", "scale": -1.0}}]}, frame)


def test_an_added_action_pays_the_price_that_it_faces():
    """Members who face 12: a copy of monthly at 8 brings in 8 for everyone who takes it."""
    frame = frame_of()
    new = {"action": "student", "like": "monthly", "facing": {"price": 8.0}, "nest": 0.0}
    money = {"currency": "USD", "price": {"monthly": "price"}}
    scenario = {"name": "x", "periods": 2, "changes": [{"add": new}], "money": money}
    scenario["population"] = {"where": {"price": {"min": 11}}}
    table = ask(model_of(frame), scenario, frame).answer().outcomes
    shares = table[table["segment"] == "all"].set_index(["outcome", "period"])["scenario"]
    expected = 12 * shares["share_monthly", 1] + 8 * shares["share_student", 1]
    assert shares["revenue", 1] == pytest.approx(expected) and shares["share_student", 1] > 0.05
