"""The dynamics step: fits the transition model on every pair of consecutive rows, forced ones included.

Tables are weighted counts; cells never seen borrow from coarser counts (see :mod:`irl.dynamics`). Learned heads are fitted
by maximum likelihood. Clocks are read off the data and must not depend on anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from irl.config import InputError, Step
from irl.data.batches import Batches
from irl.data.panel import Panel
from irl.data.schema import StateSchema
from irl.dynamics import TransitionModel, table_cell
from irl.estimation.training import Fitting, Trained, Workbench, train

LARGEST_TABLE = 5_000_000
"""Entries (parents' combinations x actions x levels) above which a table is refused."""


@dataclass(frozen=True)
class DynamicsReport:
    """How the heads were trained (None without learned columns), and the mean log P of held-out transitions."""

    held_out_log_prob: float
    trained: Trained | None


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
        If a clock does not run regularly, a static column changes, or a table would be too large.
    """
    torch.manual_seed(bench.seed + 3)
    check_tables(panel.schema)
    model = TransitionModel(panel.schema, options.hidden).to(bench.device)
    rows = (panel.next_row >= 0).nonzero().squeeze(1)
    following = panel.next_row[rows]
    pairs = (panel.state[rows], panel.action[rows], panel.state[following], panel.weight[rows])
    problems = [p for f in model.clock for p in _set_clock(model, f, pairs[0], pairs[2])]
    problems += _moving_static(panel.schema, pairs[0], pairs[2])
    if problems:
        raise InputError("the panel contradicts the declared dynamics:\n  " + "\n  ".join(problems))
    for f in model.table:
        _set_table(model, f, *pairs)
    fit, check = (tuple(c[keep] for c in pairs) for keep in (~held_out[rows], held_out[rows]))
    trained = None
    if model.learned:
        trained = train(
            DynamicsStep(model, options),
            Batches(fit, batch_size=options.batch_size, seed=bench.seed + 3),
            Batches(check, batch_size=65536, seed=None),
            name="dynamics",
            bench=bench,
        )
    with torch.no_grad():
        log_prob = model.eval().log_prob(*check[:3]).mean()
    return model, DynamicsReport(float(log_prob), trained)


def check_tables(schema: StateSchema) -> None:
    """InputError if a `table` column has so many parents' combinations that counting them cannot work."""
    for column in schema.columns:
        if column.dynamics == "table":
            size = len(schema.actions) * len(column.labels)
            for p in column.parents:
                size *= len(schema.columns[p].labels) + 1
            if size > LARGEST_TABLE:
                raise InputError(
                    f"state.{column.name}: a table over its parents would have {size:,} entries "
                    f"(at most {LARGEST_TABLE:,}); name fewer parents or use `dynamics: learned`"
                )


def _set_clock(model: TransitionModel, f: int, state: Tensor, following: Tensor) -> list[str]:
    """Read the clock's step off the pairs; a problem if it is not the same everywhere."""
    column = model.schema.columns[f]
    step: Tensor = getattr(model, f"clock_{f}")
    now, later = state[:, f], following[:, f]
    if column.discrete:
        levels = len(column.labels)
        counts = torch.zeros(levels + 1, levels + 1, device=state.device)
        counts.index_put_((now.long(), later.long()), torch.ones_like(now), accumulate=True)
        seen = counts.sum(1) > 0
        step[seen] = counts.argmax(1)[seen].to(step.dtype)
        wrong = int((step[now.long()] != later).sum())
    else:
        step.copy_((later - now).median())
        wrong = int(((later - now - step).abs() > 1e-4 * (1 + later.abs())).sum())
    if not wrong:
        return []
    return [f"{column.name}: `dynamics: clock`, but {wrong:,} of {len(now):,} transitions break its step; use learned"]


def _moving_static(schema: StateSchema, state: Tensor, following: Tensor) -> list[str]:
    problems = []
    for f, column in enumerate(schema.columns):
        moved = int((state[:, f] != following[:, f]).sum()) if column.dynamics == "static" else 0
        if moved:
            problems.append(
                f"{column.name}: `dynamics: static`, but it changes in {moved:,} of {len(state):,} transitions; "
                "use learned, table or clock"
            )
    return problems


def _set_table(
    model: TransitionModel, f: int, state: Tensor, action: Tensor, following: Tensor, weight: Tensor
) -> None:
    """Weighted frequencies of the next level, with coarser ones where a cell is empty."""
    table: Tensor = getattr(model, f"table_{f}")
    cells, actions, levels = table.shape
    own, later = state[:, f].long(), following[:, f].long()
    known = later < levels
    own, later, action, weight = own[known], later[known], action[known], weight[known]
    cell = table_cell(model.schema, f, state)
    by_action = torch.zeros(levels + 1, actions, levels, device=table.device)
    by_action.index_put_((own, action, later), weight, accumulate=True)
    stay = torch.eye(levels + 1, levels, device=table.device)
    stay[-1] = 1 / levels
    by_level = _shares(by_action.sum(1), stay)
    by_action = _shares(by_action, by_level.unsqueeze(1).expand(-1, actions, -1))
    counts = torch.zeros_like(table)
    counts.index_put_((cell[known], action, later), weight, accumulate=True)
    every = torch.cartesian_prod(
        *[
            torch.arange(len(model.schema.columns[p].labels) + 1, device=table.device)
            for p in model.schema.columns[f].parents
        ]
    ).view(cells, -1)
    parents = model.schema.columns[f].parents
    own_of_cell = every[:, parents.index(f)] if f in parents else None
    fallback = by_action[own_of_cell] if own_of_cell is not None else by_action.mean(0).expand(cells, -1, -1)
    table.copy_(_shares(counts, fallback))


def _shares(counts: Tensor, otherwise: Tensor) -> Tensor:
    """Counts over the last axis as frequencies; ``otherwise`` where nothing was counted."""
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp_min(1e-30), otherwise)
