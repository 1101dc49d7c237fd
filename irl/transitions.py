"""Rows (s, a) and what follows them, the kernel's raw material.

What follows is one observed transition, or several draws from the fitted dynamics (:mod:`irl.draws`), and named by its
place among the states reached: features and probabilities are made once for each of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from irl import bellman, evaluation, processes
from irl.data.panel import Panel
from irl.data.schema import StateSchema
from irl.dynamics import TransitionModel
from irl.fitted import FittedModel

Made = TypeVar("Made", bound="tuple[Any, ...]")  # a named tuple of tensors, or None
DRAWS = 24
"""Draws of what follows each action. At equal cost many draws of few rows leave less noise than few of many: that of a
row's mean falls with their square, as long as probabilities are not smaller than their parts. On the simulated market
(20,000 x 36) 8 of 15,000 states and 24 of 6,000 left the same noise of price slopes, the latter in two thirds of the
time."""
CHUNK = 16384
"""Draws made at once; states whose features are made at once."""
ROWS = 4096
"""Rows that the kernel is given at once."""
KEPT = 250_000_000
"""Numbers (of eight bytes) of the features of the states reached up to which these are kept in memory."""
RIDGE_ROWS = 1.0
"""Ridge of the kernel on drawn transitions, in rows."""
RIDGE_SPANNED = 1e-8
"""The same where every state is there with many draws, per unit of weight: against collinear features alone."""


class Programme(Protocol):
    """What members face: the identity (:class:`Unchanged`) or a scenario's intervention, of as many actions or more."""

    @property
    def courses(self) -> tuple[int, ...]:
        """For every action, what follows it: actions of one course are followed by the same."""

    def state(self, state: Tensor, segment: Tensor) -> Tensor:
        """faced[N, F] of state[N, F]."""

    def follow(
        self, dynamics: TransitionModel, state: Tensor, faced: Tensor, action: Tensor, uniform: Tensor, segment: Tensor
    ) -> Tensor:
        """A draw of the next state[N, F], before the programme's changes, with uniform[N, n_random]."""

    def menu(self, faced: Tensor, segment: Tensor) -> Tensor:
        """menu[N, A]; empty in terminal states."""


@dataclass(frozen=True)
class Unchanged:
    """The programme as it is."""

    schema: StateSchema

    @property
    def courses(self) -> tuple[int, ...]:
        return tuple(range(len(self.schema.actions)))

    def state(self, state: Tensor, segment: Tensor) -> Tensor:
        return state

    def follow(
        self, dynamics: TransitionModel, state: Tensor, faced: Tensor, action: Tensor, uniform: Tensor, segment: Tensor
    ) -> Tensor:
        return dynamics.sample(faced, action, uniform)

    def menu(self, faced: Tensor, segment: Tensor) -> Tensor:
        return self.schema.menu(faced) & ~self.schema.is_terminal(faced).unsqueeze(1)


def by_course(courses: tuple[int, ...], values: Tensor) -> Tensor:
    """values[N, A] summed over the actions of each course, [N, C]; of a menu, whether any of them is on it."""
    if values.dtype == torch.bool:
        return by_course(courses, values.int()) > 0
    total = values.new_zeros(len(values), max(courses) + 1)
    return total.index_add_(1, torch.tensor(courses, device=values.device), values)


