"""What the simulated market would do under a scenario, exactly: the truth that counterfactuals are measured against.

A scenario's changes - rewards, prices, the menu, how the use of a benefit moves - become an *edit* of each cell's
problem, which is then solved anew, backwards from the stationary solution where they do not hold from the start for
good; outcomes follow by carrying the distribution of the start states forward under the new policies, without sampling.
Prices change first, ``where`` the state before any change says so; everything else then changes ``where`` the state at
the new prices says so.

Limits: only prices can be changed or set among the features, an added action may face other prices and lead to another
contract, the menu cannot depend on the month, the anchor stays as it is, and how a benefit's use moves may be changed
where the segment, the prices and its own level say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from irl import tabular
from irl.bellman import Nests
from irl.config import InputError, unknown
from irl.declared import Between, Condition
from irl.membership.market import (
    ACTIONS,
    NONE,
    STATUSES,
    Cell,
    Edit,
    Market,
    MarketSolution,
    Rules,
    cells_of,
    locate,
)
from irl.membership.tastes import LEVELS, YEAR
from irl.scenario import AddChange, Change, DynamicsChange, FeatureChange, Scenario, Timing, cases, scenario_from

PRICES = Cell._fields[1:]


def scenario_edit(market: Market, scenario: Scenario | Mapping[str, Any]) -> Edit:
    """The changes of a scenario without a sweep, as an edit for :func:`irl.membership.solve`.

    Raises
    ------
    InputError
        For anything the market cannot answer, all problems at once.
    """
    scenario = scenario_from(scenario)
    problems = [problem for change in scenario.changes for problem in _problems(market, change, added_to(scenario))]
    if len(cases(scenario)) > 1:
        problems.append("it is a sweep: ask for one of its cases")
    if problems:
        raise InputError(f"the simulated market cannot answer {scenario.name!r}:\n  " + "\n  ".join(problems))

    added = [change.add for change in scenario.changes if change.add]
    actions = added_to(scenario)
    nest = {ACTIONS.index(new.like): _number(new.nest, 0.0) for new in added}
    like = (*range(len(ACTIONS)), *(ACTIONS.index(new.like) for new in added))
    nests = Nests(like, tuple(1 - nest.get(a, 0.0) for a in range(len(ACTIONS)))) if any(nest.values()) else None

    def edit(table: pd.DataFrame, rules: Rules) -> Rules:
        table = _repriced(table, [change.feature for change in scenario.changes if change.feature])
        reward, available, kernels = _reward_at(market, table), rules.available.clone(), rules.kernels.clone()
        for new in added:
            a, here = ACTIONS.index(new.like), _holding(table, new.where).reshape(YEAR, -1)[0]
            reward = torch.cat([reward, _reward_at(market, table.assign(**new.facing))[..., a : a + 1]], 2)
            available = torch.cat([available, (rules.available[:, a] & here).unsqueeze(1)], 1)
        for change in scenario.changes:
            if change.reward:
                a, here = actions.index(change.reward.action), _holding(table, change.reward.where).reshape(YEAR, -1)
                changed = reward[..., a] * _number(change.reward.scale, 1.0) + _number(change.reward.add, 0.0)
                reward[..., a] = torch.where(here, changed, reward[..., a])
            if change.remove:
                here = _holding(table, change.remove.where).reshape(YEAR, -1)[0]
                available[here, ACTIONS.index(change.remove.action)] = False
            if change.dynamics:
                b = market.benefits.index(change.dynamics.name)
                kernels[:, b] = _moved(market, table, change.dynamics, kernels[:, b])
        return Rules(reward, available, kernels, tuple(_leads(market, new) for new in added), nests)

    return edit


def added_to(scenario: Scenario) -> tuple[str, ...]:
    """The market's actions and those that a scenario adds."""
    return (*ACTIONS, *(change.add.action for change in scenario.changes if change.add))


