"""The simulated market after a change of the programme: the members of a panel go on under new rules.

A price that somebody changes half-way, say, with everything before it as it was: continue the panel of
:func:`irl.membership.simulate` with its prices replaced. Members learn of the change in the first new period.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from irl.membership.market import ACTIONS, NONE, STATUSES, MarketSolution
from irl.membership.tastes import YEAR


def continued(solution: MarketSolution, frame: pd.DataFrame, *, periods: int, seed: int) -> pd.DataFrame:
    """The next ``periods`` rows of every member of ``frame``, after the newest row, under the policy of ``solution``.

    ``frame`` is a panel of the market whose prices are those from now on; only each member's newest row, and the plan
    chosen there, count.

    Raises
    ------
    InputError
        If the solution does not cover the cells of the rows (:func:`irl.membership.cells_of`).
    """
    last = frame.sort_values(["member_id", "period"]).drop_duplicates("member_id", keep="last", ignore_index=True)
    market, generator = solution.market, np.random.default_rng(seed)
    cell, _, state = solution.locate(last)
    contract, *levels = np.unravel_index(state, market.axes)
    level = np.stack(levels, axis=1)
    action = pd.Index(ACTIONS).get_indexer(pd.Index(last["plan"]))
    cumulative = solution.policy.cumsum(-1).numpy()
    kernels = solution.kernels.numpy().cumsum(-1)[..., :-1]
    following = np.stack([market.next_contract(a) for a in range(len(ACTIONS))])
    parts = []
    for period in range(1, periods + 1):
        draw = generator.random((len(last), 1 + level.shape[1]))
        limits = kernels[cell[:, None], (action != NONE).astype(int)[:, None], np.arange(level.shape[1]), level]
        level = (draw[:, 1:, None] >= limits).sum(-1)
        contract = following[action, contract]
        now = last["period"].to_numpy() + period
        state = np.ravel_multi_index((contract, *level.T), market.axes)
        action = (draw[:, :1] >= cumulative[cell, now % YEAR, state, :-1]).sum(1)
        columns = {
            "period": now,
            "status": np.array(STATUSES)[np.minimum(contract, 2)],
            "months_left": np.maximum(contract - 1, 0),
            "month": now % YEAR,
            "plan": np.array(ACTIONS)[action],
        }
        columns |= {name: level[:, b] for b, name in enumerate(market.benefits)}
        parts.append(last.assign(**columns))
    return pd.concat(parts, ignore_index=True).sort_values(["member_id", "period"], ignore_index=True)
