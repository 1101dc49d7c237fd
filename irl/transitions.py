"""What follows an action: rows (s, a) with several draws of the next choice, the kernel's raw material.

One row for every state and available action, and S draws of what follows it under the fitted dynamics. The uniform
numbers behind them are spread evenly twice. Within a row, each coordinate falls once in each of S equal parts, in an
order drawn for itself (a Latin hypercube), and at the same place of each. Between rows, that place advances by the
golden section from row to row, in the order of what never changes about a member (segment, a tested price) and then of
the column that the coordinate moves, so that frequencies are met up to a few draws over *all* such rows. Noise in what
follows acts like an error of the reward, the same for everybody or sloping with a price, and patient members answer to
small ones; values built on single logged transitions carry it in full. Where the state reached leaves no choice, the
path runs on to the next choice, or end, with places drawn at random.

Sources: McKay, Beckman, Conover (1979); Niederreiter (1992) for the golden section's sequence. On the simulated market
(gamma .99, true values, 15,000 states) the mean error of E[V(s')] by action fell from .0017 to .0001 against Latin
hypercubes alone. Limit: what follows is what the dynamics model says.

Rewards of the periods without a choice are part of the reward of the choice before them (its lump). What a programme
adds to them is, too: a :class:`Flow` says what it is in a period, and the rows keep its discounted sum.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from irl import bellman, evaluation, processes
from irl.config import InputError
from irl.data.panel import Panel
from irl.data.schema import StateSchema
from irl.dynamics import TransitionModel
from irl.fitted import FittedModel, free_rows

DRAWS = 24
"""Draws of what follows each action. At equal cost many draws of few rows leave less noise than few of many: that of a
row's mean falls with their square, as long as probabilities are not smaller than their parts. On the simulated market
(20,000 x 36) 8 of 15,000 states and 24 of 6,000 left the same noise of price slopes, the latter in two thirds of the
time."""
GOLDEN = (5**0.5 - 1) / 2
CHUNK = 16384
"""Draws made at once."""
RIDGE_ROWS = 1.0
"""Ridge of the kernel on drawn transitions, in rows."""
RIDGE_SPANNED = 1e-8
"""The same where every state is there with many draws, per unit of weight: against collinear features alone."""
LONGEST_CONTRACT = 600
"""Periods after which a drawn path without a free choice is given up as endless."""


@dataclass(frozen=True)
class Flow:
    """What members get in periods without a choice, discounted to the choice before them by ``discount`` a period.

    ``of``: (state faced [n, F], action [n], segment [n]) -> [n, K], in reward units. ``spread``: the states by which
    random numbers are spread, if not those where the rows start: of another programme that shares them.
    """

    of: Callable[[Tensor, Tensor, Tensor], Tensor]
    discount: float
    spread: Tensor | None = None


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

    state [N, F]; action (by course: of the study's actions, the action), segment [N]; next_state [N, S, F]; steps, ends
    [N, S]; weight [N]; flow [N, K], what is added in the periods without a choice that follow, discounted, the mean
    over the draws (None: nothing); likelier [N, S], by what each draw counts more than as one of S (None: 1).
    """

    state: Tensor
    action: Tensor
    next_state: Tensor
    steps: Tensor
    ends: Tensor
    segment: Tensor
    weight: Tensor
    flow: Tensor | None = None
    likelier: Tensor | None = None

    def only(self, rows: Tensor | slice) -> Transitions:
        parts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Transitions(**{name: part[rows] for name, part in parts.items() if part is not None})

    def with_flow(self, target: Tensor, first: int = 0) -> Tensor:
        """target[N, K], what follows is worth, with what is added to the periods without a choice before it: the
        columns of ``flow`` from ``first`` on."""
        if self.flow is None:
            return target
        assert self.flow.shape[1] >= first + target.shape[1], "a flow for every draw of the parameters"
        return target + self.flow[:, first : first + target.shape[1]]

    def of_segment(self, segment: int) -> Transitions:
        """The same rows as if all were of one segment."""
        return replace(self, segment=torch.full_like(self.segment, segment))


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
        key = torch.cat([self.state, self.segment.unsqueeze(1).to(self.state.dtype)], 1)
        found, place = key.unique(dim=0, return_inverse=True)
        weight = self.weight.new_zeros(len(found)).index_add_(0, place, self.weight)
        return States(found[:, :-1], found[:, -1].to(self.segment.dtype), weight)


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
        next_state=panel.state[following].unsqueeze(1),
        steps=panel.steps[rows].unsqueeze(1),
        ends=panel.ends[rows].unsqueeze(1),
        segment=panel.segment[rows],
        weight=panel.weight[rows],
    )