def _leads(market: Market, new: AddChange) -> np.ndarray:
    """The contract [contracts] that an added action leads to."""
    after = market.next_contract(ACTIONS.index(new.like))
    status, left = np.minimum(after, 2), np.maximum(after - 1, 0)
    if "status" in new.then:
        status = np.full_like(after, STATUSES.index(str(new.then["status"])))
    if "months_left" in new.then:
        left = np.full_like(after, int(_number(new.then["months_left"], 0.0)))
    if ((status == 2) != (left > 0)).any() or (left >= market.contract_months).any():
        raise InputError(f"{new.action!r} leads to what is no contract of the market: give `status` and `months_left`")
    contract: np.ndarray = np.where(status == 2, left + 1, status)
    return contract


def _problems(market: Market, change: Change, actions: tuple[str, ...]) -> list[str]:
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
    elif isinstance(part, AddChange):
        found += unknown(part.like, ACTIONS[NONE + 1 :], "add.like", "action other than the anchor")
        found += [problem for name in part.facing for problem in unknown(name, PRICES, "add.facing", "price")]
        found += [p for name in part.then for p in unknown(name, ("status", "months_left"), "add.then", "column")]
    else:
        found += unknown(part.action, actions[NONE + 1 :], "reward or remove", "action other than the anchor")
    if (change.remove or change.add) and "month" in part.where:
        found.append("remove or add: the menu cannot depend on the month")
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


class ExactAnswer(NamedTuple):
    """The truth: baseline and scenario as of :func:`exact_outcomes`, and ``surplus``, by segment, in reward units per
    member and period: (1 - gamma) E[V - V before] in the period in which members learn of the changes, over those who
    have a choice then."""

    baseline: pd.DataFrame
    scenario: pd.DataFrame
    surplus: pd.Series


def exact_answer(
    market: Market,
    scenario: Scenario,
    start: pd.DataFrame,
    *,
    track: Callable[[Sequence[Cell]], Iterable[Cell]] = iter,
) -> ExactAnswer:
    """What members who start in the rows of ``start`` would do under a scenario without a sweep; its population is not
    looked at. ``track`` may wrap the cells in a progress bar. Errors as of :func:`scenario_edit`."""
    edit, names = scenario_edit(market, scenario), added_to(scenario)
    cells = cells_of(start)
    located = locate(market, cells, start)
    segments = sorted({cell.segment for cell in cells})
    flows = torch.zeros(2, len(segments), scenario.periods, len(STATUSES), len(names), dtype=torch.float64)
    gains = torch.zeros(2, len(segments), dtype=torch.float64)  # sums and members
    for i, cell in enumerate(track(cells)):
        s, mass = segments.index(cell.segment), _mass(market, located, i)
        with tabular.one_thread():
            before, after = (market.problem(market.rules(cell, change)) for change in (None, edit))
            known = tabular.solve(before)
            path = _path(before, after, known, scenario.timing)
            flows[0, s, ..., : len(ACTIONS)] += _flow(market, [(before, known.policy)], mass, scenario.periods)
            flows[1, s] += _flow(market, [(problem, policy) for problem, _, policy in path], mass, scenario.periods)
            news = 0 if scenario.timing.announced else scenario.timing.start
            there = _present(before, known.policy, mass, news)
            there = there * (before.available.sum(-1) > 1)
            gains[0, s] += (there * (path[min(news, len(path) - 1)][1] - known.value)).sum()
            gains[1, s] += there.sum()
    surplus = pd.Series(((1 - market.discount) * gains[0] / gains[1]).numpy(), index=segments, name="surplus")
    return ExactAnswer(_tidy(flows[0], segments, names), _tidy(flows[1], segments, names), surplus)


def _path(
    before: tabular.FiniteMDP, after: tabular.FiniteMDP, known: tabular.Solution, timing: Timing
) -> list[tuple[tabular.FiniteMDP, Tensor, Tensor]]:
    """(problem, value, policy) of each period, the last for good; ``known`` solves the problem before the changes."""
    last = (before, known.value, known.policy)
    if timing.length is None:
        solved = tabular.solve(after)
        last = (after, solved.value, solved.policy)
    during = [(after, *found) for found in tabular.backwards(after, last[1], periods=timing.length or 0)]
    if not timing.announced:
        return [(before, known.value, known.policy)] * timing.start + [*during, last]
    first = tabular.backwards(before, (during[0] if during else last)[1], periods=timing.start)
    return [*((before, *found) for found in first), *during, last]


