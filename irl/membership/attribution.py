"""What each benefit is worth over a lifetime on the simulated market, exactly: the truth for attribution.

With r_b(s,a) the reward as it is less the reward if benefit b were at its lowest level (an anchor's: 0), as
:mod:`irl.counterfactual.attribution` defines it,

    contribution    E[ sum_t gamma^t r_b(s_t, a_t) | s_0 ]  of members who follow the exact policy
    removal         V - V(without b), b at its lowest level in the reward only and everyone choosing anew.

The market's flow saturates, so its reward is not a sum over benefits: r_b is what b adds *on top of the others*, and
contributions fall short of what all benefits add together. No additive reward equals this one; but where benefits move
independently its best additive fit has the same contributions, which are therefore what it is measured against.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from irl import tabular
from irl.membership.market import Market, MarketSolution, Rules, solve


def exact_contributions(solution: MarketSolution, start: pd.DataFrame) -> pd.DataFrame:
    """Lifetime contribution of every benefit (columns) by segment, averaged over the rows of ``start``."""
    cell, month, state = solution.locate(start)
    found = np.zeros((len(start), len(solution.market.benefits)))
    for number in np.unique(cell):
        here = cell == number
        rules = Rules(solution.reward[number], solution.available[number], solution.kernels[number])
        for b, name in enumerate(solution.market.benefits):
            own = rules.reward - _without(solution.market, name, rules.reward)
            problem = solution.market.problem(rules._replace(reward=own))
            value = tabular.evaluate(problem, solution.policy[number], entropy=False).value
            found[here, b] = value[month[here], state[here]].numpy()
    return _by_segment(found, solution.market, start)


def exact_removals(solution: MarketSolution, start: pd.DataFrame) -> pd.DataFrame:
    """What members would lose without every benefit (columns) by segment, averaged over the rows of ``start``."""
    market, at = solution.market, solution.locate(start)

    def loss(benefit: str) -> np.ndarray:
        def edit(_: pd.DataFrame, rules: Rules) -> Rules:
            return rules._replace(reward=_without(market, benefit, rules.reward))

        without: Tensor = solve(market, cells=solution.cells, edit=edit).value[at]
        return (solution.value[at] - without).numpy()

    return _by_segment(np.stack([loss(name) for name in market.benefits], 1), market, start)


def _without(market: Market, benefit: str, reward: Tensor) -> Tensor:
    """reward[YEAR, states, actions] if the benefit were at its lowest level."""
    contract, *levels = np.unravel_index(np.arange(market.states), market.axes)
    levels[market.benefits.index(benefit)] = np.zeros_like(contract)
    return reward[:, torch.from_numpy(np.ravel_multi_index((contract, *levels), market.axes))]


def _by_segment(values: np.ndarray, market: Market, start: pd.DataFrame) -> pd.DataFrame:
    frame = pd.DataFrame(values, columns=list(market.benefits), index=start.index)
    return frame.groupby(start["segment"].astype(str)).mean()
