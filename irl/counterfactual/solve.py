"""The optimal policy under a scenario: soft policy iteration on the kernel.

    pi_k(.|s) = softmax of Q_k(s, .)/alpha over the scenario's menu
    Q_{k+1}   = the kernel's value of pi_k: Q(s,a) = r(s,a) + gamma^k E[sum_a' pi_k(a'|s') (Q(s',a') - alpha log pi_k(a'|s'))]

on the panel's own transitions where the dynamics are unchanged, and on transitions drawn from the fitted dynamics, one for
every row and available action, where they are not. The basis is what the study's networks have learned: the hidden
features of policy, anchor value and reward, and the encoded state. Each round costs one pass of the kernel; the number
of rounds does not grow as gamma -> 1.

Limits: values are projected on the basis, so a scenario far from the panel's states is extrapolated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from irl import bellman, evaluation
from irl.counterfactual.intervention import Intervention
from irl.data.panel import Panel
from irl.fitted import FittedModel

CHUNK = 16384
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

    def only(self, rows: Tensor) -> Transitions:
        return Transitions(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class ScenarioPolicy:
    """The solved policy: Q(s, a) linear in the basis, and how the iteration ended.

    ``change`` is the last round's mean absolute change of the choice probabilities; ``condition`` the last system's.
    """

    model: FittedModel
    intervention: Intervention
    weights: Tensor
    rounds: int
    change: float
    condition: float
    converged: bool

    def q(self, state: Tensor) -> Tensor:
        """Q[N, A] at the changed ``state[N, F]``, in reward units."""
        return basis(self.model, state).to(self.weights.dtype) @ self.weights.T

    def menu(self, state: Tensor, segment: Tensor) -> Tensor:
        """Menu[N, A] at the changed ``state[N, F]``; empty in terminal states."""
        return scenario_menu(self.model, self.intervention, state, segment)

    def log_policy(self, state: Tensor, menu: Tensor) -> Tensor:
        """log pi[N, A]."""
        return bellman.log_policy(self.q(state), menu, self.model.config.temperature)

    def value(self, state: Tensor, menu: Tensor) -> Tensor:
        """Soft value V[N]."""
        return bellman.soft_value(self.q(state), menu, self.model.config.temperature)


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


def scenario_menu(model: FittedModel, intervention: Intervention, state: Tensor, segment: Tensor) -> Tensor:
    menu = intervention.menu(model.schema.menu(state), state, segment)
    return menu & ~model.schema.is_terminal(state).unsqueeze(1)


@torch.no_grad()
def solve(
    model: FittedModel,
    intervention: Intervention,
    rows: Transitions,
    *,
    ridge: float = 1e-6,
    tolerance: float = 1e-5,
    max_rounds: int = 30,
) -> ScenarioPolicy:
    """The policy that is soft-optimal under ``intervention``, starting from the estimated one.

    Parameters
    ----------
    rows : from :func:`logged` (dynamics unchanged) or :func:`drawn`.
    tolerance : mean absolute change of the choice probabilities over rows at which the iteration stops.
    """
    actions = len(model.schema.actions)
    weights: Tensor | None = None
    change, rounds, condition = float("inf"), 0, float("inf")
    while change > tolerance and rounds < max_rounds:
        rounds += 1
        sums = evaluation.accumulate(_chunks(model, intervention, rows, weights), actions=actions)
        solution = evaluation.solve(sums, ridge=ridge)
        new = solution.weights[:, :, 0]
        condition = solution.condition
        change = _policy_change(model, intervention, rows, weights, new)
        weights = new
    assert weights is not None
    return ScenarioPolicy(model, intervention, weights, rounds, change, condition, change <= tolerance)


def _chunks(
    model: FittedModel, intervention: Intervention, rows: Transitions, weights: Tensor | None
) -> Iterator[evaluation.Rows]:
    """The kernel's rows under the policy of ``weights`` (None: the estimated policy)."""
    alpha, gamma = model.config.temperature, model.config.discount
    for index in torch.arange(len(rows.state), device=rows.state.device).split(CHUNK):
        part = rows.only(index)
        state, following = (intervention.state(s, part.segment) for s in (part.state, part.next_state))
        menu = scenario_menu(model, intervention, state, part.segment)
        next_menu = scenario_menu(model, intervention, following, part.segment)
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


def _log_policy(model: FittedModel, state: Tensor, menu: Tensor, phi: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return model.policy_network(state, menu).double()
    return bellman.log_policy(phi @ weights.T, menu, model.config.temperature)


def _policy_change(
    model: FittedModel, intervention: Intervention, rows: Transitions, old: Tensor | None, new: Tensor
) -> float:
    """Mean absolute change of the choice probabilities between two rounds, over (a sample of) the rows."""
    step = max(len(rows.state) // CHUNK, 1)
    state, segment = rows.next_state[::step], rows.segment[::step]
    state = intervention.state(state, segment)
    menu = scenario_menu(model, intervention, state, segment)
    phi = basis(model, state).double()
    before, after = (_log_policy(model, state, menu, phi, w).exp() for w in (old, new))
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
def drawn(
    model: FittedModel,
    intervention: Intervention,
    state: Tensor,
    segment: Tensor,
    anchor_reward: Tensor,
    weight: Tensor,
    *,
    seed: int,
) -> Transitions:
    """One draw of what follows every available action in every free state, under the changed features.

    Where the state reached leaves no choice, the path runs on to the next choice (or end). Arguments [N, ...].
    """
    menu = scenario_menu(model, intervention, intervention.state(state, segment), segment)
    index, action = (menu & (menu.sum(1, keepdim=True) > 1)).nonzero().unbind(1)
    state, segment = state[index], segment[index]
    generator = torch.Generator().manual_seed(seed)
    now, chosen = state, action
    steps = torch.zeros(len(index), device=state.device)
    ends = torch.zeros(len(index), dtype=torch.bool, device=state.device)
    going = torch.ones_like(ends)
    while bool(going.any()):
        uniform = torch.rand(len(index), max(model.dynamics.n_random, 1), generator=generator).clamp(1e-6, 1 - 1e-6)
        moved = model.dynamics.sample(intervention.state(now, segment), chosen, uniform.to(state.device))
        now = torch.where(going.unsqueeze(1), intervention.own(moved, now), now)
        steps += going
        faced = intervention.state(now, segment)
        ends = model.schema.is_terminal(faced)
        menu = scenario_menu(model, intervention, faced, segment)
        going = going & ~ends & (menu.sum(1) == 1)
        chosen = torch.where(going, menu.long().argmax(1), chosen)
        if float(steps.max()) > LONGEST_CONTRACT:
            raise ValueError("the fitted dynamics hold members without a choice for ever: check `available`")
    return Transitions(state, action, now, steps, ends, segment, anchor_reward[index], weight[index])