def _present(problem: tabular.FiniteMDP, policy: Tensor, mass: Tensor, period: int) -> Tensor:
    """Where the members [YEAR, states] are in a period."""
    *_, there = tabular.propagate(problem, policy, mass, periods=period + 1)
    return there


def _mass(market: Market, located: tuple[np.ndarray, np.ndarray, np.ndarray], cell: int) -> Tensor:
    """The members of a cell by month and state [YEAR, states]."""
    number, month, state = located
    where = month[number == cell] * market.states + state[number == cell]
    counted = np.bincount(where, minlength=YEAR * market.states)
    return torch.from_numpy(counted).double().reshape(YEAR, -1)


def _flow(market: Market, path: Sequence[tuple[tabular.FiniteMDP, Tensor]], mass: Tensor, periods: int) -> Tensor:
    """Of members, by the status they come with and the action they take [periods, STATUSES, A], following the policies
    of ``path`` one by one and then the last for good."""
    total = torch.zeros(periods, len(STATUSES), path[-1][1].shape[-1], dtype=torch.float64)
    for period in range(periods):
        problem, policy = path[min(period, len(path) - 1)]
        chosen = (mass.unsqueeze(-1) * policy).sum(0).reshape(market.contracts, -1, policy.shape[-1]).sum(1)
        taken = torch.cat([chosen[:2], chosen[2:].sum(0, keepdim=True)])
        total[period, :, : taken.shape[1]] += taken
        mass = _present(problem, policy, mass, 1)
    return total


def exact_outcomes(solution: MarketSolution, start: pd.DataFrame, *, periods: int) -> pd.DataFrame:
    """Expected outcomes by segment and period of members who start in the rows of ``start``, each counted once.

    Columns: ``segment``; ``period`` (0: the choice made in the start state); ``share_<action>`` of everyone; ``join``,
    the share of those not members last period (status out) who choose a plan; ``renewal``, the share of those who were
    members who choose one; ``cancel`` = 1 - renewal. A share of nobody is NaN.
    """
    market, located = solution.market, solution.locate(start)
    numbers = np.unique(located[0])
    segments = sorted({solution.cells[c].segment for c in numbers})
    flow = torch.zeros(len(segments), periods, len(STATUSES), len(ACTIONS), dtype=torch.float64)
    with tabular.one_thread():
        for number in numbers:
            rules = Rules(solution.reward[number], solution.available[number], solution.kernels[number])
            path = [(market.problem(rules), solution.policy[number])]
            own = _flow(market, path, _mass(market, located, number), periods)
            flow[segments.index(solution.cells[number].segment)] += own
    return _tidy(flow, segments, ACTIONS)


def _tidy(flow: Tensor, segments: Sequence[str], actions: Sequence[str]) -> pd.DataFrame:
    periods = flow.shape[1]
    out, member = flow[:, :, NONE], flow[:, :, NONE + 1 :].sum(2)  # [segments, periods, actions]
    share = flow.sum(2) / flow.sum((2, 3)).unsqueeze(-1)
    columns: dict[str, Any] = {"segment": np.repeat(np.array(segments), periods)}
    columns["period"] = np.tile(np.arange(periods), len(segments))
    columns |= {f"share_{action}": share[..., a].reshape(-1).numpy() for a, action in enumerate(actions)}
    for name, group in (("join", out), ("renewal", member)):
        columns[name] = (group[..., NONE + 1 :].sum(-1) / group.sum(-1)).reshape(-1).numpy()
    return pd.DataFrame(columns).assign(cancel=lambda frame: 1 - frame["renewal"])


def exact_surplus(baseline: MarketSolution, changed: MarketSolution, start: pd.DataFrame) -> pd.Series:
    """Change of consumer surplus by segment, in dollars per member and month: (1 - gamma) dV / kappa, averaged over the
    start rows, kappa the segment's price coefficient (rewards per dollar)."""
    gain = changed.value[changed.locate(start)] - baseline.value[baseline.locate(start)]
    mean = pd.Series(gain.numpy(), index=start.index).groupby(start["segment"].astype(str)).mean()
    kappa = pd.Series({name: segment.price for name, segment in baseline.market.segments.items()})
    return ((1 - baseline.market.discount) * mean / kappa.reindex(mean.index)).rename("surplus")
