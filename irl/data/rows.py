"""The rows of a panel as arrays, sorted by member and period, after every check of the data.

One :class:`~irl.config.InputError` names every problem: columns, counts and the first offending rows. A check that
needs several columns (duplicates, menus, links) looks only at rows whose cells are usable, so that a bad cell is
reported once. No decision is made in a terminal row: its action may be missing and is not checked.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from irl.config import Config, InputError, nearest
from irl.data.encode import (
    Bools,
    Finding,
    Floats,
    Ints,
    factorized,
    finding,
    labelled,
    missing_columns,
    numbers,
    segments_of,
    shown,
)
from irl.data.fit import fit_problems, fit_schema
from irl.data.periods import Calendar, period_numbers
from irl.data.schema import StateSchema, encode_columns
from irl.data.split import holding
from irl.declared import TYPE, Data


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Columns of N rows. ``position`` is the place of a row in its frame; -1 and NaN stand for unusable cells."""

    position: Ints
    member: Ints
    period: Ints
    action: Ints
    state: NDArray[np.float32]  # [N, F]
    menu: Bools  # [N, A]
    terminal: Bools
    segment: Ints
    cluster: Ints
    anchor_reward: Floats
    active: Bools
    weight: Floats
    duration: Floats
    leaves: Bools

    def take(self, rows: Ints) -> Rows:
        """These rows, in this order."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def data_columns(data: Data) -> tuple[str, ...]:
    """The columns that the data section names."""
    named = [data.member, data.period, data.action, *data.state, *data.segment, *data.exit]
    named += [name for name in (data.weight, data.cluster, data.active, data.duration) if name is not None]
    return tuple(dict.fromkeys(named))


def study_columns(config: Config) -> tuple[str, ...]:
    """The columns that a study reads: those of its data section and the anchor's reward."""
    reward = config.anchor.reward
    return tuple(dict.fromkeys([*data_columns(config.data), *([reward] if isinstance(reward, str) else [])]))


def checked_rows(
    frame: pd.DataFrame, config: Config, *, schema: StateSchema | None, source: str, calendar: Calendar | None = None
) -> tuple[Rows, StateSchema]:
    """The rows of ``frame`` sorted by member and period, and the schema (fitted here if None is given).

    ``calendar``: how the whole panel counts its periods, if the frame holds a part of its members.

    Raises
    ------
    InputError
        Naming every problem of the frame.
    """
    spared = (
        () if schema is None else set(config.data.exit) - set(config.data.state)
    )  # who left matters to fitting only
    own = data_columns(config.data)
    findings = missing_columns([name for name in own if name not in spared], frame)
    findings += missing_columns([name for name in study_columns(config) if name not in own], frame, "`anchor.reward` ")
    if schema is not None and any(name not in frame.columns for name in schema.hidden):
        raise InputError(
            f"{source}: this study has hidden types, and no column {TYPE!r} says who is of which. Bootstrap, "
            "sensitivity and falsification cannot draw them yet: train with `types: 1` for these (in Python, "
            "FittedModel.with_types draws them)"
        )
    if frame.empty:
        raise _error([*findings, Finding("there are no rows")], frame, config, source, part=calendar is not None)
    frame = frame.loc[:, ~frame.columns.duplicated()].reset_index(drop=True)
    fitted = schema is None
    if schema is None:
        schema = fit_schema(frame, config)
    rows, found = _columns(frame, config, schema, calendar)
    if fitted:
        findings += fit_problems(frame.columns, config, schema, int(rows.member.max()) + 1)
    findings += found
    found = _duplicates(rows, config.data)
    rows = rows.take(np.lexsort((rows.period, rows.member)))
    found += _link_problems(rows, config.data, transitions_needed=fitted and not findings and not found)
    findings += found
    if findings:
        raise _error(findings, frame, config, source, part=calendar is not None)
    return replace(rows, duration=np.nan_to_num(rows.duration, nan=1.0)), schema


def last_of_member(member: Ints) -> Bools:
    """Whether each of the rows, sorted by member, is its member's last."""
    return np.append(member[1:] != member[:-1], True)


def _error(findings: list[Finding], frame: pd.DataFrame, config: Config, source: str, *, part: bool) -> InputError:
    names = {config.data.member: "member", config.data.period: "period"}
    known = [name for name in names if name in frame.columns]

    def locate(row: int) -> str:
        place = [] if part else [f"row {row + 1}"]
        return ", ".join([*place, *(f"{names[name]} {shown(frame[name].iloc[row])}" for name in known)])

    lines = [f.text(locate) for f in findings]
    count = f"{len(lines)} problems" if len(lines) > 1 else "1 problem"
    where = "in a part of its members" if part else "rows count from 1, after the header"
    return InputError(f"{source}: {count} ({where}):\n  " + "\n  ".join(lines))


