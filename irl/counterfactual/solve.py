"""The optimal policy under a scenario: soft policy iteration on the kernel.

    pi_k(.|s) = softmax of Q_k(s, .)/alpha over the scenario's menu
    Q_{k+1}   = the kernel's value of pi_k:
                Q(s,a) = r(s,a) + gamma^k E[sum_a' pi_k(a'|s') (Q(s',a') - alpha log pi_k(a'|s'))]

on the panel's own transitions where the dynamics are unchanged, and on transitions drawn from the fitted dynamics, one
for every row and available action, where they are not. The basis is what the study's networks have learned: the hidden
features of policy, anchor value and reward, and the encoded state. Each round costs one pass of the kernel; the number
of rounds does not grow as gamma -> 1. Segments that a scenario treats differently without the state saying so are
solved one by one, each on all rows.

Limits: values are projected on the basis, so a scenario far from the panel's states is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from irl import bellman, evaluation
from irl.config import InputError
from irl.counterfactual.intervention import Intervention
from irl.data.panel import Panel
from irl.fitted import FittedModel, free_rows

CHUNK = 16384
RIDGE_ROWS = 10.0
"""Ridge of the kernel, in rows. Seen on the wagepan panel (3,270 rows, 130 columns): below 1 the noise of the sampled
transitions was taken for value, and a change for one segment moved the other's surplus more than it could."""
LONGEST_CONTRACT = 600
"""Periods after which a drawn path without a free choice is given up as endless."""


