"""What ``RUN/backtest.json`` says: forecasts of what was not fitted on, beside what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from irl.report.changes import where
from irl.report.record import ALL, Record, at
from irl.report.tables import Table, number, percent

TITLES = {"backtest": "Backtest", "experiment": "Experiment held out"}
NAMES = {
    "model": "forecast",
    "logit": "static logit",
    "last": "last value",
    "average": "average",
    "control": "as fitted on",
}
QUANTITIES = {  # key of the result: (what, in points or in periods)
    "share": ("plan shares by period, points", True),
    "mean_share": ("plan shares, mean of the periods, points", True),
    "leave": ("hazard of leaving a plan or rejoining, by age, points", True),
    "switch": ("hazard of switching plans, by age, points", True),
    "length": ("length of spells, periods", False),
}
WHAT = {
    "share": "Members choosing a plan, mean over the periods forecast. ",
    "length": "Mean length of a spell of one choice, of spells whose beginning was seen and up to the age to which at "
    "least 20 member-periods were seen. ",
    "hazard": "Members who choose otherwise next, of those whose spell's beginning was seen; of no plan: who rejoin. ",
}
VERDICTS = {
    "mean_share": ("The mean plan shares lie", ""),
    "length": (
        "The mean lengths of spells lie",
        ": members may differ in ways that no column shows, or the past may count for longer than the state has it",
    ),
}
INTERVAL = (
    "In brackets: 95 % interval of the forecast, from draws of the reward's parameters and of as many members; red: "
    "what happened lies outside. Given the fitted dynamics, the discount, logit shocks and the anchor's reward."
)
POINT_ONLY = "In brackets: 95 % interval of the forecast, of the luck of as many members alone (no standard errors)."


def parts(record: Record) -> dict[str, Mapping[str, Any]]:
    """backtest and experiment, as far as they were asked."""
    return {name: record.backtest[name] for name in TITLES if name in record.backtest}


def record_tables(record: Record, part: str) -> list[Table]:
    """The tables of one part."""
    data = record.config.data
    return tables_of(part, record.backtest[part], data.actions, record.config.anchor.action)


def tables_of(part: str, answer: Mapping[str, Any], actions: Sequence[str], anchor: str | None) -> list[Table]:
    """Errors by segment; then shares, spells and hazards over all ages; then the hazards by age of all together."""
    interval = INTERVAL if answer["parameters_drawn"] else POINT_ONLY
    found = [error_table(part, answer)]
    found += [
        _levels(part, answer, "mean_share", "Plan shares, %", WHAT["share"] + interval, actions),
        _levels(part, answer, "length", "Length of spells, periods", WHAT["length"] + interval, actions),
    ]
    hazards = {"leaves": "Leaving (of no plan: rejoining), % a period", "switches": "Switching plans, % a period"}
    for key, title in hazards.items():
        found.append(_levels(part, answer, key, title, WHAT["hazard"] + interval, actions))
    found += [_ages(part, answer, "leave", action, anchor, interval) for action in actions]
    return [table for table in found if table.rows]


def error_table(part: str, answer: Mapping[str, Any]) -> Table:
    """Mean absolute error of every forecast by segment and quantity, the least one marked, and what lies inside."""
    names = answer["forecasts"]
    rows = []
    for segment, cell in answer["segments"].items():
        for key, (what, points) in QUANTITIES.items():
            errors = [at(cell, "errors", key, name, "mean") for name in names]
            if all(error is None for error in errors):
                continue
            least = min(error for error in errors if error is not None)
            shown = [number(None if e is None else e * (100 if points else 1)) for e in errors]
            shown = [f"{text} *" if e == least else text for text, e in zip(shown, errors, strict=True)]
            inside = at(cell, "inside", key, default=[0, 0])
            rows.append((segment, what, *shown, f"{inside[0]} of {inside[1]}"))
    return Table(
        title=f"{TITLES[part]}: mean absolute errors",
        header=("segment", "what", *(NAMES[name] for name in names), "in the interval"),
        rows=tuple(rows),
        labels=2,
        note="* least. Hazards are weighted by members at risk, ages of fewer than 20 left out. In the interval: "
        "observed values in the forecast's 95 % interval; of the same members, so that they lie in or out together.",
    )


def _levels(part: str, answer: Mapping[str, Any], key: str, title: str, note: str, actions: Sequence[str]) -> Table:
    """One quantity by segment and action: what happened, the forecast with its interval, the others."""
    others = [name for name in answer["forecasts"] if name != "model"]
    rows: list[tuple[str, ...]] = []
    flagged: set[int] = set()
    for segment, cell in answer["segments"].items():
        for action in actions:
            found = at(cell, key, action)
            if at(found, "observed") is None:
                continue
            if _outside(found):
                flagged.add(len(rows))
            rows.append((segment, action, *_row(found, others, key != "length")))
    return Table(
        title=f"{TITLES[part]}: {title[:1].lower()}{title[1:]}",
        header=("segment", "plan", "observed", NAMES["model"], *(NAMES[name] for name in others)),
        rows=tuple(rows),
        labels=2,
        flagged=frozenset(flagged),
        note=note,
    )


def _ages(part: str, answer: Mapping[str, Any], key: str, action: str, anchor: str | None, interval: str) -> Table:
    """Hazards of one action by age, of all segments together."""
    cells = answer["segments"]
    cell = cells.get(ALL) or next(iter(cells.values()))
    others = [name for name in answer["forecasts"] if name != "model"]
    found, at_risk = at(cell, key, action, default={}), at(cell, "at_risk", action, default=[])
    rows: list[tuple[str, ...]] = []
    flagged: set[int] = set()
    for k, risk in enumerate(at_risk):
        one = {name: values[k] for name, values in found.items()}
        if not risk or one["observed"] is None:
            continue
        if _outside(one):
            flagged.add(len(rows))
        rows.append((str(k + 1), f"{risk:,.0f}", *_row(one, others, True)))
    what = f"rejoining by periods since leaving ({action})" if action == anchor else f"leaving {action} by its age"
    return Table(
        title=f"{TITLES[part]}: {what}, all segments, % a period",
        header=("age", "at risk", "observed", NAMES["model"], *(NAMES[name] for name in others)),
        rows=tuple(rows),
        flagged=frozenset(flagged),
        note=WHAT["hazard"] + interval,
    )


def _row(found: Mapping[str, Any], others: Sequence[str], share: bool) -> list[str]:
    def said(value: Any) -> str:
        return percent(value, 1, unit="") if share else number(value)

    low, high = found["low"], found["high"]
    bounds = "" if low is None or high is None else f" [{said(low)}, {said(high)}]"
    return [said(found["observed"]), said(found["model"]) + bounds, *(said(found.get(name)) for name in others)]


def _outside(found: Mapping[str, Any]) -> bool:
    low, high = found["low"], found["high"]
    return low is not None and high is not None and not low - 1e-12 <= found["observed"] <= high + 1e-12


def sentences(record: Record, part: str) -> list[str]:
    """What was forecast, how well, beside the other forecasts, and where it was wrong."""
    answer = record.backtest[part]
    cells = answer["segments"]
    whole = cells.get(ALL) or next(iter(cells.values()))
    periods = answer["periods"]
    of = f"{whole['members']:,} members, {len(periods)} periods ({periods[0]} to {periods[-1]})"
    if part == "backtest":
        said = [f"Fitted on the periods up to {answer['until']}; forecast for {of}, from their state in the first."]
    else:
        arm = where(record.config.data.held_out)
        said = [f"Fitted without the members{arm}; forecast for them: {of}, from their first state."]
    for key in ("share", "length"):
        errors = {name: at(whole, "errors", key, name, "mean") for name in answer["forecasts"]}
        if at(errors, "model") is None:
            continue
        scale, unit = (100, "points") if key == "share" else (1, "periods")
        listed = ", ".join(f"{NAMES[n]} {number(e * scale)}" for n, e in errors.items() if e is not None)
        what = "Plan shares by period" if key == "share" else "Lengths of spells"
        said.append(f"{what}, mean absolute error over all members, {unit}: {listed}.")
    for key, (what, why) in VERDICTS.items():
        wrong = [
            f"{segment} ({', '.join(plans)})"
            for segment, cell in cells.items()
            if (plans := [a for a, found in cell[key].items() if found["observed"] is not None and _outside(found)])
        ]
        if wrong:
            said.append(f"{what} outside the forecast's 95 % interval in {'; '.join(wrong)}{why}.")
        else:
            said.append(f"{what} inside the forecast's 95 % interval everywhere.")
    if not answer["converged"]:
        said.append("The forecast's policy did not converge: take it with care.")
    return said