def _columns(
    frame: pd.DataFrame, config: Config, schema: StateSchema, calendar: Calendar | None
) -> tuple[Rows, list[Finding]]:
    """Every column, rows in the frame's order, and the problems that can be seen within a row."""
    data, n = config.data, len(frame)
    member, period, findings = _member_and_period(frame, data, calendar)
    state, found = encode_columns(schema, frame)
    findings += found
    terminal, menu = np.zeros(n, dtype=bool), np.ones((n, len(schema.actions)), dtype=bool)
    tensor = torch.from_numpy(state)
    conditions = [schema.terminal, *(condition for _, condition in schema.available)]
    if not any(schema.problems_of(condition, "") for condition in conditions):
        terminal, menu = schema.is_terminal(tensor).numpy(), schema.menu(tensor).numpy()
    action, found = _actions(frame, data, schema, terminal)
    findings += found
    used = {*schema.reference_columns, *(name for condition in conditions for name in condition)}
    known = ~np.isnan(state[:, [schema.index(name) for name in used]]).any(axis=1)
    referred = schema.reference_weights(tensor).nan_to_num().numpy() > 0
    findings += _menu_problems(menu, action, schema, where=known & ~terminal)
    findings += _reference_problems(frame, state, referred & menu, schema, where=known & ~terminal & (menu.sum(1) >= 2))
    segment, found = _segments(frame, config, schema)
    findings += found
    cluster, found = _clusters(frame, data, member)
    findings += found
    active, found = _active(frame, config, schema, action, tensor, where=known & ~terminal & (menu.sum(1) >= 2))
    findings += found
    weight, found = _positive(frame, data.weight, "weight", whole=False)
    findings += found
    duration, found = _positive(frame, data.duration, "duration", whole=True)
    findings += found
    reward, found = _anchor_reward(frame, schema)
    findings += found
    rows = Rows(
        position=np.arange(n),
        member=member,
        period=period,
        action=np.where(terminal & (action < 0), schema.base, action),
        state=state,
        menu=menu,
        terminal=terminal,
        segment=segment,
        cluster=cluster,
        anchor_reward=reward,
        active=active,
        weight=weight,
        duration=duration,
        leaves=_leaving(frame, data),
    )
    return rows, findings


def _leaving(frame: pd.DataFrame, data: Data) -> Bools:
    """Rows after which the member is declared to be observed no more; none where columns are missing."""
    if not data.exit or not set(data.exit) <= set(frame.columns):
        return np.zeros(len(frame), dtype=bool)
    return holding(frame, data.exit)


def _clusters(frame: pd.DataFrame, data: Data, member: Ints) -> tuple[Ints, list[Finding]]:
    """Code of each row's cluster, in the order of the labels: its member where none is declared. A member must not
    change cluster."""
    if data.cluster is None or data.cluster not in frame.columns:
        return member, []
    codes, labels = labelled(frame[data.cluster])
    codes = np.array([*np.argsort(np.argsort(np.array(labels, dtype=object))), -1], dtype=np.int64)[codes]
    findings = finding(f"cluster column {data.cluster!r} is missing", codes < 0)
    first = np.full(int(member.max(initial=-1)) + 1, -1, dtype=np.int64)
    known = (member >= 0) & (codes >= 0)
    first[member[known][::-1]] = codes[known][::-1]
    moved = known & (codes != first[np.where(known, member, 0)])
    remedy = "a member belongs to one cluster"
    findings += finding(f"cluster column {data.cluster!r} changes within a member", moved, remedy=remedy)
    return codes, findings


def _active(
    frame: pd.DataFrame, config: Config, schema: StateSchema, action: Ints, state: torch.Tensor, *, where: Bools
) -> tuple[Bools, list[Finding]]:
    """Whether there was a decision (without a column: always); ``where`` there was none, the default has to happen."""
    column = config.data.active
    if column is None or column not in frame.columns:
        return np.ones(len(frame), dtype=bool), []
    values, what = numbers(frame[column])[0], f"active column {column!r}"
    findings = finding(f"{what}: neither 0 nor 1", ~np.isin(values, (0, 1)), values=frame[column])
    active: Bools = values != 0
    if not any(schema.problems_of(condition, "") for _, condition in schema.defaults):
        wrong = where & ~active & (action >= 0) & (action != schema.default(state).numpy())
        findings += finding(f"{what}: 0 where the action is not the default of `attention`", wrong)
    return active, findings


