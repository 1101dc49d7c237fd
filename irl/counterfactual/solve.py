"""The optimal policy under a scenario: soft policy iteration on the kernel.

    Q_k(s,a) = r(s,a) + c_k(s,a),  r the scenario's reward, c the continuation:
    c_{k+1}(s,a) = gamma^k E[ sum_a' pi_k(a'|s') (r(s',a') + c_{k+1}(s',a') - alpha log pi_k(a'|s')) ]
    pi_{k+1}(.|s) = softmax of Q_{k+1}(s, .)/alpha over the scenario's menu

(with inattention: of what happens, pi~ for pi, and the shocks of what is decided; see :mod:`irl.bellman`)
on draws from the fitted dynamics of what follows every state and available action (:mod:`irl.transitions`). Only the
continuation is projected on the basis (:meth:`irl.fitted.FittedModel.basis`); the reward of the present choice enters
as it is, so a change of a reward ``where`` a condition holds is met exactly. Each round costs one pass of the kernel;
the number of rounds does not grow as gamma -> 1. Segments that a scenario treats differently without the state saying
so are solved one by one, each on all rows.

Solving is done in float64; a solved policy is evaluated in float32, in one pass (:mod:`irl.counterfactual.forward`).

Departure from the design: draws also where the dynamics are unchanged. Measured on the simulated market with the true
rewards, values on the panel's single logged transitions missed plan shares by 1 to 2 points through their noise alone,
those on stratified draws by less than .5. Limits: what follows is what the dynamics model says; the continuation is
projected on the basis, so a scenario far from the panel's states is extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from irl import bellman, evaluation
from irl.config import InputError
from irl.counterfactual.forward import Compile
from irl.counterfactual.intervention import Intervention
from irl.counterfactual.scenario_policy import ScenarioPolicy, reward_draws
from irl.fitted import FittedModel
from irl.transitions import CHUNK, KEPT, RIDGE_ROWS, Transitions, by_course

TOLERANCE = 1e-4
"""Mean change of choice probabilities at which the iteration stops: it is Newton's, so what is left is of the order of
the square."""
Made = TypeVar("Made")
PROBED = 16384
"""Rows by whose next states it is judged how far the policy still moves."""


@torch.no_grad()
def solve(
    model: FittedModel,
    intervention: Intervention,
    rows: Callable[[int], Transitions],
    *,
    ridge_rows: float = RIDGE_ROWS,
    tolerance: float = TOLERANCE,
    max_rounds: int = 30,
    draws: Tensor | None = None,
    compile: Compile | None = None,
    baseline: ScenarioPolicy | None = None,
) -> ScenarioPolicy:
    """The policy that is soft-optimal under ``intervention``, starting from the estimated one.

    Segments that no change reaches keep the policy of ``baseline``, if it is given: solved beside others, theirs would
    move with them a little, as values are projected on a basis that all share.

    Parameters
    ----------
    rows : the transitions on which a segment's policy is solved.
    ridge_rows : the kernel's ridge, as a number of rows of average weight.
    tolerance : mean absolute change of the choice probabilities over rows at which the iteration stops.
    draws : [B, A, Dx], of the reward's parameters less their estimate, whose effect is wanted too.
    compile : how the policy's forward passes are compiled, if they are to be.

    Raises
    ------
    InputError
        If the scenario leaves nothing to choose somewhere, or its values overflow.
    """
    ends = {}
    for group in dict.fromkeys(intervention.groups):
        if baseline is not None and not intervention.reached[group]:
            ends[group] = _End(*kept(baseline, intervention, group))
            continue
        ends[group] = _iterated(model, intervention, rows(group), ridge_rows, tolerance, max_rounds, draws)
    weights, shifts = (
        [getattr(ends[group], name) for group in intervention.groups] for name in ("weights", "weight_draws")
    )
    return ScenarioPolicy(
        model,
        intervention,
        torch.stack(weights),
        rounds=max(end.rounds for end in ends.values()),
        change=max(end.change for end in ends.values()),
        condition=max(end.condition for end in ends.values()),
        converged=all(end.change <= tolerance for end in ends.values()),
        draws=draws,
        weight_draws=None if draws is None else torch.stack(shifts),
        compile=compile,
    )


def kept(baseline: ScenarioPolicy, intervention: Intervention, segment: int) -> tuple[Tensor, Tensor | None]:
    """The baseline's weights[C, D], and what draws add to them [B, C, D]; nothing for courses of added actions, which
    are on no menu of the segment."""
    missing = max(intervention.courses) + 1 - baseline.weights.shape[1]
    weights, shifts = baseline.weights[segment], baseline.weight_draws
    pad = (0, 0, 0, missing)
    return nn.functional.pad(weights, pad), None if shifts is None else nn.functional.pad(shifts[segment], pad)


@dataclass(frozen=True)
class _End:
    """Where one group's iteration ended; weights[C, D], weight_draws[B, C, D]."""

    weights: Tensor
    weight_draws: Tensor | None
    rounds: int = 0
    change: float = 0.0
    condition: float = 1.0


