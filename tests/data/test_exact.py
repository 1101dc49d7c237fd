"""Sums without rounding: equal to arithmetic on fractions, whatever the order and the parts."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from irl.data.exact import Moments

NUMBERS = np.array([1e16, 1.0, -1e16, 0.1, -3.75, 0.0, 2.0**-1060, 12345.678, 1e-7, 7.0])


def test_they_are_those_of_fractions():
    exact = [Fraction(float(x)) for x in NUMBERS]
    mean = sum(exact) / len(exact)
    square = sum((x - mean) ** 2 for x in exact) / len(exact)
    found = Moments(NUMBERS)
    assert (found.n, found.minimum, found.maximum) == (10, -1e16, 1e16)
    assert found.mean == float(mean) and found.sd == math.sqrt(square)


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_neither_order_nor_parts_matter(parts):
    values = np.random.default_rng(0).lognormal(0, 3, 5000)
    found = Moments()
    for part in np.array_split(np.random.default_rng(parts).permutation(values), parts):
        found.add(part)
    assert (found.mean, found.sd) == (Moments(values).mean, Moments(values).sd)
    assert found.mean == math.fsum(values) / 5000 and found.sd == pytest.approx(values.std(), rel=1e-12)


def test_a_constant_does_not_vary_and_nothing_has_no_mean():
    assert Moments(np.full(1000, 0.1)).sd == 0 and Moments(np.full(1000, 0.1)).mean == 0.1
    assert math.isnan(Moments().mean) and math.isnan(Moments().sd)