def _member_and_period(frame: pd.DataFrame, data: Data, calendar: Calendar | None) -> tuple[Ints, Ints, list[Finding]]:
    """Codes of the members in the order of their values, and periods; member -1 where either is unusable."""
    n = len(frame)
    member, period = np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=np.int64)
    findings: list[Finding] = []
    if data.member in frame.columns:
        codes, values = factorized(frame[data.member])
        findings += finding(f"member column {data.member!r}: missing values", codes < 0)
        try:
            order = sorted(range(len(values)), key=values.__getitem__)
        except TypeError:  # ids of several types
            order = sorted(range(len(values)), key=lambda i: (type(values[i]).__name__, str(values[i])))
        rank = np.empty(len(values) + 1, dtype=np.int64)
        rank[order], rank[-1] = np.arange(len(values)), -1
        member = rank[codes]
    if data.period in frame.columns:
        period, good, found = period_numbers(frame[data.period], member, calendar)
        findings += found
        member = np.where(good, member, -1)
    return member, period, findings


def _actions(frame: pd.DataFrame, data: Data, schema: StateSchema, terminal: Bools) -> tuple[Ints, list[Finding]]:
    if data.action not in frame.columns:
        return np.full(len(frame), -1, dtype=np.int64), []
    values = frame[data.action]
    found, labels = labelled(values)
    what = f"action column {data.action!r}"
    remedy = "Fill them in: no plan is an action, too, and has a name (none)"
    findings = finding(f"{what}: missing values", (found < 0) & ~terminal, remedy=remedy)
    for code, name in enumerate(labels):
        if name not in schema.actions:
            remedy = "Correct the rows or add it to `actions`"
            what_name = f"{what}: unknown action {name!r}{nearest(name, schema.actions)}"
            findings += finding(what_name, found == code, remedy=remedy)
    place = {name: i for i, name in enumerate(schema.actions)}
    return np.array([*(place.get(name, -1) for name in labels), -1], dtype=np.int64)[found], findings


def _menu_problems(menu: Bools, action: Ints, schema: StateSchema, *, where: Bools) -> list[Finding]:
    """Problems of the menu in the rows ``where`` a decision could be made."""
    rows = np.arange(len(action))
    chosen = pd.Series(np.array([*schema.actions, ""], dtype=object)[action])
    return [
        *finding(
            "no action is available",
            where & ~menu.any(axis=1),
            remedy="Widen `available`, or declare these states `terminal`",
        ),
        *finding(
            "the chosen action is not available",
            where & menu.any(axis=1) & (action >= 0) & ~menu[rows, action],
            values=chosen,
            remedy="Correct the rows or widen `available`",
        ),
    ]


def _reference_problems(
    frame: pd.DataFrame, state: NDArray[np.float32], left: Bools, schema: StateSchema, *, where: Bools
) -> list[Finding]:
    """Problems of the anchor in the rows ``where`` there is a choice; left[N, A]: what it may do that is available."""
    absent, findings = where & ~left.any(axis=1), []
    if schema.anchor is not None:
        what = f"the anchor {schema.actions[schema.anchor]!r} is not available where there is a choice"
        return finding(what, absent, remedy="Widen its `available`, or choose another anchor")
    if schema.anchor_by_state is not None:
        name = schema.anchor_by_state
        if name not in frame.columns:
            return []
        column = schema.columns[schema.index(name)]
        code = state[:, schema.index(name)]
        for strange in sorted(set(column.labels) - set(schema.actions)):
            what = f"anchor column {name!r}: {strange!r} is not one of the actions{nearest(strange, schema.actions)}"
            absent = absent & (code != column.labels.index(strange))
            findings += finding(what, code == column.labels.index(strange), remedy="Its labels name the anchor")
        what = f"the anchor that column {name!r} names is not available where there is a choice"
        remedy = "Correct the rows, or widen the `available` of the actions that it names"
        return [*findings, *finding(what, absent, values=frame[name], remedy=remedy)]
    for name in schema.reference_columns:
        negative = state[:, schema.index(name)] < 0
        what = f"weight column {name!r} of the anchor's policy: negative values"
        findings += finding(what, negative, values=frame[name] if negative.any() else None)
        absent = absent & ~negative
    what = "the anchor's policy gives no weight to any action that is available where there is a choice"
    return [*findings, *finding(what, absent, remedy="Give one of them a weight in `anchor.policy`")]


