"""A scenario's solved policy: choice probabilities and values of any state, in one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from irl import bellman
from irl.counterfactual.forward import Compile, Forward
from irl.counterfactual.intervention import Intervention
from irl.fitted import FittedModel


@dataclass(frozen=True)
class ScenarioPolicy:
    """The solved policy: Q(s, a) = reward + continuation, linear in the basis, and how the iteration ended.

    ``weights[S, C, D]`` by segment (the same in segments that are treated alike) and course of action. ``change`` is
    the last round's mean absolute change of the choice probabilities, ``condition`` the last system's; of several
    groups, the worst. ``draws`` [B, A, Dx] are draws of the reward's parameters less their estimate, and
    ``weight_draws`` [S, B, C, D] what they do to the weights, to first order (None without standard errors): at the
    optimum a change of the reward changes values by its discounted sum under the policy as it is (the envelope
    theorem), right-hand sides alone. ``groups``: for every segment, the first with the same weights, by default as
    the intervention treats them.
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
    groups: tuple[int, ...] | None = None

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
        lasting = self.intervention.lasting(faced)
        found, rows = self.forward_draws(lasting).to(self.draws.dtype), groups * number * courses
        moved = found[:rows].view(groups, number, courses, len(faced)).permute(0, 3, 2, 1)

        def added(state: Tensor) -> Tensor:
            own = found if state is lasting else self.forward_draws(state).to(found.dtype)
            return own[rows:].view(*draws.shape[:2], len(state)).permute(2, 1, 0)

        own = reward_draws(self.model, self.intervention, faced, segment, added)
        return own + self._by_segment(segment, moved)

    def q(self, faced: Tensor, segment: Tensor) -> Tensor:
        """Q[N, A] at the changed state faced[N, F], in reward units."""
        groups, courses = len(self._solved), self.weights.shape[1]
        lasting = self.intervention.lasting(faced)
        found, rows = self.forward(lasting).to(self.weights.dtype), groups * courses
        continuation = found[:rows].view(groups, courses, len(faced)).transpose(1, 2)

        def reward_of(state: Tensor) -> Tensor:
            own = found if state is lasting else self.forward(state).to(found.dtype)
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
        return torch.tensor([self._solved.index(g) for g in self._groups], device=self.weights.device)

    @cached_property
    def _course(self) -> Tensor | None:
        """[A], the course of each action; None where each has its own."""
        courses = list(self.intervention.courses)
        if courses == list(range(len(courses))):
            return None
        return torch.tensor(courses, device=self.weights.device)

    @property
    def _groups(self) -> tuple[int, ...]:
        return self.intervention.groups if self.groups is None else self.groups

    @cached_property
    def _solved(self) -> list[int]:
        """A segment of each group that was solved by itself."""
        return list(dict.fromkeys(self._groups))

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


def reward_draws(
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
