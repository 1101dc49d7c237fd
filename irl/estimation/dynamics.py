"""The dynamics step: fits the transition model on every pair of consecutive rows, forced ones included.

Tables are weighted counts; cells never seen borrow from coarser counts (see :mod:`irl.dynamics`). Where moves are alike
at all levels they are counted over all of them, action by action: by how many levels the column went up or down, or the
level that it went to (a reset), whichever is the likelier. Rows from which a move that occurs would have passed an end
of the levels do not count for the first; what passes an end arrives there. Learned heads are
fitted by maximum likelihood; where that does no better on held-out members than the frequencies that the heads start
from, it is undone. Clocks are read off the data: any rule that gives the next value from the own one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from irl import processes
from irl.config import InputError, Step
from irl.data.batches import Batches, Through
from irl.data.panel import Panel
from irl.data.schema import StateSchema
from irl.dynamics import LOG_SCALE_RANGE, TransitionModel, n_cells, start_parents, table_cell
from irl.estimation.rowwise import parts_of
from irl.estimation.training import Fitting, Trained, Workbench, train

LEAST_ATOM = 0.01
"""Share of rows at a count's or number's minimum from which that value gets a probability of its own."""
LEAST_ROWS = 10
"""Rows of an action below which a number's regression is that over all actions."""
BORROWED = 5.0
"""Rows that the frequencies a learned head starts from take from coarser counts."""
LEAST_SHARE = 1e-4
"""The smallest of these frequencies: a level not seen yet must stay within the network's reach."""
BINS = 100
"""Quantiles at which the shape of moves is compared with that of their distributions."""
CHECK_ROWS = 65536
"""Held-out rows scored at once."""


@dataclass(frozen=True)
class DynamicsReport:
    """How the heads were trained (None without learned columns), the mean log P of held-out transitions, and whether
    the training was undone because it did no better than what the heads start from.

    Tables are counted on all members, held-out ones too, and in the end so are the frequencies under the heads.
    ``misfit``: of every learned number, the largest difference between the share of held-out moves below a quantile of
    their distributions and that quantile (Kolmogorov's distance; moves to the ends of the range are left out).
    """

    held_out_log_prob: float
    trained: Trained | None
    undone: bool = False
    misfit: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Pairs:
    """Consecutive rows of a panel: those of where[N] and their members' next ones."""

    panel: Panel
    where: Tensor

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """State, action, next state and weight of some pairs at a time."""
        panel = self.panel
        for i in parts_of(self.where):
            yield panel.state[i], panel.action[i], panel.state[panel.next_row[i]], panel.weight[i]


class DynamicsStep(Fitting):
    """Negative log-likelihood of the learned columns; a batch is (state, action, next state, weight)."""

    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        state, action, following, weight = batch
        assert isinstance(self.network, TransitionModel)
        return -self.network.learned_log_prob(state, action, following).sum(1), weight


def fit_dynamics(
    panel: Panel, held_out: Tensor, options: Step, *, bench: Workbench
) -> tuple[TransitionModel, DynamicsReport]:
    """Fit the transition model; ``held_out`` is bool [N], rows of the members who stop the training.

    Raises
    ------
    InputError
        If a clock does not run regularly, a static column changes, a table would be too large, or there are learned
        columns but no transitions to train on or to stop the training with.
    """
    torch.manual_seed(bench.seed + 3)
    model = TransitionModel(panel.schema, options.hidden).to(bench.device)
    pairs, fit, check = (
        Pairs(panel, (panel.next_row >= 0) & rows) for rows in (panel.next_row >= 0, ~held_out, held_out)
    )
    check_declared(panel)
    for f in model.clock:
        step, (found, seen, _) = getattr(model, f"clock_{f}"), _clock(panel.schema, f, pairs)
        step[seen] = found[seen].to(step.dtype)
    for f in model.table:
        getattr(model, f"table_{f}").copy_(_frequencies(model.schema, f, model.schema.columns[f].parents, pairs))
    trained, held_out_log_prob, undone = None, None, False
    if model.learned:
        trains, checks = (processes.anywhere(side.where.any()) for side in (fit, check))
        if not trains or not checks:
            which = "held-out" if trains else "other than held-out"
            raise InputError(f"no {which} member has two consecutive rows: change `estimation.validation` or `seed`")
        _set_starts(model, fit)
        _set_atoms(model, pairs)
        start, before = copy.deepcopy(model.state_dict()), _mean_log_prob(model, check)
        columns = (panel.state, panel.action, Through(panel.state, panel.next_row), panel.weight)
        trained = train(
            DynamicsStep(model, options),
            Batches(columns, batch_size=options.batch_size, seed=bench.seed + 3, where=fit.where),
            Batches(columns, batch_size=CHECK_ROWS, seed=None, where=check.where),
            name="dynamics",
            bench=bench,
        )
        held_out_log_prob = _mean_log_prob(model, check)
        if held_out_log_prob < before:
            model.load_state_dict(start)
            held_out_log_prob, undone = before, True
        _set_starts(model, pairs)
    if held_out_log_prob is None:
        held_out_log_prob = _mean_log_prob(model, check if processes.anywhere(check.where.any()) else pairs)
    return model, DynamicsReport(held_out_log_prob, trained, undone, _misfit(model, check))


