"""Peers and ours on a finite problem whose reward is known: the reward that each recovers, and what it took.

All see the same panel, and the anchor action's true reward where they can use it. econirl's NFXP is given the columns
of the reward and the true transitions, its neural AIRL the true transitions; GLADIUS and ours are given neither. The
reward is read from ``reward_matrix_``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from real_parts.estimated import Clock, estimated, study_of
from torch import Tensor

from irl import tabular

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """S states, A actions; reward[S, A], transition[S, A, S], features[S, A, K] in which the reward is linear.

    frame : the panel: member, period, state (its number), action (its number), and the columns of the state.
    columns : how our study declares these; states[S], their values in each state.
    form : the structure of our reward besides.
    """

    reward: Floats
    transition: Floats
    features: Floats
    discount: float
    anchor: int
    actions: tuple[str, ...]
    frame: pd.DataFrame
    columns: dict[str, dict[str, object]]
    states: pd.DataFrame

    def scores(self, found: Floats, clock: Clock) -> dict[str, float]:
        """RMSE over all states and actions, over visited pairs (by visits), and largest error of a choice probability
        under the found reward with the true transitions."""
        took, error = clock.read(), found - self.reward
        visits = np.zeros_like(self.reward)
        np.add.at(visits, (self.frame["state"], self.frame["action"]), 1)
        policy = [self.solved(reward).policy.numpy() for reward in (self.reward, found)]
        return {
            "RMSE": float(np.sqrt((error**2).mean())),
            "visited": float(np.sqrt((error**2 * visits).sum() / visits.sum())),
            "policy": float(np.abs(policy[1] - policy[0]).max()),
            **took,
        }

    def mdp(self, reward: Floats | Tensor) -> tabular.FiniteMDP:
        """The problem with reward[S, A]."""
        expectation = tabular.dense_expectation(torch.from_numpy(self.transition))
        paid = torch.as_tensor(reward, dtype=torch.float64).clone()
        return tabular.FiniteMDP(paid, torch.ones_like(paid, dtype=torch.bool), expectation, self.discount)

    def solved(self, reward: Floats) -> tabular.Solution:
        return tabular.solve(self.mdp(reward))

    @property
    def coded(self) -> pd.DataFrame:
        """What econirl reads."""
        return self.frame[["member", "period", "state", "action"]]


def ours(problem: Problem, seed: int, form: dict[str, object]) -> tuple[Floats, Clock]:
    clock = Clock()
    known = problem.reward[:, problem.anchor]
    assert np.ptp(known) == 0, "the anchor's reward is a number here"
    config = study_of(
        {
            "data": {
                "path": "(simulated)", "member": "member", "period": "period", "action": "choice",
                "actions": list(problem.actions), "state": problem.columns,
            },
            "anchor": {"action": problem.actions[problem.anchor], "reward": float(known[0])},
            "reward": form, "discount": problem.discount, "seed": seed,
            "estimation": {
                "refit": {"rounds": 8, "standard_errors": False}, "policy": {"hidden": [16]},
                "anchor_q": {"hidden": [16]}, "reward": {"hidden": [16]},
            },
        }
    )  # fmt: skip
    frame = problem.frame.assign(choice=np.array(problem.actions)[problem.frame["action"]])
    model, _, _ = estimated(config, frame)
    return model.reward(problem.states)[list(problem.actions)].to_numpy(), clock


def exact(problem: Problem, seed: int, columns: Floats) -> tuple[Floats, Clock]:
    """Maximum likelihood of a reward linear in columns[S, A, K], the anchor's known, with the true transitions."""
    clock, counts = Clock(), np.zeros_like(problem.reward)
    np.add.at(counts, (problem.frame["state"], problem.frame["action"]), 1)
    known = np.where(np.arange(len(problem.actions)) == problem.anchor, problem.reward, 0.0)
    x, base = torch.from_numpy(columns), torch.from_numpy(known)
    start = torch.zeros(columns.shape[2], dtype=torch.float64)
    found = tabular.nested_fixed_point(lambda theta: problem.mdp(base + x @ theta), torch.from_numpy(counts), start)
    return (base + x @ found.theta).numpy(), clock


def nfxp(problem: Problem, seed: int) -> tuple[Floats, Clock]:
    from econirl.core.reward_spec import RewardSpec
    from econirl.estimators import NFXP

    clock = Clock()
    names = [f"x{k}" for k in range(problem.features.shape[2])]
    spec = RewardSpec.state_action_dependent(problem.features.astype(np.float32), names=names)
    states, actions = problem.reward.shape
    found = NFXP(n_states=states, n_actions=actions, discount=problem.discount, utility=spec, se_method="asymptotic")
    tensor = problem.transition.transpose(1, 0, 2)
    found.fit(problem.coded, state="state", action="action", id="member", transitions=tensor)
    return np.asarray(found.reward_matrix_, dtype=float), clock


def gladius(problem: Problem, seed: int, objective: str) -> tuple[Floats, Clock]:
    from econirl.estimators import GLADIUS

    clock = Clock()
    known: Any = problem.reward[:, problem.anchor].tolist()
    found = GLADIUS(
        n_actions=problem.reward.shape[1], discount=problem.discount, anchor_action=problem.anchor,
        anchor_rewards=known, objective=objective, seed=seed,
    )  # fmt: skip
    found.fit(problem.coded, state="state", action="action", id="member")
    return np.asarray(found.reward_matrix_, dtype=float), clock


def airl(problem: Problem, seed: int) -> tuple[Floats, Clock]:
    from econirl.estimators import NeuralAIRL

    clock = Clock()
    states, actions = problem.reward.shape
    found = NeuralAIRL(n_states=states, n_actions=actions, discount=problem.discount, seed=seed)
    tensor = problem.transition.transpose(1, 0, 2)
    coded = problem.coded.assign(next_state=problem.coded.groupby("member")["state"].shift(-1)).dropna()
    coded = coded.astype({"next_state": int})
    found.fit(coded, state="state", action="action", id="member", next_state="next_state", transitions=tensor)
    reward = np.asarray(found.reward_matrix_, dtype=float)
    # no anchor: the level is not identified, and is taken from the truth
    return reward - (reward - problem.reward)[:, problem.anchor].mean(), clock


def jobs_of(
    problem_of: Callable[[int], Problem],
    forms: dict[str, dict[str, object]],
    columns: Floats,
    score: Callable[[Problem, Floats, Clock], dict[str, float]] = Problem.scores,
) -> dict[str, Callable[[int], dict[str, float]]]:
    """A job for each form of ours, for exact maximum likelihood in columns of our linear form, and for each peer."""

    def job(run: Callable[..., tuple[Floats, Clock]], *more: Any) -> Callable[[int], dict[str, float]]:
        def work(seed: int) -> dict[str, float]:
            problem = problem_of(seed)
            return score(problem, *run(problem, seed, *more))

        return work

    return {
        **{f"ours: {name}": job(ours, form) for name, form in forms.items()},
        "exact: of our linear form": job(exact, columns),
        "econirl: NFXP": job(nfxp),
        "econirl: GLADIUS": job(gladius, "paper_minimax"),
        "econirl: GLADIUS, anchor_moment": job(gladius, "anchor_moment"),
        "econirl: neural AIRL": job(airl),
    }
