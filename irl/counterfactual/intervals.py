"""How uncertain a function of simulated counts is: from the reward's parameters, and from the luck of the simulation.

Parameters: the delta method. Along each draw of the parameters the function moves by its numerical derivative, of which
the root mean square over draws is the standard error.

Luck: the delete-one-group jackknife (Miller 1974) over random parts of the members, who are the same, with the same
random numbers, in every case: var = (G - 1)/G sum_g (f_(g) - mean f_(g))^2, f_(g) without part g. Members drawn from
a panel vary as their draws do; where each member of a panel is simulated once, they are taken as a sample of such
members.

    change +/- sqrt( (t_B se)^2 + (t_(G-1) se_luck)^2 )
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irl.counterfactual.counts import GROUPS, Counts
from irl.counterfactual.money import PriceCoefficients
from irl.counterfactual.rates import Arrays, Axes, Outcome, arrays, effects, levels, with_total
from irl.fitted import Z

SMALL = 1e-4
"""Step of the numerical derivatives, in units of a draw of the parameters."""
Function = Callable[..., NDArray[Any]]
"""Of one or several :data:`Arrays`, [rows]."""


@dataclass(frozen=True)
class Comparison:
    """The outcomes of baseline and case, in the same order, and how far the interval of each change reaches on either
    side [rows], NaN where it is not known; rows as all values one outcome after the other."""

    baseline: list[Outcome]
    scenario: list[Outcome]
    reach: NDArray[np.float64]


def compared(
    baseline: Counts, case: Counts, axes: Axes, *, worth: PriceCoefficients | None = None, width: float = math.nan
) -> Comparison:
    """A case beside the baseline. ``width``: standard errors of the parameters on either side; NaN: no intervals."""
    unknown = np.full((axes.segments, 1), np.nan)
    kappa = {"kappa": unknown[:, 0] if worth is None else worth.value.cpu().numpy()}
    points = (arrays(baseline), arrays(case), kappa)
    before, after = _sides(axes, *points)
    reach = np.full(sum(outcome.values.size for outcome in after), np.nan)
    if baseline.slopes is None or case.slopes is None or math.isnan(width):
        return Comparison(before, after, reach)

    def changes(*points: Arrays) -> NDArray[Any]:
        pairs = zip(*_sides(axes, *points), strict=True)
        return np.concatenate([(b.values - a.values).ravel() for a, b in pairs])

    moves = (arrays(baseline.slopes), arrays(case.slopes))
    draws = moves[0]["value"].shape[-1]
    moved = {"kappa": unknown.repeat(draws, 1) if worth is None else worth.slopes.cpu().numpy()}
    same = {"kappa": np.zeros(axes.segments)}  # money is worth the same to every part
    parts = [(a, b, same) for a, b in zip(parts_of(baseline), parts_of(case), strict=True)]
    with np.errstate(all="ignore"):
        error = np.sqrt(np.mean(slopes(changes, points, (*moves, moved)) ** 2, axis=1))
        reach = np.hypot(width * error, t_quantile(len(parts) - 1) * luck(changes, points, parts))
    return Comparison(before, after, np.where(np.isfinite(reach), reach, np.nan))


def _sides(axes: Axes, before: Arrays, after: Arrays, worth: Arrays) -> tuple[list[Outcome], list[Outcome]]:
    """Every outcome of the baseline and of the case; an effect's baseline is 0 where it is known."""
    found = effects(before, after, worth["kappa"], axes)
    nothing = [outcome._replace(values=np.where(np.isnan(outcome.values), np.nan, 0.0)) for outcome in found]
    return levels(before, axes) + nothing, levels(after, axes) + found


def parts_of(counts: Counts) -> list[dict[str, NDArray[Any]]]:
    """The arrays of every part of the members."""
    assert counts.groups is not None
    tensors = counts.groups.tensors()
    return [{name: with_total(tensor[g].cpu().numpy()) for name, tensor in tensors.items()} for g in range(GROUPS)]


def slopes(function: Function, points: Sequence[Arrays], moves: Sequence[Arrays]) -> NDArray[Any]:
    """How ``function`` of ``points`` moves along each of B draws [rows, B]; ``moves`` have B as their last axis."""
    columns = []
    for b in range(next(iter(moves[0].values())).shape[-1]):
        up, down = (
            function(*({k: v + step * m[k][..., b] for k, v in p.items()} for p, m in zip(points, moves, strict=True)))
            for step in (SMALL, -SMALL)
        )
        columns.append((up - down) / (2 * SMALL))
    return np.stack(columns, axis=1)


def luck(function: Function, totals: Sequence[Arrays], groups: Sequence[Sequence[Arrays]]) -> NDArray[Any]:
    """Standard error [rows] of ``function`` of ``totals`` by the jackknife; ``groups`` are the arrays of each part.

    NaN where some part is all that a row rests on.
    """
    without = np.stack(
        [function(*({k: v - g[k] for k, v in t.items()} for t, g in zip(totals, part, strict=True))) for part in groups]
    )
    number = len(groups)
    spread = ((without - without.mean(0)) ** 2).sum(0)
    error: NDArray[Any] = np.sqrt((number - 1) / number * spread)
    return error


def t_quantile(df: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion around the normal one (Abramowitz & Stegun 26.7.5)."""
    z = Z
    return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
