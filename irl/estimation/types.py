"""Hidden types: members who differ in tastes that no column shows, as a finite mixture, by EM.

A type is a hidden segment: a static category of the state, ``type``, by which rewards, and with ``dynamics: true`` what
follows, may differ as by any other. If members' types were known, estimation would be as always. They are not, so the
panel is taken K times, once as if all were of each type, every row weighted by the posterior

    q(k | i) ~ share(k | first state of i) . product over t of pi_k(a_it | s_it)   (. the moves, where these differ)

(Arcidiacono & Miller 2011). Every sum over rows, of networks, kernel, refit and transition model, is then the expected
sum. In order:

1. A cheap start (:func:`started`): the policy of a single type, each type's log odds shifted from it linearly in the
   columns. EM on that, from several starting points.
2. P, Q, R and dynamics on the expanded panel, with these posteriors.
3. The refit, whose every round holds what follows as given and climbs the likelihood of the mixture in the reward and
   the shares (:mod:`irl.estimation.mixture`); the next round evaluates what follows anew. Within a round the penalised
   likelihood never falls; between rounds it may, as in nested pseudo-likelihood.

The shares depend on the first observed state (a multinomial logit), because who is there when observation begins is no
random draw of types. Types are numbered by how often they choose anything but the anchor, the rarest first.

Limits: EM finds a local maximum, the best of those it was started at; the networks keep the posteriors of the start.
How types differ in what a benefit is worth does not differ by segment (the reward has no features type x segment x
benefit): on the market with tastes x .7 and x 1.3 the best such reward misses by .055, one with them by .047 (sd .87).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from irl.config import InputError
from irl.data.panel import Panel, first_rows
from irl.fitted import FittedModel
from irl.networks import TypeShares

STARTS, MEMBERS = 6, 4000
"""Starting points of the cheap mixture, and members on whom these are tried."""
SHORT, LONG, STILL = 20, 300, 1e-3
"""Rounds of EM at every starting point, and at the best one; log-likelihood below which a round is not worth making
(or a ten-millionth, in large panels)."""
RIDGE, INTERCEPT = 1.0, 1e-3
"""Precision of the prior of what is not an intercept, on standardised columns; and of the intercepts."""
SLACK = 1e-6
"""Share of the log-likelihood by which rounding may lower it."""


@dataclass(frozen=True)
class StartReport:
    """How the cheap mixture ended, for as many types as asked for and one more or less.

    ``by_number`` lists {types, log_likelihood, held_out_log_likelihood, parameters, bic}, per choice, of mixtures
    fitted without the held-out members; ``starts`` the log-likelihoods per choice that the starting points led to.
    """

    by_number: list[dict[str, float]]
    starts: list[float]
    rounds: int
    monotone: bool


@dataclass(frozen=True)
class _Reduced:
    """Free choices of M members: log pi of a single type, [n, A], columns z[n, D], what was chosen, who chose."""

    log_pi: Tensor
    z: Tensor
    chosen: Tensor
    weight: Tensor
    member: Tensor
    first: Tensor
    base: int
    by_member: Tensor

    def only(self, members: Tensor) -> _Reduced:
        """The choices of the members in bool[M]; the others stay as members without any."""
        rows = members[self.member]
        parts = {name: getattr(self, name)[rows] for name in ("log_pi", "z", "chosen", "weight", "member")}
        return replace(self, **parts, by_member=self.by_member * members)

    def sample(self, most: int, generator: torch.Generator) -> _Reduced:
        """So many of the members that count, at random, numbered afresh; all if they are no more."""
        here = (self.by_member > 0).nonzero().squeeze(1)
        if len(here) <= most:
            return self
        kept = torch.zeros_like(self.by_member, dtype=torch.bool)
        kept[here[torch.randperm(len(here), generator=generator)[:most].to(here.device)]] = True
        few, place = self.only(kept), kept.long().cumsum(0) - 1
        return replace(few, member=place[few.member], first=few.first[kept], by_member=few.by_member[kept])


@dataclass(frozen=True)
class _Fit:
    """shift[K, A, D] of the log odds, share[K, Ds], posterior[M, K], and the penalised log-likelihood of each round."""

    shift: Tensor
    share: Tensor
    posterior: Tensor
    trace: list[float]

    @property
    def monotone(self) -> bool:
        return monotone(self.trace)


@torch.no_grad()
def started(
    panel: Panel, log_pi: Tensor, held_out: Tensor, number: int, *, shares: TypeShares, seed: int
) -> tuple[Tensor, StartReport]:
    """Posterior [M, K] of ``number`` types, from log_pi[N, A] of a single type; ``held_out`` is bool [N].

    ``shares`` is of the schema with types; it is standardised on the first states here, and its weights are set.
    """
    first = panel.state[first_rows(panel.member)]
    shares.standardise(first)
    x, rows = shares.features(first), panel.free
    member_weight = sum_by_member(panel, panel.weight.double()) / panel.member.bincount()
    actions = torch.arange(panel.n_actions, device=rows.device)
    data = _Reduced(
        log_pi=log_pi[rows].double(),
        z=shares.features(panel.state[rows]),
        chosen=(panel.action[rows].unsqueeze(1) == actions).double(),
        weight=panel.weight[rows].double(),
        member=panel.member[rows],
        first=x,
        base=panel.schema.base,
        by_member=member_weight,
    )
    out = torch.zeros(panel.n_members, dtype=torch.bool, device=rows.device)
    out[panel.member[held_out]] = True
    inside, outside = data.only(~out), data.only(out)
    generator, table = torch.Generator().manual_seed(seed), []
    few = inside.sample(MEMBERS, generator)
    best: _Fit | None = None
    ended: list[float] = []
    for k in range(1, number + 2):
        found = [_climbed(few, q, SHORT) for q in _starting_points(few, k, STARTS if k > 1 else 1, generator)]
        fit = max(found, key=lambda f: f.trace[-1])
        if few is not inside:
            fit = _climbed(few, fit.posterior, LONG, fit)
            fit = _climbed(inside, _joint(inside, fit).softmax(1), SHORT, fit)
        parameters = k * data.z.shape[1] * (panel.n_actions - 1) + (k - 1) * x.shape[1]
        total = float(inside.by_member @ _joint(inside, fit).logsumexp(1))
        elsewhere = float(outside.by_member @ _joint(outside, fit).logsumexp(1))
        table.append({
            "types": k,
            "log_likelihood": total / float(inside.weight.sum()),
            "held_out_log_likelihood": elsewhere / max(float(outside.weight.sum()), 1e-12),
            "parameters": parameters,
            "bic": -2 * total + parameters * math.log(int((~out).sum())),
        })  # fmt: skip
        if k == number:
            best, ended = fit, [f.trace[-1] / float(few.weight.sum()) for f in found]
    assert best is not None
    fit = _climbed(data, _joint(data, best).softmax(1), LONG, best)
    order = _by_keenness(data, fit.posterior)
    shares.weight.copy_(fit.share[order] - fit.share[order[0]])
    return fit.posterior[:, order], StartReport(table, ended, len(fit.trace), fit.monotone and best.monotone)


def _starting_points(data: _Reduced, number: int, starts: int, generator: torch.Generator) -> list[Tensor]:
    """Posteriors [M, K]: members by how much more than expected they chose what, along the directions in which that
    differs most; first in equal parts along the first direction, then around members drawn at random."""
    residual = data.chosen - data.log_pi.exp()
    by_row = (residual.unsqueeze(2) * data.z.unsqueeze(1)).flatten(1)
    score = by_row.new_zeros(len(data.first), by_row.shape[1]).index_add_(0, data.member, by_row)
    score = (score - score.mean(0)) / score.std(0).clamp_min(1e-12)
    _, _, directions = torch.linalg.svd(score, full_matrices=False)
    place = score @ directions[:3].T
    place = place / place.std(0).clamp_min(1e-12)
    rank = place[:, 0].argsort().argsort()
    found = [rank * number // len(rank)]
    for _ in range(starts - 1):
        drawn = torch.randperm(len(place), generator=generator)[:number].to(place.device)
        found.append(torch.cdist(place, place[drawn]).argmin(1))
    at = torch.arange(number, device=place.device)
    return [0.8 * (own.unsqueeze(1) == at).double() + 0.2 / number for own in found]


def _climbed(data: _Reduced, posterior: Tensor, rounds: int, start: _Fit | None = None) -> _Fit:
    """EM from a posterior [M, K]: every M step is a damped Newton step, so the likelihood never falls."""
    number = posterior.shape[1]
    shift = data.z.new_zeros(number, data.log_pi.shape[1], data.z.shape[1]) if start is None else start.shift
    share = data.first.new_zeros(number, data.first.shape[1]) if start is None else start.share
    fit = _Fit(shift, share, posterior, [])
    none = data.first.new_zeros(len(data.first), number)
    for _ in range(rounds):
        own = fit.posterior[data.member]
        shift = torch.stack([
            newton_step(data.z, data.chosen, data.weight * own[:, k], data.log_pi, fit.shift[k], data.base)
            for k in range(number)
        ])  # fmt: skip
        share = newton_step(data.first, fit.posterior, data.by_member, none, fit.share, 0)
        fit = replace(fit, shift=shift, share=share)
        joint = _joint(data, fit)
        value = float(data.by_member @ joint.logsumexp(1)) - _penalty(shift) - _penalty(share)
        fit = replace(fit, posterior=joint.softmax(1), trace=[*fit.trace, value])
        if len(fit.trace) > 1 and value - fit.trace[-2] < STILL + SLACK * abs(value) / 10:
            break
    return fit


def _joint(data: _Reduced, fit: _Fit) -> Tensor:
    """log P(type, choices)[M, K]."""
    joint = (data.first @ fit.share.T).log_softmax(1)
    for k, shift in enumerate(fit.shift):
        log_pi = (data.log_pi + data.z @ shift.T).log_softmax(1)
        joint[:, k].index_add_(0, data.member, (data.chosen * log_pi.clamp_min(-1e30)).sum(1))
    return joint


def newton_step(x: Tensor, target: Tensor, weight: Tensor, offset: Tensor, coef: Tensor, base: int) -> Tensor:
    """coef[C, D] after a damped Newton step up sum w target.log softmax(offset + x coef'), less the ridge.

    x[N, D] (first column 1), target and offset [N, C] (-inf: not to be had), weight[N]; row ``base`` of coef stays.
    """
    free = [c for c in range(len(coef)) if c != base]
    if not free:
        return coef
    ridge = share_precision(coef[0])

    def value(at: Tensor) -> float:
        log_p = (offset + x @ at.T).log_softmax(1).clamp_min(-1e30)
        return float(weight @ (target * log_p).sum(1)) - _penalty(at)

    p = (offset + x @ coef.T).softmax(1)
    mass = target.sum(1, keepdim=True) * weight.unsqueeze(1)
    slope = (target * weight.unsqueeze(1) - mass * p).T @ x - ridge * coef
    size = x.shape[1]
    curvature = x.new_zeros(len(free) * size, len(free) * size)
    for i, c in enumerate(free):
        for j, d in enumerate(free[: i + 1]):
            block = (x * (mass[:, 0] * p[:, c] * (float(c == d) - p[:, d])).unsqueeze(1)).T @ x
            curvature[i * size : (i + 1) * size, j * size : (j + 1) * size] = block
            curvature[j * size : (j + 1) * size, i * size : (i + 1) * size] = block.T
    curvature += torch.diag(ridge.repeat(len(free)))
    step = torch.zeros_like(coef)
    step[free] = torch.linalg.solve(curvature, slope[free].flatten()).view(len(free), size)
    before, scale = value(coef), 1.0
    while scale > 1e-4:
        if value(coef + scale * step) >= before:
            return coef + scale * step
        scale /= 2
    return coef


def share_precision(coef: Tensor) -> Tensor:
    """The prior's precision of each weight in coef[..., D]."""
    precision = torch.full_like(coef, RIDGE)
    precision[..., 0] = INTERCEPT
    return precision


def _penalty(coef: Tensor) -> float:
    return 0.5 * float((share_precision(coef) * coef.square()).sum())


def _by_keenness(data: _Reduced, posterior: Tensor) -> Tensor:
    """The types [K] by the share of their choices that are not the base action, the smallest first."""
    own = posterior[data.member] * data.weight.unsqueeze(1)
    return (((1 - data.chosen[:, data.base]) @ own) / own.sum(0).clamp_min(1e-12)).argsort()


def sum_by_member(panel: Panel, values: Tensor) -> Tensor:
    return values.new_zeros(panel.n_members, *values.shape[1:]).index_add_(0, panel.member, values)


def monotone(trace: list[float]) -> bool:
    return all(b >= a - SLACK * abs(a) for a, b in itertools.pairwise(trace))


def checked(model: FittedModel) -> None:
    """InputError if a study whose panel has been read cannot have hidden types."""
    if model.refit is None:
        raise InputError(
            "types: hidden types need the refit, which needs an anchor reward that is a number or a state column"
        )
