"""The market that a panel makes likeliest, given its functional form and dynamics: the bound for every estimator.

What maximum likelihood given the truth's own form, seasons, saturation and transitions still gets wrong is the luck of
the panel, which no estimator that knows less avoids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from irl import tabular
from irl.membership.market import ACTIONS, NONE, Cell, Market, MarketSolution

FLOWS = ("base", "price", "joining", "commitment", "perk")
"""The tastes of a segment that are not for a benefit."""


def tastes(market: Market, segment: str) -> Tensor:
    """theta[P] of a segment: ``FLOWS``, then the market's benefits."""
    own = market.segments[segment]
    values = [getattr(own, name) for name in FLOWS] + [own.benefits[b].taste for b in market.benefits]
    return torch.tensor(values, dtype=torch.float64)


def with_tastes(market: Market, theta: Mapping[str, Tensor]) -> Market:
    """The market with theta[P] for these segments."""
    changed = dict(market.segments)
    for name, values in theta.items():
        flows, rest = values[: len(FLOWS)].tolist(), values[len(FLOWS) :].tolist()
        own = changed[name]
        valued = {b: replace(own.benefits[b], taste=x) for b, x in zip(market.benefits, rest, strict=True)}
        about = dict(zip(FLOWS, flows, strict=True))
        changed[name] = replace(own, **about, benefits={**own.benefits, **valued})
    return replace(market, segments=changed)


def likeliest(
    solution: MarketSolution, frame: pd.DataFrame, *, track: Callable[[Iterable[str]], Iterable[str]] = iter
) -> dict[str, Tensor]:
    """theta[P] of every segment at which the choices in the rows of ``frame`` are likeliest.

    One step of Fisher scoring from the truth, which is as good as the maximum in large panels (Le Cam), every problem
    solved exactly (:func:`irl.tabular.nested_fixed_point`). ``track`` may wrap the segments in a progress bar.
    """
    cell, month, state = solution.locate(frame)
    action = pd.Index(ACTIONS).get_indexer(pd.Index(frame["plan"]))
    counts = torch.zeros(solution.reward.shape, dtype=torch.float64)
    at = tuple(map(torch.from_numpy, (cell, month, state, action)))
    counts.index_put_(at, torch.ones(1, dtype=torch.float64), accumulate=True)
    found = {}
    for name in track(solution.market.segments):
        own = [i for i, c in enumerate(solution.cells) if c.segment == name]
        found[name] = tabular.nested_fixed_point(
            partial(_stacked, solution.market, [solution.cells[i] for i in own]),
            counts[own].permute(1, 0, 2, 3).flatten(1, 2),
            tastes(solution.market, name),
            max_iterations=1,
        ).theta
    return found


def _stacked(market: Market, cells: Sequence[Cell], theta: Tensor) -> tabular.FiniteMDP:
    """The problems of one segment's cells as one, with theta[P]."""
    market = with_tastes(market, {cells[0].segment: theta})
    own = market.segments[cells[0].segment]
    stays = torch.eye(len(cells), dtype=torch.float64)
    contracts = torch.eye(market.contracts, dtype=torch.float64)
    kernels = [
        [stays, contracts[market.next_contract(a)]]
        + [own.benefits[b].kernel(member=a != NONE) for b in market.benefits]
        for a in range(len(ACTIONS))
    ]
    reward = torch.stack([market.reward(c) for c in cells], 1).flatten(1, 2)
    menu = market.available().repeat(len(cells), 1)
    return tabular.FiniteMDP(reward, menu, tabular.factored_expectation(kernels), market.discount, market.temperature)
