"""The panel as tensors: states, choices, menus, and which row follows which.

Rows are sorted by member, then period. Forced rows (a menu of one) are collapsed as in the design: the row of the
last free choice runs to the next free choice, ``steps`` periods later. A transition across missing periods is dropped
and counted. A declared terminal row has no next row; any other last row (at the panel's end, a declared exit or not) is
censored and serves the policy step only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from irl import processes, runs
from irl.config import Config, InputError
from irl.data.encode import Bools, Ints
from irl.data.exact import Moments
from irl.data.rows import Rows, checked_rows, last_of_member
from irl.data.schema import StateSchema
from irl.data.scratch import Scratch
from irl.data.split import fitted_rows

NO_TENSORS = ("schema", "gaps", "scratch", "fingerprint")
"""Attributes of a panel that are not about its rows."""
CHECKED = 1_000_000
"""Rows whose invariants are checked at once."""
LEAST_WEIGHT = 1e-6
"""The smallest posterior of a hidden type with which a row is weighted: weights are positive."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """N rows of M members, sorted by member, then period.

    Attributes
    ----------
    state : float32 [N, F], as the schema says
    action : int64 [N]
    menu : bool [N, A], the available actions
    free : bool [N], something could be decided here: two or more actions available and not terminal
    active : bool [N], a decision was made, as far as a column says so; else the period passed without
    member : int64 [N], 0..M-1
    cluster : int64 [N], members whose errors may go together share one; by default each has its own
    period : int64 [N]
    segment : int64 [N], index into ``schema.segments``
    anchor_reward : float32 [N], g(s)
    weight : float32 [N], mean 1 over the panel as it was read
    next_row : int64 [N], the member's row one duration later; -1 after a last or terminal row and across a gap
    next_choice : int64 [N], from a free row the next free or terminal row, forced rows skipped; -1 if censored
    steps : float32 [N], periods from a free row to its next choice (its k); 1 where there is none
    ends : bool [N], the next choice is a terminal row (continuation 0)
    gaps : transitions dropped because periods are missing
    leaves : bool [N], after this row, its last, the member is observed no more, as declared; None: nothing is declared
    origin : int64 [N], the member's number in the panel of which this is one process's part; None: it is no part
    scratch : where the tensors are, if not in memory; what is computed for every row goes there too (``room``)
    fingerprint : of the store that it was read from; empty for raw files and frames
    """

    schema: StateSchema
    state: Tensor
    action: Tensor
    menu: Tensor
    free: Tensor
    active: Tensor
    member: Tensor
    cluster: Tensor
    period: Tensor
    segment: Tensor
    anchor_reward: Tensor
    weight: Tensor
    next_row: Tensor
    next_choice: Tensor
    steps: Tensor
    ends: Tensor
    gaps: int
    leaves: Tensor | None = None
    origin: Tensor | None = None
    scratch: Scratch | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        problems = _broken_invariants(self)
        if problems:
            raise ValueError("not a panel: " + "; ".join(problems))

    @property
    def n_rows(self) -> int:
        return len(self.member)

    @property
    def n_members(self) -> int:
        return int(self.member[-1]) + 1

    @property
    def among_all(self) -> tuple[Tensor, int]:
        """The member's number [N] among those of all processes, and how many these are."""
        number = self.member if self.origin is None else self.origin
        return number, int(processes.highest(number[-1])) + 1

    @property
    def n_actions(self) -> int:
        return len(self.schema.actions)

    @property
    def n_transitions(self) -> int:
        """Rows with a next row."""
        return int((self.next_row >= 0).sum())

    @property
    def tells_active(self) -> bool:
        """Whether it is known which periods passed without a decision."""
        return not bool(self.active.all())

    def identity(self) -> str:
        """The fingerprint of the store, or of all that is estimated from and the labels of its codes; members count by
        their place, not their id."""
        given = {name: values for name, values in tensors_of(self).items() if name != "leaves"}
        return self.fingerprint or runs.fingerprint(
            json.dumps(self.schema.to_json()), *(given[name] for name in sorted(given))
        )

    def take_members(self, keep: Tensor) -> Panel:
        """The rows of the members in keep[M], members and rows numbered afresh; weights stay as they are."""
        if not bool(keep.any()):
            raise ValueError("take_members: no member is kept")
        rows = keep.to(self.member.device)[self.member]
        fresh = rows.long().cumsum(0) - 1
        parts: dict[str, Any] = {name: values[rows] for name, values in tensors_of(self).items()}
        parts["member"] = (keep.to(self.member.device).long().cumsum(0) - 1)[parts["member"]]
        for name in ("next_row", "next_choice"):
            parts[name] = torch.where(parts[name] >= 0, fresh[parts[name].clamp(min=0)], -1)
        lost = (parts["next_row"] < 0) & ~self.schema.is_terminal(parts["state"])
        return replace(self, **parts, gaps=int((lost[:-1] & (parts["member"][1:] == parts["member"][:-1])).sum()))

    def to(self, device: torch.device | str) -> Panel:
        """The panel with its tensors on ``device``."""
        if torch.device(device).type == self.state.device.type == "cpu":
            return self
        parts: dict[str, Any] = {name: values.to(device) for name, values in tensors_of(self).items()}
        parts["scratch"] = None
        return replace(self, **parts)

    def room(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Zeros for a result of every row, where the panel itself is kept."""
        if self.scratch is not None:
            return self.scratch.room(*shape, dtype=dtype)
        return torch.zeros(*shape, dtype=dtype, device=self.state.device)


def owners(rows: Sequence[int], number: int) -> list[int]:
    """Which of so many processes takes each of some things with so many rows: they are dealt out from the largest to
    the smallest, back and forth, so that all have about as many rows."""
    found = [0] * len(rows)
    for turn, k in enumerate(sorted(range(len(rows)), key=lambda k: -rows[k])):
        found[k] = min(turn % (2 * number), 2 * number - 1 - turn % (2 * number))
    return found


def part_of(panel: Panel, process: int, number: int) -> Panel:
    """The members of one of several processes (:func:`owners`), clusters (by default, members) as a whole.

    Raises
    ------
    InputError
        If there are fewer clusters than processes.
    """
    rows = panel.cluster.bincount()
    if len(rows) < number:
        raise InputError(f"{number} processes cannot share {len(rows)} members (clusters): start fewer")
    owner = torch.tensor(owners(rows.tolist(), number), device=rows.device)
    mine = owner[panel.cluster[first_rows(panel.member)]] == process
    part = replace(panel, origin=panel.member).take_members(mine)
    return replace(part, cluster=part.cluster.unique(return_inverse=True)[1])


def tensors_of(panel: Panel) -> dict[str, Tensor]:
    """The tensors of a panel by name; those that it does not have are left out."""
    named = {f.name: getattr(panel, f.name) for f in fields(panel) if f.name not in NO_TENSORS}
    return {name: values for name, values in named.items() if values is not None}


def first_rows(member: Tensor) -> Tensor:
    """bool[N]: the first row of every member, of rows sorted by member."""
    return torch.cat([member.new_ones(1, dtype=torch.bool), member[1:] != member[:-1]])


def of_type(state: Tensor, k: int) -> Tensor:
    """The same states, all of hidden type ``k`` (a copy)."""
    state = state.clone()
    state[:, -1] = k
    return state


def typed(panel: Panel, schema: StateSchema, kind: Tensor) -> Panel:
    """A panel without hidden types as one of ``schema``, which has them: rows of types kind[N]."""
    return replace(panel, schema=schema, state=torch.cat([panel.state, kind.unsqueeze(1).to(panel.state.dtype)], 1))


def expanded(panel: Panel, schema: StateSchema, posterior: Tensor) -> Panel:
    """A panel without hidden types once per type of ``schema``, rows weighted by posterior[M, K]: member i as of type k
    is member k M + i, row t is row k N + t; clusters stay."""
    number = posterior.shape[1]
    parts: dict[str, Any] = {name: torch.cat([values] * number) for name, values in tensors_of(panel).items()}
    block = torch.arange(number, device=panel.member.device).repeat_interleave(panel.n_rows)
    parts["state"] = torch.cat([parts["state"], block.unsqueeze(1).to(parts["state"].dtype)], 1)
    parts["member"] += block * panel.n_members
    for name in ("next_row", "next_choice"):
        parts[name] = torch.where(parts[name] >= 0, parts[name] + block * panel.n_rows, -1)
    own = posterior.clamp_min(LEAST_WEIGHT)[panel.member].T
    parts["weight"] = (own * panel.weight.double()).flatten().float()
    return replace(panel, schema=schema, **parts, gaps=panel.gaps * number)


def panel_from_frame(
    frame: pd.DataFrame, config: Config, *, schema: StateSchema | None = None, source: str = "the panel"
) -> Panel:
    """The panel of a tidy frame: one row per member and period, in any order.

    Parameters
    ----------
    frame : with at least the columns that ``config`` names.
    schema : of the panel that a model was fitted on; None fits one here, on the rows that ``data.until`` and
        ``data.held_out`` leave. With a schema, all rows are taken, categories it does not know get the reserved code,
        and a panel without any transition is accepted.
    source : how messages call the frame, e.g. its path.

    Raises
    ------
    InputError
        Naming every problem of the frame, with the first offending rows.
    """
    if schema is None:
        frame = fitted_rows(frame, config.data)
    rows, schema = checked_rows(frame, config, schema=schema, source=source)
    return panel_from_rows(rows, schema, leaves=bool(config.data.exit), mean_weight=Moments(rows.weight).mean)


def panel_from_rows(rows: Rows, schema: StateSchema, *, leaves: bool, mean_weight: float) -> Panel:
    """The panel of checked rows, sorted by member and period: what follows each is found here.

    ``leaves``: whether exits are declared; ``mean_weight``: of the panel as a whole.
    """
    free = (rows.menu.sum(axis=1) >= 2) & ~rows.terminal
    linked, gaps = links_of(rows)
    index = np.arange(len(linked))
    next_choice, steps = _next_choices(rows, free, linked)
    ends = (next_choice >= 0) & rows.terminal[next_choice]
    return Panel(
        schema=schema,
        state=torch.from_numpy(np.ascontiguousarray(rows.state)),
        action=torch.from_numpy(rows.action),
        menu=torch.from_numpy(rows.menu),
        free=torch.from_numpy(free),
        active=torch.from_numpy(rows.active),
        member=torch.from_numpy(np.unique(rows.member, return_inverse=True)[1]),
        cluster=torch.from_numpy(np.unique(rows.cluster, return_inverse=True)[1]),
        period=torch.from_numpy(rows.period),
        segment=torch.from_numpy(rows.segment),
        anchor_reward=torch.from_numpy(rows.anchor_reward).float(),
        weight=torch.from_numpy(rows.weight / mean_weight).float(),
        next_row=torch.from_numpy(np.where(linked, index + 1, -1)),
        next_choice=torch.from_numpy(next_choice),
        steps=torch.from_numpy(steps).float(),
        ends=torch.from_numpy(ends),
        gaps=gaps,
        leaves=torch.from_numpy(rows.leaves) if leaves else None,
    )


def links_of(rows: Rows) -> tuple[Bools, int]:
    """Whether each row is followed, one duration later, by the row below it; and how many gaps break that."""
    inner = ~last_of_member(rows.member) & ~rows.terminal
    distance = np.append(np.diff(rows.period), 0)
    linked = inner & (distance == rows.duration)
    return linked, int((inner & ~linked).sum())


def _next_choices(rows: Rows, free: Bools, linked: Bools) -> tuple[Ints, Ints]:
    """next_choice[N] and steps[N]: the next free or terminal row of the same unbroken run of rows."""
    n = len(free)
    stops = np.where(free | rows.terminal, np.arange(n), n)
    after = np.append(np.minimum.accumulate(stops[::-1])[::-1][1:], n)  # first stop strictly below each row
    run = np.append(0, np.cumsum(~linked))  # breaks above each row; run[n] closes the last
    reached = free & (after < n) & (run[np.minimum(after, n - 1)] == run[:n])
    target = np.where(reached, after, 0)
    steps = np.where(reached, rows.period[target] - rows.period, 1)
    return np.where(reached, after, -1), steps


def _broken_invariants(panel: Panel) -> list[str]:
    """What is wrong with the tensors of a panel: shapes, types, index ranges, order."""
    n, schema = len(panel.member), panel.schema
    if n == 0:
        return ["it has no rows"]
    shapes = {"state": (n, len(schema.columns)), "menu": (n, len(schema.actions))}
    types = dict.fromkeys(("state", "anchor_reward", "weight", "steps"), torch.float32)
    types |= dict.fromkeys(("menu", "free", "active", "ends", "leaves"), torch.bool)
    problems = []
    for name, values in tensors_of(panel).items():
        shape, dtype = shapes.get(name, (n,)), types.get(name, torch.int64)
        if values.shape != shape or values.dtype != dtype:
            problems.append(f"{name} is {values.dtype} {tuple(values.shape)}, not {dtype} {shape}")
    if problems:
        return problems
    first = {"members are not 0, 1, … in order": int(panel.member[0]) == 0}
    found = [first, *(_invariants(panel, at, min(at + CHECKED, n)) for at in range(0, n, CHECKED))]
    return list(dict.fromkeys(what for checks in found for what, holds in checks.items() if not holds))


def _invariants(panel: Panel, first: int, end: int) -> dict[str, bool]:
    """Whether what is said of a panel holds of the rows from ``first`` to ``end``, and of the step to the first."""
    n, schema, before = panel.n_rows, panel.schema, max(first - 1, 0)
    own = {name: values[first:end] for name, values in tensors_of(panel).items()}
    free, rows = own["free"], torch.arange(first, end, device=panel.member.device)
    jump = panel.member[before:end].diff()
    rises = panel.period[before:end].diff() > 0
    chosen = own["menu"].gather(1, own["action"].clamp(0, len(schema.actions) - 1).unsqueeze(1)).squeeze(1)
    referred = schema.reference_weights(own["state"]) > 0
    checks = {
        "members are not 0, 1, … in order": bool(((jump == 0) | (jump == 1)).all()),
        "periods do not rise within members": bool(rises[jump == 0].all()),
        "an action is out of range": _within(own["action"], 0, len(schema.actions)),
        "a segment is out of range": _within(own["segment"], 0, len(schema.segments)),
        "a next row is out of range": _within(own["next_row"], -1, n) and _within(own["next_choice"], -1, n),
        "state is not finite": bool(own["state"].isfinite().all()),
        "anchor_reward is not finite": bool(own["anchor_reward"].isfinite().all()),
        "weights are not positive": bool(((own["weight"] > 0) & own["weight"].isfinite()).all()),
        "a free row has fewer than two actions": bool((own["menu"].sum(1) >= 2)[free].all()),
        "a free row lacks the anchor": bool((referred & own["menu"]).any(1)[free].all()),
        "the chosen action of a free row is not available": bool(chosen[free].all()),
        "steps are below 1": bool((own["steps"] >= 1).all()),
    }
    if not all(checks.values()):
        return checks
    following, choice = own["next_row"], own["next_choice"]
    below = (following == rows + 1) & (panel.member[following.clamp(min=0)] == own["member"])
    later = (choice > rows) & (panel.member[choice.clamp(min=0)] == own["member"])
    return {
        "a next row is not the member's row below": bool(((following < 0) | below).all()),
        "a next choice is not a later row of the member": bool(((choice < 0) | later).all()),
        "a row that is not free has a next choice": bool((choice < 0)[~free].all()),
        "a row ends without a next choice": bool((choice >= 0)[own["ends"]].all()),
    }


def _within(values: Tensor, low: int, high: int) -> bool:
    return bool(((values >= low) & (values < high)).all())
