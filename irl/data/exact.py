"""Sums of floating-point numbers without rounding, so that they do not depend on the order or the parts of the numbers.

A panel that is read at once and one that is read in parts by several programs come to the same mean and standard
deviation, to the last bit. A float64 is an integer of 53 bits times a power of two: integers are added exactly, power
by power, and rounded once, at the end.
"""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

BITS = 27
"""Of the lower half of an integer of 53 bits."""


class Moments:
    """Number, mean and standard deviation, smallest and largest of finite numbers that are added in parts."""

    def __init__(self, values: NDArray[np.float64] | None = None) -> None:
        self.n, self.minimum, self.maximum = 0, math.inf, -math.inf
        self._sums, self._squares = Counter[int](), Counter[int]()  # exponent of 2 -> sum of the integers before it
        if values is not None:
            self.add(values)

    def add(self, values: NDArray[np.float64]) -> None:
        """Count these numbers [N]."""
        if not len(values):
            return
        self.n += len(values)
        self.minimum = min(self.minimum, float(values.min()))
        self.maximum = max(self.maximum, float(values.max()))
        mantissa, exponent = np.frexp(values)
        whole = (mantissa * 2**53).astype(np.int64)
        for e in np.unique(exponent).tolist():
            own = whole[exponent == e]
            high, low = own >> BITS, own & (2**BITS - 1)
            self._sums[e - 53] += _total(own)
            self._squares[2 * (e - 53)] += (
                (_total(high * high) << 2 * BITS) + (_total(high * low) << (BITS + 1)) + _total(low * low)
            )

    @property
    def mean(self) -> float:
        """Nan of no numbers."""
        return float(_sum(self._sums) / self.n) if self.n else math.nan

    @property
    def sd(self) -> float:
        """Of the numbers as they are (divided by n); nan of no numbers."""
        if not self.n:
            return math.nan
        return math.sqrt(float(_sum(self._squares) / self.n - (_sum(self._sums) / self.n) ** 2))


def _total(whole: NDArray[np.int64]) -> int:
    """The sum of integers below 2^62 in size, which int64 might not hold."""
    return (int((whole >> BITS).sum()) << BITS) + int((whole & (2**BITS - 1)).sum())


def _sum(parts: Counter[int]) -> Fraction:
    return sum((Fraction(whole) * Fraction(2) ** e for e, whole in parts.items()), Fraction(0))
