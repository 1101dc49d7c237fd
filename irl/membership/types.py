"""Hidden types in the simulated market: members who differ in tastes that no column of the panel shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from irl.membership.market import (
    Cell,
    Market,
    MarketSolution,
    simulate,
    solve,
    true_policy,
    true_reward,
    true_value,
)


def solve_types(
    market: Market,
    tastes: Sequence[float],
    *,
    chosen_use: bool = False,
    track: Callable[[Iterable[Cell]], Iterable[Cell]] = iter,
) -> list[MarketSolution]:
    """The market of each type of members, who value every benefit so many times as much; with ``chosen_use`` their use
    of it also rises so many times as fast."""
    solutions = []
    for taste in tastes:
        use = taste if chosen_use else 1.0
        segments = {name: segment.of_type(taste, use) for name, segment in market.segments.items()}
        solutions.append(solve(replace(market, segments=segments), track=track))
    return solutions


def simulate_types(
    solutions: Sequence[MarketSolution], *, members: int, periods: int, seed: int
) -> tuple[pd.DataFrame, pd.Series]:
    """A panel of members of several types, equally many of each, as of :func:`irl.membership.simulate`, which no column
    tells apart; and the type of every row. Of what type a member is is independent of segment and prices. In the stock
    of members (``entry``) there are more of the types that stay."""
    if len(solutions) == 1:
        panel = simulate(solutions[0], members=members, periods=periods, seed=seed)
        return panel, pd.Series(0, index=panel.index, name="type")
    shuffled = np.random.default_rng([seed, 1]).permutation(members)
    parts, width = [], len(str(members - 1))
    split: Any = len(solutions)
    if solutions[0].market.entry == "stock":
        inside = np.array([_share_of_members(solution, seed) for solution in solutions])
        split = (members * inside.cumsum() / inside.sum()).round().astype(int)[:-1]
    for k, (solution, who) in enumerate(zip(solutions, np.array_split(shuffled, split), strict=True)):
        own = simulate(solution, members=len(who), periods=periods, seed=seed * len(solutions) + k)
        own["member_id"] = np.repeat([f"m{i:0{width}d}" for i in who], periods)
        parts.append(own.assign(type=k))
    panel = pd.concat(parts).sort_values(["member_id", "period"], ignore_index=True)
    return panel.drop(columns="type"), panel["type"]


def _share_of_members(solution: MarketSolution, seed: int) -> float:
    """Of everybody in the market, when a panel begins; of 4,000 who are drawn."""
    everyone = replace(solution, market=replace(solution.market, entry="everyone"))
    return float((simulate(everyone, members=4000, periods=1, seed=seed)["status"] != "out").mean())


def truth(solutions: Sequence[MarketSolution], panel: pd.DataFrame, kind: pd.Series) -> pd.DataFrame:
    """The true rewards, choice probabilities and values of the rows of a panel, given the type of each (a column of its
    own if there are several)."""
    parts = []
    for k, solution in enumerate(solutions):
        rows = panel[kind == k]
        own = [
            rows[["member_id", "period"]],
            true_reward(solution, rows).add_prefix("reward_"),
            true_policy(solution, rows).add_prefix("policy_"),
            true_value(solution, rows),
        ]
        parts.append(pd.concat(own, axis=1))
    whole = pd.concat(parts).sort_index()
    return whole.assign(type=kind) if len(solutions) > 1 else whole
