"""Derivatives along draws and the jackknife by hand, and against simulations repeated with other random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from irl.counterfactual.intervals import luck, parts_of, slopes, t_quantile
from irl.counterfactual.outcomes import axes_of
from irl.counterfactual.rates import arrays, levels
from irl.counterfactual.rollout import GROUPS, Starts, rollout
from irl.counterfactual.solve import solve


def ratio(*sides):
    return np.concatenate([side["x"] / side["n"] for side in sides])


def test_slopes_by_hand():
    point, move = {"x": np.array([6.0]), "n": np.array([2.0])}, {"x": np.array([[1.0, 0.0]]), "n": np.array([[0, 1.0]])}
    found = slopes(ratio, [point, point], [move, {name: 2 * m for name, m in move.items()}])
    assert found == pytest.approx(np.array([[0.5, -1.5], [1.0, -3.0]]), rel=1e-6)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = np.array([1.0, 4, 2, 9])
    total = {"x": np.array([x.sum()]), "n": np.array([4.0])}
    groups = [({"x": np.array([v]), "n": np.array([1.0])},) for v in x]
    assert luck(ratio, [total], groups) == pytest.approx(x.std(ddof=1) / 2)


def test_luck_is_that_of_other_random_numbers(world):
    """The error of one simulation's change, beside how the change differs between simulations of other members."""
    base, up = (
        solve(world.model, world.intervention(*changes), world.transitions().of_segment)
        for changes in ([], [{"reward": {"action": "annual", "add": 0.5}}])
    )
    axes, members, generator = axes_of(base, (), reported=0, paid=False), 800, torch.Generator().manual_seed(1)

    def shares(before, after):
        pairs = zip(levels(before, axes)[:3], levels(after, axes)[:3], strict=True)
        return np.concatenate([(b.values - a.values)[-1] for a, b in pairs])

    changes, errors = [], []
    for seed in range(24):
        state = torch.randint(2, (members, 2), generator=generator).float()
        starts = Starts(state, torch.arange(members) % 2)
        counts = rollout(world.model, {"baseline": base, "up": up}, starts, periods=3, seed=seed)
        sides = [counts["baseline"], counts["up"]]
        totals, parts = [arrays(c) for c in sides], list(zip(*map(parts_of, sides), strict=True))
        assert len(parts) == GROUPS
        changes.append(shares(*totals))
        errors.append(luck(shares, totals, parts))
    assert np.mean(errors) == pytest.approx(np.std(changes, axis=0, ddof=1).mean(), rel=0.25)
    assert np.mean(errors) > 0.005


def test_quantiles_of_students_t():
    assert t_quantile(64) == pytest.approx(1.9977, abs=2e-4)
    assert t_quantile(10**6) == pytest.approx(1.959964, abs=1e-5)
    assert t_quantile(GROUPS - 1) == pytest.approx(2.1314, abs=2e-3)