@dataclass(frozen=True)
class Transitions:
    """Rows (s, a, s') as the panel has them or as drawn; states before any intervention.

    state, next_state [N, F]; action, segment [N]; steps, ends [N]; anchor_reward [N]; weight [N].
    """

    state: Tensor
    action: Tensor
    next_state: Tensor
    steps: Tensor
    ends: Tensor
    segment: Tensor
    anchor_reward: Tensor
    weight: Tensor

    def only(self, rows: Tensor | slice) -> Transitions:
        return Transitions(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def of_segment(self, segment: int) -> Transitions:
        """The same rows as if all were of one segment."""
        return replace(self, segment=torch.full_like(self.segment, segment))


@dataclass(frozen=True)
class ScenarioPolicy:
    """The solved policy: Q(s, a) linear in the basis, and how the iteration ended.

    ``weights[S, A, D]`` by segment (the same in segments that are treated alike). ``change`` is the last round's mean
    absolute change of the choice probabilities, ``condition`` the last system's; of several groups, the worst.
    """

    model: FittedModel
    intervention: Intervention
    weights: Tensor
    rounds: int
    change: float
    condition: float
    converged: bool

    def q(self, faced: Tensor, segment: Tensor) -> Tensor:
        """Q[N, A] at the changed state faced[N, F], in reward units."""
        phi = basis(self.model, faced).to(self.weights.dtype)
        groups = self.intervention.groups
        q = phi @ self.weights[groups[0]].T
        for group in set(groups) - {groups[0]}:
            mine = torch.tensor([g == group for g in groups], device=segment.device)[segment]
            q = torch.where(mine.unsqueeze(1), phi @ self.weights[group].T, q)
        return q

    def menu(self, faced: Tensor, segment: Tensor) -> Tensor:
        """menu[N, A] at the changed state; empty in terminal states."""
        return self.intervention.menu(faced, segment)

    def log_policy(self, faced: Tensor, menu: Tensor, segment: Tensor) -> Tensor:
        """log pi[N, A]."""
        return bellman.log_policy(self.q(faced, segment), menu, self.model.config.temperature)

    def value(self, faced: Tensor, menu: Tensor, segment: Tensor) -> Tensor:
        """Soft value V[N]."""
        return bellman.soft_value(self.q(faced, segment), menu, self.model.config.temperature)


def basis(model: FittedModel, state: Tensor) -> Tensor:
    """phi[N, D], first column 1: hidden features of the three networks and the encoded state."""
    return torch.cat(
        [
            model.anchor_network.trunk.features(state),
            model.policy_network.trunk(state),
            model.reward_network.trunk(state),
            model.reward_network.trunk.encoder(state),
        ],
        dim=1,
    )


@torch.no_grad()
def solve(
    model: FittedModel,
    intervention: Intervention,
    rows: Callable[[int], Transitions],
    *,
    ridge_rows: float = RIDGE_ROWS,
    tolerance: float = 1e-5,
    max_rounds: int = 30,
) -> ScenarioPolicy:
    """The policy that is soft-optimal under ``intervention``, starting from the estimated one.

    Parameters
    ----------
    rows : the transitions on which a segment's policy is solved: ``logged(panel).of_segment`` where the dynamics are
        unchanged, else :func:`drawn` for that segment.
    ridge_rows : the kernel's ridge, as a number of rows of average weight.
    tolerance : mean absolute change of the choice probabilities over rows at which the iteration stops.

    Raises
    ------
    InputError
        If the scenario leaves nothing to choose somewhere, or its values overflow.
    """
    ends = {}
    for group in dict.fromkeys(intervention.groups):
        ends[group] = _iterated(model, intervention, rows(group), ridge_rows, tolerance, max_rounds)
    weights = torch.stack([ends[group].weights for group in intervention.groups])
    return ScenarioPolicy(
        model,
        intervention,
        weights,
        rounds=max(end.rounds for end in ends.values()),
        change=max(end.change for end in ends.values()),
        condition=max(end.condition for end in ends.values()),
        converged=all(end.change <= tolerance for end in ends.values()),
    )


@dataclass(frozen=True)
class _End:
    """Where one group's iteration ended; weights[A, D]."""

    weights: Tensor
    rounds: int
    change: float
    condition: float


def _iterated(
    model: FittedModel,
    intervention: Intervention,
    rows: Transitions,
    ridge_rows: float,
    tolerance: float,
    max_rounds: int,
) -> _End:
    actions = len(model.schema.actions)
    weights: Tensor | None = None
    rounds, change = 0, math.inf
    while change > tolerance and rounds < max_rounds:
        rounds += 1
        sums = evaluation.accumulate(_chunks(model, intervention, rows, weights), actions=actions)
        solution = evaluation.solve(sums, ridge=ridge_rows / len(rows.state))
        new = solution.weights[:, :, 0]
        if not bool(new.isfinite().all()):
            raise InputError("the values under the changes are not finite: are the amounts in the right units?")
        change = _policy_change(model, intervention, rows, weights, new)
        weights = new
    assert weights is not None, "max_rounds is at least 1"
    return _End(weights, rounds, change, solution.condition)


def _chunks(
    model: FittedModel, intervention: Intervention, rows: Transitions, weights: Tensor | None
) -> Iterator[evaluation.Rows]:
    """The kernel's rows under the policy of ``weights`` (None: the estimated policy)."""
    alpha, gamma = model.config.temperature, model.config.discount
    for first in range(0, len(rows.state), CHUNK):
        part = rows.only(slice(first, first + CHUNK))
        state, following = (intervention.state(s, part.segment) for s in (part.state, part.next_state))
        menu, next_menu = (intervention.menu(s, part.segment) for s in (state, following))
        phi_next = basis(model, following).double()
        log_pi = _log_policy(model, following, next_menu, phi_next, weights)
        reward = intervention.reward(model.reward_network(state, part.anchor_reward), state, part.segment)
        chosen = reward.gather(1, part.action.unsqueeze(1)).squeeze(1).double()
        discount = (gamma**part.steps * ~part.ends).double()
        on_menu = menu.gather(1, part.action.unsqueeze(1)).squeeze(1)
        yield evaluation.Rows(
            phi=basis(model, state).double(),
            phi_next=phi_next,
            discount=discount,
            target=(chosen + discount * alpha * bellman.entropy(log_pi)).unsqueeze(1),
            weight=part.weight.double() * on_menu,
            action=part.action,
            next_policy=log_pi.exp(),
        )


def _log_policy(model: FittedModel, faced: Tensor, menu: Tensor, phi: Tensor, weights: Tensor | None) -> Tensor:
    if weights is not None:
        return bellman.log_policy(phi @ weights.T, menu, model.config.temperature)
    estimated: Tensor = model.policy_network(faced, menu)
    return estimated.double()


def _policy_change(
    model: FittedModel, intervention: Intervention, rows: Transitions, old: Tensor | None, new: Tensor
) -> float:
    """Mean absolute change of the choice probabilities between two rounds, over (a sample of) the rows."""
    sample = slice(None, None, max(len(rows.state) // CHUNK, 1))
    state, segment = rows.next_state[sample], rows.segment[sample]
    faced = intervention.state(state, segment)
    menu = intervention.menu(faced, segment)
    phi = basis(model, faced).double()
    before, after = (_log_policy(model, faced, menu, phi, w).exp() for w in (old, new))
    return float((before - after).abs().mean())


def logged(panel: Panel) -> Transitions:
    """The panel's own transitions from free choice to free choice (or end)."""
    rows = (panel.next_choice >= 0).nonzero().squeeze(1)
    following = panel.next_choice[rows]
    return Transitions(
        panel.state[rows], panel.action[rows], panel.state[following], panel.steps[rows], panel.ends[rows],
        panel.segment[rows], panel.anchor_reward[rows], panel.weight[rows],
    )  # fmt: skip


@torch.no_grad()
def drawn(model: FittedModel, intervention: Intervention, rows: Transitions, *, seed: int) -> Transitions:
    """One draw of what follows every available action in every state with a choice, under the changed features.

    Only ``state``, ``segment``, ``anchor_reward`` and ``weight`` of the rows are used. Where the state reached leaves
    no choice, the path runs on to the next choice (or end). Cases with the same seed share their random numbers.

    Raises
    ------
    InputError
        If there is no state with a choice, or a path never reaches the next choice.
    """
    generator = torch.Generator().manual_seed(seed)
    chunk = CHUNK // len(model.schema.actions)
    parts = [
        _drawn_chunk(model, intervention, rows.only(slice(first, first + chunk)), generator)
        for first in range(0, len(rows.state), chunk)
    ]
    joined = Transitions(*(torch.cat([getattr(p, name) for p in parts]) for name in Transitions.__dataclass_fields__))
    if not len(joined.state):
        raise InputError("nobody has anything to choose from: are all rows in contracts or terminal states?")
    return joined


def _drawn_chunk(
    model: FittedModel, intervention: Intervention, rows: Transitions, generator: torch.Generator
) -> Transitions:
    faced = intervention.state(rows.state, rows.segment)
    menu = intervention.menu(faced, rows.segment)
    cell = (menu & free_rows(model.schema, faced).unsqueeze(1)).flatten()  # row-major over rows and actions
    index, action = cell.view_as(menu).nonzero().unbind(1)
    rows, faced, chosen = rows.only(index), faced[index], action
    now = rows.state.clone()
    steps = torch.zeros(len(index), device=now.device)
    going = torch.arange(len(index), device=now.device)
    while len(going):
        # drawn for every row and action, on the menu or not, so that all cases find the same numbers
        uniform = torch.rand(len(cell), max(model.dynamics.n_random, 1), generator=generator).clamp(1e-6, 1 - 1e-6)
        uniform = uniform.to(now.device)[cell][going]
        moved = model.dynamics.sample(faced[going], chosen[going], uniform)
        now[going] = intervention.before_changes(moved, now[going])
        steps[going] += 1
        faced[going] = intervention.state(now[going], rows.segment[going])
        menu = intervention.menu(faced[going], rows.segment[going])
        forced = ~free_rows(model.schema, faced[going]) & menu.any(1)
        going, chosen = going[forced], chosen.index_copy(0, going, menu.long().argmax(1))
        if float(steps.max()) > LONGEST_CONTRACT:
            raise InputError(
                f"the fitted dynamics hold members without a choice for more than {LONGEST_CONTRACT} periods: "
                "check `available` in the study"
            )
    ends = model.schema.is_terminal(faced)
    return Transitions(rows.state, action, now, steps, ends, rows.segment, rows.anchor_reward, rows.weight)
