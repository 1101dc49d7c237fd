"""The dynamics step: fits the transition model on every pair of consecutive rows, forced ones included.

Tables are weighted counts; cells never seen borrow from coarser counts (see :mod:`irl.dynamics`). Learned heads are
fitted by maximum likelihood; where that does no better on held-out members than the frequencies that the heads start
from, it is undone. Clocks are read off the data: any rule that gives the next value from the own one.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from irl import processes
from irl.config import InputError, Step
from irl.data.batches import Batches
from irl.data.panel import Panel
from irl.data.schema import StateSchema
from irl.dynamics import LOG_SCALE_RANGE, TransitionModel, n_cells, start_parents, table_cell
from irl.estimation.training import Fitting, Trained, Workbench, train

LEAST_ATOM = 0.01
"""Share of rows at a count's or number's minimum from which that value gets a probability of its own."""
LEAST_ROWS = 10
"""Rows of an action below which a number's regression is that over all actions."""
BORROWED = 5.0
"""Rows that the frequencies a learned head starts from take from coarser counts."""
LEAST_SHARE = 1e-4
"""The smallest of these frequencies: a level not seen yet must stay within the network's reach."""
CHECK_ROWS = 65536
"""Held-out rows scored at once."""


@dataclass(frozen=True)
class DynamicsReport:
    """How the heads were trained (None without learned columns), the mean log P of held-out transitions, and whether
    the training was undone because it did no better than what the heads start from.

    Tables are counted on all members, held-out ones too, and in the end so are the frequencies under the heads.
    """

    held_out_log_prob: float
    trained: Trained | None
    undone: bool = False


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
    rows = (panel.next_row >= 0).nonzero().squeeze(1)
    following = panel.next_row[rows]
    pairs = (panel.state[rows], panel.action[rows], panel.state[following], panel.weight[rows])
    problems = [p for f in model.clock for p in _set_clock(model, f, pairs[0], pairs[2])]
    problems += _moving_static(panel.schema, pairs[0], pairs[2])
    if problems:
        raise InputError("the panel contradicts the declared dynamics:\n  " + "\n  ".join(problems))
    for f in model.table:
        getattr(model, f"table_{f}").copy_(_frequencies(model.schema, f, model.schema.columns[f].parents, *pairs))
    fit, check = (tuple(c[keep] for c in pairs) for keep in (~held_out[rows], held_out[rows]))
    trained, held_out_log_prob, undone = None, None, False
    if model.learned:
        trains, checks = (processes.anywhere(len(side[0]) > 0) for side in (fit, check))
        if not trains or not checks:
            which = "held-out" if trains else "other than held-out"
            raise InputError(f"no {which} member has two consecutive rows: change `estimation.validation` or `seed`")
        _set_starts(model, *fit)
        _set_atoms(model, pairs[2], pairs[3])
        start, before = copy.deepcopy(model.state_dict()), _mean_log_prob(model, check)
        trained = train(
            DynamicsStep(model, options),
            Batches(fit, batch_size=options.batch_size, seed=bench.seed + 3),
            Batches(check, batch_size=CHECK_ROWS, seed=None),
            name="dynamics",
            bench=bench,
        )
        held_out_log_prob = _mean_log_prob(model, check)
        if held_out_log_prob < before:
            model.load_state_dict(start)
            held_out_log_prob, undone = before, True
        _set_starts(model, *pairs)
    if held_out_log_prob is None:
        held_out_log_prob = _mean_log_prob(model, check if processes.anywhere(len(check[0]) > 0) else pairs)
    return model, DynamicsReport(held_out_log_prob, trained, undone)


@torch.no_grad()
def _mean_log_prob(model: TransitionModel, pairs: tuple[Tensor, ...]) -> float:
    parts = zip(*(column.split(CHECK_ROWS) for column in pairs[:3]), strict=True)
    return float(processes.mean(torch.cat([model.log_prob(*part) for part in parts])))


def _set_clock(model: TransitionModel, f: int, state: Tensor, following: Tensor) -> list[str]:
    """Read the clock's step off the pairs; a problem if it is not the same everywhere."""
    column = model.schema.columns[f]
    step: Tensor = getattr(model, f"clock_{f}")
    now, later = state[:, f], following[:, f]
    if column.discrete:
        levels = len(step)  # the unseen one included
        counts = _counts(now.long() * levels + later.long(), None, (levels, levels))
        seen = counts.sum(1) > 0
        step[seen] = counts.argmax(1)[seen].to(step.dtype)
        wrong = (step[now.long()] != later).sum()
    else:
        step.copy_(processes.agreed((later - now).median()))
        wrong = ((later - now - step).abs() > 1e-4 * (1 + later.abs())).sum()
    broken, every = int(processes.total(wrong)), int(processes.total(len(now)))
    if not broken:
        return []
    return [f"{column.name}: `dynamics: clock`, but {broken:,} of {every:,} transitions break its step; use learned"]


def _moving_static(schema: StateSchema, state: Tensor, following: Tensor) -> list[str]:
    problems, every = [], int(processes.total(len(state)))
    for f, column in enumerate(schema.columns):
        moved = int(processes.total((state[:, f] != following[:, f]).sum())) if column.dynamics == "static" else 0
        if moved:
            problems.append(
                f"{column.name}: `dynamics: static`, but it changes in {moved:,} of {every:,} transitions; "
                "use learned, table or clock"
            )
    return problems


