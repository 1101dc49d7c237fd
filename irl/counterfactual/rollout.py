"""Members simulated under several policies side by side, in batches, on common random numbers.

Members come in blocks of 1,024; each block and period has a random stream of its own, shared by all cases, so that the
difference between two cases is not blurred by luck, and results do not depend on how many blocks go into a batch.
Choices use the Gumbel-max rule, transitions the inverse distribution functions of :mod:`irl.dynamics`. Only counts by
segment and period are kept, never the paths.

How the counts would move with the reward's parameters needs no further simulation: along a path the probability of its
choices changes by sum_t dQ(s_t,a_t) - sum_a pi dQ, and the expected count by its covariance with that (the score
function of Glynn 1990, and of policy gradients).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from irl import bellman
from irl.counterfactual.solve import ScenarioPolicy
from irl.counterfactual.timing import Policy
from irl.data.column import Column
from irl.fitted import FittedModel, free_rows

BLOCK = 1024
"""Members who share a random stream."""
BLOCKS_PER_BATCH = 8


@dataclass(frozen=True)
class Starts:
    """Where the simulated members start: state [M, F] before any intervention, and segment [M]."""

    state: Tensor
    segment: Tensor


@dataclass(frozen=True)
class Counts:
    """What one case's members did, summed by segment (S segments, T periods, A actions), float64.

    present : [S, T], members who chose in the period (not terminal).
    chose : [S, T, A].
    moved : [S, T, A, A], from the action of the period before (first) to this period's, members present in both.
    at_risk, stayed : [S, T], by periods since joining during the simulation: members about to choose again, and those
        of them who did not go to the anchor. Of no meaning where the anchor is not one action.
    use : [S, T, U], sums of the columns ``used`` over members present (an ordinal counts by its levels' numbers, or by
        their rank where they are not numbers).
    valued : [S], members who have a choice when they learn of the changes: inside a contract no value is known.
    slopes : how each sum moves along each of B draws of the reward's parameters, [..., B]; None without draws.
    value : [S], sums of their soft values then; gained : [S], those of them whose value exceeds the first
        case's (the baseline's) by more than ``GAIN`` per period.
    """

    present: Tensor
    chose: Tensor
    moved: Tensor
    at_risk: Tensor
    stayed: Tensor
    use: Tensor
    valued: Tensor
    value: Tensor
    gained: Tensor
    slopes: Counts | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, ``slopes`` left out."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "slopes"}


GAIN = 1e-3
"""Reward units per period by which a member must be better off to count as gaining."""


@torch.no_grad()
def rollout(
    model: FittedModel,
    policies: Mapping[str, Policy],
    starts: Starts,
    *,
    periods: int,
    seed: int,
    used: tuple[int, ...] = (),
    tick: Callable[[int, int], None] = lambda done, of: None,
    visit: Callable[[str, Tensor, Tensor], None] = lambda case, faced, segment: None,
) -> dict[str, Counts]:
    """The counts of every case; the first policy is the baseline that the others are compared with.

    Parameters
    ----------
    policies : case label -> solved policy, of as many actions each; those with news later than at the start have it in
        the same period.
    used : state columns whose sums are kept.
    tick : called with members done and members in all.
    visit : called every period with the case, and faced[n, F] and segment[n] of members present.
    """
    totals = {case: _no_counts(model, policy, periods, len(used)) for case, policy in policies.items()}
    size, news = BLOCK * BLOCKS_PER_BATCH, max(policy.news for policy in policies.values())
    for first in range(0, len(starts.state), size):
        batch = Starts(starts.state[first : first + size], starts.segment[first : first + size])
        for case, policy in policies.items():
            see, own = partial(visit, case), (policy, next(iter(policies.values())))
            _simulate(model, own, news, batch, totals[case], first // BLOCK, periods, seed, used, see)
        tick(min(first + size, len(starts.state)), len(starts.state))
    return totals


def _add_values(
    policy: ScenarioPolicy, baseline: ScenarioPolicy, state: Tensor, segment: Tensor, choosing: Tensor, counts: Counts
) -> None:
    """Add the soft values at state[n, F] of the members who are ``choosing`` [n] there."""
    here, model = choosing.double(), policy.model
    faced, unchanged = policy.intervention.state(state, segment), baseline.intervention.state(state, segment)
    menu = policy.menu(faced, segment)
    value = policy.value(faced, menu, segment).double()
    gain = value - baseline.value(unchanged, baseline.menu(unchanged, segment), segment).double()
    counts.valued.index_add_(0, segment, here)
    counts.value.index_add_(0, segment, value * here)
    counts.gained.index_add_(0, segment, (gain * (1 - model.config.discount) > GAIN) * here)
    if counts.slopes is not None:
        pi = policy.log_policy(faced, menu, segment).double().exp()
        moved = torch.einsum("na,nab->nb", pi, policy.q_draws(faced, segment))
        counts.slopes.value.index_add_(0, segment, moved * here.unsqueeze(1))


def _simulate(
    model: FittedModel,
    policies: tuple[Policy, Policy],
    news: int,
    batch: Starts,
    counts: Counts,
    block: int,
    periods: int,
    seed: int,
    used: tuple[int, ...],
    visit: Callable[[Tensor, Tensor], None],
) -> None:
    """Add what the members of a batch do under a policy to ``counts``; ``policies``: it, and the baseline's."""
    path, baseline = policies
    segment, anchor, actions = batch.segment, model.schema.base, len(path.intervention.actions)
    known = len(model.schema.actions) + model.dynamics.n_random  # what all scenarios draw comes first
    measures = [_measure(model.schema.columns[f], batch.state.device) for f in used]
    state = batch.state  # before changes; ``faced`` after them
    before = torch.full_like(segment, -1)  # the action of the period before; -1: none
    age = torch.full_like(segment, -1)  # periods since joining in the simulation; -1: not joined in it
    score = None if path.draws is None else state.new_zeros(len(state), len(path.draws), dtype=torch.float64)
    for t in range(periods):
        policy = path.at(t)
        faced = policy.intervention.state(state, segment)
        uniform = _uniform(len(segment), actions + model.dynamics.n_random, block, t, seed, state.device)
        moves, chooses = uniform[:, len(model.schema.actions) : known], uniform[:, : len(model.schema.actions)]
        chooses = torch.cat([chooses, uniform[:, known:]], 1)
        menu = policy.menu(faced, segment)
        here = menu.any(1)
        visit(faced[here], segment[here])
        if t == news:
            _add_values(policy, baseline.at(t), state, segment, here & free_rows(model.schema, state), counts)
        gumbel = -(-chooses.log()).log()
        log_pi = policy.log_policy(faced, menu, segment)
        action = (log_pi + gumbel).argmax(1)
        if score is not None:
            score += _score(policy, faced, segment, log_pi, action) * here.unsqueeze(1)
        member = action != anchor
        moved = here & (before >= 0)
        risk = here & (age >= 0)
        index = {
            "present": (here, segment),
            "chose": (here, segment * actions + action),
            "moved": (moved, (segment * actions + before.clamp_min(0)) * actions + action),
            "at_risk": (risk, segment * periods + age.clamp_min(0)),
            "stayed": (risk & member, segment * periods + age.clamp_min(0)),
        }
        for name, (which, where) in index.items():
            by_period = name not in ("at_risk", "stayed")
            into = getattr(counts, name)
            _count(into[:, t] if by_period else into, where, which)
            if score is not None:
                into = getattr(counts.slopes, name)
                _add(into[:, t] if by_period else into, where[which], score[which])
        for u, f in enumerate(used):
            measure = measures[u]
            use = (faced[:, f].double() if measure is None else measure[faced[:, f].long()]) * here
            counts.use[:, t, u].index_add_(0, segment, use)
            if score is not None:
                assert counts.slopes is not None
                counts.slopes.use[:, t, u].index_add_(0, segment, use.unsqueeze(1) * score)
        joined = moved & member & (before == anchor)
        age = torch.where(joined, 0, torch.where((age >= 0) & member, age + 1, -1)).masked_fill(~here, -1)
        before = torch.where(here, action, -1)
        if t < periods - 1:
            following = policy.intervention.follow(model.dynamics, state, faced, action, moves, segment)
            state = torch.where(here.unsqueeze(1), following, state)


