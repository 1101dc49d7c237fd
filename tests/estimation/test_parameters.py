import math
from dataclasses import replace

import pytest
import torch

from irl import membership
from irl.config import InputError, load_config
from irl.data import panel_from_frame
from irl.estimation import findings, refit
from irl.estimation.parameters import entering, reward_parameters
from irl.fitted import new_networks
from irl.transitions import States


@pytest.fixture(scope="module")
def panel():
    config = load_config("configs/membership.yaml")
    market = membership.Market()
    cells = [membership.Cell(s, p, 84.0 * k) for s in ("gen_z", "family_us") for p in (8.0, 12.0) for k in (0.8, 1.2)]
    return config, panel_from_frame(
        membership.simulate(membership.solve(market, cells=cells), members=60, periods=6, seed=0), config
    )


def of(panel, *options):
    model = new_networks(load_config("configs/membership.yaml", options), panel.schema)
    own = [dict(zip(model.terms.names, enters, strict=True)) for enters in entering(model).tolist()]
    return dict(zip(("monthly", "annual"), own, strict=True))


def test_a_price_enters_where_it_is_paid(panel):
    enters = of(panel[1])
    monthly, annual = enters["monthly"], enters["annual"]
    assert monthly["price_monthly"] and not annual["price_monthly"]
    assert not any(enters for name, enters in monthly.items() if "price_annual" in name)
    assert not annual["price_annual"] and not annual["segment=gen_z x price_annual"]
    for status in ("out", "monthly", "annual"):
        name = next(n for n in annual if "price_annual" in n and f"status={status}" in n and "segment=gen_z" in n)
        assert annual[name] == (status != "annual"), name
    assert all(own[name] for own in enters.values() for name in own if "price" not in name)
    assert monthly["segment=gen_z x price_monthly"]
    other = [n for n in monthly if "price_monthly" in n and ("status" in n or "video" in n or "month=" in n)]
    assert other and not any(monthly[name] for name in other)


def test_a_price_has_no_slope_of_its_own_where_it_was_not_tested(panel):
    """In `gen_z` alone prices vary, then in both segments."""
    _, data = panel
    model = new_networks(load_config("configs/membership.yaml"), data.schema)
    price = data.schema.index("price_monthly")
    for everywhere in (False, True):
        state = data.state.clone()
        gen_z = data.segment == data.schema.segments.index("gen_z")
        state[~gen_z, price] = state[~gen_z, price] if everywhere else 10.0
        own = reward_parameters(model, States(state, data.segment, data.weight))
        entered = (own.raw != 0).any(1).view(2, -1)[0]
        of_price = [name for name, there in zip(model.terms.names, entered.tolist(), strict=True) if there]
        of_price = [name for name in of_price if "price_monthly" in name]
        assert "price_monthly" in of_price
        assert ("segment=family_us x price_monthly" in of_price) == everywhere
        assert ("segment=gen_z x price_monthly" in of_price) == everywhere  # one level alone says what all have


def test_without_money_or_by_a_reference_policy_everything_enters(panel):
    assert all(all(own.values()) for own in of(panel[1], "money=null").values())
    model = new_networks(load_config("configs/membership.yaml"), panel[1].schema)
    assert not bool(entering(model).all())
    assert bool(entering(replace(model, schema=replace(model.schema, anchor=None))).all())


def test_an_amount_that_no_feature_can_confine_enters_everywhere_it_is_paid(panel):
    enters = of(panel[1], "reward.structure=linear")
    assert enters["annual"]["price_annual"] and not enters["monthly"]["price_annual"]
    enters = of(panel[1], "money.price.annual={amount: price_annual, where: {price_monthly: {min: 9}}}")
    assert enters["annual"]["price_annual"] and not enters["monthly"]["price_annual"]


def test_a_level_that_does_not_exist_is_named(panel):
    with pytest.raises(InputError, match="did you mean 'out'"):
        of(panel[1], "money.price.annual={amount: price_annual, where: {status: [ou]}}")


def test_what_does_not_enter_is_not_tested_and_has_no_coefficient(panel):
    for options in ((), ("reward.structure=linear",)):
        model = new_networks(load_config("configs/membership.yaml", options), panel[1].schema)
        enters = entering(model)
        model.refit.covariance.copy_(torch.diag(enters.flatten().double()))
        model.refit.theta[1:][enters] = 1.0
        tested = {(row["action"], row["column"]): row["p"] for row in findings.wald_tests(model)}
        assert ("monthly", "price_annual") not in tested and ("monthly", "price_monthly") in tested
        assert all(math.isfinite(p) for p in tested.values())
        named = {(row["action"], row["name"]) for row in findings.coefficients(model)}
        assert not named or (("annual", "price_annual") in named and ("monthly", "price_annual") not in named)


