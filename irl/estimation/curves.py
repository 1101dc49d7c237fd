"""Reward curves: how the recovered reward moves along each state feature, by action and segment, with standard errors.

A point of a curve is the mean reward over a sample of the segment's visited states in which the feature is put to a
value and all else is left as it is (partial dependence; Friedman 2001, section 8.2), where that leaves a choice and the
action on the menu. A feature whose dynamics is ``table`` hangs together with others (months are left of a contract only
in a contract), so it is put only to values that were seen together with the state's values of those.

The standard errors are clustered by member, by the delta method, exact since rewards are linear in the parameters;
there are none without a refit, or if it has none.

Limits: states are a sample (``ROWS``), whose luck the errors do not hold. Features that move together for other
reasons are taken apart all the same, so that a curve may pass through states that nobody visits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from irl import processes
from irl.data.column import Column
from irl.data.panel import Panel
from irl.data.schema import StateSchema
from irl.fitted import FittedModel, free_rows

ROWS, MOST_ROWS, LEAST_ROWS = 300, 6000, 50
"""States sampled per segment; fewer where there would be more than ``MOST_ROWS`` in all, but not below the last."""
LOOKED_AT = 2_000_000
"""Rows among which values and states are looked for."""
MOST_LEVELS, MOST_VALUES = 25, 9
"""Points along a column with levels, and along one of numbers."""


def curves(model: FittedModel, panel: Panel) -> dict[str, Any]:
    """{column: {"values": [V labels or numbers], "rewards": {action: {segment or "all": {"mean": [V], "se": [V]}}}}}.

    In reward units; null where no state qualifies, ``se`` null without standard errors. The columns that make the
    segments, and an anchor action, are left out.
    """
    schema, generator = panel.schema, torch.Generator().manual_seed(model.config.seed)
    free = _free_rows(panel, generator)
    rows, weight = _sample(panel, free, generator)
    visited = processes.gathered(
        panel.state[free]
    )  # samples are small: every process has all of them, and does the same
    state, segment, known, weight = (
        processes.gathered(v) for v in (panel.state[rows], panel.segment[rows], panel.anchor_reward[rows], weight)
    )
    cells = [(a, code) for a in range(len(schema.actions)) if a != schema.anchor for code in _codes(schema)]
    mine = torch.stack([segment == code if code >= 0 else segment >= 0 for _, code in cells], 1)
    action = torch.tensor([a for a, _ in cells], device=state.device)
    found: dict[str, Any] = {}
    for f, column in enumerate(schema.columns):
        if column.name in schema.segment_columns or column.minimum == column.maximum:
            continue
        points: list[tuple[list[float | None], list[float | None]]] = []
        values = _values(column, visited[:, f])
        for value in values:
            changed = state.index_fill(1, torch.tensor([f], device=state.device), value)
            reward = schema.known_reward(changed) if schema.knows_anchor_reward else known
            menu = schema.menu(changed)
            usable = free_rows(schema, changed) & _seen_together(schema, f, changed, visited)
            within = mine & (menu[:, action] & usable.unsqueeze(1))
            points.append(_means(model, changed, reward, action, within * weight.unsqueeze(1)))
        shown = [column.labels[int(v)] if column.discrete else _rounded(v) for v in values]
        rewards: dict[str, Any] = {}
        for k, (a, code) in enumerate(cells):
            line = {"mean": [mean[k] for mean, _ in points], "se": [se[k] for _, se in points]}
            if any(m is not None for m in line["mean"]):
                rewards.setdefault(schema.actions[a], {})["all" if code < 0 else schema.segments[code]] = line
        found[column.name] = {"values": shown, "rewards": rewards}
    return found


def _free_rows(panel: Panel, generator: torch.Generator) -> Tensor:
    """Indices of the free rows; of very long panels, of those among ``LOOKED_AT`` rows."""
    most = processes.own_part(LOOKED_AT, panel.n_rows)
    rows = torch.arange(panel.n_rows) if panel.n_rows <= most else None
    rows = torch.randint(panel.n_rows, (most,), generator=generator).unique() if rows is None else rows
    rows = rows.to(panel.free.device)
    return rows[panel.free[rows]]


def _sample(panel: Panel, free: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of the sampled free rows, and weights [n] by which they stand for all of their segments."""
    most = max(min(ROWS, MOST_ROWS // len(panel.schema.segments)), LEAST_ROWS)
    segment, rows, weights = panel.segment[free], [], []
    for code in range(len(panel.schema.segments)):
        own = free[segment == code]
        order = torch.randperm(len(own), generator=generator)[: processes.own_part(most, len(own))]
        taken = own[order.to(own.device)]
        weight = panel.weight[taken].double()
        rows.append(taken)
        every, some = processes.total(panel.weight[own].double().sum()), processes.total(weight.sum())
        weights.append(weight * every / max(some, 1e-300))
    return torch.cat(rows), torch.cat(weights)


def _codes(schema: StateSchema) -> list[int]:
    """The segments, and -1 for all together where there are several."""
    several = [-1] if len(schema.segments) > 1 else []
    return [*range(len(schema.segments)), *several]


def _values(column: Column, visited: Tensor) -> list[float]:
    """Where along the column to look: its levels, or numbers between the 5th and 95th percentile."""
    distinct = visited.unique().double()
    if column.discrete:
        distinct = distinct[distinct < column.levels]  # the code of what was never seen is none
    if len(distinct) <= (MOST_LEVELS if column.discrete else MOST_VALUES):
        return [float(v) for v in distinct.tolist()]
    if column.discrete:
        return [float(v) for v in distinct[torch.linspace(0, len(distinct) - 1, MOST_LEVELS).long()].tolist()]
    at = torch.linspace(0.05, 0.95, MOST_VALUES, dtype=torch.float64, device=visited.device)
    some = visited[:: max(1, len(visited) // 100_000)].double()  # quantiles need no more
    values = torch.quantile(some, at)
    return [float(v) for v in (values.round() if column.kind == "count" else values).unique().tolist()]


def _seen_together(schema: StateSchema, f: int, state: Tensor, visited: Tensor) -> Tensor:
    """bool [n]: column f of state[n, F] was seen with these values of the columns that move it by counts, or that it
    moves so."""
    column, linked = schema.columns[f], set[int]()
    if column.dynamics == "table":
        linked = {g for g, other in enumerate(schema.columns) if other.dynamics == "table" and f in other.parents}
        linked |= {g for g in column.parents if schema.columns[g].dynamics == "table"}
    if not linked - {f}:
        return torch.ones(len(state), dtype=torch.bool, device=state.device)
    own = sorted(linked | {f})
    seen = visited[visited[:, f] == state[0, f]][:, own].unique(dim=0)
    together: Tensor = (state[:, own].unsqueeze(1) == seen).all(2).any(1)
    return together


@torch.no_grad()
def _means(
    model: FittedModel, state: Tensor, anchor_reward: Tensor, action: Tensor, weight: Tensor
) -> tuple[list[float | None], list[float | None]]:
    """Mean reward of action[K] over the rows by weight[n, K], and its standard error; None where nothing has weight."""
    mass = weight.sum(0)
    weight = weight / mass.clamp_min(1e-300)
    mean = (weight * model.reward_of(state, anchor_reward).double()[:, action]).sum(0)
    filled = mass.gt(0).tolist()
    means = [_rounded(m) if there else None for m, there in zip(mean.tolist(), filled, strict=True)]
    if not model.has_standard_errors:
        return means, [None] * len(means)
    assert model.refit is not None
    x = model.terms(state).double()
    contrast = x.new_zeros(len(action), len(model.schema.actions), x.shape[1])
    contrast[torch.arange(len(action), device=x.device), action] = weight.T @ x
    if model.schema.anchor is None:  # the reward is relative to the reference policy's mean
        mu = model.schema.reference(state, model.schema.menu(state)).double()
        contrast -= torch.einsum("nk,na,nd->kad", weight, mu, x)
    errors = model.refit.error_of(contrast).tolist()
    return means, [_rounded(e) if there else None for e, there in zip(errors, filled, strict=True)]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
