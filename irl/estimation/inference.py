"""Standard errors of the refit, clustered by member, or by the clusters that are declared.

The refit solves two sets of equations at once: the scores of the conditional logit in theta, and the kernel's equations
for the worth w of what follows. A member's share in both moves theta by

    (H + L)^-1 u_i ,   u_i = sum_t (1{a} - pi).d logit/d theta  -  J A^-1 sum_t psi_t delta_t

    H       information of the logit;  L the precisions of the prior (0 in a linear reward without selection)
    A, psi  matrix and features of the kernel, under the fitted policy
    J       sum of cov_pi(d logit/d theta, psi): how an error of what follows moves the scores
    delta   the error of what the fitted dynamics expect to follow

and cov(theta) = (H + L)^-1 (sum u u^T + L) (H + L)^-1. The scores alone are too optimistic: they take what follows as
known. Errors of the policy do not matter to first order (Aguirregabiria & Mira 2002). With a prior the covariance is
the Bayesian one, which contains the bias of shrinkage on average (Nychka 1988; Wood 2006).

Where every column that moves is a category or an ordinal, the dynamics are frequencies in cells (of tables, and under
learned heads), and an observed move to level l of a cell counts n_c moves weighs as much as it moves that frequency:
J A^-1 sum over the draws in the cell of psi (E[V(s')|l] - E[V(s')]) / n_c, column by column. Otherwise delta is that of
the observed transition itself, gamma^k V(s') - c(s, a), which is right for dynamics that are fitted freely (Newey 1994)
and too wide where the model is simpler; so it is after contracts, where a choice is several transitions away.

With inattention eta is among the parameters (:class:`irl.estimation.attention.Inattentive`): a choice counts in the
first part of u by the probability that it was decided, and W(s') takes the place of V(s').

With hidden types H is that of the mixture, what the choices do not say of the types taken off, and the weights of the
types' shares are parameters beside theta (:mod:`irl.estimation.missing_information`).

Processes hold whole clusters: scores stay where they are, and their products are summed.

Conditional on: the discount, logit shocks, the anchor's reward, the features (the networks' included), and the
precisions of the prior as found.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from irl import bellman, evaluation, processes
from irl.data.panel import Panel
from irl.dynamics import n_cells, start_parents, table_cell
from irl.estimation.attention import surprises
from irl.estimation.logit import CHUNK, HESSIAN_ROWS, Choices, Logit
from irl.estimation.missing_information import Missing
from irl.estimation.rowwise import parts_of
from irl.fitted import FittedModel
from irl.transitions import Transitions, Unchanged, kernel_rows, observed

CELL_ROWS = 16_384
"""Drawn rows (at random) on which the influence of the cells is averaged."""
LARGEST_INFLUENCE = 100_000_000
"""Numbers (cells x actions x levels x parameters) above which the influence of a column's cells is not tabulated."""


@torch.no_grad()
def covariance(
    model: FittedModel,
    panel: Panel,
    rows: Transitions,
    choices: Choices,
    logit: Logit,
    theta: Tensor,
    penalty: Tensor,
    lacking: Missing | None = None,
) -> Tensor:
    """Covariance [P, P] of theta[P] (with inattention, eta is part of it); with hidden types [P + B, P + B], of the
    weights of their shares too.

    Parameters
    ----------
    model : holds the refit at theta.
    rows : the drawn transitions on which what follows was evaluated.
    choices : of the panel.
    penalty : [P], the prior's precisions.
    lacking : what is missing where types are hidden.
    """
    some = choices.some(HESSIAN_ROWS, seed=0)
    flat = logit.flat  # [A D, P]
    curvature = choices.mass / some.mass * logit.curvature(theta, some)
    if lacking is not None:
        curvature -= lacking.lost
    moved = curvature @ flat
    information = flat.T @ moved
    scores = choice_scores(model, panel, flat / logit.temperature)
    if lacking is not None:
        across = flat.T @ lacking.crossed
        information = torch.cat([torch.cat([information, across], 1), torch.cat([across.T, lacking.information], 1)])
        moved, penalty = torch.cat([moved, lacking.crossed], 1), torch.cat([penalty, lacking.penalty])
        information = _no_less_than_nothing(information, penalty)
        scores = torch.cat([scores, lacking.scores], 1)
    scores -= kernel_scores(model, panel, rows, moved[: logit.offset.numel()])
    bread = torch.linalg.inv(information + torch.diag(penalty))
    clusters = processes.total(panel.cluster.bincount().count_nonzero())
    squares = sum((part.T @ part for part in scores.split(CHUNK)), torch.zeros_like(bread))
    meat = processes.summed(squares) * (clusters / max(clusters - 1, 1)) + torch.diag(penalty)
    found: Tensor = bread @ meat @ bread
    return found


