"""Policies that change with the period: changes that start later, end again, or are known before they come.

Before a period T after which nothing changes any more, values follow backwards from the stationary ones behind it,

    c_t(s,a) = gamma^k E[V_{t+k}(s')|s,a] ,   V_t(s) = alpha log sum_a exp((r_t(s,a) + c_t(s,a))/alpha),

r_t and what follows those of the programme of period t. The continuation c_t is the kernel's of a known next value:
least squares on the basis, whose matrix is the same in every period. Members who are surprised by a change decide until
it comes as if it never would; from then on, as always before an announced change, they know all that is to come.

Source: backward induction; the regression of values on a basis, Longstaff & Schwartz (2001). Limit: where a path runs
on for k periods without a choice, the programme of its first period is taken to hold throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from irl import evaluation
from irl.counterfactual.intervention import Intervention
from irl.counterfactual.scenario_policy import ScenarioPolicy
from irl.counterfactual.solve import TOLERANCE, kept, solve
from irl.fitted import FittedModel
from irl.scenario import Timing
from irl.transitions import RIDGE_ROWS, ROWS, Transitions, by_course

RowsOf = Callable[[Intervention], Callable[[int], Transitions]]
"""The transitions under an intervention, by the segment that they are taken to be of."""


def remembered(rows: RowsOf) -> RowsOf:
    """The same transitions, drawn once for each intervention and segment."""
    drawn_once: dict[tuple[int, int], Transitions] = {}

    def follow(intervention: Intervention) -> Callable[[int], Transitions]:
        def of(segment: int) -> Transitions:
            key = (id(intervention), segment)
            if key not in drawn_once:
                drawn_once[key] = rows(intervention)(segment)
            return drawn_once[key]

        return of

    return follow


@dataclass(frozen=True)
class PolicyPath:
    """A policy for every period: ``first`` one by one, then ``last`` for good. ``news``: when members learn of the
    ``intervention``."""

    intervention: Intervention
    first: tuple[ScenarioPolicy, ...]
    last: ScenarioPolicy
    news: int

    def at(self, period: int) -> ScenarioPolicy:
        """The policy of a period."""
        return self.first[period] if period < len(self.first) else self.last

    @property
    def model(self) -> FittedModel:
        return self.last.model

    @property
    def draws(self) -> Tensor | None:
        return self.last.draws


Policy = ScenarioPolicy | PolicyPath


@torch.no_grad()
def solve_path(
    baseline: ScenarioPolicy,
    intervention: Intervention,
    timing: Timing,
    rows: RowsOf,
    *,
    ridge_rows: float = RIDGE_ROWS,
    tolerance: float = TOLERANCE,
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> Policy:
    """The policies under changes that hold as ``timing`` says, and otherwise the baseline's, solved before.

    ``tick`` is called with the periods done and their number. Draws of the parameters are carried along if the baseline
    has them. Errors as of :func:`irl.counterfactual.solve.solve`.
    """
    model, draws = baseline.model, baseline.draws
    ends = timing.start + (timing.length or 0)
    last = baseline
    if timing.length is None:
        follow = rows(intervention)
        last = solve(
            model,
            intervention,
            follow,
            ridge_rows=ridge_rows,
            tolerance=tolerance,
            draws=draws,
            compile=baseline.compile,
            baseline=baseline,
        )
    news = 0 if timing.announced else timing.start
    first = [baseline] * news
    fits: dict[bool, dict[int, _Regression]] = {}
    later: list[ScenarioPolicy] = []
    for t in reversed(range(news, ends)):
        holds = t >= timing.start
        now = intervention if holds else baseline.intervention
        if holds not in fits:
            concerned = [group for group, reached in zip(now.groups, intervention.reached, strict=True) if reached]
            fits[holds] = {group: _Regression(model, now, rows(now)(group)) for group in dict.fromkeys(concerned)}
        path = PolicyPath(intervention, tuple(later), last, 0)
        solved = {group: fit.continuation(path, ridge_rows) for group, fit in fits[holds].items()}  # [C, D, 1 + B]
        weights, shifts = [], []
        for segment, reached in enumerate(intervention.reached):
            own, moved = kept(baseline, now, segment)
            if reached:
                own, moved = solved[now.groups[segment]].tensor_split([1], 2)
                own, moved = own.squeeze(2), moved.permute(2, 0, 1)
            weights.append(own)
            shifts.append(moved)
        later.insert(
            0,
            replace(
                last,
                intervention=now,
                weights=torch.stack(weights),
                weight_draws=None if draws is None else torch.stack([shift for shift in shifts if shift is not None]),
                groups=intervention.groups,
            ),
        )
        tick(ends - t, ends - news)
    if not news and not later:
        return last
    return PolicyPath(intervention, (*first, *later), last, news)


class _Regression:
    """Continuations of known next values on drawn transitions, linear in the basis, by course of action."""

    def __init__(self, model: FittedModel, intervention: Intervention, rows: Transitions) -> None:
        self.model, self.intervention, self.rows = model, intervention, rows
        self.sums = []
        for course in range(max(intervention.courses) + 1):
            chunks = (self._of_course(i, phi, weight, course) for i, phi, weight in self._chunks())
            self.sums.append(evaluation.accumulate(chunks))

    def continuation(self, following: PolicyPath, ridge_rows: float) -> Tensor:
        """weights [C, D, 1 + B] of gamma^k E[V(s')|s, course], the policy of the next period being the first of
        ``following``; then of what each draw of the parameters adds."""
        one, targets = self.sums[0].rhs, 1 + (0 if following.draws is None else len(following.draws))
        rhs = one.new_zeros(len(self.sums), len(one), targets)
        steps = self.rows.steps.unique()
        value, states = self._value(following, steps), len(self.rows.reached.state)
        for i, phi, weight in self._chunks():
            part = self.rows.only(i)
            place = part.reached.place + states * torch.searchsorted(steps, part.steps.contiguous())
            discount = part.discount(self.model.config.discount).unsqueeze(2)
            mean = evaluation.mean_over_draws(value, place, discount).squeeze(1)
            evaluation.add_targets(rhs, phi, weight, part.action, part.with_flow(mean))
        fitted = [
            evaluation.solve(replace(sums, rhs=own), ridge=self.rows.ridge(ridge_rows, sums.rows))
            for sums, own in zip(self.sums, rhs, strict=True)
        ]
        return torch.stack([solution.weights[0] for solution in fitted])

    def _value(self, following: PolicyPath, steps: Tensor) -> Tensor:
        """V(s') [T U, 1 + B] at the U states reached, after each of so many steps [T]."""
        state, segment, values = self.rows.reached.state, self.rows.reached.segment, []
        for k in steps.tolist():
            policy = following.at(int(k) - 1)
            faced = policy.intervention.state(state, segment)
            menu = policy.menu(faced, segment)
            own = policy.value(faced, menu, segment).double().unsqueeze(1)
            if policy.draws is not None:
                pi = policy.log_policy(faced, menu, segment).double().exp()
                own = torch.cat([own, torch.einsum("na,nab->nb", pi, policy.q_draws(faced, segment))], 1)
            values.append(own)
        return torch.cat(values)

    def _chunks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(rows, their features [n, D], their weights [n], 0 for what is on no menu)."""
        for first in range(0, len(self.rows.state), ROWS):
            i = slice(first, first + ROWS)
            part = self.rows.only(i)
            faced = self.intervention.state(part.state, part.segment)
            menu = by_course(self.intervention.courses, self.intervention.menu(faced, part.segment))
            on_menu = menu.gather(1, part.action.unsqueeze(1)).squeeze(1)
            yield i, self.model.basis(self.intervention.lasting(faced)), part.weight.double() * on_menu

    def _of_course(self, i: slice, phi: Tensor, weight: Tensor, course: int) -> evaluation.Rows:
        """The rows of one course for the kernel; nothing follows, and the target comes later."""
        mine = self.rows.action[i] == course
        phi = phi[mine].double()
        return evaluation.Rows(phi, phi, phi.new_zeros(len(phi)), phi.new_zeros(len(phi), 0), weight[mine])