def _frequencies(
    schema: StateSchema,
    f: int,
    parents: tuple[int, ...],
    state: Tensor,
    action: Tensor,
    following: Tensor,
    weight: Tensor,
    *,
    borrowed: float = 0.0,
) -> Tensor:
    """Weighted frequencies [cells, A, levels] of column ``f``'s next level given the parents and the action.

    ``borrowed`` rows of every cell are taken from the coarser counts; where nothing was counted, all.
    """
    cells, actions, levels = n_cells(schema, parents), len(schema.actions), len(schema.columns[f].labels)
    known = following[:, f] < levels
    state, action, later, weight = state[known], action[known], following[known, f].long(), weight[known]
    group_of_cell = _own_level_of_cells(schema, f, parents).to(state.device)
    if f in parents:
        group, groups, start = state[:, f].long(), levels + 1, torch.eye(levels + 1, levels)
        start[-1] = 1 / levels
    else:
        group, groups, start = torch.zeros_like(later), 1, torch.full((1, levels), 1 / levels)
    start = start.to(state.device, torch.float64)
    by_group = _shares(_counts(group * levels + later, weight, (groups, levels)), start)
    joint = (group * actions + action) * levels + later
    by_action = _shares(_counts(joint, weight, (groups, actions, levels)), by_group.unsqueeze(1), borrowed)
    joint = (table_cell(schema, parents, state) * actions + action) * levels + later
    return _shares(_counts(joint, weight, (cells, actions, levels)), by_action[group_of_cell], borrowed)


def _own_level_of_cells(schema: StateSchema, f: int, parents: tuple[int, ...]) -> Tensor:
    """The column's own level in each combination of the parents [cells]; 0 if it is no parent of its own."""
    sizes = [len(schema.columns[p].labels) + 1 for p in parents]
    cells = torch.arange(math.prod(sizes))
    if f not in parents:
        return torch.zeros_like(cells)
    at = parents.index(f)
    return cells // math.prod(sizes[at + 1 :]) % sizes[at]


def _counts(index: Tensor, weight: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """Sums of weight[N] (or 1) at each flat index[N], over all processes; float64: float32 stops counting at 2^24."""
    weight = None if weight is None else weight.double()
    return processes.summed(torch.bincount(index, weight, math.prod(shape)).double().view(shape))


def _shares(counts: Tensor, otherwise: Tensor, borrowed: float = 0.0) -> Tensor:
    """Counts over the last axis as frequencies, with ``borrowed`` counts of ``otherwise`` (broadcast) added; that alone
    where nothing was counted."""
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, (counts + borrowed * otherwise) / (total + borrowed).clamp_min(1e-300), otherwise)


def _set_starts(model: TransitionModel, *pairs: Tensor) -> None:
    """Let every head start from what simple statistics of ``pairs`` say: log frequencies of a category's or ordinal's
    levels; a number's regression on its present value, by action."""
    for f in model.learned:
        if model.schema.columns[f].discrete:
            own = start_parents(model.schema, f)
            frequencies = _frequencies(model.schema, f, own, *pairs, borrowed=BORROWED)
            getattr(model, f"start_{f}").copy_(frequencies.clamp_min(LEAST_SHARE).log())
        else:
            getattr(model, f"start_{f}").copy_(_regressions(model.schema, f, *pairs))


def _regressions(
    schema: StateSchema, f: int, state: Tensor, action: Tensor, following: Tensor, weight: Tensor
) -> Tensor:
    """Constant, slope and log scale [A, 3] of the move of number ``f`` given its present value, in sd units.

    Rows that end at the minimum are left out where that has a probability of its own; actions with fewer than
    ``LEAST_ROWS`` rows take the regression over all.
    """
    column = schema.columns[f]
    z = (state[:, f].double() - column.centre) / column.scale
    move = (following[:, f].double() - state[:, f].double()) / column.scale
    share = processes.mean(following[:, f] <= column.minimum, weight)
    inside = (following[:, f] > column.minimum) | (share < LEAST_ATOM)
    spread = math.sqrt(3) / math.pi if column.kind == "count" else 1.0  # of a logistic of sd 1
    low, high = LOG_SCALE_RANGE

    def of(rows: Tensor) -> Tensor:
        x, y, w = torch.stack([torch.ones_like(z[rows]), z[rows]]), move[rows], weight[rows].double()
        sums = processes.summed(torch.cat([(x * w) @ x.T, ((x * w) @ y).unsqueeze(1)], 1))  # [2, 3]
        slight = torch.diag(torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device))
        beta = torch.linalg.solve(sums[:, :2] + 1e-6 * sums[0, 0] * slight, sums[:, 2])
        sd = processes.mean((y - beta @ x).square(), w).sqrt().clamp_min(1e-12)
        return torch.cat([beta, (spread * sd).log().clamp(low, high).unsqueeze(0)])

    nothing = torch.zeros(3, dtype=torch.float64, device=z.device)
    everywhere = of(inside) if processes.anywhere(inside.any()) else nothing
    own = [inside & (action == a) for a in range(len(schema.actions))]
    return torch.stack([of(rows) if processes.total(rows.sum()) >= LEAST_ROWS else everywhere for rows in own])


def _set_atoms(model: TransitionModel, following: Tensor, weight: Tensor) -> None:
    """Start the probability of each count's and number's minimum at its weighted share of the rows."""
    for j, f in enumerate(model.learned):
        column = model.schema.columns[f]
        if not column.discrete:
            share = processes.mean(following[:, f] <= column.minimum, weight).clamp_max(1 - LEAST_ATOM)
            if float(share) >= LEAST_ATOM:
                model.atom[j] = share.logit()
