"""A panel that goes on under other prices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from irl import membership
from irl.config import InputError
from irl.membership import Market
from irl.membership.continued import continued
from irl.membership.scenarios import exact_outcomes


@pytest.fixture(scope="module")
def market() -> Market:
    full = Market(price_factors=(0.8, 1.2), contract_months=4)
    return replace(
        full,
        segments={name: full.segments[name] for name in ("gen_z", "rural_india")},
        seasons={name: full.seasons[name] for name in ("video", "gaming")},
    )


@pytest.fixture(scope="module")
def before(market: Market) -> pd.DataFrame:
    return membership.simulate(membership.solve(market), members=8000, periods=5, seed=1)


def test_members_go_on_where_they_were(market, before):
    """Contracts by their mechanics, months by the calendar, everything that never changes as it was."""
    after = continued(membership.solve(market), before, periods=3, seed=2)
    assert list(after) == list(before) and len(after) == 3 * 8000
    whole = pd.concat([before, after]).sort_values(["member_id", "period"], ignore_index=True)
    assert (whole.groupby("member_id")["period"].diff().dropna() == 1).all()
    assert (whole["month"] == whole["period"] % 12).all()
    assert (whole.groupby("member_id")[["segment", "price_annual"]].nunique() == 1).all(axis=None)
    was, now = whole.groupby("member_id").shift(), whole
    later = was["plan"].notna()
    assert (now["status"][later & (was["plan"] == "none")] == "out").all()
    signed = later & (was["plan"] == "annual") & (was["months_left"] == 0)
    assert (now["months_left"][signed] == 3).all() and signed.sum() > 100
    assert (now["video"] - was["video"])[later].abs().max() == 1


def test_shares_after_a_change_are_those_of_the_new_prices(market, before):
    dearer = before.assign(price_annual=(1.5 * before["price_annual"]).round(4))
    solution = membership.solve(market, cells=membership.cells_of(dearer))
    after = continued(solution, dearer, periods=4, seed=2)
    assert (after.groupby("member_id")["price_annual"].first().to_numpy()
            == dearer.groupby("member_id")["price_annual"].first().to_numpy()).all()  # fmt: skip
    exact = exact_outcomes(solution, after[after["period"] == 5], periods=4)
    for segment, rows in after.groupby("segment"):
        shares = rows.groupby("period")["plan"].value_counts(normalize=True).unstack()
        wanted = exact[exact["segment"] == segment].set_index("period")
        for plan in membership.ACTIONS:
            error = shares[plan].to_numpy() - wanted[f"share_{plan}"].to_numpy()
            assert np.abs(error).max() < 4 * 0.5 / np.sqrt(rows["member_id"].nunique())


def test_prices_that_were_not_solved_for_are_refused(market, before):
    with pytest.raises(InputError, match="not solved for"):
        continued(membership.solve(market), before.assign(price_annual=1.0), periods=1, seed=0)