class _Faced(NamedTuple):
    """States that members face and what no policy changes there: state[N, F], segment[N], menu, reward (0 where not
    available) [N, A], the basis phi[N, D] of what lasts, and how likely which decision is (None: all is decided)."""

    state: Tensor
    segment: Tensor
    menu: Tensor
    reward: Tensor
    phi: Tensor
    attention: Tensor | None
    default: Tensor | None

    @property
    def inertia(self) -> bellman.Inertia | None:
        if self.attention is None or self.default is None:
            return None
        return bellman.Inertia(self.attention, self.default)


@dataclass(frozen=True)
class _Chunk:
    """Some rows of the transitions, phi[n, D] and the weight[n] (0 off the menu) of their states, and what they
    reach."""

    rows: Transitions
    phi: Tensor
    weight: Tensor
    following: _Faced


def _iterated(
    model: FittedModel,
    intervention: Intervention,
    rows: Transitions,
    ridge_rows: float,
    tolerance: float,
    max_rounds: int,
    draws: Tensor | None,
) -> _End:
    courses = max(intervention.courses) + 1
    weights: Tensor | None = None
    rounds, change = 0, math.inf
    chunks, ridge = _remembered(model, intervention, rows), rows.ridge(ridge_rows)
    sample = rows.reached.place[:: max(len(rows.state) // PROBED, 1), 0]
    probe = _faced(model, intervention, rows.reached.state[sample], rows.reached.segment[sample])
    before = _log_policy(model, intervention, probe, None).exp()
    while change > tolerance and rounds < max_rounds:
        rounds += 1
        sums = evaluation.accumulate(_kernel_rows(model, intervention, chunks(), weights), actions=courses)
        solution = evaluation.solve(sums, ridge=ridge)
        weights = solution.weights[:, :, 0]
        if not bool(weights.isfinite().all()):
            raise InputError("the values under the changes are not finite: are the amounts in the right units?")
        after = _log_policy(model, intervention, probe, weights).exp()
        change, before = float((before - after).abs().mean()), after
    assert weights is not None, "max_rounds is at least 1"
    shifts = None
    if draws is not None:
        rhs = sums.rhs.new_zeros(courses, weights.shape[1], len(draws))
        for chunk, target in _gained(model, intervention, chunks(), weights, draws):
            evaluation.add_targets(rhs, chunk.phi, chunk.weight, chunk.rows.action, target)
        shifts = evaluation.solve(replace(sums, rhs=rhs.flatten(0, 1)), ridge=ridge).weights.permute(2, 0, 1)
    return _End(weights, shifts, rounds, change, solution.condition)


def _remembered(model: FittedModel, intervention: Intervention, rows: Transitions) -> Callable[[], Iterable[_Chunk]]:
    """The chunks of all rows, as often as wanted; kept in memory if they are few enough."""
    width = model.basis(rows.state[:1]).shape[1]
    if width * (len(rows.state) + len(rows.reached.state)) > KEPT:
        return lambda: _chunks(model, intervention, rows, width)
    kept = list(_chunks(model, intervention, rows, width))
    return lambda: kept


def _chunks(model: FittedModel, intervention: Intervention, rows: Transitions, width: int) -> Iterator[_Chunk]:
    for _, part, following in rows.in_chunks(partial(_faced, model, intervention), width):
        state = intervention.state(part.state, part.segment)
        on_menu = by_course(intervention.courses, intervention.menu(state, part.segment))
        weight = part.weight.double() * on_menu.gather(1, part.action.unsqueeze(1)).squeeze(1)
        yield _Chunk(part, model.basis(intervention.lasting(state)), weight, following)


def _faced(model: FittedModel, intervention: Intervention, state: Tensor, segment: Tensor) -> _Faced:
    """Of state[N, F] before the changes."""
    faced = intervention.state(state, segment)
    menu = intervention.menu(faced, segment)
    reward = _reward(model, intervention, faced, segment).double().masked_fill(~menu, 0.0)
    inertia = model.inertia_of(faced)
    decided = (None, None) if inertia is None else (inertia.attention, inertia.default)
    return _Faced(faced, segment, menu, reward, model.basis(intervention.lasting(faced)).double(), *decided)


def _kernel_rows(
    model: FittedModel, intervention: Intervention, chunks: Iterable[_Chunk], weights: Tensor | None
) -> Iterator[evaluation.Rows]:
    """The kernel's rows under the policy of ``weights`` (None: the estimated policy). The target is the reward with the
    taste shocks."""
    alpha, courses = model.config.temperature, intervention.courses

    def received(following: _Faced) -> tuple[Tensor, Tensor]:
        """pi~ by course [U, C], and what is received [U, 1]."""
        log_pi = _log_policy(model, intervention, following, weights)
        pi = bellman.seen_policy(log_pi, following.inertia).exp()
        shocks = bellman.received_entropy(log_pi, intervention.nests, following.inertia)
        return by_course(courses, pi), ((pi * following.reward).sum(1) + alpha * shocks).unsqueeze(1)

    for chunk, (policy, value) in _with_following(chunks, received):
        part, discount = chunk.rows, chunk.rows.discount(model.config.discount)
        mean = evaluation.mean_over_draws(value, part.reached.place, discount.unsqueeze(2)).squeeze(1)
        yield evaluation.Rows(
            phi=chunk.phi.double(),
            phi_next=chunk.following.phi,
            discount=discount,
            target=part.with_flow(mean),
            weight=chunk.weight,
            action=part.action,
            next_policy=policy,
            place=part.reached.place,
        )


def _gained(
    model: FittedModel, intervention: Intervention, chunks: Iterable[_Chunk], weights: Tensor, parameters: Tensor
) -> Iterator[tuple[_Chunk, Tensor]]:
    """What each draw of the parameters [B, A, Dx] adds to what follows under the policy of ``weights``, [n, B]."""

    def added(following: _Faced) -> Tensor:
        pi = bellman.seen_policy(_log_policy(model, intervention, following, weights), following.inertia).exp()
        of = partial(_added, model, parameters)
        parts = zip(*(each.split(CHUNK) for each in (following.state, following.segment, pi)), strict=True)
        own = [torch.einsum("na,nab->nb", p, reward_draws(model, intervention, s, g, of)) for s, g, p in parts]
        return torch.cat(own)

    for chunk, value in _with_following(chunks, added):
        part, discount = chunk.rows, chunk.rows.discount(model.config.discount)
        mean = evaluation.mean_over_draws(value, part.reached.place, discount.unsqueeze(2)).squeeze(1)
        yield chunk, part.with_flow(mean, first=1)


def _with_following(chunks: Iterable[_Chunk], made: Callable[[_Faced], Made]) -> Iterator[tuple[_Chunk, Made]]:
    """Chunks, with what is made of the states they reach: once of those that several share."""
    last: tuple[_Faced, Made] | None = None
    for chunk in chunks:
        if last is None or last[0] is not chunk.following:
            last = (chunk.following, made(chunk.following))
        yield chunk, last[1]


def _log_policy(model: FittedModel, intervention: Intervention, at: _Faced, weights: Tensor | None) -> Tensor:
    """log pi[N, A] under ``weights`` (None: as estimated)."""
    if weights is None:
        known = at.menu[:, : len(model.schema.actions)]
        # added actions are chosen at first only where there is nothing else
        log_pi = bellman.log_policy(torch.zeros_like(at.reward), at.menu & ~known.any(1, keepdim=True), 1.0)
        log_pi[:, : known.shape[1]] = model.log_policy_of(at.state, known, at.phi).double()
        return log_pi
    q = at.reward + (at.phi @ weights.T)[:, list(intervention.courses)]
    return bellman.log_policy(q, at.menu, model.config.temperature, intervention.nests)


def _reward(model: FittedModel, intervention: Intervention, faced: Tensor, segment: Tensor) -> Tensor:
    """The scenario's reward[N, A] at faced[N, F]."""
    return intervention.reward(intervention.over_actions(model.reward_of, faced), faced, segment)


def _added(model: FittedModel, draws: Tensor, state: Tensor) -> Tensor:
    """What each of draws[B, A, Dx] adds to the utilities, [N, A, B]."""
    return _per_action(model.terms(state).double(), draws)


def _per_action(phi: Tensor, weights: Tensor) -> Tensor:
    """phi[N, D] times weights[B, A, D]: [N, A, B]."""
    number, actions, width = weights.shape
    return (phi @ weights.reshape(-1, width).T).view(len(phi), number, actions).transpose(1, 2)