def _segments(frame: pd.DataFrame, config: Config, schema: StateSchema) -> tuple[Ints, list[Finding]]:
    columns = config.data.segment
    if not set(columns) <= set(frame.columns):
        return np.full(len(frame), -1, dtype=np.int64), []
    found, labels = segments_of(frame, columns)
    findings: list[Finding] = []
    for name in columns:
        if name not in config.data.state:  # a state column reports its own missing values
            findings += finding(f"segment column {name!r}: missing values", labelled(frame[name])[0] < 0)
    strange = [(code, name) for code, name in enumerate(labels) if name not in schema.segments]
    for code, name in strange:
        what = f"segment {name!r} was not in the panel that the model was fitted on{nearest(name, schema.segments)}"
        findings += finding(what, found == code)
    place = {name: i for i, name in enumerate(schema.segments)}
    return np.array([*(place.get(name, -1) for name in labels), -1], dtype=np.int64)[found], findings


def _positive(frame: pd.DataFrame, column: str | None, what: str, *, whole: bool) -> tuple[Floats, list[Finding]]:
    """Positive numbers, ones without a column. Whole numbers may be missing here: a last row has no duration."""
    if column is None or column not in frame.columns:
        return np.ones(len(frame)), []
    values, strange = numbers(frame[column])
    missing = np.isnan(values) & ~strange
    bad = strange | (~missing & ~((values > 0) & np.isfinite(values)))
    bad = bad | (~missing & ~strange & (values != np.round(values)) if whole else missing)
    kind = "positive whole number" if whole else "positive number"
    findings = finding(f"{what} column {column!r}: not a {kind}", bad, values=frame[column])
    return np.where(bad, np.nan, values), findings


def _anchor_reward(frame: pd.DataFrame, schema: StateSchema) -> tuple[Floats, list[Finding]]:
    reward = schema.anchor_reward
    if not isinstance(reward, str):
        return np.full(len(frame), float(reward)), []
    if reward not in frame.columns:
        return np.full(len(frame), np.nan), []
    values = numbers(frame[reward])[0]
    what = f"anchor reward column {reward!r}: missing, infinite or not a number"
    return values, finding(what, ~np.isfinite(values), values=frame[reward])


def _duplicates(rows: Rows, data: Data) -> list[Finding]:
    keys = pd.DataFrame({"member": rows.member, "period": rows.period})
    repeated = keys.duplicated(keep=False).to_numpy() & (rows.member >= 0)
    what = f"several rows for one member and period ({data.member!r}, {data.period!r})"
    return finding(what, repeated, remedy="Keep one row each")


def _link_problems(rows: Rows, data: Data, *, transitions_needed: bool) -> list[Finding]:
    """Problems between consecutive rows of a member. ``rows`` are sorted by member and period."""
    n = len(rows.member)
    rows = rows.take(np.flatnonzero(rows.member >= 0))
    if not len(rows.member):
        return []
    inner = ~last_of_member(rows.member)
    distance = np.where(inner, np.append(np.diff(rows.period), 0), 0)
    revived = inner & rows.terminal & ~np.append(rows.terminal[1:], False)

    def found(what: str, bad: Bools, remedy: str) -> list[Finding]:
        spread = np.zeros(n, dtype=bool)
        spread[rows.position[bad]] = True
        return finding(what, spread, remedy=remedy)

    findings = found("rows after a terminal state", revived, "Correct `terminal` or drop the later rows")
    findings += found("rows after an exit", inner & rows.leaves, "Correct `exit`: it holds in a member's last row")
    if data.duration is not None:
        what = f"duration column {data.duration!r}"
        findings += found(f"{what}: missing before a next row", inner & np.isnan(rows.duration), "Fill it in")
        over = inner & (distance > 0) & (rows.duration > distance)
        findings += found(f"{what}: longer than the time to the member's next row", over, "Correct the rows")
    linked = inner & ~rows.terminal & (rows.duration == distance)
    if transitions_needed and not linked.any():
        apart = distance[distance > 0]
        commonest = int(np.bincount(np.minimum(apart, 10_000)).argmax()) if len(apart) else 0
        seen = f"their rows are mostly {commonest} apart" if commonest else "each has one row"
        remedy = "Check the member and period columns, or declare a `duration`"
        findings.append(Finding(f"no member has two consecutive periods ({seen})", remedy=remedy))
    return findings
