"""The tables of what a scenario answered: plan shares, movements, use, welfare, and how it was solved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from irl.report.record import Record, ScenarioRecord, at
from irl.report.tables import DASH, Table, number, scientific, signed

A_YEAR = 11
"""The twelfth simulated choice, shown besides the last: a year where periods are months."""

OUTSIDE = "in states unlike any in the data, % of member-periods"

CHANGES = "Baseline → scenario (change in percentage points{interval}). Both are simulated from the model."


def last_periods(scenario: ScenarioRecord) -> list[int]:
    """The periods to show: the twelfth choice if it was simulated, and the last."""
    periods = scenario.periods
    return sorted({p for p in (A_YEAR, periods[-1]) if p in periods}) if periods else []


def share_table(record: Record, scenario: ScenarioRecord, period: int) -> Table | None:
    """Plan shares and membership at one period, baseline -> scenario."""
    columns = [(f"share_{a}", period, f"{a}, %") for a in record.config.data.actions] + [
        ("membership", period, "members, %")
    ]
    return _beside(record, scenario, columns, f"Plan shares at period {period} (choice {period + 1})", note=CHANGES)


def movement_table(record: Record, scenario: ScenarioRecord) -> Table | None:
    """Joining, leaving, staying at the last period, and survival."""
    if not scenario.periods:
        return None
    last = scenario.periods[-1]
    columns: list[tuple[str, int, str]] = [
        ("join", last, "join, % of non-members"),
        ("cancel", last, "cancel, % of members"),
        ("switch", last, "switch plan, % of members"),
        ("renewal", last, "renew, % of members"),
    ]
    survival = scenario.outcomes.loc[scenario.outcomes["outcome"] == "survival", "period"].dropna()
    for after in sorted({p for p in (A_YEAR + 1, survival.max()) if p in set(survival)}):
        columns.append(("survival", int(after), f"still a member {int(after)} periods after joining, %"))
    title = f"Joining, leaving and staying: rates per period at period {last}, and survival"
    return _beside(record, scenario, columns, title, note=CHANGES)


def use_table(record: Record, scenario: ScenarioRecord) -> Table | None:
    """Means of the learned features at the last period, in their own units."""
    found = [str(n) for n in scenario.outcomes["outcome"].unique() if str(n).startswith("use_")]
    if not found or not scenario.periods:
        return None
    last = scenario.periods[-1]
    columns = [(name, last, name.removeprefix("use_")) for name in found]
    title = f"Mean of each feature at period {last}, in its own units (levels count from 0)"
    return _beside(
        record, scenario, columns, title, scale=1.0, digits=2, note="Baseline → scenario (change{interval})."
    )


def whole_table(record: Record, scenario: ScenarioRecord) -> Table | None:
    """Tenure, revenue and margin over all simulated periods."""
    money, number_of = currency(scenario), len(scenario.periods)
    columns = [
        ("tenure", None, "tenure, periods as a member from joining"),
        ("revenue_total", None, f"revenue, {money} per member"),
        ("margin_total", None, f"margin, {money} per member"),
    ]
    note = (
        f"Baseline → scenario (change{{interval}}), over {number_of} periods. Tenure: expected, within these periods. "
        "Money: per member at the start, undiscounted; revenue is what is paid, margin what is left after the declared "
        "costs."
    )
    return _beside(record, scenario, columns, "Over all periods", scale=1.0, digits=2, note=note)


def welfare_table(record: Record, scenario: ScenarioRecord) -> Table | None:
    """Surplus, gainers and losers by segment; the baseline is zero by definition."""
    money = currency(scenario)
    shown = {
        "surplus": ("surplus, reward units per period", 1.0, 3),
        "surplus_money": (f"surplus, {money} per period", 1.0, 2),
        "gainers": ("better off, % of members", 100.0, 1),
        "losers": ("worse off, % of members", 100.0, 1),
    }
    return _effects(
        record,
        scenario,
        shown,
        "What members gain or lose",
        "Surplus is the mean change of members' expected value, before they see their shocks, per period. Reward units "
        "are each segment's own: compare segments, and add them up, in money only. Better or worse off: by more than "
        "0.001 reward units per period, by the estimated rewards as they are: where most changes are small, errors of "
        "estimation put members on the wrong side.",
    )


def elasticity_table(record: Record, scenario: ScenarioRecord, period: int | None = None) -> Table | None:
    """Price elasticities by segment, over all periods, or at one."""
    prefix = "elasticity_"
    names = [str(n) for n in scenario.outcomes["outcome"].unique() if str(n).startswith(prefix)]
    shown = {name: (name.removeprefix(prefix).removeprefix("share_"), 1.0, 2) for name in names}
    over = "over all periods" if period is None else f"at period {period}"
    note = (
        "By how many per cent a share changes when the price that members face rises by one per cent; arc elasticity, "
        "between baseline and scenario."
    )
    return _effects(record, scenario, shown, f"Price elasticities of the shares {over}", note, period)


def price_coefficient_table(scenario: ScenarioRecord) -> Table | None:
    """What a unit of money is worth to each segment, by the price that says so."""
    found = at(scenario.metrics, "money", "price_coefficients", default={})
    names = list(dict.fromkeys(name for each in found.values() for name in at(each, "prices", default={})))
    if not names:
        return None
    rows = tuple(
        (segment, *(_with_error(cell) for cell in (each, *(at(each, "prices", name) for name in names))))
        for segment, each in found.items()
    )
    return Table(
        title=f"Price coefficients, reward units per {currency(scenario)}",
        header=("segment", "weighted mean", *names),
        rows=rows,
        note="Minus the mean effect of a price on the reward of the action that pays it, and its standard error: what "
        "surplus in money is divided by. Weights are inverse to variances.",
    )


def currency(scenario: ScenarioRecord) -> str:
    """The declared currency."""
    return str(at(scenario.metrics, "money", "currency", default="money"))


def anchor_band_table(record: Record, scenario: ScenarioRecord) -> Table | None:
    """How the changes move if the anchor's reward is off, of the cases that depend on it."""
    bands = {case: at(scenario.metrics, "solved", case, "anchor_band", default={}) for case in scenario.cases}
    names = list(dict.fromkeys(name for band in bands.values() for name in at(band, "outcomes", default={})))
    rows = []
    for segment in record.segments:
        for case, band in bands.items():
            found = [(name, at(band, "outcomes", name, segment)) for name in names]
            if any(values is not None for _, values in found):
                cells = (DASH if values is None else _band(name, *values) for name, values in found)
                rows.append((*_row_labels(scenario, case, segment), *cells))
    if not rows:
        return None
    labels = _label_header(scenario)
    error = max(at(band, "error", default=0.0) for band in bands.values())
    units = ("surplus, reward units per period" if n == "surplus" else f"{n.removeprefix('share_')}, %" for n in names)
    return Table(
        title=f"If the anchor's reward is off by up to {number(error)} reward units",
        header=(*labels, *units),
        rows=tuple(rows),
        labels=len(labels),
        note="Change, and between which bounds it lies at other rewards of the anchor, which fit the choices as well; "
        "plan shares are means over the periods, in percentage points. What is not shown does not depend on it.",
    )