Target = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(next states [n S, F], their features [n S, D], log pi there [n S, A], discount [n S]) -> [n S, K]; pi of members who
decide."""


def ridge_of(rows: Transitions, sums: evaluation.Sums) -> float:
    """Ridge of the kernel on ``rows``, whose sums (of all processes) are ``sums``, per unit of weight."""
    return RIDGE_SPANNED if rows.steps.shape[1] > DRAWS else RIDGE_ROWS / sums.rows


@torch.no_grad()
def kernel_rows(
    model: FittedModel, rows: Transitions, log_policy: Callable[[Tensor], Tensor], target: Target | None = None
) -> Iterator[evaluation.Rows]:
    """The transitions in chunks for the kernel, under the programme as it is.

    Parameters
    ----------
    log_policy : next states [N, F] -> log pi[N, A] of members who decide; what happens follows from the model's
        attention.
    target : what each draw adds; the row's target is the mean over its draws. None: no target, for the matrix alone.
    """
    for i in torch.arange(len(rows.state), device=rows.state.device).split(max(1, CHUNK // rows.steps.shape[1])):
        part = rows.only(i)
        n, draws = part.steps.shape
        following = part.next_state.flatten(0, 1)
        if draws > DRAWS:  # states are few, and each is reached by many draws
            first, at = _repeated(following)
            phi, log_pi = (of(following[first])[at] for of in (model.basis, log_policy))
            log_pi = log_pi.double()
        else:
            phi, log_pi = model.basis(following), log_policy(following).double()
        discount = (model.config.discount**part.steps * ~part.ends).double()
        if part.likelier is not None:
            discount = discount * part.likelier
        mean = discount.new_zeros(n, 0)
        if target is not None:
            mean = target(following, phi, log_pi, discount.flatten()).view(n, draws, -1).mean(1)
        yield evaluation.Rows(
            phi=model.basis(part.state).double(),
            phi_next=phi.double().view(n, draws, -1),
            discount=discount,
            target=mean,
            weight=part.weight.double(),
            action=part.action,
            next_policy=bellman.seen_policy(log_pi, model.inertia_of(following)).exp().view(n, draws, -1),
        )


def _repeated(state: Tensor) -> tuple[Tensor, Tensor]:
    """Of state[N, F]: one row of every distinct state [U], and which state each row is [N]. Column by column: a sort of
    whole rows takes longer than their features."""
    at = torch.zeros(len(state), dtype=torch.long, device=state.device)
    for column in state.T:
        _, own = column.unique(return_inverse=True)
        _, at = (at * (own.max() + 1) + own).unique(return_inverse=True)
    first = torch.zeros(int(at.max()) + 1, dtype=torch.long, device=at.device)
    return first.scatter_(0, at, torch.arange(len(at), device=at.device)), at


@torch.no_grad()
def drawn(
    dynamics: TransitionModel,
    programme: Programme,
    rows: States,
    *,
    seed: int,
    draws: int = DRAWS,
    flow: Flow | None = None,
) -> Transitions:
    """What follows every available action in every state with a choice, ``draws`` times, under ``programme``.

    Programmes with the same seed share their random numbers. ``flow``: what is added in periods without a choice.

    Raises
    ------
    InputError
        If there is no state with a choice, or a path never reaches the next choice.
    """
    actions, courses = len(dynamics.schema.actions), max(programme.courses) + 1
    streams = [torch.Generator().manual_seed(seed + k) for k in range(2)]  # for courses beside the study's, the second
    blocks = [(k, stream) for k, stream in zip((actions, courses - actions), streams, strict=True) if k]
    spread = rows.state if flow is None or flow.spread is None else flow.spread
    place = torch.cat([_places(dynamics, spread, k, stream) for k, stream in blocks], 1)
    chunk = max(1, CHUNK // (actions * draws))

    def part(first: int) -> Transitions:
        own = rows.only(slice(first, first + chunk))

        def uniform(step: int) -> Tensor:
            """[n, courses, draws, n_random], the same for all programmes as far as they have the same courses."""
            found = []
            for at, k, stream in zip((0, actions), *zip(*blocks, strict=True), strict=False):
                known = place[first : first + chunk, at : at + k]
                within = torch.rand(known.shape, generator=stream) if step else known
                found.append(stratified(within.flatten(0, 1), draws, stream).unflatten(0, known.shape[:2]))
            return torch.cat(found, 1)

        return _drawn_chunk(dynamics, programme, own, uniform, draws, flow)

    parts = [part(first) for first in range(0, len(rows.state), chunk)]
    names = [name for name in Transitions.__dataclass_fields__ if getattr(parts[0], name) is not None]
    joined = Transitions(*(torch.cat([getattr(p, name) for p in parts]) for name in names))
    if not len(joined.state):
        raise InputError("nobody has anything to choose from: are all rows in contracts or terminal states?")
    return joined


def _drawn_chunk(
    dynamics: TransitionModel,
    programme: Programme,
    rows: States,
    uniform_at: Callable[[int], Tensor],
    draws: int,
    flow: Flow | None,
) -> Transitions:
    schema = dynamics.schema
    first = torch.tensor([programme.courses.index(c) for c in range(max(programme.courses) + 1)])  # of each course

    def free(faced: Tensor, menu: Tensor) -> Tensor:
        """Whether there is a choice, before the programme's changes or after them."""
        return free_rows(schema, faced) | (menu.sum(1) > 1)

    faced = programme.state(rows.state, rows.segment)
    menu = programme.menu(faced, rows.segment)
    cell = by_course(programme.courses, menu) & free(faced, menu).unsqueeze(1)
    index, course = cell.nonzero().unbind(1)  # row-major over rows and courses
    own = rows.only(index)
    repeated = index.repeat_interleave(draws)
    now, faced, segment, chosen = (
        rows.state[repeated],
        faced[repeated],
        rows.segment[repeated],
        first.to(course.device)[course].repeat_interleave(draws),
    )
    steps = torch.zeros(len(now), device=now.device)
    going = torch.arange(len(now), device=now.device)
    sums = None if flow is None else torch.zeros_like(flow.of(faced[:1], chosen[:1], segment[:1])).repeat(len(now), 1)
    for step in itertools.count():
        if not len(going):
            break
        # drawn for every row and course, on the menu or not, so that all programmes find the same numbers
        uniform = uniform_at(step).to(now.device)[cell].flatten(0, 1)[going]
        now[going] = programme.follow(dynamics, now[going], faced[going], chosen[going], uniform, segment[going])
        steps[going] += 1
        faced[going] = programme.state(now[going], segment[going])
        menu = programme.menu(faced[going], segment[going])
        forced = ~free(faced[going], menu) & menu.any(1)
        going, chosen = going[forced], chosen.index_copy(0, going, menu.long().argmax(1))
        if flow is not None and sums is not None and len(going):
            gained = flow.of(faced[going], chosen[going], segment[going])
            sums[going] += flow.discount ** steps[going].double().unsqueeze(1) * gained
        if float(steps.max()) > LONGEST_CONTRACT:
            raise InputError(
                f"the fitted dynamics hold members without a choice for more than {LONGEST_CONTRACT} periods: "
                "check `available` in the study"
            )
    ends = schema.is_terminal(faced)
    shape = (len(index), draws)
    mean = None if sums is None else sums.view(*shape, sums.shape[1]).mean(1)
    found = (own.state, course, now.view(*shape, now.shape[1]), steps.view(shape), ends.view(shape))
    return Transitions(*found, own.segment, own.weight, mean)