@dataclass(frozen=True)
class Transitions:
    """Rows (s, a) and S draws of what follows; states before any intervention.

    state [N, F]; action (by course: of the study's actions, the action), segment [N]; reached, the states that draws
    lead to, each once, and of which draw which; steps, ends [N, S]; weight [N]; flow [N, K], what is added in the
    periods without a choice that follow, discounted, the mean over the draws (None: nothing); likelier [N, S], what
    each draw counts for, 1 on average (None: 1). Of many draws few differ (of 500,000 on the simulated market three
    tenths), so features are made of the states reached.
    """

    state: Tensor
    action: Tensor
    reached: Reached
    steps: Tensor
    ends: Tensor
    segment: Tensor
    weight: Tensor
    flow: Tensor | None = None
    likelier: Tensor | None = None

    @property
    def next_state(self) -> Tensor:
        """[N, S, F]."""
        return self.reached.state[self.reached.place]

    def only(self, rows: Tensor | slice) -> Transitions:
        """Some rows, with all the states that are reached from any."""
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "reached"}
        own = {name: part[rows] for name, part in parts.items() if part is not None}
        return Transitions(reached=replace(self.reached, place=self.reached.place[rows]), **own)

    def discount(self, gamma: float) -> Tensor:
        """gamma^k [N, S], float64, times what each draw counts for; 0 where a draw ends."""
        discount = (gamma**self.steps * ~self.ends).double()
        return discount if self.likelier is None else discount * self.likelier

    def in_chunks(
        self, made: Callable[[Tensor, Tensor], Made], width: int
    ) -> Iterator[tuple[Tensor, Transitions, Made]]:
        """(which, these rows, what they reach), some at a time: what is ``made`` of the states (state [U, F],
        segment [U]) that they reach, tensors [U, ...] of ``width`` numbers each. Of all states at once, if these are
        fewer than the draws and few enough to be kept; else of those that the chunk reaches."""
        if len(self.reached.state) * width <= KEPT and len(self.reached.state) < self.steps.numel():
            every = self.reached.made(made)
            for rows in torch.arange(len(self.state), device=self.state.device).split(ROWS):
                yield rows, self.only(rows), every
            return
        for rows in torch.arange(len(self.state), device=self.state.device).split(max(1, CHUNK // self.steps.shape[1])):
            part = self.only(rows)
            part = replace(part, reached=part.reached.alone())
            yield rows, part, part.reached.made(made)

    def ridge(self, worth: float | None = None, of: int | None = None) -> float:
        """Ridge of the kernel on these rows, per unit of weight: ``worth`` so many rows (``RIDGE_ROWS``) out of so many
        (these); next to nothing where there are more than ``DRAWS`` draws: then all states are there."""
        if self.steps.shape[1] > DRAWS:
            return RIDGE_SPANNED
        return (RIDGE_ROWS if worth is None else worth) / (len(self.state) if of is None else of)

    def with_flow(self, target: Tensor, first: int = 0) -> Tensor:
        """target[N, K], what follows is worth, with what is added to the periods without a choice before it: the
        columns of ``flow`` from ``first`` on."""
        if self.flow is None:
            return target
        assert self.flow.shape[1] >= first + target.shape[1], "a flow for every draw of the parameters"
        return target + self.flow[:, first : first + target.shape[1]]

    def of_segment(self, segment: int) -> Transitions:
        """The same rows as if all were of one segment."""
        reached = replace(self.reached, segment=torch.full_like(self.reached.segment, segment))
        return replace(self, reached=reached, segment=torch.full_like(self.segment, segment))


@dataclass(frozen=True)
class Reached:
    """Distinct states [U, F] and their segments [U], and which of them each draw leads to, place [N, S]."""

    state: Tensor
    segment: Tensor
    place: Tensor

    @staticmethod
    def by(following: Tensor, segment: Tensor) -> Reached:
        """Of following[N, S, F], draws from rows of segment[N]."""
        state, own, place = _distinct(following.flatten(0, 1), segment.repeat_interleave(following.shape[1]))
        return Reached(state, own, place.view(following.shape[:2]))

    def alone(self) -> Reached:
        """Without the states that none of the draws leads to."""
        used, place = self.place.unique(return_inverse=True)
        return Reached(self.state[used], self.segment[used], place)

    def made(self, of: Callable[[Tensor, Tensor], Made]) -> Made:
        """What is made of all states, of so many at a time."""
        parts = [of(*part) for part in zip(self.state.split(CHUNK), self.segment.split(CHUNK), strict=True)]
        joined = [None if each[0] is None else torch.cat(each) for each in zip(*parts, strict=True)]
        kind: Any = type(parts[0])
        every: Made = kind(*joined)
        return every


@dataclass(frozen=True)
class States:
    """Where transitions start: state [N, F] before any intervention, segment [N], weight [N]."""

    state: Tensor
    segment: Tensor
    weight: Tensor

    def only(self, rows: Tensor | slice) -> States:
        return States(self.state[rows], self.segment[rows], self.weight[rows])

    def of_segment(self, segment: int) -> States:
        """The same rows as if all were of one segment."""
        return replace(self, segment=torch.full_like(self.segment, segment))

    def at_most(self, most: int, *, seed: int) -> States:
        """So many rows, drawn without replacement (a fixed stride would pick the same months again and again)."""
        if len(self.state) <= most:
            return self
        chosen = torch.randperm(len(self.state), generator=torch.Generator().manual_seed(seed))[:most]
        return self.only(chosen.sort().values.to(self.state.device))

    def beside(self, other: States) -> States:
        """These rows, then the other's."""
        both = ((getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        return States(*(torch.cat(pair) for pair in both))

    def distinct(self) -> States:
        """Each state (of each segment) once, with the weight of all its rows."""
        state, segment, place = _distinct(self.state, self.segment)
        return States(state, segment, self.weight.new_zeros(len(state)).index_add_(0, place, self.weight))


def _distinct(state: Tensor, segment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct pairs of state [U, F] and segment [U], and which of them each of state[N, F], segment[N] is, [N]."""
    levels, place = segment.unique(return_inverse=True)
    for column in reversed(state.T):  # one at a time: a sort of whole rows takes five times as long
        _, own = column.unique(return_inverse=True)
        levels, place = (own * len(levels) + place).unique(return_inverse=True)
    first = place.new_zeros(len(levels)).scatter_(0, place, torch.arange(len(place), device=place.device))
    return state[first], segment[first], place


def free_states(panel: Panel, most: int, *, seed: int) -> States:
    """So many of the states in which there is a choice (of those of all processes), as :meth:`States.at_most`."""
    rows = panel.free.nonzero().squeeze(1)
    most = processes.own_part(most, len(rows))
    if len(rows) > most:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:most].to(rows.device)]
        rows = rows.sort().values
    return States(panel.state[rows], panel.segment[rows], panel.weight[rows])


def observed(panel: Panel) -> Transitions:
    """The panel's own transitions from choice to choice (or end): one draw each."""
    rows = (panel.free & (panel.next_choice >= 0)).nonzero().squeeze(1)
    following = panel.next_choice[rows]
    return Transitions(
        state=panel.state[rows],
        action=panel.action[rows],
        reached=Reached(
            panel.state[following], panel.segment[following], torch.arange(len(rows)).to(rows).unsqueeze(1)
        ),
        steps=panel.steps[rows].unsqueeze(1),
        ends=panel.ends[rows].unsqueeze(1),
        segment=panel.segment[rows],
        weight=panel.weight[rows],
    )


LogPolicy = Callable[[Tensor, Tensor], Tensor]
"""(states that follow [U, F], their features [U, D]) -> log pi[U, A]."""
Target = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(states that follow [U, F], their features [U, D], log pi there [U, A]) -> [U, K]; pi of members who decide."""


class Following(NamedTuple):
    """Of the states that follow: phi [U, D], pi~ of what happens there [U, A], and what is gained there [U, K]."""

    phi: Tensor
    policy: Tensor
    target: Tensor


@torch.no_grad()
def kernel_rows(
    model: FittedModel, rows: Transitions, log_policy: LogPolicy, target: Target | None = None
) -> Iterator[evaluation.Rows]:
    """The transitions in chunks for the kernel, under the programme as it is.

    Parameters
    ----------
    log_policy : of members who decide; what happens follows from the model's attention.
    target : what is gained in a state that follows; the row's target is its discounted mean over the draws. None: no
        target, for the matrix alone.
    """

    def made(state: Tensor, segment: Tensor) -> Following:
        phi = model.basis(state).double()
        log_pi = log_policy(state, phi).double()
        gained = phi.new_zeros(len(phi), 0) if target is None else target(state, phi, log_pi)
        return Following(phi, bellman.seen_policy(log_pi, model.inertia_of(state)).exp(), gained)

    one = made(rows.reached.state[:1], rows.reached.segment[:1])
    for _, part, following in rows.in_chunks(made, one.phi.shape[1] + one.target.shape[1]):
        discount, gained = part.discount(model.config.discount), part.weight.new_zeros(len(part.state), 0).double()
        if target is not None:
            gained = evaluation.mean_over_draws(following.target, part.reached.place, discount.unsqueeze(2)).squeeze(1)
        yield evaluation.Rows(
            phi=model.basis(part.state).double(),
            phi_next=following.phi,
            discount=discount,
            target=gained,
            weight=part.weight.double(),
            action=part.action,
            next_policy=following.policy,
            place=part.reached.place,
        )
