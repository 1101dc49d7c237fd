"""Members simulated under several policies side by side, in batches, on common random numbers.

Members come in blocks of 1,024; each block and period has a random stream of its own, shared by all cases, so that the
difference between two cases is not blurred by luck, and results do not depend on how many blocks go into a batch.
Choices use the Gumbel-max rule, transitions the inverse distribution functions of :mod:`irl.dynamics`. Only counts by
segment and period are kept, never the paths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from irl.counterfactual.solve import ScenarioPolicy
from irl.data.schema import Column
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
        of them who did not go to the anchor.
    use : [S, T, U], sums of the columns ``used`` over members present (an ordinal counts by its levels' numbers, or by
        their rank where they are not numbers).
    valued : [S], members who have a choice at the start: inside a contract no value is known.
    value : [S], sums of their soft values at the start; gained : [S], those of them whose value exceeds the first
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


GAIN = 1e-3
"""Reward units per period by which a member must be better off to count as gaining."""


@torch.no_grad()
def rollout(
    model: FittedModel,
    policies: Mapping[str, ScenarioPolicy],
    starts: Starts,
    *,
    periods: int,
    seed: int,
    used: tuple[int, ...] = (),
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Counts]:
    """The counts of every case; the first policy is the baseline that the others are compared with.

    Parameters
    ----------
    policies : case label -> solved policy.
    used : state columns whose sums are kept.
    tick : called with members done and members in all.
    """
    totals = {case: _no_counts(model, periods, len(used), starts.state.device) for case in policies}
    size = BLOCK * BLOCKS_PER_BATCH
    for first in range(0, len(starts.state), size):
        batch = Starts(starts.state[first : first + size], starts.segment[first : first + size])
        _add_values(model, policies, batch, totals)
        for case, policy in policies.items():
            _simulate(model, policy, batch, totals[case], first // BLOCK, periods, seed, used)
        tick(min(first + size, len(starts.state)), len(starts.state))
    return totals


def _add_values(
    model: FittedModel, policies: Mapping[str, ScenarioPolicy], batch: Starts, totals: Mapping[str, Counts]
) -> None:
    """Add the soft values at the start, of members who have a choice there, to ``totals``."""
    baseline: Tensor | None = None
    state, segment = batch.state, batch.segment
    choosing = free_rows(model.schema, state).double()
    for case, policy in policies.items():
        faced = policy.intervention.state(state, segment)
        value = policy.value(faced, policy.menu(faced, segment), segment).double()
        baseline = value if baseline is None else baseline
        better = (value - baseline) * (1 - model.config.discount) > GAIN
        totals[case].valued.index_add_(0, segment, choosing)
        totals[case].value.index_add_(0, segment, value * choosing)
        totals[case].gained.index_add_(0, segment, better * choosing)


def _simulate(
    model: FittedModel,
    policy: ScenarioPolicy,
    batch: Starts,
    counts: Counts,
    block: int,
    periods: int,
    seed: int,
    used: tuple[int, ...],
) -> None:
    """Add what the members of a batch do under one policy to ``counts``."""
    segment, anchor, actions = batch.segment, model.schema.anchor, len(model.schema.actions)
    measures = [_measure(model.schema.columns[f], batch.state.device) for f in used]
    state = batch.state  # before changes; ``faced`` after them
    before = torch.full_like(segment, -1)  # the action of the period before; -1: none
    age = torch.full_like(segment, -1)  # periods since joining in the simulation; -1: not joined in it
    for t in range(periods):
        faced = policy.intervention.state(state, segment)
        uniform = _uniform(len(segment), actions + model.dynamics.n_random, block, t, seed, state.device)
        menu = policy.menu(faced, segment)
        here = menu.any(1)
        gumbel = -(-uniform[:, :actions].log()).log()
        action = (policy.log_policy(faced, menu, segment) + gumbel).argmax(1)
        member = action != anchor
        counts.present[:, t].index_add_(0, segment, here.double())
        _count(counts.chose[:, t], segment * actions + action, here)
        moved = here & (before >= 0)
        _count(counts.moved[:, t], (segment * actions + before.clamp_min(0)) * actions + action, moved)
        risk = here & (age >= 0)
        _count(counts.at_risk, segment * periods + age.clamp_min(0), risk)
        _count(counts.stayed, segment * periods + age.clamp_min(0), risk & member)
        for u, f in enumerate(used):
            measure = measures[u]
            use = faced[:, f].double() if measure is None else measure[faced[:, f].long()]
            counts.use[:, t, u].index_add_(0, segment, use * here)
        joined = moved & member & (before == anchor)
        age = torch.where(joined, 0, torch.where((age >= 0) & member, age + 1, -1)).masked_fill(~here, -1)
        before = torch.where(here, action, -1)
        if t < periods - 1:
            following = model.dynamics.sample(faced, action, uniform[:, actions:])
            following = policy.intervention.before_changes(following, state)
            state = torch.where(here.unsqueeze(1), following, state)


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


def _no_counts(model: FittedModel, periods: int, used: int, device: torch.device) -> Counts:
    s, a = len(model.schema.segments), len(model.schema.actions)
    shapes = [(s, periods), (s, periods, a), (s, periods, a, a), (s, periods), (s, periods), (s, periods, used)]
    shapes_of_segments = [(s,), (s,), (s,)]
    return Counts(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in [*shapes, *shapes_of_segments]))
