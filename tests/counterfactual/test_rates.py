"""Outcomes from counts made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from irl.counterfactual.rates import Axes, effects, levels, with_total

ACTIONS = ("none", "monthly", "annual")
AXES = Axes(2, ACTIONS, 0, 0.9, used=("video", "fee"), reported=1, paid=True)


def counts(periods=3, segments=2):
    """Nobody."""
    shapes = {"present": (), "chose": (3,), "moved": (3, 3), "at_risk": (), "stayed": (), "use": (2,), "money": (2,)}
    found = {name: np.zeros((segments, periods, *shape)) for name, shape in shapes.items()}
    return found | {name: np.zeros(segments) for name in ("valued", "value", "gained", "lost")}


def test_rates_by_hand():
    """One segment's counts: three periods, actions none, monthly, annual; nobody in the other segment."""
    sums = counts()
    sums["present"][0] = [10, 10, 8]
    sums["chose"][0, 1] = [4, 5, 1]
    sums["moved"][0, 1] = [[3, 2, 1], [1, 1, 0], [0, 2, 0]]
    sums["at_risk"][0], sums["stayed"][0] = [4, 2, 0], [3, 1, 0]
    sums["use"][0, 1] = [25, 99]
    sums["money"][0] = [[20, 5], [50, 10], [10, 0]]
    found = {outcome.name: outcome for outcome in levels(sums, AXES)}
    by_period = {name: o.values[0, 1] for name, o in found.items() if o.first == 0}
    assert by_period == pytest.approx(
        {
            "share_none": 0.4, "share_monthly": 0.5, "share_annual": 0.1, "membership": 0.6,
            "join": 3 / 6, "cancel": 1 / 4, "switch": 2 / 4, "renewal": 3 / 4, "use_video": 2.5,
            "revenue": 5.0, "margin": 4.0,
        }
    )  # fmt: skip
    assert found["survival"].first == 1  # one renewal after joining
    assert found["survival"].values[0, :2].tolist() == [0.75, 0.375] and np.isnan(found["survival"].values[0, 2])
    whole = {name: o.values[0] for name, o in found.items() if o.first is None}
    assert whole == pytest.approx({"tenure": 1.75, "revenue_total": 8.0, "margin_total": 6.5})
    assert all(np.isnan(o.values[1]).all() for o in found.values())


@pytest.mark.parametrize(
    ("at_risk", "stayed", "expected"),
    [
        ([4, 3, 2, 1, 0, 0], [3, 2, 1, 1, 0, 0], 1 + 0.75 + 0.5 + 0.25 + 0.25),
        ([4, 3, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0], 1 + 0.75),  # all have left: the rest of the curve is known
        ([4, 3, 0, 0, 0, 0], [3, 3, 0, 0, 0, 0], np.nan),  # most joined too late to know
        ([90, 60, 9, 0, 0, 0], [60, 9, 3, 0, 0, 0], 1 + 2 / 3 + 0.1 + 0.1 / 3 + 0.1 / 3),  # the rest is small
    ],
)
def test_tenure_is_the_area_under_the_survival_curve(at_risk, stayed, expected):
    """Six periods: who joins in the first that counts, period 1, may be seen to stay four more times."""
    sums = counts(periods=6)
    sums["at_risk"][0], sums["stayed"][0] = at_risk, stayed
    tenure = next(o.values[0] for o in levels(sums, AXES) if o.name == "tenure")
    assert tenure == pytest.approx(expected, nan_ok=True)


def test_nobody_can_be_seen_to_stay_in_two_periods():
    assert "tenure" not in {o.name for o in levels(counts(periods=2), AXES)}
    assert levels(counts(periods=1), AXES)


def test_without_money_and_members_there_is_less():
    names = {o.name for o in levels(counts(), Axes(2, ACTIONS, None, 0.9, used=("video",), reported=1))}
    assert names == {"share_none", "share_monthly", "share_annual", "use_video"}


def test_effects_by_hand():
    """North's price coefficient is ten times south's: what all gain is known in money only."""
    before = counts() | {"valued": np.array([1.0, 3.0])}
    after = before | {"value": np.array([20.0, 60.0]), "gained": np.array([1.0, 2.0]), "lost": np.array([0.0, 1.0])}
    before, after = ({name: with_total(array) for name, array in side.items()} for side in (before, after))
    found = {o.name: o.values for o in effects(before, after, np.array([1.0, 0.1]), AXES)}
    assert found["surplus"][:2] == pytest.approx([2.0, 2.0]) and np.isnan(found["surplus"][2])
    assert found["surplus_money"] == pytest.approx([2.0, 20.0, (1 * 2 + 3 * 20) / 4])
    assert found["gainers"] == pytest.approx([1, 2 / 3, 3 / 4])
    assert found["losers"] == pytest.approx([0, 1 / 3, 1 / 4])
    unknown = {o.name: o.values for o in effects(before, after, np.array([1.0, np.nan]), AXES)}
    assert unknown["surplus_money"][0] == pytest.approx(2.0) and np.isnan(unknown["surplus_money"][1:]).all()
    for side in (before, after):  # nobody in south
        side["valued"], side["value"] = with_total(np.array([1.0, 0.0])), with_total(side["value"][:2] * [1, 0])
    alone = {o.name: o.values for o in effects(before, after, np.array([1.0, np.nan]), AXES)}
    assert alone["surplus_money"] == pytest.approx([2.0, np.nan, 2.0], nan_ok=True)


def test_elasticities_by_hand():
    """Two periods; the price faced rises from 90 to 110 (by .2 of their mean), annual falls from .5, .7 to .3, .4."""
    before, after = counts(periods=2, segments=1), counts(periods=2, segments=1)
    for sums, fee, annual in ((before, 90.0, (5, 7)), (after, 110.0, (3, 4))):
        sums["present"][0], sums["use"][0, :, 1] = 10, 10 * fee
        sums["chose"][0, :, 2] = annual
        sums["chose"][0, :, 0] = 10 - sums["chose"][0, :, 2]
    axes = Axes(1, ACTIONS, 0, 0.9, used=("video", "fee"), reported=1, price=1)
    found = {(o.name, o.first): o.values for o in effects(before, after, np.array([np.nan]), axes)}
    whole, last = -0.25 / 0.475 / 0.2, -0.3 / 0.55 / 0.2
    for name in ("elasticity_share_annual", "elasticity_membership"):
        assert found[name, None] == pytest.approx([whole])
        assert found[name, 1] == pytest.approx(np.array([[last]]))
    assert found["elasticity_share_none", None] == pytest.approx([0.25 / 0.525 / 0.2])
    assert np.isnan(found["elasticity_share_monthly", None]).all()  # of nobody
    after["use"][0, :, 1] = 10 * 91.0
    hardly = {o.name: o.values for o in effects(before, after, np.array([np.nan]), axes)}
    assert np.isnan(hardly["elasticity_share_annual"]).all()  # of a price that does hardly change