def _no_less_than_nothing(information: Tensor, penalty: Tensor) -> Tensor:
    """[P, P] without the directions in which it is negative (as known types' less what is missing can be, by the luck
    of the rows that either is taken from): there the choices say nothing."""
    scale = penalty.sqrt()
    values, vectors = torch.linalg.eigh(information / scale / scale.unsqueeze(1))
    kept: Tensor = scale.unsqueeze(1) * (vectors * values.clamp_min(0)) @ vectors.T * scale
    return kept


@torch.no_grad()
def kernel_scores(model: FittedModel, panel: Panel, rows: Transitions, moved: Tensor) -> Tensor:
    """J A^-1 sum_t psi_t delta_t of every cluster [G, K]: what errors of what follows do to K sums over the choices.

    ``moved`` [A D, K], J: by how much such an error, in the features of every action, moves them.
    """
    if counted(model, rows, moved.shape[1]):
        return _cell_scores(model, panel, rows, _through(model, rows, moved))
    return _transition_scores(model, panel, _through(model, observed(panel), moved))


def _through(model: FittedModel, rows: Transitions, curvature: Tensor) -> Tensor:
    """A^-T J^T [A D, P]: how much an error of what follows, times psi, moves the scores."""

    def log_policy(state: Tensor, phi: Tensor) -> Tensor:
        return model.log_policy_of(state, Unchanged(model.schema).menu(state, state[:, 0]), phi)

    sums = evaluation.accumulate(kernel_rows(model, rows, log_policy), actions=len(model.schema.actions), dealt=True)
    return evaluation.adjoint(sums, curvature, ridge=rows.ridge(of=sums.rows))


