"""A membership market small enough for all: 36 states, discount .9, 500 members x 24 months, a reward that is known.

State: the plan of the month before (none, monthly, annual), use of the benefit (0 to 3), the price that a member was
given by lot (8, 10, 12). Each month a member takes no plan (the anchor, reward 0), the monthly or the annual one. Use
tends up with a plan and down without. The counterfactual takes .5 off the reward of the annual plan; scored is the
largest error of a plan's share over 24 months, as a change against the programme as it is, in points, with the true
transitions for all.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from real_parts.estimated import Clock
from real_parts.finite import Floats, Problem, jobs_of

from irl import tabular

TITLE = "36 states, 500 members x 24, discount .9"
SHOWN = {"RMSE": 3, "visited": 3, "policy": 3, "points": 2}
SEEDED = True
PLANS, USES, PRICES, DISCOUNT, MEMBERS, MONTHS = ("none", "monthly", "annual"), 4, (8, 10, 12), 0.9, 500, 24
THETA = np.array([-0.9, 0.45, -0.12, -0.5, -1.4, 0.60, -0.12, -0.5, 0.8])
"""Monthly: constant, use, price less 10, joining; annual: the same, and staying in an annual plan."""
FORMS: dict[str, dict[str, object]] = {"full": {"structure": "full"}, "linear": {"structure": "linear"}}


def states() -> pd.DataFrame:
    index = pd.MultiIndex.from_product([range(3), range(USES), PRICES], names=["status", "use", "price"])
    return index.to_frame(index=False)


def features() -> Floats:
    """x[S, A, K] in which the reward is linear."""
    s = states()
    own = np.column_stack([np.ones(len(s)), s["use"], s["price"] - 10, s["status"] == 0]).astype(float)
    x = np.zeros((len(s), 3, len(THETA)))
    x[:, 1, :4], x[:, 2, 4:8], x[:, 2, 8] = own, own, s["status"] == 2
    return x


def columns() -> Floats:
    """Those of our linear form [S, A, K]: a constant, the status and numbers of every plan."""
    s = states()
    own = np.column_stack([np.ones(len(s)), s["use"], s["price"], s["status"] == 1, s["status"] == 2]).astype(float)
    return np.stack([np.zeros((len(s), 10)), *(np.kron(np.eye(2)[b], own) for b in range(2))], axis=1)


def transition() -> Floats:
    """P[S, A, S]."""
    s = states()
    place = {tuple(row): i for i, row in enumerate(s.to_numpy().tolist())}
    p = np.zeros((len(s), 3, len(s)))
    for i, (_, use, price) in enumerate(s.to_numpy().tolist()):
        for a in range(3):
            for move, chance in ((0, 0.6), (1, 0.3 if a else 0.1), (-1, 0.1 if a else 0.3)):
                p[i, a, place[a, min(max(use + move, 0), USES - 1), price]] += chance
    return p


def problem(seed: int) -> Problem:
    x, p, s = features(), transition(), states()
    reward = x @ THETA
    shell = Problem(
        reward=reward,
        transition=p,
        features=x,
        discount=DISCOUNT,
        anchor=0,
        actions=PLANS,
        frame=pd.DataFrame(),
        columns={
            "status": {"kind": "category", "dynamics": "table"},
            "use": {"kind": "ordinal", "levels": USES, "dynamics": "table"},
            "price": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"},
        },
        states=s.assign(status=np.array(PLANS)[s["status"]]),
    )
    policy = shell.solved(reward).policy.numpy()
    rng = np.random.default_rng(seed)
    now, rows = rng.integers(len(s), size=MEMBERS), []
    for month in range(MONTHS):
        action = (rng.random((MEMBERS, 1)) > policy[now].cumsum(1)).sum(1).clip(0, 2)
        rows.append(pd.DataFrame({"member": np.arange(MEMBERS), "period": month, "state": now, "action": action}))
        now = (rng.random((MEMBERS, 1)) > p[now, action].cumsum(1)).sum(1).clip(0, len(s) - 1)
    frame = pd.concat(rows).sort_values(["member", "period"], ignore_index=True)
    seen = shell.states.iloc[frame["state"]].reset_index(drop=True)
    return Problem(**{**vars(shell), "frame": pd.concat([frame, seen], axis=1)})


def shares(problem: Problem, reward: Floats, *, dearer: float) -> Floats:
    """Mean share [A] of each action over the months, of members who start evenly spread."""
    mdp = problem.mdp(reward - dearer * (np.arange(3) == 2))
    policy = tabular.solve(mdp).policy
    start = torch.full((mdp.states,), 1 / mdp.states, dtype=torch.float64)
    masses = torch.stack(list(tabular.propagate(mdp, policy, start, periods=MONTHS)))
    found: Floats = (masses.unsqueeze(-1) * policy).sum(1).mean(0).numpy()
    return found


def scores(problem: Problem, found: Floats, clock: Clock) -> dict[str, float]:
    own = problem.scores(found, clock)
    change = [shares(problem, r, dearer=0.5) - shares(problem, r, dearer=0.0) for r in (problem.reward, found)]
    return {**own, "points": 100 * float(np.abs(change[1] - change[0]).max())}


JOBS = jobs_of(problem, FORMS, columns(), scores)
