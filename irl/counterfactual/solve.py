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
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from irl import bellman, evaluation
from irl.config import InputError
from irl.counterfactual.forward import Compile, Forward
from irl.counterfactual.intervention import Intervention
from irl.fitted import FittedModel
from irl.transitions import RIDGE_ROWS, Transitions, by_course

CHUNK = 16384
"""States whose features are held at once."""
TOLERANCE = 1e-4
"""Mean change of choice probabilities at which the iteration stops: it is Newton's, so what is left is of the order of
the square."""
KEPT = 500_000_000
"""Numbers (of four bytes) of the features of all states up to which they are kept from round to round."""


@dataclass(frozen=True)
class ScenarioPolicy:
    """The solved policy: Q(s, a) = reward + continuation, linear in the basis, and how the iteration ended.

    ``weights[S, C, D]`` by segment (the same in segments that are treated alike) and course of action. ``change`` is
    the last round's mean absolute change of the choice probabilities, ``condition`` the last system's; of several
    groups, the worst. ``draws`` [B, A, Dx] are draws of the reward's parameters less their estimate, and
    ``weight_draws`` [S, B, C, D] what they do to the weights, to first order (None without standard errors): at the
    optimum a change of the reward changes values by its discounted sum under the policy as it is (the envelope
    theorem), one more pass of the kernel.
    """

    model: FittedModel
    intervention: Intervention
    weights: Tensor
    rounds: int
    change: float
    condition: float
    converged: bool
    draws: Tensor | None = None
    weight_draws: Tensor | None = None
    compile: Compile | None = None

    @property
    def news(self) -> int:
        """The period in which members learn of the changes."""
        return 0

    def at(self, period: int) -> ScenarioPolicy:
        """The policy of a period: the same in all."""
        return self

    def q_draws(self, faced: Tensor, segment: Tensor) -> Tensor:
        """Q of each draw of the parameters less Q[N, A, B], to first order, at faced[N, F]."""
        assert self.draws is not None and self.weight_draws is not None
        draws = self.draws
        groups, (_, number, courses, _) = len(self._solved), self.weight_draws.shape
        found, rows = self.forward_draws(faced).to(self.draws.dtype), groups * number * courses
        moved = found[:rows].view(groups, number, courses, len(faced)).permute(0, 3, 2, 1)

        def added(state: Tensor) -> Tensor:
            own = found if state is faced else self.forward_draws(state).to(found.dtype)
            return own[rows:].view(*draws.shape[:2], len(state)).permute(2, 1, 0)

        own = _reward_draws(self.model, self.intervention, faced, segment, added)
        return own + self._by_segment(segment, moved)

    def q(self, faced: Tensor, segment: Tensor) -> Tensor:
        """Q[N, A] at the changed state faced[N, F], in reward units."""
        groups, courses = len(self._solved), self.weights.shape[1]
        found, rows = self.forward(faced).to(self.weights.dtype), groups * courses
        continuation = found[:rows].view(groups, courses, len(faced)).transpose(1, 2)

        def reward_of(state: Tensor) -> Tensor:
            own = found if state is faced else self.forward(state).to(found.dtype)
            return self.model.reward_from(own[rows:].T, state)

        one_pass = self.model.reward_weights is not None
        reward = self.intervention.over_actions(reward_of if one_pass else self.model.reward_of, faced)
        return self.intervention.reward(reward, faced, segment) + self._by_segment(segment, continuation)

    def score_draws(self, faced: Tensor, segment: Tensor, log_pi: Tensor, action: Tensor) -> Tensor:
        """How the log-probability of action[N] moves along each draw of the parameters, [N, B]."""
        slope, inertia = self.q_draws(faced, segment), self.model.inertia_of(faced)
        decided = log_pi if inertia is None else self.decided(faced, log_pi > -torch.inf, segment)
        alpha, nests = self.model.config.temperature, self.intervention.nests
        slope = bellman.log_policy_slope(slope, decided.to(slope.dtype), alpha, nests, inertia)
        return slope.gather(1, action.view(-1, 1, 1).expand(-1, 1, slope.shape[2])).squeeze(1)

    def menu(self, faced: Tensor, segment: Tensor) -> Tensor:
        """menu[N, A] at the changed state; empty in terminal states."""
        return self.intervention.menu(faced, segment)

    def decided(self, faced: Tensor, menu: Tensor, segment: Tensor) -> Tensor:
        """log pi[N, A] of members who decide."""
        alpha, nests = self.model.config.temperature, self.intervention.nests
        return bellman.log_policy(self.q(faced, segment), menu, alpha, nests)

    def log_policy(self, faced: Tensor, menu: Tensor, segment: Tensor) -> Tensor:
        """log pi[N, A] of what happens."""
        return bellman.seen_policy(self.decided(faced, menu, segment), self.model.inertia_of(faced))

    def value(self, faced: Tensor, menu: Tensor, segment: Tensor) -> Tensor:
        """Soft value V[N], before it is known whether there is a decision."""
        alpha, nests, q = self.model.config.temperature, self.intervention.nests, self.q(faced, segment)
        value = bellman.soft_value(q, menu, alpha, nests)
        return bellman.ex_ante_value(value, q, menu, self.model.inertia_of(faced))

    def _by_segment(self, segment: Tensor, found: Tensor) -> Tensor:
        """found[G, N, C, ...], one for each group of segments, at each row's group and by action [N, A, ...]."""
        out = found[0]
        if len(found) > 1:
            group = self._group[segment]
            for i in range(1, len(found)):
                out = torch.where((group == i).view(-1, *[1] * (out.dim() - 1)), found[i], out)
        return out if self._course is None else out.index_select(1, self._course)

    @cached_property
    def _group(self) -> Tensor:
        """[S], the place in ``_solved`` of each segment's group; on the device, so that nothing is copied later."""
        return torch.tensor([self._solved.index(g) for g in self.intervention.groups], device=self.weights.device)

    @cached_property
    def _course(self) -> Tensor | None:
        """[A], the course of each action; None where each has its own."""
        courses = list(self.intervention.courses)
        if courses == list(range(len(courses))):
            return None
        return torch.tensor(courses, device=self.weights.device)

    @cached_property
    def _solved(self) -> list[int]:
        """A segment of each group that was solved by itself."""
        return list(dict.fromkeys(self.intervention.groups))

    @cached_property
    def forward(self) -> Forward:
        """The continuation by group and course, then what the reward is made of."""
        parts, own = [self.weights[g] for g in self._solved], self.model.reward_weights
        return Forward(self.model, torch.cat(parts if own is None else [*parts, own]), self.compile)

    @cached_property
    def forward_draws(self) -> Forward:
        """What draws add to the continuation, by group, draw and course, then to the utilities, by draw and action."""
        assert self.draws is not None and self.weight_draws is not None
        rest = self.weights.shape[-1] - self.draws.shape[-1]
        parts = [*(self.weight_draws[g] for g in self._solved), nn.functional.pad(self.draws, (0, rest))]
        return Forward(self.model, torch.cat([part.flatten(0, 1) for part in parts]), self.compile)


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
) -> ScenarioPolicy:
    """The policy that is soft-optimal under ``intervention``, starting from the estimated one.

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


@dataclass(frozen=True)
class _End:
    """Where one group's iteration ended; weights[C, D], weight_draws[B, C, D]."""

    weights: Tensor
    rounds: int
    change: float
    condition: float
    weight_draws: Tensor | None