@torch.no_grad()
def choice_scores(model: FittedModel, panel: Panel, own: Tensor) -> Tensor:
    """sum_t (1{a} - pi) own[A D, P] of every cluster [G, P]; with inattention own has E rows more, and choices count as
    far as they were decided."""
    scores = panel.room(int(panel.cluster.max()) + 1, own.shape[1], dtype=own.dtype)
    at = torch.arange(len(panel.schema.actions), device=own.device)
    for i in parts_of(panel.free, CHUNK // 2):
        phi = model.basis(panel.state[i]).double()
        log_pi = model.log_policy_of(panel.state[i], panel.menu[i], phi).double()
        error = (panel.action[i].unsqueeze(1) == at).double() - log_pi.exp()
        if model.attention is not None:
            decided, surprise = surprises(model.attention, panel, i, log_pi)
            error = error * decided.unsqueeze(1)
            x = model.attention.features(panel.state[i]).double()
            _add_by_cluster(scores, panel, i, surprise.unsqueeze(1), x, own[-x.shape[1] :])
        _add_by_cluster(scores, panel, i, error, phi, own[: error.shape[1] * phi.shape[1]])
    return scores


def _transition_scores(model: FittedModel, panel: Panel, through: Tensor) -> Tensor:
    """sum_t psi_t delta_t through[A D, P] of every cluster [G, P], delta that of the observed transition."""
    assert model.refit is not None
    scores = panel.room(int(panel.cluster.max()) + 1, through.shape[1], dtype=through.dtype)
    at = torch.arange(len(panel.schema.actions), device=through.device)
    for i in parts_of(panel.free & (panel.next_choice >= 0), CHUNK // 2):
        phi = model.basis(panel.state[i]).double()
        chosen = (panel.action[i].unsqueeze(1) == at).double()
        following = panel.next_choice[i]
        discount = (model.config.discount ** panel.steps[i] * ~panel.ends[i]).double()
        value = _value(model, panel.state[following], panel.menu[following])
        delta = discount * value - (model.refit.continuation(phi) * chosen).sum(1)
        _add_by_cluster(scores, panel, i, chosen * delta.unsqueeze(1), phi, through)
    return scores


def _add_by_cluster(scores: Tensor, panel: Panel, rows: Tensor, factor: Tensor, phi: Tensor, mapped: Tensor) -> None:
    """Add sum_t (factor[n, A] (x) phi[n, D]).mapped[A D, P] of the rows to each cluster's scores[G, P], in place."""
    clusters, local = panel.cluster[rows].unique_consecutive(return_inverse=True)
    by_row = ((factor * panel.weight[rows].double().unsqueeze(1)).unsqueeze(2) * phi.unsqueeze(1)).flatten(1)
    by_cluster = by_row.new_zeros(len(clusters), by_row.shape[1]).index_add_(0, local, by_row)
    scores.index_add_(0, clusters, by_cluster @ mapped)


def counted(model: FittedModel, rows: Transitions, parameters: int) -> bool:
    """Whether the dynamics are frequencies in cells and every choice is one transition away."""
    schema = model.schema
    for f, column in enumerate(schema.columns):
        if column.dynamics in ("table", "learned"):
            if not column.discrete or column.alike:
                return False
            size = n_cells(schema, _parents(model, f)) * len(schema.actions) * len(column.labels)
            if size * parameters > LARGEST_INFLUENCE:
                return False
    return not processes.anywhere((rows.steps != 1).any())


def _parents(model: FittedModel, f: int) -> tuple[int, ...]:
    """The columns whose cells the frequencies of column ``f`` were counted in."""
    column = model.schema.columns[f]
    return column.parents if column.dynamics == "table" else start_parents(model.schema, f)


def _cell_scores(model: FittedModel, panel: Panel, rows: Transitions, through: Tensor) -> Tensor:
    """What every cluster's observed moves [G, P] did to the frequencies, and these to the scores."""
    if processes.total(len(rows.state)) > CELL_ROWS:
        order = torch.randperm(len(rows.state), generator=torch.Generator().manual_seed(0))
        some = order[: processes.own_part(CELL_ROWS, len(rows.state))].sort().values.to(rows.state.device)
        more = processes.total(rows.weight.double().sum()) / processes.total(rows.weight[some].double().sum())
        rows = rows.only(some)
        rows = replace(rows, weight=rows.weight * more)
    actions, parameters = len(model.schema.actions), through.shape[1]
    cells = {f: Cells(model, f) for f, c in enumerate(model.schema.columns) if c.dynamics in ("table", "learned")}
    gains = {f: through.new_zeros(c.size * c.levels, parameters) for f, c in cells.items()}
    drawn = {f: through.new_zeros(c.size * c.levels) for f, c in cells.items()}
    blocks = through.view(actions, -1, parameters)
    for i in torch.arange(len(rows.state), device=through.device).split(CHUNK // 4):
        part = rows.only(i)
        worth = _next_values(model, part)
        worth = (worth - worth.mean(1, keepdim=True)) / worth.shape[1]
        weight, phi = part.weight.double(), model.basis(part.state).double()
        moves = through.new_zeros(len(i), parameters)
        for a in range(actions):
            mine = (part.action == a).nonzero().squeeze(1)
            moves[mine] = weight[mine].unsqueeze(1) * (phi[mine] @ blocks[a])
        for f, column in cells.items():
            cell = column.of(part.state, part.action)
            for level in range(column.levels):
                here = part.next_state[:, :, f] == level
                gains[f].index_add_(0, cell * column.levels + level, moves * (worth * here).sum(1, keepdim=True))
                drawn[f].index_add_(0, cell * column.levels + level, weight * here.double().mean(1))
    processes.add_up([*gains.values(), *drawn.values()])
    scores = panel.room(int(panel.cluster.max()) + 1, parameters, dtype=through.dtype)
    moved = panel.next_row >= 0
    for f, column in cells.items():
        share = drawn[f].view(-1, column.levels)
        share = (share / share.sum(1, keepdim=True).clamp_min(1e-300)).flatten()
        count = through.new_zeros(column.size)
        for i in parts_of(moved, CHUNK):
            cell, _, weight = column.moves(panel, i)
            count.index_add_(0, cell, weight)
        count = processes.summed(count)
        for i in parts_of(moved, CHUNK):
            cell, code, weight = column.moves(panel, i)
            at = cell * column.levels + code.clamp_max(column.levels - 1)
            factor = weight / count[cell].clamp_min(1e-300) / share[at].clamp_min(1e-300) * (share[at] > 0)
            scores.index_add_(0, panel.cluster[i], gains[f][at] * factor.unsqueeze(1))
    return scores


class Cells:
    """The cells in which the frequencies of column ``f`` were counted."""

    def __init__(self, model: FittedModel, f: int) -> None:
        self.f, self.schema, self.parents = f, model.schema, _parents(model, f)
        self.levels = len(model.schema.columns[f].labels)
        self.size = n_cells(model.schema, self.parents) * len(model.schema.actions)

    def moves(self, panel: Panel, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of rows [n] that are followed by another: cell, the column's next level, and weight (0: a level not seen)."""
        code = panel.state[panel.next_row[rows]][:, self.f].long()
        return self.of(panel.state[rows], panel.action[rows]), code, panel.weight[rows].double() * (code < self.levels)

    def of(self, state: Tensor, action: Tensor) -> Tensor:
        """Index [N] of the cell of each state and action."""
        return table_cell(self.schema, self.parents, state) * len(self.schema.actions) + action


def _next_values(model: FittedModel, rows: Transitions) -> Tensor:
    """gamma^k V(s') [N, S] of the drawn transitions."""
    reached = rows.reached.alone()
    value = _value(model, reached.state, Unchanged(model.schema).menu(reached.state, reached.state[:, 0]))
    return rows.discount(model.config.discount) * value[reached.place]


def _value(model: FittedModel, state: Tensor, menu: Tensor) -> Tensor:
    """V[N] of the refit (W, where members do not always decide)."""
    assert model.refit is not None
    q = model.reward_of(state) + model.refit.continuation(model.basis(state))
    value = bellman.soft_value(q, menu, model.config.temperature)
    return bellman.ex_ante_value(value, q, menu, model.inertia_of(state))
