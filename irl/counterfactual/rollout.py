"""Members simulated under several policies side by side, in batches, on common random numbers.

Members come in blocks of 1,024, a few to a batch. Random numbers are a function of member, period and draw
(:mod:`irl.counterfactual.streams`), so that cases share them and the difference between two is not blurred by luck, and
results do not depend on the threads and processes that batches are dealt out to (a torch.distributed group, where there
is one; every process gets the sums), and on the size of batches only by the rounding of float32 in matrix products.
Choices use the Gumbel-max rule, transitions the inverse distribution functions of :mod:`irl.dynamics`. Only counts by
segment and period are kept, never the paths; also by parts of the members, between which they differ by luck alone.

How the counts would move with the reward's parameters needs no further simulation: along a path the probability of its
choices changes by sum_t dQ(s_t,a_t) - sum_a pi dQ, and the expected count by its covariance with that (the score
function of Glynn 1990, and of policy gradients). That is done for members of a sample of blocks, by segment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from threading import Lock

import torch
from torch import Tensor

from irl.counterfactual.counts import GROUPS, Counts, Kept, add_counts, by_segment, no_counts, set_counts
from irl.counterfactual.scenario_policy import ScenarioPolicy
from irl.counterfactual.streams import Streams
from irl.counterfactual.timing import Policy
from irl.data.column import measure
from irl.fitted import FittedModel, free_rows
from irl.processes import add_up, group, side_by_side

BLOCK = 1024
"""Members who are simulated, sampled and dealt out to processes together."""
BLOCKS_PER_BATCH, BLOCKS_PER_DEVICE_BATCH = 16, 1024
"""On a CPU, so that a batch stays in its cache; elsewhere, so that a period's few hundred operations take longer than
starting them does (5 ms on an H100 for 100,000 members or 260,000). At most."""
SAMPLED, ENOUGH = 16, 1024
"""Blocks in which slopes are found and states looked at (of fewer blocks, all), more where a segment has less than
``ENOUGH`` members in them: intervals and shares need no more, and finding slopes costs several times a step."""


@dataclass(frozen=True)
class Starts:
    """Where the simulated members start: state [M, F] before any intervention, and segment [M].

    row : [M], of the states that they were taken from, where their hidden types were drawn.
    score : of n of them, by how much the log-probability of these types moves along each draw of the parameters [n, B].
    real : [S], members of the data who may start so, by segment.
    """

    state: Tensor
    segment: Tensor
    row: Tensor | None = None
    score: Callable[[Tensor], Tensor] | None = None
    real: Tensor | None = None


GAIN = 1e-3
"""Reward units per period by which a member must be better off to count as gaining, or worse off as losing."""


def rollout(
    model: FittedModel,
    policies: Mapping[str, Policy],
    starts: Starts,
    *,
    periods: int,
    seed: int,
    used: tuple[int, ...] = (),
    paid: Callable[[Tensor], Tensor] | None = None,
    tick: Callable[[int, int], None] = lambda done, of: None,
    visit: Callable[[str, Tensor, Tensor], None] = lambda case, faced, segment: None,
    kept: Kept | None = None,
) -> dict[str, Counts]:
    """The counts of every case; the first policy is the baseline that the others are compared with.

    Parameters
    ----------
    policies : case label -> solved policy, of as many actions each; those with news later than at the start have it in
        the same period.
    used : state columns whose sums are kept.
    paid : what members at faced[n, F] pay and cost [n, A, 2] by action of the study.
    tick : called with members done and members in all (of this process).
    visit : called every period with the case, and faced[n, F] and segment[n] of the members present in the sampled
        blocks (see ``SAMPLED``), one call at a time.
    kept : if sums are kept on the way; they are begun from what is there. What was visited is ``visit``'s to remember.
    """
    device = starts.state.device
    segments = len(model.schema.segments)
    sampled = _sampled_blocks(starts.segment, segments)[torch.arange(len(starts.state), device=device) // BLOCK]
    number = torch.bincount(starts.segment, minlength=segments).double()  # of members of a segment, and in the sample
    weight = number / torch.bincount(starts.segment[sampled], minlength=segments).clamp_min(1)
    rank, processes = group()
    mine = batches(len(starts.state), device)[rank::processes]
    totals = {case: no_counts(model, policy, periods, used, device) for case, policy in policies.items()}
    cell = starts.segment * GROUPS + _parts(len(starts.state), seed).to(device)
    lock, baseline, news = Lock(), next(iter(policies.values())), max(policy.news for policy in policies.values())

    def see(case: str, faced: Tensor, segment: Tensor) -> None:
        with lock:
            visit(case, faced, segment)

    @torch.no_grad()
    def simulated(rows: slice) -> dict[str, Counts]:
        counts = {case: no_counts(model, policy, periods, used, device) for case, policy in policies.items()}
        some = sampled[rows].nonzero().squeeze(1)
        score = None if starts.score is None or not len(some) else starts.score(rows.start + some)
        batch = Batch(starts.state[rows], starts.segment[rows], cell[rows], rows.start, some, score)
        for case, policy in policies.items():
            own = (policy, baseline)
            _simulate(model, own, news, batch, counts[case], periods, seed, used, paid, partial(see, case))
        return counts

    kept_sums = {
        f"{i}.{'slopes.' * (part is total.slopes)}{name}": tensor
        for i, total in enumerate(totals.values())
        for part in (total, total.slopes)
        for name, tensor in (part.tensors() if part else {}).items()
    }
    size, of = len(mine) if kept is None else kept.together, sum(rows.stop - rows.start for rows in mine)
    begun = 0 if kept is None else kept.load(kept_sums)
    done = sum(rows.stop - rows.start for rows in mine[:begun])
    for first in range(begun, len(mine), size or 1):
        part = mine[first : first + size]
        for rows, counts in zip(part, side_by_side(simulated, part, device), strict=True):
            for case, total in totals.items():
                add_counts(total, counts[case], model, used)
            done += rows.stop - rows.start
            tick(done, of)
        if kept is not None:
            kept.save(kept_sums, first + len(part))
    add_up(list(kept_sums.values()))
    for total in totals.values():
        for sums in total.slopes.tensors().values() if total.slopes else ():
            sums *= weight.view(-1, *[1] * (sums.dim() - 1))
    return {case: by_segment(total) for case, total in totals.items()}


def batches(members: int, device: torch.device) -> list[slice]:
    """The members of each batch: whole blocks, but for the last."""
    blocks = BLOCKS_PER_DEVICE_BATCH
    if device.type == "cpu":  # smaller where there would not be four batches, for as many threads
        blocks = min(BLOCKS_PER_BATCH, max(4, members // (4 * BLOCK)))
    size = blocks * BLOCK
    return [slice(first, min(first + size, members)) for first in range(0, members, size)]


@dataclass(frozen=True)
class Batch:
    """Whole blocks of members: state[N, F], segment[N], cell[N] where they are counted (segment * GROUPS + part), the
    number of the first, which rows are sampled, and where the scores of these start [n, B] (None: at 0)."""

    state: Tensor
    segment: Tensor
    cell: Tensor
    first: int
    sampled: Tensor
    score: Tensor | None = None


def _parts(members: int, seed: int) -> Tensor:
    """part[M] of every member: drawn, so that no order of the members makes the parts differ."""
    return torch.randint(GROUPS, (members,), generator=torch.Generator().manual_seed(seed))


def _add_values(
    policy: ScenarioPolicy, baseline: ScenarioPolicy, batch: Batch, state: Tensor, choosing: Tensor, counts: Counts
) -> None:
    """Add the soft values at state[N, F] of the members of a batch who are ``choosing`` [N] there."""
    segment, cell, some, here = batch.segment, batch.cell, batch.sampled, choosing.double()
    faced, unchanged = policy.intervention.state(state, segment), baseline.intervention.state(state, segment)
    value = policy.value(faced, policy.menu(faced, segment), segment).double()
    before = value if policy is baseline else baseline.value(unchanged, baseline.menu(unchanged, segment), segment)
    gain = (value - before) * (1 - policy.model.config.discount)
    counts.valued.index_add_(0, cell, here)
    counts.value.index_add_(0, cell, value * here)
    counts.gained.index_add_(0, cell, (gain > GAIN) * here)
    counts.lost.index_add_(0, cell, (gain < -GAIN) * here)
    if counts.slopes is not None and len(some):
        segment, here, gain = segment[some], here[some].unsqueeze(1), gain[some].unsqueeze(1)
        moved = _value_draws(policy, faced[some], segment)
        counts.slopes.value.index_add_(0, segment, moved * here)
        if batch.score is not None:
            for name in ("valued", "value", "gained", "lost"):
                own = {"valued": here, "value": value[some].unsqueeze(1), "gained": gain > GAIN, "lost": gain < -GAIN}
                getattr(counts.slopes, name).index_add_(0, segment, own[name] * here * batch.score)
        if policy is not baseline:  # who gains jumps: what counts is how many more do under each draw
            drawn = gain + (moved - _value_draws(baseline, unchanged[some], segment)) * (
                1 - policy.model.config.discount
            )
            more, fewer = (drawn > GAIN).double() - (gain > GAIN).double(), (drawn < -GAIN).double()
            counts.slopes.gained.index_add_(0, segment, more * here)
            counts.slopes.lost.index_add_(0, segment, (fewer - (gain < -GAIN).double()) * here)


def _value_draws(policy: ScenarioPolicy, faced: Tensor, segment: Tensor) -> Tensor:
    """What each draw of the parameters adds to the soft values [N, B] at faced[N, F]."""
    pi = policy.log_policy(faced, policy.menu(faced, segment), segment).double().exp()
    return torch.einsum("na,nab->nb", pi, policy.q_draws(faced, segment))


def _simulate(
    model: FittedModel,
    policies: tuple[Policy, Policy],
    news: int,
    batch: Batch,
    counts: Counts,
    periods: int,
    seed: int,
    used: tuple[int, ...],
    paid: Callable[[Tensor], Tensor] | None,
    visit: Callable[[Tensor, Tensor], None],
) -> None:
    """Fill ``counts`` with what the members of a batch do under a policy; ``policies``: it, and the baseline's."""
    path, baseline = policies
    segment, some, anchor, actions = batch.segment, batch.sampled, model.schema.base, counts.chose.shape[2]
    members, cell = len(segment), batch.cell
    own, moves = len(model.schema.actions), len(model.schema.actions) + model.dynamics.n_random
    numbers = range(batch.first, batch.first + members)
    streams = Streams(seed, numbers, periods=periods, width=moves + actions - own, device=segment.device)
    columns = torch.tensor(used, dtype=torch.long, device=segment.device)
    measures = [measure(model.schema.columns[f], segment.device) for f in used]
    state = batch.state.T.contiguous().T  # before changes, stored by column; ``faced`` after them
    before = torch.full_like(segment, -1)  # the action of the period before; -1: none
    age = torch.full_like(segment, -1)  # periods since joining in the simulation; -1: not joined in it
    # what each member did, as one number a period, counted at the end; -1: absent, not at risk
    did, lived = segment.new_empty(periods, members), segment.new_empty(periods, members)
    scores = segment.new_zeros(0)
    if counts.slopes is not None:
        number = counts.slopes.value.shape[-1]
        scores = state.new_zeros(periods, len(some), number, dtype=torch.float64)
        if batch.score is not None:
            scores[0] = batch.score
    for t in range(periods):
        policy = path.at(t)
        faced = policy.intervention.state(state, segment)
        uniform = streams(t)
        menu = policy.menu(faced, segment)
        here = menu.any(1)
        if t == news:
            _add_values(policy, baseline.at(t), batch, state, here & free_rows(model.schema, state), counts)
        log_pi = policy.log_policy(faced, menu, segment)
        luck = torch.cat([uniform[:, :own], uniform[:, moves:]], 1)  # added actions come last: the others keep theirs
        action = (log_pi - (-luck.log()).log()).argmax(1)
        if len(some):
            see = some[here[some]]
            visit(faced[see, : state.shape[1]], segment[see])
            if counts.slopes is not None:
                moved = policy.score_draws(faced[some], segment[some], log_pi[some], action[some])
                scores[t] = scores[max(t - 1, 0)] + moved * here[some].unsqueeze(1)
        member = action != anchor
        risk = here & (age >= 0)
        did[t] = torch.where(here, (before + 1) * actions + action, -1)
        lived[t] = torch.where(risk, age * 2 + member, -1)
        sums = {"use": faced.T.index_select(0, columns).double() * here} if used else {}  # [U, N]
        for u, levels in enumerate(measures):
            if levels is not None:
                sums["use"][u] = levels[faced[:, used[u]].long()] * here
        if paid is not None:
            flows = policy.intervention.over_actions(paid, faced)  # [N, A', 2]
            sums["money"] = flows[torch.arange(members, device=segment.device), action].T * here
        for name, values in sums.items():
            getattr(counts, name)[:, t].index_add_(0, cell, values.T)
            if counts.slopes is not None:
                moved = values[:, some].T.unsqueeze(2) * scores[t].unsqueeze(1)
                getattr(counts.slopes, name)[:, t].index_add_(0, segment[some], moved)
        joined = here & member & (before == anchor)
        age = torch.where(joined, 0, torch.where((age >= 0) & member, age + 1, -1)).masked_fill(~here, -1)
        before = torch.where(here, action, -1)
        if t < periods - 1:
            luck = uniform[:, own:moves]
            following = policy.intervention.follow(model.dynamics, state, faced, action, luck, segment)
            state = torch.where(here.unsqueeze(1), following, state)
    set_counts(counts, did, lived, cell)
    if counts.slopes is not None:
        set_counts(counts.slopes, did[:, some], lived[:, some], segment[some], scores)


def _sampled_blocks(segment: Tensor, segments: int) -> Tensor:
    """bool[blocks]: ``SAMPLED`` blocks evenly spaced, and as many more as each segment needs to be there."""
    blocks = -(-len(segment) // BLOCK)
    block = torch.arange(len(segment), device=segment.device) // BLOCK
    members = torch.bincount(block * segments + segment, minlength=blocks * segments).view(blocks, segments).cpu()
    sampled = torch.zeros(blocks, dtype=torch.bool)
    sampled[torch.arange(min(SAMPLED, blocks)) * blocks // min(SAMPLED, blocks)] = True
    for s in range(segments):
        order = members[:, s].masked_fill(sampled, 0).argsort(descending=True, stable=True)
        found = members[sampled, s].sum() + torch.cat([members.new_zeros(1), members[order, s].cumsum(0)[:-1]])
        sampled[order[found < members[:, s].sum().clamp_max(ENOUGH)]] = True
    return sampled.to(segment.device)
