"""A table of text, for page, terminal and LaTeX alike, and how its numbers are written.

Every heading carries its unit. Shares are in per cent, their changes in percentage points; rewards and surplus are in
reward units (the logit shock's scale is the temperature). A value that is missing is a dash.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from irl.report.record import at

DASH = "–"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text in rows and columns: the first ``labels`` columns name the row, ``flagged`` rows are warnings."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1
    flagged: frozenset[int] = frozenset()
    note: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows), f"{self.title}: ragged rows"

    def numeric(self, column: int) -> bool:
        """Whether a column holds numbers, which stand to the right; words stand to the left."""
        cells = (row[column].replace("e+", "").replace("e−", "") for row in self.rows)
        return column >= self.labels and not any(c.isalpha() for cell in cells for c in cell)


def number(value: Any, digits: int = 2) -> str:
    """A number with a true minus sign and thousands separated; a dash if it is missing."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-")


def signed(value: Any, digits: int = 2) -> str:
    """As :func:`number`, with a plus sign where it is positive."""
    text = number(value, digits)
    return f"+{text}" if text != DASH and value > 0 and any(c in "123456789" for c in text) else text


def estimate(cell: Any, digits: int = 2) -> str:
    """``mean [low, high]`` of a finding; without the bounds where there are none."""
    bounds = [at(cell, key) for key in ("low", "high")]
    said = "" if None in bounds else f" [{number(bounds[0], digits)}, {number(bounds[1], digits)}]"
    return number(at(cell, "mean"), digits) + said


def probability(p: Any) -> str:
    """A p-value."""
    return DASH if p is None or not math.isfinite(p) else ("< 0.001" if p < 0.001 else f"{p:.3f}")


def percent(share: Any, digits: int = 1, *, unit: str = " %") -> str:
    """A share in per cent."""
    return DASH if share is None or not math.isfinite(share) else number(100 * share, digits) + unit


def scientific(value: Any) -> str:
    """A number of which the order of magnitude counts."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.1e}".replace("e-", "e−")