def _band(name: str, change: float, low: float, high: float) -> str:
    scale, digits = (1.0, 3) if name == "surplus" else (100.0, 1)
    middle, *bounds = (signed(scale * value, digits) for value in (change, low, high))
    return f"{middle} [{', '.join(bounds)}]"


def _effects(
    record: Record,
    scenario: ScenarioRecord,
    shown: dict[str, tuple[str, float, int]],
    title: str,
    note: str,
    period: int | None = None,
) -> Table | None:
    """Changes whose baseline is zero, outcome -> (heading, scale, digits), a row per segment and case; columns that no
    row has are left out."""
    by_key, rows = _by_key(scenario), []
    present = {key[2] for key in by_key if key[3] == period}
    shown = {name: how for name, how in shown.items() if name in present}
    for segment in record.segments:
        for case in scenario.cases:
            found = [(by_key.get((case, segment, name, period)), how) for name, how in shown.items()]
            if any(row is not None for row, _ in found):
                cells = (_single(row, scale, digits) for row, (_, scale, digits) in found)
                rows.append((*_row_labels(scenario, case, segment), *cells))
    if not rows:
        return None
    labels = _label_header(scenario)
    header = (*labels, *(heading for heading, _, _ in shown.values()))
    return Table(title=title, header=header, rows=tuple(rows), labels=len(labels), note=note)


