"""What the simulated market would do under a scenario, exactly: the truth that counterfactuals are measured against.

A scenario's changes - rewards, prices, the menu, how the use of a benefit moves - become an *edit* of each cell's
problem, which is then solved anew; outcomes follow by carrying the distribution of the start states forward under the
new policy, without sampling. Prices change first, ``where`` the state before any change says so; everything else then
changes ``where`` the state at the new prices says so.

Limits: only prices can be changed or set among the features, the menu cannot depend on the month, the anchor stays as
it is, and how a benefit's use moves may be changed where the segment, the prices and its own level say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from irl import tabular
from irl.config import Between, Condition, InputError, unknown
from irl.membership import (
    ACTIONS,
    ANNUAL,
    LEVELS,
    MONTHLY,
    NONE,
    STATUSES,
    YEAR,
    Cell,
    Edit,
    Market,
    MarketSolution,
    Rules,
)
from irl.scenario import Change, DynamicsChange, FeatureChange, Scenario, cases, scenario_from

PRICES = Cell._fields[1:]


def scenario_edit(market: Market, scenario: Scenario | Mapping[str, Any]) -> Edit:
    """The changes of a scenario without a sweep, as an edit for :func:`irl.membership.solve`.

    Raises
    ------
    InputError
        For anything the market cannot answer, all problems at once.
    """
    scenario = scenario_from(scenario)
    problems = [problem for change in scenario.changes for problem in _problems(market, change)]
    if len(cases(scenario)) > 1:
        problems.append("it is a sweep: ask for one of its cases")
    if problems:
        raise InputError(f"the simulated market cannot answer {scenario.name!r}:\n  " + "\n  ".join(problems))

    def edit(table: pd.DataFrame, rules: Rules) -> Rules:
        table = _repriced(table, [change.feature for change in scenario.changes if change.feature])
        reward, available, kernels = _reward_at(market, table), rules.available.clone(), rules.kernels.clone()
        for change in scenario.changes:
            if change.reward:
                a, here = ACTIONS.index(change.reward.action), _holding(table, change.reward.where).reshape(YEAR, -1)
                changed = reward[..., a] * _number(change.reward.scale, 1.0) + _number(change.reward.add, 0.0)
                reward[..., a] = torch.where(here, changed, reward[..., a])
            if change.remove:
                here = _holding(table, change.remove.where).reshape(YEAR, -1)[0]
                available[here, ACTIONS.index(change.remove.action)] = False
            if change.dynamics:
                b = market.benefits.index(change.dynamics.name)
                kernels[:, b] = _moved(market, table, change.dynamics, kernels[:, b])
        return Rules(reward, available, kernels)

    return edit


def _problems(market: Market, change: Change) -> list[str]:
    found = []
    part = change.part
    if isinstance(part, DynamicsChange):
        found += unknown(part.name, market.benefits, "dynamics", "benefit")
        found += [p for name in part.like for p in unknown(name, ("segment",), "dynamics.like", "column")]
        if "segment" in part.like:
            found += unknown(str(part.like["segment"]), market.segments, "dynamics.like.segment", "label")
        wide = [name for name in part.where if name in market.columns and name not in (*Cell._fields, part.name)]
        found += [f"dynamics.where: a benefit's movement cannot depend on {name!r} here" for name in wide]
    elif isinstance(part, FeatureChange):
        found += unknown(part.name, PRICES, "feature", "price")
    else:
        found += unknown(part.action, ACTIONS[NONE + 1 :], "reward or remove", "action other than the anchor")
    if change.remove and "month" in part.where:
        found.append("remove: the menu cannot depend on the month")
    labels = {"segment": tuple(market.segments), "status": STATUSES}
    for column, allowed in part.where.items():
        found += unknown(column, market.columns, "where", "state column")
        for value in allowed if column in labels and not isinstance(allowed, Between) else ():
            found += unknown(str(value), labels[column], f"where.{column}", "label")
    return found


def _repriced(table: pd.DataFrame, changes: Sequence[FeatureChange]) -> pd.DataFrame:
    """The state table at the new prices."""
    changed = table.copy()
    for change in changes:
        base = changed[change.name] if change.set is None else _number(change.set, 0.0)
        price = base * _number(change.scale, 1.0) + _number(change.add, 0.0)
        changed[change.name] = changed[change.name].mask(_holding(table, change.where).numpy(), price)
    return changed


def _moved(market: Market, table: pd.DataFrame, change: DynamicsChange, kernel: Tensor) -> Tensor:
    """kernel[2, LEVELS, LEVELS] of a benefit after the change: a row for each level it is left from."""
    moved = kernel
    if "segment" in change.like:
        moved = market.kernels(str(change.like["segment"]))[:, market.benefits.index(change.name)]
    tilted = moved * (_number(change.shift, 0.0) * torch.arange(LEVELS, dtype=kernel.dtype)).exp()
    tilted = tilted / tilted.sum(-1, keepdim=True)
    holding, level = _holding(table, change.where), torch.tensor(table[change.name].to_numpy())
    here = torch.stack([holding[level == k].any() for k in range(LEVELS)])
    if not torch.equal(here[level], holding):
        raise InputError(f"the movement of {change.name!r} cannot be changed where a price is that is itself changed")
    return torch.where(here.unsqueeze(1), tilted, kernel)


def _reward_at(market: Market, table: pd.DataFrame) -> Tensor:
    """r[YEAR, states, actions] of a state table of one segment, whose prices may differ between states."""
    pairs, pair = np.unique(table[list(PRICES)].to_numpy(dtype=float), axis=0, return_inverse=True)
    rewards = torch.stack([market.reward(Cell(table["segment"].iloc[0], *prices)) for prices in pairs.tolist()])
    chosen = torch.from_numpy(pair.reshape(1, YEAR, market.states, 1)).expand(1, -1, -1, len(ACTIONS))
    return rewards.gather(0, chosen).squeeze(0)


def _holding(table: pd.DataFrame, condition: Condition) -> Tensor:
    """Rows of the state table where the condition holds, bool[rows]."""
    holds = np.ones(len(table), dtype=bool)
    for column, allowed in condition.items():
        values = table[column].to_numpy()
        if isinstance(allowed, Between):
            holds &= (values >= (-np.inf if allowed.min is None else allowed.min)) & (
                values <= (np.inf if allowed.max is None else allowed.max)
            )
        elif pd.api.types.is_numeric_dtype(table[column]):
            holds &= np.isclose(values[:, None], np.array([float(value) for value in allowed])).any(1)
        else:
            holds &= np.isin(values.astype(str), [str(value) for value in allowed])
    return torch.from_numpy(holds)


def _number(amount: Any, default: float) -> float:
    return default if amount is None else float(amount)


def exact_outcomes(solution: MarketSolution, start: pd.DataFrame, *, periods: int) -> pd.DataFrame:
    """Expected outcomes by segment and period of members who start in the rows of ``start``, each counted once.

    Columns: ``segment``; ``period`` (0: the choice made in the start state); ``share_<action>`` of everyone; ``join``,
    the share of those not members last period (status out) who choose a plan; ``renewal``, the share of those who were
    members who choose one; ``cancel`` = 1 - renewal. A share of nobody is NaN.
    """
    market, (cell, month, state) = solution.market, solution.locate(start)
    segments = sorted({solution.cells[c].segment for c in np.unique(cell)})
    # of members, by the status they come with and the action they take
    flow = torch.zeros(len(segments), periods, len(STATUSES), len(ACTIONS), dtype=torch.float64)
    with tabular.one_thread():
        for number in np.unique(cell):
            here, segment = cell == number, segments.index(solution.cells[number].segment)
            mass = torch.zeros(YEAR * market.states, dtype=torch.float64)
            mass += torch.from_numpy(np.bincount(month[here] * market.states + state[here], minlength=len(mass)))
            rules = Rules(solution.reward[number], solution.available[number], solution.kernels[number])
            problem = market.problem(rules)
            policy = solution.policy[number]
            paths = tabular.propagate(problem, policy, mass.reshape(YEAR, -1), periods=periods)
            for period, present in enumerate(paths):
                chosen = (present.unsqueeze(-1) * policy).sum(0).reshape(market.contracts, -1, len(ACTIONS)).sum(1)
                flow[segment, period, :2] += chosen[:2]
                flow[segment, period, 2] += chosen[2:].sum(0)
    return _tidy(flow, segments)


def _tidy(flow: Tensor, segments: Sequence[str]) -> pd.DataFrame:
    periods = flow.shape[1]
    out, member = flow[:, :, NONE], flow[:, :, NONE + 1 :].sum(2)  # [segments, periods, actions]
    share = flow.sum(2) / flow.sum((2, 3)).unsqueeze(-1)
    columns: dict[str, Any] = {"segment": np.repeat(np.array(segments), periods)}
    columns["period"] = np.tile(np.arange(periods), len(segments))
    columns |= {f"share_{action}": share[..., a].reshape(-1).numpy() for a, action in enumerate(ACTIONS)}
    for name, group in (("join", out), ("renewal", member)):
        columns[name] = (group[..., MONTHLY : ANNUAL + 1].sum(-1) / group.sum(-1)).reshape(-1).numpy()
    return pd.DataFrame(columns).assign(cancel=lambda frame: 1 - frame["renewal"])


def exact_surplus(baseline: MarketSolution, changed: MarketSolution, start: pd.DataFrame) -> pd.Series:
    """Change of consumer surplus by segment, in dollars per member and month: (1 - gamma) dV / kappa, averaged over the
    start rows, kappa the segment's price coefficient (rewards per dollar)."""
    gain = changed.value[changed.locate(start)] - baseline.value[baseline.locate(start)]
    mean = pd.Series(gain.numpy(), index=start.index).groupby(start["segment"].astype(str)).mean()
    kappa = pd.Series({name: segment.price for name, segment in baseline.market.segments.items()})
    return ((1 - baseline.market.discount) * mean / kappa.reindex(mean.index)).rename("surplus")