def test_what_does_not_enter_is_nothing_in_the_refit(panel):
    _, panel = panel
    model, own = fresh(panel)
    enters = entering(model)
    assert not bool(own.raw.view(*enters.shape, -1)[~enters].any()) and len(own.used) <= int(enters.sum())
    theta = torch.ones(own.raw.shape[1], dtype=torch.float64)
    weights = torch.zeros(3, model.basis(panel.state[:1]).shape[1], len(own.used) + 1, dtype=torch.float64)
    refit.store(model, theta, weights, own)
    assert bool((model.refit.theta[1:][~enters] == 0).all())
    dearer = panel.state.clone()
    dearer[:, panel.schema.index("price_annual")] += 10
    inside = panel.state[:, panel.schema.index("status")] == panel.schema.columns[
        panel.schema.index("status")
    ].labels.index("annual")
    moved = (model.reward_of(dearer) - model.reward_of(panel.state)).abs()
    assert float(moved[inside].max()) == 0 and float(moved[~inside, 2].min()) > 0 and float(moved[:, 1].max()) == 0


def fresh(panel, *options):
    model = new_networks(load_config("configs/membership.yaml", options), panel.schema)
    return model, reward_parameters(model, States(panel.state, panel.segment, panel.weight))


def test_parameters_are_those_of_standardised_features(panel):
    """Without money: by hand, theta_d (x_d - mean) / sd, constants their own; and back."""
    model, own = fresh(panel[1], "money=null")
    x = model.terms(panel[1].state).double()
    theta = torch.randn(own.raw.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = own.by_action(theta, 3)
    mean, sd = x.mean(0), x.std(0, correction=0)
    varies = sd > 1e-4
    standard = torch.cat([torch.ones(len(x), 1), ((x - mean) / sd)[:, varies]], 1)
    assert own.raw.shape[1] == 2 * standard.shape[1]
    torch.testing.assert_close(x @ weights.T, standard @ theta.view(2, -1).T)
    torch.testing.assert_close(own.of(weights), theta)
    assert int((own.groups == 0).sum()) == 2


@pytest.mark.parametrize("structure", ["full", "additive", "linear"])
def test_a_unit_of_money_counts_the_same_whatever_it_is_paid_for(panel, structure):
    benefits = "reward.benefits=[shipping, video, music, gaming, grocery]"
    due = ("money.price.annual=price_annual",) if structure == "linear" else ()  # no feature of it is due or not
    model, own = fresh(panel[1], f"reward.structure={structure}", benefits, *due)
    theta = torch.randn(own.raw.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model.refit.theta[model.refit.paid] = own.by_action(theta, 3)
    kappa = []
    for name, action in (("price_monthly", 1), ("price_annual", 2)):
        dearer = panel[1].state.clone()
        dearer[:, panel[1].schema.index(name)] += 3.0
        kappa.append((model.reward_of(dearer) - model.reward_of(panel[1].state))[:, action] / 3)
    inside = panel[1].state[:, panel[1].schema.index("status")] == 0
    assert panel[1].schema.columns[panel[1].schema.index("status")].labels[0] == "annual"
    pays = ~inside if structure != "linear" else torch.ones_like(inside)
    torch.testing.assert_close(kappa[0][pays], kappa[1][pays])
    apart = [float(kappa[0][panel[1].segment == s].mean()) for s in panel[1].segment.unique().tolist()]
    assert (abs(apart[0] - apart[1]) > 1e-6) == (structure != "linear")  # segments may differ
    free, raw = (
        fresh(panel[1], f"reward.structure={structure}", benefits, "money.one_coefficient=false", *due)[1],
        own.raw,
    )
    assert free.raw.shape[1] > raw.shape[1]


@pytest.mark.parametrize("structure", ["full", "linear"])
def test_what_is_paid_per_unit_of_a_price_counts_as_that_money(panel, structure):
    due = ", where: {status: [out, monthly]}" if structure == "full" else ""
    annual = f"money.price.annual={{amount: 5, per: {{price_monthly: 10}}{due}}}"
    model, own = fresh(panel[1], f"reward.structure={structure}", annual)
    theta = torch.randn(own.raw.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model.refit.theta[model.refit.paid] = own.by_action(theta, 3)
    dearer = panel[1].state.clone()
    dearer[:, panel[1].schema.index("price_monthly")] += 3.0
    moved = model.reward_of(dearer) - model.reward_of(panel[1].state)
    inside = panel[1].state[:, panel[1].schema.index("status")] == 0
    pays = ~inside if due else torch.ones_like(inside)
    torch.testing.assert_close(moved[pays, 2], 10 * moved[pays, 1], rtol=1e-4, atol=1e-4)
    assert float(moved[pays, 1].abs().min()) > 1e-3 and not bool(moved[~pays, 2].any())


def test_prices_that_were_not_assigned_at_random_share_nothing(panel):
    observed = "data.state.price_annual={kind: numeric, dynamics: static}"
    _, own = fresh(panel_like(panel[1], "price_annual", assigned="observed"), observed)
    shared = ((own.raw != 0).view(2, -1, own.raw.shape[1])[:, 1:].any(1)).all(0)
    assert not bool(shared.any())


def panel_like(panel, name, **changes):
    f = panel.schema.index(name)
    columns = [replace(c, **changes) if i == f else c for i, c in enumerate(panel.schema.columns)]
    return replace(panel, schema=replace(panel.schema, columns=tuple(columns)))
