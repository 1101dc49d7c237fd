"""A fitted model as Gymnasium environments: recovered reward and dynamics for the tools of reinforcement learning.

An agent takes a member's place. It sees the state as the model does: the schema's columns in their order, codes of
categories and ordinals, numbers in the units of the panel; a hidden type is the last column, since members know theirs.
Actions are numbered as ``actions``; ``info["action_mask"]`` says which are on the menu. The reward of a period is the
recovered r(s, a). ``discount`` is the agent's to apply: it is an attribute, as is ``temperature``.

Members maximise reward plus logit shocks that they see before they choose. An agent that maximises the bare reward
therefore behaves better, by its own lights, and less variedly than members do. Two kinds of agents behave as they do:
one that maximises reward plus ``temperature`` times the entropy of its policy (soft Q-learning, SAC), with the shocks
left out, as by default; and any other with ``shocks=True``, which draws them every period, appends them to the
observation, and adds that of the chosen action to the reward. Their mean is zero.

Where there is no choice the one action there is happens, whatever is asked for, and gives 0: what a contract gives
inside is part of the reward of signing it. Where there is one, an action that is not on the menu is replaced by the
likeliest under the anchor's policy that is. With inattention the default happens with the model's probability.
``info["action"]`` is what happened. Episodes are terminated in terminal states and truncated after ``periods``.

Refused are the studies of :func:`check_simulable`. Limit: the programme as it is; scenarios are not environments.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pandas as pd
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from irl.config import InputError
from irl.fitted import FittedModel, free_rows

Floats = NDArray[np.float32]
EULER = 0.5772156649015329
"""The mean of the standard Gumbel distribution."""


def check_simulable(model: FittedModel) -> None:
    """InputError if what follows does not follow from state and action."""
    if not model.schema.knows_anchor_reward:
        name = model.schema.anchor_reward
        raise InputError(
            f"no environment: the anchor's reward is the column {name!r}, which is not part of the state; list it "
            "under `data.state` and train again"
        )
    if model.config.data.duration is not None:
        raise InputError("no environment: rows last several periods (`data.duration`); train on rows of one period")


class _Members:
    """Members side by side: state[N, F], and shock[N, A] in reward units (no columns without shocks)."""

    def __init__(self, model: FittedModel, frame: pd.DataFrame, *, shocks: bool) -> None:
        check_simulable(model)
        self.model, self.shocks = model, shocks
        self.starts = start_states(model, frame)
        self.state = self.starts[:0]
        self.shock = torch.zeros(0, 0, dtype=torch.float64)

    def begin(self, rows: Tensor, random: np.random.Generator) -> None:
        """Put the members rows[n] of N to start states, each as likely as any other."""
        self.state[rows] = self.starts[torch.from_numpy(random.integers(len(self.starts), size=len(rows)))]

    def draw_shocks(self, random: np.random.Generator) -> None:
        """Shocks of the choices that are next."""
        gumbel = random.gumbel(-EULER, 1.0, (len(self.state), len(self.model.schema.actions)))
        free = free_rows(self.model.schema, self.state).unsqueeze(1)
        self.shock = self.model.config.temperature * torch.from_numpy(gumbel) * (self.menu() & free)
        self.shock = self.shock if self.shocks else self.shock[:, :0]

    def menu(self) -> Tensor:
        """bool[N, A]; nothing in terminal states."""
        schema = self.model.schema
        return schema.menu(self.state) & ~schema.is_terminal(self.state).unsqueeze(1)

    def observed(self) -> Floats:
        """[N, F], or with shocks [N, F + A]."""
        both: Floats = torch.cat([self.state, self.shock.float()], 1).numpy()
        return both

    def happening(self, asked: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """action[N], what happens where ``asked[N]`` is asked for, and whether it was decided, bool[N]."""
        schema, menu = self.model.schema, self.menu()
        reference = (schema.reference(self.state, menu) * menu).argmax(1)  # the first on the menu, if that gives none
        fallback = torch.where(menu.gather(1, reference.unsqueeze(1)).squeeze(1), reference, menu.long().argmax(1))
        action = torch.where(menu.gather(1, asked.unsqueeze(1)).squeeze(1), asked, fallback)
        inertia = self.model.inertia_of(self.state)
        drawn = torch.from_numpy(random.random(len(self.state)))
        if inertia is None:
            return action, torch.ones_like(drawn, dtype=torch.bool)
        decided = drawn < inertia.within(menu)
        return torch.where(decided, action, inertia.default), decided

    def advance(self, asked: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A period: reward[N], what happened [N], and whether members are now in a terminal state [N]."""
        action, decided = self.happening(asked, random)
        reward = self.model.reward_of(self.state).double().gather(1, action.unsqueeze(1)).squeeze(1)
        reward = torch.where(free_rows(self.model.schema, self.state), reward, 0.0)
        if self.shocks:
            reward = reward + self.shock.gather(1, action.unsqueeze(1)).squeeze(1) * decided
        uniform = torch.from_numpy(random.random((len(action), self.model.dynamics.n_random)))
        uniform = uniform.float().clamp(1e-6, 1 - 1e-6)
        self.state = self.model.dynamics.sample(self.state, action, uniform)
        return reward, action, self.model.schema.is_terminal(self.state)

    def spaces(self) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
        """What one member observes, and does."""
        columns, actions = self.model.schema.columns, len(self.model.schema.actions)
        low = [0.0 if c.discrete or c.kind == "count" else -np.inf for c in columns]
        high = [float(c.levels) if c.discrete else np.inf for c in columns]  # the highest code: a label never seen
        more = [np.inf] * (actions if self.shocks else 0)
        bounds = np.array([low + [-x for x in more], high + more], dtype=np.float32)
        return gymnasium.spaces.Box(*bounds, dtype=np.float32), gymnasium.spaces.Discrete(actions)


