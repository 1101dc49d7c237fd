"""One column of the state tensor: what its codes and numbers mean, and where a condition on it holds.

Numbers are compared with a relative tolerance, since the tensor is float32. A range may also be asked of an ordinal
whose levels are numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irl.config import nearest
from irl.data.encode import label
from irl.declared import Between, Values

TOLERANCE = 1e-6
"""Relative, of comparisons; float32 resolves 1.2e-7."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the state tensor.

    Attributes
    ----------
    kind : category, ordinal, count or numeric
    dynamics : static, table, clock or learned
    labels : label of code 0, 1, … for category and ordinal; empty for count and numeric
    parents : indices of the columns that move a ``table`` column (its own if none was declared)
    assigned : observed or randomised
    centre, scale : mean and standard deviation in declared units (count and numeric; scale 1 if constant)
    minimum, maximum : observed range of the values (of the codes for category and ordinal)
    hidden : of the column of the hidden types, which no data show: what differs by it, "tastes" or "all" (the dynamics
        too); else empty
    """

    name: str
    kind: str
    dynamics: str
    labels: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()
    assigned: str = "observed"
    centre: float = 0.0
    scale: float = 1.0
    minimum: float = 0.0
    maximum: float = 0.0
    hidden: str = ""

    @property
    def discrete(self) -> bool:
        return self.kind in ("category", "ordinal")

    @property
    def levels(self) -> int:
        return len(self.labels)

    def holds(self, values: Tensor, allowed: Values) -> Tensor:
        """bool[...]: the condition on this column, of its codes or values[...]. Scalars only: no copy to the device."""
        if isinstance(allowed, Between) and not self.discrete:
            holds = torch.ones_like(values, dtype=torch.bool)
            if allowed.min is not None:
                holds = holds & (values >= allowed.min - _slack(allowed.min))
            if allowed.max is not None:
                holds = holds & (values <= allowed.max + _slack(allowed.max))
            return holds
        holds = torch.zeros_like(values, dtype=torch.bool)
        if isinstance(allowed, Between):
            for code, level in enumerate(self.labels):
                low = -np.inf if allowed.min is None else allowed.min - _slack(allowed.min)
                high = np.inf if allowed.max is None else allowed.max + _slack(allowed.max)
                if low <= float(level) <= high:
                    holds = holds | (values == code)
            return holds
        for value in allowed:
            if self.discrete:
                holds = holds | (values == self.labels.index(label(value)))
            else:
                holds = holds | ((values - float(value)).abs() <= _slack(float(value)))
        return holds

    def code(self, value: bool | float | str) -> float:
        """The number that stands for a label, or for a value, in the state tensor."""
        return float(self.labels.index(label(value)) if self.discrete else value)

    def setting_problems(self, value: bool | float | str, place: str) -> list[str]:
        """Why the column cannot be put to a value."""
        problems = self.problems_of((value,), place)
        if problems:
            return problems
        if not self.discrete and isinstance(value, bool):
            return [f"{place}: {self.name!r} is {self.kind}: set it to a number"]
        if self.kind == "count" and (float(value) < 0 or float(value) % 1):
            return [f"{place}: {self.name!r} is a count: set it to 0, 1, 2, …"]
        return []

    def problems_of(self, values: Values, place: str) -> list[str]:
        """What is wrong with a condition on this column: labels that never occur, ranges of what has no order."""
        if isinstance(values, Between):
            if self.kind == "category" or (self.discrete and not _numeric(self.labels)):
                return [f"{place}: a range needs numbers, and {self.name!r} is a {self.kind}; list its labels"]
            if values.min is not None and values.max is not None and values.min > values.max:
                return [f"{place}: an empty range: min {values.min:g} is above max {values.max:g}"]
            return []
        if not self.discrete:
            return [f"{place}: {v!r} is not a number, and {self.name!r} is {self.kind}" for v in values if _text(v)]
        strange = [v for v in values if label(v) not in self.labels]
        why = "never occurs in the data" if self.kind == "category" else "is not one of the levels"
        yaml = " (YAML reads yes and no as true and false: quote them)"
        return [
            f"{place}: {label(v)!r} {why}{yaml if isinstance(v, bool) else ''}{nearest(label(v), self.labels)}"
            for v in strange
        ]


def _slack(value: float) -> float:
    return TOLERANCE * abs(value) + 1e-12


def _text(value: Any) -> bool:
    return isinstance(value, str) and not _numeric((value,))


def _numeric(labels: Iterable[str]) -> bool:
    try:
        return all(np.isfinite(float(x)) for x in labels)
    except ValueError:
        return False


def measure(column: Column, device: torch.device) -> Tensor | None:
    """The number that each level of a column counts as; None where the column's values are numbers themselves."""
    if not column.discrete:
        return None
    try:
        numbers = [float(name) for name in column.labels]
    except ValueError:
        numbers = [float(code) for code in range(len(column.labels))]
    return torch.tensor(numbers, dtype=torch.float64, device=device)