def _score(policy: ScenarioPolicy, faced: Tensor, segment: Tensor, log_pi: Tensor, action: Tensor) -> Tensor:
    """How the log-probability of action[N] moves along each draw of the parameters, [N, B]."""
    slope = bellman.log_policy_slope(
        policy.q_draws(faced, segment), log_pi.double(), policy.model.config.temperature, policy.intervention.nests
    )
    return slope.gather(1, action.view(-1, 1, 1).expand(-1, 1, slope.shape[2])).squeeze(1)


def _measure(column: Column, device: torch.device) -> Tensor | None:
    """The number that each level of a column counts as; None where the column's values are numbers themselves."""
    if not column.discrete:
        return None
    try:
        numbers = [float(name) for name in column.labels]
    except ValueError:
        numbers = [float(code) for code in range(len(column.labels))]
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def _uniform(members: int, width: int, block: int, period: int, seed: int, device: torch.device) -> Tensor:
    """uniform[members, width] in (0, 1): one stream per block of members and period."""
    parts = []
    for b in range(-(-members // BLOCK)):
        mixed = (seed * 1_000_003 + block + b) * 1_000_003 + period
        generator = torch.Generator().manual_seed(mixed % (2**63))
        parts.append(torch.rand(BLOCK, width, generator=generator))
    return torch.cat(parts)[:members].clamp(1e-7, 1 - 1e-7).to(device)


def _count(into: Tensor, index: Tensor, which: Tensor) -> None:
    """Add the number of members at each flat index of ``into`` (a view whose elements are in index order)."""
    added = torch.bincount(index[which], minlength=into.numel())
    into += added.view(into.shape)


def _add(into: Tensor, index: Tensor, values: Tensor) -> None:
    """Add values[n, B] at each flat index [n] of ``into`` (a view [..., B] whose elements are in index order)."""
    flat = into.new_zeros(into.numel() // values.shape[1], values.shape[1])
    into += flat.index_add_(0, index, values).view(into.shape)


def _no_counts(model: FittedModel, policy: Policy, periods: int, used: int) -> Counts:
    s, a = len(model.schema.segments), len(policy.intervention.actions)
    draws, device = None if policy.draws is None else len(policy.draws), model.device

    def zeros(*more: int) -> Counts:
        def of(*shape: int) -> Tensor:
            return torch.zeros(*shape, *more, dtype=torch.float64, device=device)

        return Counts(
            present=of(s, periods),
            chose=of(s, periods, a),
            moved=of(s, periods, a, a),
            at_risk=of(s, periods),
            stayed=of(s, periods),
            use=of(s, periods, used),
            valued=of(s),
            value=of(s),
            gained=of(s),
        )

    return zeros() if draws is None else replace(zeros(), slopes=zeros(draws))