@torch.no_grad()
def _mean_log_prob(model: TransitionModel, pairs: Pairs) -> float:
    sums = torch.zeros(2, dtype=torch.float64, device=pairs.where.device)
    for state, action, following, _ in pairs:
        found = model.log_prob(state, action, following).double()
        sums += torch.stack([found.sum(), found.new_tensor(len(found))])
    total, rows = processes.summed(sums).tolist()
    return float(total) / float(rows) if rows else math.nan


@torch.no_grad()
def _misfit(model: TransitionModel, pairs: Pairs) -> dict[str, float]:
    found = {}
    for f in (f for f in model.learned if model.schema.columns[f].kind == "numeric"):
        column, counts = model.schema.columns[f], torch.zeros(BINS, dtype=torch.float64, device=pairs.where.device)
        for state, action, following, weight in pairs:
            inside = (following[:, f] > column.minimum) & (following[:, f] < column.maximum)
            at = (model.quantile(f, state, action, following)[inside] * BINS).long().clamp(0, BINS - 1)
            counts += torch.bincount(at, weight[inside].double(), BINS)
        share = processes.summed(counts).cumsum(0)
        if float(share[-1]):
            uniform = torch.arange(1, BINS + 1, device=share.device) / BINS
            found[column.name] = float((share / share[-1] - uniform).abs().max())
    return found


def check_declared(panel: Panel) -> None:
    """InputError if rows contradict the declared dynamics: clocks that do not run regularly, statics that change."""
    pairs = Pairs(panel, panel.next_row >= 0)
    clocks = (f for f, column in enumerate(panel.schema.columns) if column.dynamics == "clock")
    broken = {f: _clock(panel.schema, f, pairs)[2] for f in clocks}
    every = int(processes.total(pairs.where.sum()))
    problems = [
        f"{panel.schema.columns[f].name}: `dynamics: clock`, but {number:,} of {every:,} transitions break its step; "
        "use learned"
        for f, number in broken.items()
        if number
    ] + _moving_static(panel.schema, pairs)
    if problems:
        raise InputError("the panel contradicts the declared dynamics:\n  " + "\n  ".join(problems))


def _clock(schema: StateSchema, f: int, pairs: Pairs) -> tuple[Tensor, Tensor, int]:
    """What follows each level [levels] of clock ``f`` most often, and which were seen [levels] (of a number, its median
    step, seen); and how many pairs follow another step."""
    column, device = schema.columns[f], pairs.where.device
    if column.discrete:
        levels = len(column.labels) + 1  # the unseen one included
        moves = (state[:, f].long() * levels + following[:, f].long() for state, _, following, _ in pairs)
        counts = _counts(((move, None) for move in moves), (levels, levels), device)
        return counts.argmax(1), counts.sum(1) > 0, int(counts.sum() - counts.amax(1).sum())
    jumps = torch.cat([later[:, f] - now[:, f] for now, _, later, _ in pairs] or [torch.zeros(0, device=device)])
    step = processes.agreed(jumps.median())
    wrong = sum(
        float(((now[:, f] + step - later[:, f]).abs() > 1e-4 * (1 + later[:, f].abs())).sum())
        for now, _, later, _ in pairs
    )
    return step, torch.ones_like(step, dtype=torch.bool), int(processes.total(wrong))


def _moving_static(schema: StateSchema, pairs: Pairs) -> list[str]:
    static = [f for f, column in enumerate(schema.columns) if column.dynamics == "static"]
    moved, every = torch.zeros(len(static), dtype=torch.float64), int(processes.total(pairs.where.sum()))
    for state, _, following, _ in pairs:
        moved += (state[:, static] != following[:, static]).sum(0).cpu()
    return [
        f"{schema.columns[f].name}: `dynamics: static`, but it changes in {int(number):,} of {every:,} transitions; "
        "use learned, table or clock"
        for f, number in zip(static, processes.summed(moved.to(pairs.where.device)).tolist(), strict=True)
        if number
    ]