def _with_error(cell: Any) -> str:
    return DASH if cell is None else f"{number(at(cell, 'value'), 4)} ({number(at(cell, 'se'), 4)})"


def convergence_table(scenario: ScenarioRecord) -> Table | None:
    """How the optimal policy of the baseline and of every case was found."""
    solved = at(scenario.metrics, "solved", default={})
    if not solved:
        return None
    rows = tuple(
        (
            label,
            "yes" if at(how, "converged") else "NO",
            str(at(how, "rounds", default=DASH)),
            scientific(at(how, "policy_change")),
            scientific(at(how, "condition")),
            "changed" if at(how, "changes_dynamics") else "as estimated",
            number(None if (share := at(how, "outside", "share")) is None else 100 * share, 1),
        )
        for label, how in solved.items()
    )
    return Table(
        title="How it was solved",
        header=("case", "converged", "rounds", "last change of probabilities", "condition number", "dynamics", OUTSIDE),
        rows=rows,
        flagged=frozenset(i for i, row in enumerate(rows) if row[1] == "NO"),
    )


def _beside(
    record: Record,
    scenario: ScenarioRecord,
    columns: Sequence[tuple[str, int | None, str]],
    title: str,
    *,
    scale: float = 100.0,
    digits: int = 1,
    note: str,
) -> Table | None:
    """``columns`` (outcome, period, heading) side by side, a row per segment and case; empty ones are left out."""
    by_key = _by_key(scenario)
    present = {key[2:] for key in by_key}
    columns = [column for column in columns if column[:2] in present]
    rows, bounded = [], False
    for segment in record.segments:
        for case in scenario.cases:
            found = [by_key.get((case, segment, name, period)) for name, period, _ in columns]
            if any(row is not None for row in found):
                bounded = bounded or any(row is not None and _interval(row, scale, digits) for row in found)
                rows.append((*_row_labels(scenario, case, segment), *(_pair(row, scale, digits) for row in found)))
    if not rows:
        return None
    labels = _label_header(scenario)
    return Table(
        title=title,
        header=(*labels, *(heading for _, _, heading in columns)),
        rows=tuple(rows),
        labels=len(labels),
        note=note.format(interval=" and its interval" if bounded else ""),
    )


def _by_key(scenario: ScenarioRecord) -> dict[tuple[str, str, str, int | None], Any]:
    """(case, segment, outcome, period or None) -> row of the outcomes table."""
    rows: list[Any] = list(scenario.outcomes.itertuples(index=False))
    return {(r.case, r.segment, r.outcome, None if pd.isna(r.period) else int(r.period)): r for r in rows}


def _label_header(scenario: ScenarioRecord) -> tuple[str, ...]:
    return ("segment", "case") if len(scenario.cases) > 1 else ("segment",)


def _row_labels(scenario: ScenarioRecord, case: str, segment: str) -> tuple[str, ...]:
    return (segment, case) if len(scenario.cases) > 1 else (segment,)


def _pair(row: Any, scale: float, digits: int) -> str:
    if row is None:
        return DASH
    interval = _interval(row, scale, digits)
    both = f"{number(row.baseline * scale, digits)} → {number(row.scenario * scale, digits)}"
    return f"{both}{chr(10) if interval else ' '}({signed(row.change * scale, digits)}{interval})"


def _single(row: Any, scale: float, digits: int) -> str:
    if row is None:
        return DASH
    value = row.scenario * scale
    if row.outcome in ("gainers", "losers"):  # shares of members: nothing beyond none and all
        bounds = [number(scale * min(max(bound, 0.0), 1.0), digits) for bound in (row.low, row.high)]
        return number(value, digits) + ("" if pd.isna(row.low) or pd.isna(row.high) else f" [{', '.join(bounds)}]")
    return (signed if scale == 1.0 else number)(value, digits) + _interval(row, scale, digits)


def _interval(row: Any, scale: float, digits: int) -> str:
    """`` [low, high]`` if the table carries bounds, else nothing."""
    if pd.isna(row.low) or pd.isna(row.high):
        return ""
    return f" [{signed(row.low * scale, digits)}, {signed(row.high * scale, digits)}]"
