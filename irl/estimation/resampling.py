"""Member bootstrap of the refit: its equations solved anew for every resampled panel, all replicas in one batch.

A replica counts every member (or declared cluster) as often as it was drawn, with replacement. Its theta and worth w of
what follows solve the two sets of equations that :mod:`irl.estimation.inference` linearises,

    sum_t n_t (1{a} - pi).d logit/d theta = L theta ,      w = what follows under the replica's dynamics,

pi and V being those of theta and w themselves: the fixed point of the refit's rounds, which no longer depends on the P
step (Aguirregabiria & Mira 2002), so that no network is fitted again. Measured on the market of the coverage benchmark
(500 x 12, 30 replicas): fitting everything anew, P, Q, R and dynamics included, gave coefficients that correlate with
these by .985 to .997, with the same spread.

The dynamics enter as in the analytic errors. Where they are frequencies in cells, these are counted again with the
replica's counts, and the refit's own draws of what follows are weighted by the ratio of the frequencies: every replica
sees the same next states, whose features are then computed once for all of them, and no replica adds noise of its own
draws. Elsewhere what follows moves by A^-1 sum (n_t - 1) psi_t delta_t of the observed transitions. (Where there are
cells these would give the errors of another estimator: 1.1 to 1.8 times as wide on that market, single transitions
carrying more noise than the model.)

Held as found: the features, their standardisation, the precisions L of the prior, the states on which what follows is
evaluated, and d logit/d theta, whose errors matter only to second order. w is found by a few corrections through the
inverse of the kernel's matrix, theta by Newton's method, its steps by conjugate gradients preconditioned by the
information of the panel itself. The equations are centred, so that with every member counted once the fit itself solves
them. Nothing is linearised in theta, w or the frequencies. The products are written out for all replicas: the equations
of one, batched by ``torch.func.vmap``, took twice as long.

Sources: Efron (1979); Kasahara & Shimotsu (2008) for bootstraps of this estimator by a few Newton steps. Limits: with a
prior the replicas spread as the shrunk estimate does, not as its error, which the analytic (Bayesian) errors contain; a
cell that no drawn member visited keeps its frequencies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from irl import bellman, evaluation
from irl.config import InputError
from irl.data.panel import Panel
from irl.estimation.evaluation_rows import evaluation_rows
from irl.estimation.inference import Cells, counted
from irl.estimation.logit import HESSIAN_ROWS, Choices, Logit
from irl.estimation.parameters import reward_parameters
from irl.estimation.refit import feature_sums, logit_of
from irl.fitted import FittedModel
from irl.transitions import CHUNK, Transitions, Unchanged, kernel_rows, observed

ROUNDS = 25
"""Alternations of the two sets of equations, at most."""
STILL = 0.01
"""Largest change of any weight, in standard errors of its own, at which the replicas are solved."""
GRADIENTS = (30, 1e-2)
"""Conjugate-gradient steps of a Newton step at most, and the relative residual that suffices."""


@dataclass(frozen=True)
class Replicas:
    """theta[R, A, Dx] in raw features (the anchor's row 0); the rounds in which their equations were solved, and each
    one's largest change in the last of them [R], in standard errors: above ``STILL`` where it did not converge."""

    theta: Tensor
    rounds: int
    change: Tensor


def multiplicities(clusters: int, replica: int, *, seed: int) -> Tensor:
    """How often each cluster is drawn [G] in this replica: so many draws with replacement."""
    generator = torch.Generator().manual_seed((seed << 20) + replica)
    return torch.bincount(torch.randint(clusters, (clusters,), generator=generator), minlength=clusters).double()


def solved(equations: Equations, counts: Tensor, *, tick: Callable[[int], None] = lambda rounds: None) -> Replicas:
    """The estimates that resampled panels give.

    Parameters
    ----------
    equations : of the fit, by :func:`equations_of`.
    counts : [R, G], what each cluster counts for in each replica.
    tick : called with the number of rounds done.
    """
    e = equations
    counts = counts.to(e.theta.device)
    size = e.own.shape[1]
    theta = e.theta.new_zeros(len(counts), size)  # less that of the fit, standardised
    worth = e.theta.new_zeros(len(counts), len(e.matrix))  # w less that of the fit
    ratios, shift = e.dynamics(counts)
    weight = counts[:, e.panel.cluster[e.choices.rows]].float()
    change, rounds = theta.new_zeros(len(counts)), 0
    for rounds in range(1, ROUNDS + 1):
        moved = e.followed(theta @ e.own.T + worth, ratios) + worth @ (e.matrix - e.gram).T
        worth = moved @ e.inverse.T + shift
        score, policy = e.score(theta @ e.own.T + worth, weight)
        score = score @ e.flat - e.penalty * (e.theta + theta) - e.slack

        def information(direction: Tensor, policy: list[Tensor] = policy) -> Tensor:
            return e.curvature(direction @ e.flat.T, policy, weight) @ e.flat + e.penalty * direction

        step = _conjugate_gradients(information, score, e.bread)
        theta, worth = theta + step, worth + step @ (e.flat - e.own).T
        change = (step.abs() / e.bread.diagonal().sqrt()).amax(1)
        tick(rounds)
        if bool((change <= STILL).all()):
            break
    found = theta.new_zeros(len(counts), *e.refit_theta.shape)
    paid = [a for a in range(len(e.refit_theta)) if a != e.logit.anchor]
    found[:, paid] = ((e.theta + theta) @ e.raw.T).view(len(counts), len(paid), -1)
    return Replicas(found, rounds, change)


def equations_of(model: FittedModel, panel: Panel, precisions: list[float]) -> Equations:
    """What the equations need of the fit; ``precisions`` are the prior's, by group of weights, as the refit reports."""
    assert model.refit is not None
    options, seed = model.config.estimation.refit, model.config.seed
    states, rows = evaluation_rows(model.dynamics, panel, most=options.rows, seed=seed)
    own = reward_parameters(model, states)
    precision = torch.tensor(precisions, dtype=torch.float64, device=panel.state.device)
    if len(precision) != int(own.groups.max()) + 1:
        raise InputError("the run's precisions do not fit its data: train the study again")
    sums = feature_sums(model, rows, own, refitted=True)
    ridge = rows.ridge(of=sums.rows)
    size = len(sums.matrix)
    identity = torch.eye(size, dtype=torch.float64, device=panel.state.device)
    inverse = evaluation.solve(replace(sums, rhs=identity), ridge=ridge).weights.reshape(size, size)
    weights = inverse @ sums.rhs
    logit = logit_of(model, weights.view(len(model.refit.theta), -1, sums.rhs.shape[1]), own)
    return Equations(
        model=model,
        panel=panel,
        rows=rows,
        choices=Choices(model, panel, panel.free.nonzero().squeeze(1), {}),
        logit=logit,
        theta=own.of(model.refit.theta[model.refit.paid]),
        penalty=precision[own.groups],
        flat=logit.map.flatten(0, 1),
        own=logit.map.flatten(0, 1) - weights[:, :-1] @ own.raw[own.used],
        matrix=sums.matrix,
        gram=torch.block_diag(*sums.gram),
        inverse=inverse,
        raw=own.raw,
    )


@dataclass(frozen=True)
class Ratio:
    """Of a column's frequencies in the replicas to those in the panel [R, cells x levels]; 1 where there is nothing to
    compare."""

    cells: Cells
    column: int
    ratio: Tensor


def ratios_of(model: FittedModel, panel: Panel, counts: Tensor) -> list[Ratio]:
    """Of every column that is drawn, where clusters count counts[R, G] times (:func:`irl.estimation.inference.counted`
    says whether the dynamics are frequencies)."""
    ratios = list[Ratio]()
    for f, column in enumerate(model.schema.columns):
        if column.dynamics in ("table", "learned"):
            cells = Cells(model, f)
            rows = ((panel.next_row >= 0) & (panel.state[panel.next_row, f] < cells.levels)).nonzero().squeeze(1)
            level = panel.state[panel.next_row[rows], f].long()
            at = cells.of(panel.state[rows], panel.action[rows]) * cells.levels + level
            once = torch.ones_like(counts[:1, panel.cluster[rows]])
            weight = torch.cat([once, counts[:, panel.cluster[rows]]]) * panel.weight[rows].double()
            sums = weight.new_zeros(len(weight), cells.size * cells.levels).index_add_(1, at, weight)
            sums = sums.view(len(weight), cells.size, cells.levels)
            share = sums / sums.sum(2, keepdim=True)  # nan where nothing was counted
            ratios.append(Ratio(cells, f, (share[1:] / share[0]).nan_to_num(1.0).flatten(1).float()))
    return ratios


def shares(part: Transitions, ratios: list[Ratio], replicas: int) -> Tensor | None:
    """What each draw [n, S, R] counts for in the replicas' expectations; None: all the same."""
    if not ratios:
        return None
    likelihood = torch.ones(replicas, *part.steps.shape, device=part.state.device)
    for each in ratios:
        code, levels = part.next_state[:, :, each.column].long(), each.cells.levels
        at = each.cells.of(part.state, part.action).unsqueeze(1) * levels + code.clamp_max(levels - 1)
        likelihood *= torch.where(code < levels, each.ratio[:, at], 1.0)
    total = likelihood.sum(2, keepdim=True)
    share = torch.where(total > 0, likelihood / total.clamp_min(1e-30), 1 / likelihood.shape[2])
    return share.permute(1, 2, 0).double()


@dataclass(frozen=True)
class Equations:
    """The equations of a fit, M = A D, P parameters theta (:mod:`irl.estimation.parameters`).

    Attributes
    ----------
    rows : the drawn transitions on which what follows is evaluated.
    theta, penalty : [P], of the fit, and the prior's precisions.
    flat : [M, P], d logit/d theta as weights of the features; ``own`` [M, P], the present choice's part of it.
    matrix, gram, inverse : [M, M], the kernel's A, its part of the present choice, and its ridged inverse.
    raw : [(A - 1) Dx, P], weights of raw features from theta.
    """

    model: FittedModel
    panel: Panel
    rows: Transitions
    choices: Choices
    logit: Logit
    theta: Tensor
    penalty: Tensor
    flat: Tensor
    own: Tensor
    matrix: Tensor
    gram: Tensor
    inverse: Tensor
    raw: Tensor

    @property
    def refit_theta(self) -> Tensor:
        assert self.model.refit is not None
        return self.model.refit.theta

    @cached_property
    def value(self) -> Tensor:
        """Weights [A, D] of Q in the features, but for the anchor's reward."""
        assert self.model.refit is not None
        q = self.model.refit.weights.clone()
        q[:, : self.refit_theta.shape[1]] += self.refit_theta
        return q

    @cached_property
    def bread(self) -> Tensor:
        """Inverse [P, P] of the panel's own information."""
        some = self.choices.some(HESSIAN_ROWS, seed=0)
        fitted = Logit(torch.zeros_like(self.logit.map), self.value, self.logit.anchor, self.logit.temperature)
        curvature = self.choices.mass / some.mass * fitted.curvature(torch.zeros_like(self.theta), some)
        inverse: Tensor = torch.linalg.inv(self.flat.T @ curvature @ self.flat + torch.diag(self.penalty))
        return inverse

    @cached_property
    def slack(self) -> Tensor:
        """[P]: the scores of the fit, which its last Newton step left."""
        score, _ = self.score(self.theta.new_zeros(1, len(self.matrix)), None)
        left: Tensor = score[0] @ self.flat - self.penalty * self.theta
        return left

    def dynamics(self, counts: Tensor) -> tuple[list[Ratio], Tensor]:
        """What the replicas' counts do to what follows: ratios of frequencies, column by column, or else a shift [R, M]
        of w."""
        if not counted(self.model, self.rows, len(self.theta)):
            return [], self._shift(counts)
        return ratios_of(self.model, self.panel, counts), self.theta.new_zeros(len(counts), len(self.matrix))

    def _shift(self, counts: Tensor) -> Tensor:
        """[R, M]: A^-1 sum (n - 1) psi delta of the observed transitions, A their own matrix."""
        model, total = self.model, self.theta.new_zeros(len(counts), *self.value.shape)
        moves, reached = observed(self.panel), (self.panel.free & (self.panel.next_choice >= 0)).nonzero().squeeze(1)

        def log_policy(state: Tensor, phi: Tensor) -> Tensor:
            return model.log_policy_of(state, Unchanged(model.schema).menu(state, state[:, 0]), phi)

        assert model.refit is not None
        for i in torch.arange(len(reached), device=counts.device).split(CHUNK):
            part = moves.only(i)
            phi = model.basis(part.state).double()
            chosen = model.refit.continuation(phi).gather(1, part.action.unsqueeze(1)).squeeze(1)
            delta = self._following(part, None)[0].squeeze(2).squeeze(1) - chosen
            factor = (counts[:, self.panel.cluster[reached[i]]] - 1) * part.weight.double() * delta
            _add_by_action(total, factor, part.action, phi)
        sums = evaluation.accumulate(kernel_rows(model, moves, log_policy), actions=len(self.value))
        worth = evaluation.solve(replace(sums, rhs=total.flatten(1).T), ridge=moves.ridge(of=sums.rows)).weights
        return worth.flatten(0, 1).T.contiguous()

    def followed(self, change: Tensor, ratios: list[Ratio]) -> Tensor:
        """[R, M]: sum psi (gamma^k E[V(s')] less that of the fit), with Q changed by phi.change [R, M]."""
        total = self.theta.new_zeros(len(change), *self.value.shape)
        for i in torch.arange(len(self.rows.state), device=change.device).split(
            max(1, CHUNK // self.rows.steps.shape[1])
        ):
            part = self.rows.only(i)
            new, old = self._following(part, change)
            share = shares(part, ratios, len(change))
            mean = new.mean(1) if share is None else (new * share).sum(1)  # [n, R]
            factor = (mean - old.mean(1)).T * part.weight.double()
            _add_by_action(total, factor, part.action, self.model.basis(part.state).double())
        return total.flatten(1)

    def _following(self, part: Transitions, change: Tensor | None) -> tuple[Tensor, Tensor]:
        """gamma^k V(s') [n, S, R] with Q changed by phi.change [R, M], and that of the fit [n, S, 1]."""
        schema, refit, alpha = self.model.schema, self.model.refit, self.model.config.temperature
        assert refit is not None
        reached = part.reached.alone()
        following = reached.state
        menu = Unchanged(schema).menu(following, following[:, 0])
        phi = self.model.basis(following).double()
        q = self.model.reward_of(following) + refit.continuation(phi)
        menu = menu.unsqueeze(1)
        discount = part.discount(self.model.config.discount).unsqueeze(2)
        old = bellman.soft_value(q.unsqueeze(1), menu, alpha)[reached.place] * discount
        if change is None:
            return old, old
        moved = (phi @ change.view(-1, phi.shape[1]).T).view(len(phi), len(change), -1)
        new = bellman.soft_value(q.unsqueeze(1) + moved, menu, alpha)[reached.place] * discount
        return new, old

    def score(self, change: Tensor, weight: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """sum n (1{a} - pi) (x) phi / alpha [R, M], with Q changed by phi.change [R, M], and pi[n, R, A] by chunk."""
        total, policy = self.theta.new_zeros(len(change), *self.value.shape), []
        at = torch.arange(len(self.value), device=change.device)
        for n, (phi, known, menu, action, own) in self._chunks(weight):
            q = phi @ self.value.T.to(phi.dtype)
            q[:, self.logit.anchor] += known
            moved = (phi @ change.view(-1, phi.shape[1]).T.to(phi.dtype)).view(len(phi), len(change), -1)
            pi = bellman.log_policy(q.unsqueeze(1) + moved, menu.unsqueeze(1), self.logit.temperature).exp()
            policy.append(pi)
            error = ((action.unsqueeze(1) == at).unsqueeze(1).to(pi.dtype) - pi) * (n * own).T.unsqueeze(2)
            total += (error.flatten(1).T @ phi).double().view_as(total)
        return total.flatten(1) / self.logit.temperature, policy

    def curvature(self, direction: Tensor, policy: list[Tensor], weight: Tensor) -> Tensor:
        """sum n cov_pi(e_a (x) phi).direction / alpha^2 [R, M]: minus the change of the scores along it."""
        total = self.theta.new_zeros(len(direction), *self.value.shape)
        for pi, (n, (phi, _, _, _, own)) in zip(policy, self._chunks(weight), strict=True):
            moved = (phi @ direction.view(-1, phi.shape[1]).T.to(phi.dtype)).view_as(pi)
            moved = pi * (moved - (pi * moved).sum(2, keepdim=True)) * (n * own).T.unsqueeze(2)
            total += (moved.flatten(1).T @ phi).double().view_as(total)
        return total.flatten(1) / self.logit.temperature**2

    def _chunks(self, weight: Tensor | None) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        """The choices in chunks, and what they count for in each replica [R, n]; None: once."""
        first = 0
        for chunk in self.choices.chunks():
            here = slice(first, first + len(chunk[0]))
            yield torch.ones(1, len(chunk[0])).to(chunk[0]) if weight is None else weight[:, here], chunk
            first = here.stop


def _add_by_action(total: Tensor, factor: Tensor, action: Tensor, phi: Tensor) -> None:
    """Add sum_n factor[R, n] e_a (x) phi[n, D] to total[R, A, D], in place."""
    for a in range(total.shape[1]):
        mine = (action == a).nonzero().squeeze(1)
        total[:, a] += factor[:, mine] @ phi[mine]


def _conjugate_gradients(product: Callable[[Tensor], Tensor], rhs: Tensor, inverse: Tensor) -> Tensor:
    """x[R, P] of product(x) = rhs, every replica by itself, preconditioned by inverse[P, P]."""
    most, enough = GRADIENTS
    x, residual = torch.zeros_like(rhs), rhs.clone()
    z = residual @ inverse
    direction, size = z, (residual * z).sum(1, keepdim=True)
    start = size.clone()
    for _ in range(most):
        moved = product(direction)
        length = size / (direction * moved).sum(1, keepdim=True).clamp_min(1e-300)
        x, residual = x + length * direction, residual - length * moved
        z = residual @ inverse
        before, size = size, (residual * z).sum(1, keepdim=True)
        if bool((size <= enough**2 * start).all()):
            break
        direction = z + size / before.clamp_min(1e-300) * direction
    return x