def _frequencies(
    schema: StateSchema, f: int, parents: tuple[int, ...], pairs: Pairs, *, borrowed: float = 0.0
) -> Tensor:
    """Weighted frequencies [cells, A, levels] of column ``f``'s next level given the parents and the action.

    ``borrowed`` rows of every cell are taken from the coarser counts; where nothing was counted, all.
    """
    cells, actions, levels = n_cells(schema, parents), len(schema.actions), len(schema.columns[f].labels)

    def moves() -> Iterator[tuple[Tensor, Tensor]]:
        for state, action, following, weight in pairs:
            known = following[:, f] < levels
            cell = table_cell(schema, parents, state[known]) * actions + action[known]
            yield cell * levels + following[known, f].long(), weight[known]

    counts = _counts(moves(), (cells, actions, levels), pairs.where.device)
    if schema.columns[f].alike:
        return _alike(schema, f, counts)
    group = _cells(schema, parents)[:, f].to(counts.device)  # 0 if it is no parent of its own
    if f in parents:
        groups, start = levels + 1, torch.eye(levels + 1, levels)
        start[-1] = 1 / levels
    else:
        groups, start = 1, torch.full((1, levels), 1 / levels)
    by_action = counts.new_zeros(groups, actions, levels).index_add_(0, group, counts)
    coarse = _shares(by_action.sum(1), start.to(counts))
    return _shares(counts, _shares(by_action, coarse.unsqueeze(1), borrowed)[group], borrowed)


def _alike(schema: StateSchema, f: int, counts: Tensor) -> Tensor:
    """Frequencies [cells, A, levels] of column ``f``'s next level from their counts, its moves alike at all levels: for
    each action, and combination of the other parents, those of moves or of levels arrived at. What was never seen is as
    in all combinations, then stays."""
    parents, (_, actions, levels) = schema.columns[f].parents, counts.shape
    others, codes = tuple(p for p in parents if p != f), _cells(schema, parents).to(counts.device)
    own, group, groups = codes[:, f], table_cell(schema, others, codes), n_cells(schema, others)
    joint = counts.new_zeros(levels + 1, groups, actions, levels)
    joint[own, group] = counts
    joint = joint[:levels]
    at = torch.arange(levels, device=counts.device)
    move = (at - at.unsqueeze(1)).unsqueeze(1) * (joint.sum(1) > 0)  # [own, A, to], 0 where it was not seen
    down, up = (-move).amax((0, 2)), move.amax((0, 2))
    whole = (at.unsqueeze(1) >= down) & (at.unsqueeze(1) < levels - up)  # [own, A]: no move was cut short
    stays = torch.eye(2 * levels - 1, dtype=counts.dtype, device=counts.device)[levels - 1]
    moved = counts.new_zeros(groups, actions, 2 * levels - 1)
    for level, part in enumerate(joint * whole.unsqueeze(1).unsqueeze(3)):
        moved[:, :, levels - 1 - level : 2 * levels - 1 - level] += part

    def pooled(counted: Tensor, otherwise: Tensor) -> Tensor:
        return _shares(counted, _shares(counted.sum(0), otherwise))

    arrived, moved = pooled(joint.sum(0), torch.full_like(stays[:levels], 1 / levels)), pooled(moved, stays)
    target = (at.unsqueeze(1) + torch.arange(1 - levels, levels, device=at.device)).clamp(0, levels - 1)
    by_move = torch.stack([torch.zeros_like(arrived).index_add_(2, to, moved) for to in target])  # [own, groups, A, to]
    better = by_move.clamp_min(1e-12).log() - arrived.clamp_min(1e-12).log()
    better = better - 1e-6 * ~whole.unsqueeze(1).unsqueeze(3)  # both explain all: what was counted on more rows
    score = (joint * better).sum((0, 3))
    score = torch.where(joint.sum((0, 3)) > 0, score, score.sum(0))
    by_level = torch.cat([torch.where((score >= 0).unsqueeze(2), by_move, arrived), arrived.unsqueeze(0)])
    return by_level[own, group]  # of a level that is not known: those arrived at


def _cells(schema: StateSchema, parents: tuple[int, ...]) -> Tensor:
    """Codes [cells, F] of each combination of the parents; 0 for columns that are none."""
    codes = torch.zeros(n_cells(schema, parents), len(schema.columns), dtype=torch.long)
    for i, p in enumerate(parents):
        codes[:, p] = (
            torch.arange(len(codes)) // n_cells(schema, parents[i + 1 :]) % (len(schema.columns[p].labels) + 1)
        )
    return codes