def start_states(model: FittedModel, frame: pd.DataFrame, *, seed: int = 0) -> Tensor:
    """state[S, F] of the rows of ``frame`` in which something can be done: with member and period columns, of every
    member's first such row. Hidden types that the frame does not name are drawn by ``seed``.

    Raises
    ------
    InputError
        If a state column is missing or cannot be read, or no row is left.
    """
    data, schema = model.config.data, model.schema
    frame = model.with_types(frame, seed=seed)
    state = schema.encode(frame)
    usable = (schema.menu(state).any(1) & ~schema.is_terminal(state)).numpy()
    state, frame = state[torch.from_numpy(usable)], frame[usable].reset_index(drop=True)
    if data.member in frame.columns and data.period in frame.columns:
        first = frame.sort_values(data.period, kind="stable").drop_duplicates(data.member).index.sort_values()
        state = state[torch.from_numpy(first.to_numpy(copy=True))]
    if not len(state):
        raise InputError("no row of the frame is in a state in which something can be done: no member can start")
    return state


class MemberEnv(gymnasium.Env[Floats, np.int64]):
    """One member, from a start state of ``frame`` (see :func:`start_states`) for at most so many periods.

    Raises
    ------
    InputError
        As :func:`check_simulable` and :func:`start_states`.
    """

    def __init__(self, model: FittedModel, frame: pd.DataFrame, *, periods: int = 120, shocks: bool = False) -> None:
        self.metadata: dict[str, Any] = {"render_modes": []}
        self._members = _Members(model, frame, shocks=shocks)
        self.observation_space, self.action_space = self._members.spaces()
        self.discount, self.temperature = model.config.discount, model.config.temperature
        self.periods, self._period = periods, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        super().reset(seed=seed)
        self._period, self._members.state = 0, self._members.starts[:1].clone()
        self._members.begin(torch.tensor([0]), self.np_random)
        self._members.draw_shocks(self.np_random)
        return self._members.observed()[0], {"action_mask": self._mask()}

    def step(self, action: np.int64) -> tuple[Floats, float, bool, bool, dict[str, Any]]:
        reward, happened, ended = self._members.advance(torch.tensor([int(action)]), self.np_random)
        self._members.draw_shocks(self.np_random)
        self._period += 1
        info = {"action_mask": self._mask(), "action": int(happened)}
        return self._members.observed()[0], float(reward), bool(ended), self._period >= self.periods, info

    def _mask(self) -> NDArray[np.int8]:
        mask: NDArray[np.int8] = self._members.menu()[0].numpy().astype(np.int8)
        return mask


class MembersEnv(VectorEnv[Floats, NDArray[np.int64], NDArray[Any]]):
    """So many members side by side, in one pass of the model; each as in :class:`MemberEnv`.

    Who has come to an end starts anew at the next step, in which nothing is done (``AutoresetMode.NEXT_STEP``).
    """

    def __init__(
        self, model: FittedModel, frame: pd.DataFrame, *, members: int, periods: int = 120, shocks: bool = False
    ) -> None:
        self.metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}
        self._members = _Members(model, frame, shocks=shocks)
        self.num_envs = members
        self.single_observation_space, self.single_action_space = self._members.spaces()
        self.observation_space = batch_space(self.single_observation_space, members)
        self.action_space = batch_space(self.single_action_space, members)
        self.discount, self.temperature = model.config.discount, model.config.temperature
        self.periods = periods
        self._period = np.zeros(members, dtype=np.int64)
        self._over = np.zeros(members, dtype=bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Floats, dict[str, Any]]:
        super().reset(seed=seed)
        self._members.state = self._members.starts[:1].repeat(self.num_envs, 1)
        self._begin(np.ones(self.num_envs, dtype=bool))
        return self._members.observed(), self._info({"action_mask": self._mask()})

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[Floats, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        over = self._over
        reward, happened, ended = self._members.advance(torch.as_tensor(actions).long(), self.np_random)
        self._period += 1
        self._begin(over)
        terminated, truncated = ended.numpy() & ~over, (self._period >= self.periods) & ~over
        self._over = terminated | truncated
        info = self._info({"action_mask": self._mask(), "action": happened.numpy()})
        return self._members.observed(), np.where(over, 0.0, reward.numpy()), terminated, truncated, info

    def _begin(self, rows: NDArray[np.bool_]) -> None:
        self._members.begin(torch.from_numpy(np.flatnonzero(rows)), self.np_random)
        self._members.draw_shocks(self.np_random)
        self._period[rows], self._over = 0, np.zeros(self.num_envs, dtype=bool)

    def _mask(self) -> NDArray[np.int8]:
        mask: NDArray[np.int8] = self._members.menu().numpy().astype(np.int8)
        return mask

    def _info(self, found: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """With who has each entry, as vectorised environments say it."""
        return found | {f"_{name}": np.ones(self.num_envs, dtype=bool) for name in found}