def stratified(within: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """uniform[rows, draws, width] in (0, 1): of every row and coordinate, one in each of ``draws`` equal parts, at the
    place within[rows, width] of each."""
    part = torch.rand(len(within), draws, within.shape[1], generator=generator).argsort(1)
    return ((part + within.unsqueeze(1)) / draws).clamp(1e-6, 1 - 1e-6)


def _places(dynamics: TransitionModel, state: Tensor, courses: int, generator: torch.Generator) -> Tensor:
    """within[N, courses, n_random] in [0, 1) at state[N, F], spread evenly over the rows that are alike."""
    columns = dynamics.schema.columns
    alike = [f for f, c in enumerate(columns) if c.dynamics == "static"]
    rank = torch.zeros(len(state), max(dynamics.n_random, 1), dtype=torch.float64)
    for j, f in enumerate([*dynamics.table, *dynamics.learned]):
        order = torch.randperm(len(state), generator=generator)  # of rows that are alike: anew for every coordinate
        for column in (f, *alike):
            order = order[state[:, column].cpu()[order].argsort(stable=True)]
        rank[order, j] = torch.arange(len(state), dtype=torch.float64)
    start = torch.rand(courses, rank.shape[1], generator=generator, dtype=torch.float64)
    return ((rank.unsqueeze(1) * GOLDEN + start) % 1).float()