def _counts(parts: Iterable[tuple[Tensor, Tensor | None]], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Sums of weight[n] (or 1) at each flat index[n] of the parts, over all processes; float64: float32 stops counting
    at 2^24."""
    total = torch.zeros(math.prod(shape), dtype=torch.float64, device=device)
    for index, weight in parts:
        total += torch.bincount(index, None if weight is None else weight.double(), len(total))
    return processes.summed(total).view(shape)


def _shares(counts: Tensor, otherwise: Tensor, borrowed: float = 0.0) -> Tensor:
    """Counts over the last axis as frequencies, with ``borrowed`` counts of ``otherwise`` (broadcast) added; that alone
    where nothing was counted."""
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, (counts + borrowed * otherwise) / (total + borrowed).clamp_min(1e-300), otherwise)


def _set_starts(model: TransitionModel, pairs: Pairs) -> None:
    """Let every head start from what simple statistics of ``pairs`` say: log frequencies of a category's or ordinal's
    levels; a number's regression on its present value, by action."""
    for f in model.learned:
        if model.schema.columns[f].discrete:
            own = start_parents(model.schema, f)
            frequencies = _frequencies(model.schema, f, own, pairs, borrowed=BORROWED)
            getattr(model, f"start_{f}").copy_(frequencies.clamp_min(LEAST_SHARE).log())
        else:
            getattr(model, f"start_{f}").copy_(_regressions(model.schema, f, pairs))


def _regressions(schema: StateSchema, f: int, pairs: Pairs) -> Tensor:
    """Constant, slope and log scale [A, 3] of the move of number ``f`` given its present value, in sd units.

    Rows that end at the minimum are left out where that has a probability of its own; actions with fewer than
    ``LEAST_ROWS`` rows take the regression over all.
    """
    column, actions = schema.columns[f], len(schema.actions)
    every = bool(_share_at_minimum(schema, f, pairs) < LEAST_ATOM)

    def inside() -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Present value and move in sd units, action, weight."""
        for state, action, following, weight in pairs:
            now, later = state[:, f].double(), following[:, f].double()
            rows = slice(None) if every else (later > column.minimum).nonzero().squeeze(1)
            z, move = (now - column.centre) / column.scale, (later - now) / column.scale
            yield z[rows], move[rows], action[rows], weight[rows].double()

    def sums(terms: Callable[[Tensor, Tensor, Tensor], list[Tensor]], number: int) -> Tensor:
        """[A + 1, number]: of terms(z, move, action) by weight (the last of rows), by action and over all."""
        total = torch.zeros(actions, number, dtype=torch.float64, device=pairs.where.device)
        for z, move, action, weight in inside():
            values = torch.stack([*(weight * term for term in terms(z, move, action)), torch.ones_like(z)], 1)
            total.index_add_(0, action, values)
        total = processes.summed(total)
        return torch.cat([total, total.sum(0, keepdim=True)])

    first = sums(lambda z, y, a: [torch.ones_like(z), z, z.square(), y, z * y], 6)
    mass, z, squares, y, products, rows = first.unbind(1)
    gram = torch.stack([torch.stack([mass, z], 1), torch.stack([z, squares + 1e-6 * mass], 1)], 1)
    gram = torch.where((rows > 0).view(-1, 1, 1), gram, torch.eye(2, dtype=gram.dtype, device=gram.device))
    beta = torch.linalg.solve(gram, torch.stack([y, products], 1).unsqueeze(2)).squeeze(2)
    enough = rows >= LEAST_ROWS

    def error(z: Tensor, y: Tensor, a: Tensor, own: Tensor) -> Tensor:
        return (y - own[a, 0] - own[a, 1] * z).square()

    of_action = sums(lambda z, y, a: [error(z, y, a, beta), error(z, y, torch.full_like(a, actions), beta)], 3)
    square = torch.cat([of_action[:-1, 0], of_action[-1:, 1]])
    sd = (square / mass.clamp_min(1e-300)).sqrt().clamp_min(1e-12)
    spread = math.sqrt(3) / math.pi if column.kind == "count" else 1.0  # of a logistic of sd 1
    found = torch.cat([beta, (spread * sd).log().clamp(*LOG_SCALE_RANGE).unsqueeze(1)], 1)
    everywhere = found[-1] if float(rows[-1]) else torch.zeros_like(found[-1])
    return torch.where(enough[:-1].unsqueeze(1), found[:-1], everywhere)


def _share_at_minimum(schema: StateSchema, f: int, pairs: Pairs) -> Tensor:
    """Of the rows that end at the minimum of number ``f``, by weight."""
    sums = torch.zeros(2, dtype=torch.float64, device=pairs.where.device)
    for _, _, following, weight in pairs:
        weight = weight.double()
        sums += torch.stack([(following[:, f] <= schema.columns[f].minimum).double() @ weight, weight.sum()])
    low, mass = processes.summed(sums)
    share: Tensor = low / mass
    return share


def _set_atoms(model: TransitionModel, pairs: Pairs) -> None:
    """Start the probability of each count's and number's minimum at its weighted share of the rows."""
    for j, f in enumerate(model.learned):
        if not model.schema.columns[f].discrete:
            share = _share_at_minimum(model.schema, f, pairs).clamp_max(1 - LEAST_ATOM)
            if float(share) >= LEAST_ATOM:
                model.atom[j] = share.logit()
