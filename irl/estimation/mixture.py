"""Members of hidden types while the refit finds what they are like: the likelihood with the types integrated out.

    sum_i w_i log sum_k share(k | first state of i) . moves_k(i) . product over t of pi_k(a_it | s_it) ,

in the weights of the reward, theta, and of the shares, beta, with what follows held fixed. Its slope is that of known
types, weighted by the posterior; steps start from their information, as EM's do, and learn from each other how much of
it is missing (Lange 1995; Nocedal 1980).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from irl.data.panel import Panel, expanded, first_rows, typed
from irl.estimation.distinct import Distinct, distinct
from irl.estimation.logit import HESSIAN_ROWS, Choices, Logit
from irl.estimation.types import monotone, share_precision, sum_by_member
from irl.fitted import FittedModel
from irl.networks import TypeShares

CLIMBS, GAIN, MEMORY = 40, 0.05, 10
"""Steps within one round of the refit, the log-likelihood below which no further one is made, and how many of those
before a step takes into account."""
ROUNDS = 4
"""Rounds of the refit, at least, unless it settles: posteriors and what follows have to do so together."""


@dataclass
class Mixture:
    """The members' types while they are estimated: what is known of each member, and how it was found.

    panel : N rows of M members, of the schema without types. posterior [M, K]. shares : changed in place.
    moves : log P[M, K] of what members' states did, by type (0: no difference).
    traces : of every climb the log-likelihood of the mixture after each round, with the priors.
    """

    panel: Panel
    shares: TypeShares
    posterior: Tensor
    moves: Tensor
    traces: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.is_first = first_rows(self.panel.member)
        self.first = self.panel.state[self.is_first]
        self.weight = sum_by_member(self.panel, self.panel.weight.double()) / self.panel.member.bincount()

    @property
    def monotone(self) -> bool:
        """Whether no climb ever went down."""
        return all(monotone(trace) for trace in self.traces)

    @property
    def number(self) -> int:
        return self.posterior.shape[1]

    def expanded(self, model: FittedModel) -> Panel:
        """The panel once per type, rows weighted by the posterior."""
        return expanded(self.panel, model.schema, self.posterior)

    def drawn(self, model: FittedModel, *, seed: int) -> Panel:
        """The panel with one type per member, drawn by the posterior: for what is averaged over visited states."""
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(self.panel.n_members, 1, generator=generator, dtype=torch.float64)
        kind = (uniform.to(self.posterior.device) > self.posterior.cumsum(1)[:, :-1]).sum(1)
        return typed(self.panel, model.schema, kind[self.panel.member])

    def choices(self, model: FittedModel, rows: Tensor) -> Distinct:
        """Those in the bool[N] rows of the panel."""
        return distinct(model, self.panel, (self.panel.free & rows).nonzero().squeeze(1), self.posterior)

    def joint(self, logit: Logit, theta: Tensor, choices: Choices) -> tuple[Tensor, Tensor]:
        """log P(type, moves, choices) and log P(type, moves), [M, K]."""
        assert isinstance(choices, Distinct), "of a mixture"
        found = []
        for phi, known, menu, action, _ in choices.chunks():
            found.append(logit.log_policy(theta, phi, known, menu).gather(1, action.unsqueeze(1)).squeeze(1).double())
        before: Tensor = self.shares(self.first) + self.moves
        return before + choices.by_member(torch.cat(found), len(before)), before

    def log_likelihood(self, logit: Logit, theta: Tensor, choices: Choices) -> float:
        """Of the choices, the types integrated out; members without any count for nothing."""
        after, before = self.joint(logit, theta, choices)
        return float(self.weight @ (after.logsumexp(1) - before.logsumexp(1)))

    @torch.no_grad()
    def climb(
        self, logit: Logit, choices: Choices, theta: Tensor, penalty: Tensor, *, aside: bool = False
    ) -> tuple[Tensor, Choices]:
        """theta[P] and the choices, reweighted, where the likelihood of the mixture less penalty/2 theta^2 is largest,
        with what follows held fixed (``logit``).

        Quasi-Newton steps that begin with the information of known types, as EM's would be (Lange 1995); shorter where
        the likelihood would fall. ``aside``: for some of the members only; shares and posteriors of the others stay as
        they are.
        """
        assert isinstance(choices, Distinct), "of a mixture"
        x, size, shares, own = self.shares.features(self.first), len(theta), self.shares.weight, choices
        free = [] if aside else [shares[1:].flatten()]
        prior = torch.cat([penalty, *(share_precision(shares[1:]).flatten() for _ in free)])
        point = torch.cat([theta, *free])

        def value_at(point: Tensor) -> tuple[float, Tensor]:
            if not aside:
                shares[1:] = point[size:].view_as(shares[1:])
            after, _ = self.joint(logit, point[:size], own)
            return float(self.weight @ after.logsumexp(1)) - 0.5 * float(prior @ point.square()), after.softmax(1)

        def slope_at(point: Tensor, posterior: Tensor) -> tuple[Tensor, Choices]:
            weighted = own.weighted(posterior)
            error = (posterior - self.shares(self.first).exp()) * self.weight.unsqueeze(1)
            slopes = [logit.gradient(point[:size], weighted), *((error[:, 1:].T @ x).flatten() for _ in free)]
            return torch.cat(slopes) - prior * point, weighted

        value, posterior = value_at(point)
        slope, found = slope_at(point, posterior)
        some = found.some(HESSIAN_ROWS, seed=0)
        blocks = [found.mass / some.mass * logit.information(theta, some)]
        blocks += [spread_of_types(self.shares(self.first).exp(), x, self.weight) for _ in free]
        metric = torch.linalg.lu_factor(torch.block_diag(*blocks) + torch.diag(prior))
        trace, moves = [value], list[tuple[Tensor, Tensor]]()
        for _ in range(CLIMBS):
            step, scale, gain = quasi_newton_step(slope, moves, metric), 1.0, -1.0
            while gain <= 0 and scale > 1e-3:
                tried = point + scale * step
                after, own_posterior = value_at(tried)
                gain, scale = after - value, scale / 2
            if gain <= 0:
                value_at(point)  # puts the shares back
                break
            posterior, before = own_posterior, slope
            slope, found = slope_at(tried, posterior)
            moves = [*moves[1 - MEMORY :], (tried - point, before - slope)]
            point, value = tried, after
            trace.append(value)
            if gain < GAIN:
                break
        if not aside:
            self.posterior = posterior
            self.traces.append(trace)
        return point[:size], found


def spread_of_types(p: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """sum w var_p(e_k (x) x) [B, B], B = (K - 1) D, over x[M, D] and p[M, K], for all types but the first."""
    p, size = p[:, 1:], (p.shape[1] - 1) * x.shape[1]
    variance = weight[:, None, None] * (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1))
    return torch.einsum("mkl,md,me->kdle", variance, x, x).reshape(size, size)


def quasi_newton_step(slope: Tensor, moves: Sequence[tuple[Tensor, Tensor]], metric: tuple[Tensor, Tensor]) -> Tensor:
    """An ascent [P] along the slope: L-BFGS's two loops (Nocedal 1980) over past moves (of the point, of minus the
    slope), around the factors of a matrix that is taken for minus the second derivative."""
    kept = [(s, y, 1 / (s @ y)) for s, y in moves if s @ y > 0]
    found, back = slope, []
    for s, y, rho in reversed(kept):
        back.append(rho * (s @ found))
        found = found - back[-1] * y
    solved: Tensor = torch.linalg.lu_solve(*metric, found.unsqueeze(1)).squeeze(1)
    for (s, y, rho), a in zip(kept, reversed(back), strict=True):
        solved = solved + (a - rho * (y @ solved)) * s
    return solved
