"""Reward curves: how the reward of every action moves along each state feature, by segment, in panels and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from irl.fitted import Z
from irl.report.panel import INK, Panel, colour, panel, short
from irl.report.record import ALL, Record, at
from irl.report.tables import number

MOST_LINES = 6
"""Segments drawn in one panel: more cannot be told apart."""
MOST_LABELS = 7
"""Levels named below the axis."""

STILL = 1e-5
"""Rewards that move by no more do not depend on the feature: it is kept out of this action's reward."""

HOW_TO_READ = (
    "The mean reward over visited states if the feature had each value and all else stayed as it is (features of a "
    "contract: at values seen together). Bands: 95 % interval of that mean, clustered by member. Vertical "
    "scales differ between features; a feature that does not move this reward is left out."
)


def shown_segments(record: Record) -> list[str]:
    """The segments that curves are drawn of: all of them if they can be told apart, else the first ones and all."""
    named = [s for s in record.segments if s != ALL]
    if len(named) <= MOST_LINES:
        return named or [ALL]
    return [*named[: MOST_LINES - 1], *([ALL] if ALL in record.segments else [])]


def curve_panels(record: Record, action: str) -> list[Panel]:
    """One panel per state feature that moves the reward of ``action``: its mean along it, a line per segment."""
    columns: Mapping[str, Any] = at(record.metrics, "curves", default={})
    segments, panels = shown_segments(record), []
    for name, found in columns.items():
        rewards = at(found, "rewards", action, default={})
        lines = [(n + 1, s, rewards[s]) for n, s in enumerate(segments) if s in rewards]
        if not any(_moves(line["mean"]) for _, _, line in lines):
            continue
        values = found["values"]
        kind = record.config.data.state[name].kind if name in record.config.data.state else "category"
        x = np.arange(len(values)) if kind in ("category", "ordinal") else np.array(values, dtype=float)

        def draw(
            axes: Axes,
            lines: Sequence[tuple[int, str, Any]] = lines,
            x: NDArray[Any] = x,
            values: Sequence[Any] = values,
            kind: str = kind,
        ) -> None:
            for i, (n, _, line) in enumerate(lines):
                mean, error = (np.array([np.nan if v is None else v for v in line[k]], float) for k in ("mean", "se"))
                if kind == "category":
                    aside = 0.5 * ((i + 0.5) / len(lines) - 0.5)
                    axes.errorbar(x + aside, mean, Z * np.nan_to_num(error), fmt="o", color=colour(n), markersize=4)
                    continue
                axes.fill_between(x, mean - Z * error, mean + Z * error, color=colour(n), alpha=0.15, linewidth=0)
                axes.plot(x, mean, "o-", color=colour(n), linewidth=1.4, markersize=3)
            if kind in ("category", "ordinal"):
                named = range(0, len(values), -(-len(values) // MOST_LABELS))
                axes.set_xticks([x[i] for i in named], [short(str(values[i]), 60 // MOST_LABELS) for i in named])
                axes.set_xlim(-0.5, len(values) - 0.5)
            axes.set_ylabel("reward units")
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)

        said = "; ".join(f"{s} {_ends(values, line['mean'])}" for _, s, line in lines)
        panels.append(panel(name, f"Mean reward of {action} along {name}: {said}.", draw, width=3.4, height=2.3))
    return panels


def _moves(mean: Sequence[float | None]) -> bool:
    there = [m for m in mean if m is not None]
    return bool(there) and max(there) - min(there) > STILL


def _ends(values: Sequence[Any], mean: Sequence[float | None]) -> str:
    """The curve's first and last point in words."""
    there = [i for i, m in enumerate(mean) if m is not None]
    first, last = there[0], there[-1]
    if first == last:
        return f"{number(mean[first])} at {values[first]}"
    return f"{number(mean[first])} at {values[first]} to {number(mean[last])} at {values[last]}"