@dataclass(frozen=True)
class _Faced:
    """States that members face and what no policy changes there: menu, reward (0 where not available) [N, A], the basis
    phi[N, D], and how likely a decision is."""

    state: Tensor
    segment: Tensor
    menu: Tensor
    reward: Tensor
    phi: Tensor
    inertia: bellman.Inertia | None


@dataclass(frozen=True)
class _Chunk:
    """Some rows of the transitions, phi[n, D] and the weight[n] (0 off the menu) of their states, and what follows."""

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
    chunks = _remembered(model, intervention, rows)
    sample = slice(None, None, max(len(rows.state) // CHUNK, 1))
    probe = _faced(model, intervention, rows.next_state[sample, 0], rows.segment[sample])
    before = _log_policy(model, intervention, probe, None).exp()
    while change > tolerance and rounds < max_rounds:
        rounds += 1
        kernel = (_kernel_rows(model, intervention, chunk, weights) for chunk in chunks())
        sums = evaluation.accumulate(kernel, actions=courses)
        solution = evaluation.solve(sums, ridge=ridge_rows / len(rows.state))
        weights = solution.weights[:, :, 0]
        if not bool(weights.isfinite().all()):
            raise InputError("the values under the changes are not finite: are the amounts in the right units?")
        after = _log_policy(model, intervention, probe, weights).exp()
        change, before = float((before - after).abs().mean()), after
    assert weights is not None, "max_rounds is at least 1"
    shifts = None
    if draws is not None:
        kernel = (_kernel_rows(model, intervention, chunk, weights, draws) for chunk in chunks())
        sums = evaluation.accumulate(kernel, actions=courses)
        shifts = evaluation.solve(sums, ridge=ridge_rows / len(rows.state)).weights.permute(2, 0, 1)
    return _End(weights, rounds, change, solution.condition, shifts)


def _remembered(model: FittedModel, intervention: Intervention, rows: Transitions) -> Callable[[], Iterable[_Chunk]]:
    """The chunks of all rows, as often as wanted; kept in memory if they are few enough."""
    width = model.basis(rows.state[:1]).shape[1]
    if width * len(rows.state) * (1 + rows.steps.shape[1]) > KEPT:
        return lambda: _chunks(model, intervention, rows)
    kept = list(_chunks(model, intervention, rows))
    return lambda: kept


def _chunks(model: FittedModel, intervention: Intervention, rows: Transitions) -> Iterator[_Chunk]:
    size = max(1, CHUNK // rows.steps.shape[1])
    for first in range(0, len(rows.state), size):
        part = rows.only(slice(first, first + size))
        segment = part.segment.repeat_interleave(part.steps.shape[1])
        state = intervention.state(part.state, part.segment)
        on_menu = by_course(intervention.courses, intervention.menu(state, part.segment))
        weight = part.weight.double() * on_menu.gather(1, part.action.unsqueeze(1)).squeeze(1)
        following = _faced(model, intervention, part.next_state.flatten(0, 1), segment)
        yield _Chunk(part, model.basis(state), weight, following)


def _faced(model: FittedModel, intervention: Intervention, state: Tensor, segment: Tensor) -> _Faced:
    """Of state[N, F] before the changes."""
    faced = intervention.state(state, segment)
    menu = intervention.menu(faced, segment)
    reward = _reward(model, intervention, faced, segment).double().masked_fill(~menu, 0.0)
    return _Faced(faced, segment, menu, reward, model.basis(faced), model.inertia_of(faced))


def _kernel_rows(
    model: FittedModel,
    intervention: Intervention,
    chunk: _Chunk,
    weights: Tensor | None,
    parameters: Tensor | None = None,
) -> evaluation.Rows:
    """The kernel's rows under the policy of ``weights`` (None: the estimated policy). The target is the reward with the
    taste shocks; or what each draw of the parameters [B, A, Dx] adds to it."""
    following, part = chunk.following, chunk.rows
    n, draws = part.steps.shape
    log_pi = _log_policy(model, intervention, following, weights)
    pi = bellman.seen_policy(log_pi, following.inertia).exp()
    if parameters is None:
        shocks = bellman.received_entropy(log_pi, intervention.nests, following.inertia)
        value = ((pi * following.reward).sum(1) + model.config.temperature * shocks).unsqueeze(1)
    else:
        added = _reward_draws(
            model, intervention, following.state, following.segment, partial(_added, model, parameters)
        )
        value = torch.einsum("na,nab->nb", pi, added)
    discount = (model.config.discount**part.steps * ~part.ends).double()
    mean = (discount.unsqueeze(2) * value.view(n, draws, -1)).mean(1)
    return evaluation.Rows(
        phi=chunk.phi.double(),
        phi_next=following.phi.double().view(n, draws, -1),
        discount=discount,
        target=part.with_flow(mean, first=0 if parameters is None else 1),
        weight=chunk.weight,
        action=part.action,
        next_policy=by_course(intervention.courses, pi).view(n, draws, -1),
    )


def _log_policy(model: FittedModel, intervention: Intervention, at: _Faced, weights: Tensor | None) -> Tensor:
    """log pi[N, A] under ``weights`` (None: as estimated)."""
    if weights is None:
        known = at.menu[:, : len(model.schema.actions)]
        # added actions are chosen at first only where there is nothing else
        log_pi = bellman.log_policy(torch.zeros_like(at.reward), at.menu & ~known.any(1, keepdim=True), 1.0)
        log_pi[:, : known.shape[1]] = model.log_policy_of(at.state, known).double()
        return log_pi
    q = at.reward + (at.phi.double() @ weights.T)[:, list(intervention.courses)]
    return bellman.log_policy(q, at.menu, model.config.temperature, intervention.nests)


def _reward(model: FittedModel, intervention: Intervention, faced: Tensor, segment: Tensor) -> Tensor:
    """The scenario's reward[N, A] at faced[N, F]."""
    return intervention.reward(intervention.over_actions(model.reward_of, faced), faced, segment)


def _reward_draws(
    model: FittedModel, intervention: Intervention, faced: Tensor, segment: Tensor, added: Callable[[Tensor], Tensor]
) -> Tensor:
    """What draws of the parameters add to the scenario's reward, [N, A, B], 0 where not available; ``added``: what
    they add to the utilities at state[N, F]."""

    def of(state: Tensor) -> Tensor:
        utility = added(state)
        reference = model.schema.reference(state, model.schema.menu(state)).to(utility.dtype).unsqueeze(2)
        return utility - (reference * utility).sum(1, keepdim=True)

    moved = intervention.over_actions(of, faced)
    flat = moved.new_zeros(moved.shape[:2])
    slope = intervention.reward(flat + 1, faced, segment) - intervention.reward(flat, faced, segment)
    return moved * (slope * intervention.menu(faced, segment)).unsqueeze(2)


def _added(model: FittedModel, draws: Tensor, state: Tensor) -> Tensor:
    """What each of draws[B, A, Dx] adds to the utilities, [N, A, B]."""
    return _per_action(model.terms(state).double(), draws)


def _per_action(phi: Tensor, weights: Tensor) -> Tensor:
    """phi[N, D] times weights[B, A, D]: [N, A, B]."""
    number, actions, width = weights.shape
    return (phi @ weights.reshape(-1, width).T).view(len(phi), number, actions).transpose(1, 2)
