"""Spells and hazards against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from irl.counterfactual.spells import count

NONE, MONTHLY, ANNUAL = range(3)


def counted(paths, start, segment=None, **more):
    segment = [0] * len(paths) if segment is None else segment
    options = {"segments": max(segment) + 1, "actions": 3, "anchor": NONE} | more
    return count(np.array(paths), np.array(start), np.array(segment), **options)


def test_monthly_two_months_nothing_three_monthly_five():
    """Two months of unknown age, then nothing for three, monthly for five of which the end is not seen."""
    found = counted([[1, 1, 0, 0, 0, 1, 1, 1, 1, 1]], [0])
    assert found.at_risk[0, NONE, :4].tolist() == [1, 1, 1, 0]
    assert found.left[0, NONE, :4].tolist() == [0, 0, 1, 0]  # rejoins after three
    assert found.at_risk[0, MONTHLY, :6].tolist() == [1, 1, 1, 1, 0, 0]  # the first two are of unknown age
    assert found.left[0, MONTHLY].sum() == 0
    rates = found.rates()
    assert rates.length(found.at_risk > 0)[0, NONE] == pytest.approx(3)  # 1 + 1 + 1 + 0
    assert rates.length(found.at_risk > 0)[0, MONTHLY] == pytest.approx(5)  # as long as was seen
    assert np.isnan(rates.length(found.at_risk > 0)[0, ANNUAL])


def test_only_moves_from_the_start_count_and_history_tells_the_age():
    path = [0, 1, 1, 1, 2, 0]
    found = counted([path], [4], first=4)
    assert found.at_risk[0, MONTHLY].tolist() == [0, 0, 1] + [0] * 9  # three months old when it is left
    assert found.switched[0, MONTHLY, 2] == 1 and found.left[0, ANNUAL, 0] == 1 and found.switched[0, ANNUAL, 0] == 0
    assert found.chose[0].tolist() == [[0, 0, 1], [1, 0, 0]]


def test_a_gap_ends_what_is_known():
    found = counted([[0, 1, -1, 1, 1, 0]], [0])
    assert found.at_risk[0, MONTHLY].sum() == 0
    assert found.chose[0].sum(1).tolist() == [1, 1, 0, 1, 1, 1]


def test_segments_and_all_together():
    found = counted([[0, 1, 0], [0, 1, 1], [0, 1, 2]], [1, 1, 1], [0, 1, 1])
    rates = found.rates()
    assert found.chose.shape[0] == 3
    assert rates.leave[:, MONTHLY, 0].tolist() == pytest.approx([1, 0.5, 2 / 3])
    assert rates.switch[:, MONTHLY, 0].tolist() == pytest.approx([0, 0.5, 1 / 3])
    assert rates.leave[1, MONTHLY, 5] == pytest.approx(0.5)  # of no age seen: that over all ages
    assert np.isnan(rates.share[:, 0]).all() and rates.share[2, 2].tolist() == pytest.approx([1 / 3] * 3)


def test_geometric_spells_have_their_hazard():
    rng = np.random.default_rng(0)
    paths = np.zeros((20_000, 20), dtype=np.int64)
    for t in range(1, 20):
        leave = rng.random(20_000) < np.where(paths[:, t - 1] == NONE, 0.2, 0.4)
        paths[:, t] = np.where(leave, 1 - paths[:, t - 1], paths[:, t - 1])
    found = counted(paths, np.zeros(20_000, dtype=int), np.zeros(20_000, dtype=int), segments=1)
    rates = found.rates()
    assert rates.leave[0, NONE, :5] == pytest.approx(0.2, abs=0.015)
    assert rates.leave[0, MONTHLY, :5] == pytest.approx(0.4, abs=0.015)
    assert rates.length(found.at_risk > 50)[0, MONTHLY] == pytest.approx(1 / 0.4, abs=0.05)
