"""The conditional logit of the refit: choices in, the weights of highest (penalised) likelihood out.

Logits are phi(s).(map theta + offset)_a, plus g(s) for an anchor action: the present choice's own features, what they
are worth from the next choice on (``map``, by the kernel), and what follows apart from the reward (``offset``). Convex
in theta; Newton's method with second derivatives from a sample of the choices. Where choices are dealt out to
processes, likelihoods, gradients and second derivatives are sums over those of all.

Sources: McFadden (1974); MacKay (1992), Tipping (2001) for the evidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from irl import bellman, processes
from irl.fitted import FittedModel

CHUNK = 16384
"""Rows whose features are held at once."""
CACHED = 600_000_000
"""Numbers of the features of all choices up to which they are kept in memory instead of computed at every pass."""
HESSIAN_ROWS = 40_000
"""Choices (at random) from which the second derivatives are taken."""
EVIDENCE_ROWS = 750_000
"""Choices (at random) from which precisions are found: of more the weights alone are found from all."""
GAIN = 0.01
"""Log-likelihood (of all choices together) below which another Newton step is not worth making."""
FREE = 1e-3
"""Precision of the prior of the intercepts."""


class Chosen(Protocol):
    """What choices are read from: a panel, or less."""

    @property
    def state(self) -> Tensor: ...
    @property
    def anchor_reward(self) -> Tensor: ...
    @property
    def menu(self) -> Tensor: ...
    @property
    def action(self) -> Tensor: ...
    @property
    def weight(self) -> Tensor: ...


@dataclass(frozen=True)
class Choices:
    """The observed choices, in chunks: features phi[n, D], g[n], menu[n, A], action[n], weight[n]."""

    model: FittedModel
    panel: Chosen
    rows: Tensor
    cache: dict[int, Tensor]

    def chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        for first in range(0, len(self.rows), CHUNK):
            i = self.rows[first : first + CHUNK]
            phi = self.cache.get(first)
            if phi is None:
                phi = self.model.basis(self.panel.state[i]).contiguous()
                if len(self.rows) * phi.shape[1] <= self.most_cached:
                    self.cache[first] = phi
            yield phi, self.panel.anchor_reward[i], self.panel.menu[i], self.panel.action[i], self.panel.weight[i]

    @property
    def most_cached(self) -> int:
        """Numbers of the features of all choices up to which they are kept."""
        return CACHED

    def some(self, most: int, *, seed: int) -> Choices:
        """So many of the choices (of those of all processes), at random."""
        most = processes.own_part(most, len(self.rows))
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(seed))[:most]
        return Choices(self.model, self.panel, self.rows[order.to(self.rows.device)], {})

    def at_most(self, most: int) -> Choices:
        """These choices, or so many of them at random."""
        return self if processes.total(len(self.rows)) <= most else self.some(most, seed=0)

    @property
    def mass(self) -> float:
        """The weight of all choices (of all processes)."""
        return processes.total(self.panel.weight[self.rows].double().sum())


@dataclass(frozen=True)
class Logit:
    """The conditional logit in theta[P]: logits = phi(s).(map theta + offset)_a + g(s) 1{a = anchor}.

    map[A, D, P], offset[A, D]; P as in :class:`irl.estimation.parameters.Parameters`. Without an anchor action g is
    shared by all and left out. What all actions share decides nothing, but grows as 1/(1 - gamma) and would drown
    their differences in float32: it is taken off before the features enter.
    """

    map: Tensor
    offset: Tensor
    anchor: int | None
    temperature: float

    @property
    def flat(self) -> Tensor:
        """[A D, P]: what theta does to the logits, by action and feature, less the mean over actions."""
        return (self.map - self.map.mean(0)).flatten(0, 1)

    def log_policy(self, theta: Tensor, phi: Tensor, known: Tensor, menu: Tensor) -> Tensor:
        weights = self.map @ theta + self.offset
        q = phi @ (weights - weights.mean(0)).T.to(phi.dtype)
        if self.anchor is not None:
            q[:, self.anchor] += known
        return bellman.log_policy(q, menu, self.temperature)

    def log_likelihood(self, theta: Tensor, choices: Choices) -> float:
        """Weighted sum over the choices."""
        return processes.total(self.log_likelihoods(theta, choices).sum())

    def log_likelihoods(self, theta: Tensor, choices: Choices) -> Tensor:
        """Of every choice (of this process), times its weight [n]."""
        found = [theta.new_zeros(0)]
        for phi, known, menu, action, weight in choices.chunks():
            chosen = self.log_policy(theta, phi, known, menu).gather(1, action.unsqueeze(1)).squeeze(1)
            found.append(chosen.double() * weight.double())
        return torch.cat(found)

    def gradient(self, theta: Tensor, choices: Choices) -> Tensor:
        """[P]: sum w (1{a} - pi) d logit / d theta."""
        total = torch.zeros_like(self.offset)
        for phi, known, menu, action, weight in choices.chunks():
            score = -self.log_policy(theta, phi, known, menu).exp()
            score[torch.arange(len(action), device=action.device), action] += 1
            total += ((score * weight.unsqueeze(1)).T @ phi).double()
        total = processes.summed(total)
        return torch.einsum("ad,adp->p", total - total.mean(0), self.map) / self.temperature

    def information(self, theta: Tensor, choices: Choices) -> Tensor:
        """[P, P]: minus the second derivative, sum w of the covariance of the logits' gradients under pi."""
        return self.flat.T @ (self.curvature(theta, choices) @ self.flat)

    def curvature(self, theta: Tensor, choices: Choices) -> Tensor:
        """[A D, A D]: the same in the features of every action: sum w cov_pi(e_a (x) phi) / alpha^2. The blocks of an
        action add up to 0, so those of one that is chosen often follow from the others'."""
        actions, d = self.offset.shape
        total = self.offset.new_zeros(actions, d, actions, d)
        base: int | None = None
        for phi, known, menu, _, weight in choices.chunks():
            pi = self.log_policy(theta, phi, known, menu).exp()
            base = int(pi.sum(0).argmax()) if base is None else base
            others = [a for a in range(actions) if a != base]
            for i, a in enumerate(others):
                for b in others[i:]:
                    block = _weighted_gram(phi, weight * pi[:, a] * (float(a == b) - pi[:, b])).double()
                    for c, e in {(a, b), (b, a)}:
                        total[c, :, e] += block
                        total[base, :, e] -= block
                        total[c, :, base] -= block
                        total[base, :, base] += block
        return processes.summed(total).view(actions * d, actions * d) / self.temperature**2


def _weighted_gram(phi: Tensor, weight: Tensor) -> Tensor:
    """sum weight[n] phi phi^T [D, D] of phi[n, D]; what lies below the diagonal is mostly copied."""
    half, left = phi.shape[1] // 2, (phi * weight.unsqueeze(1)).T
    upper, lower = left[:half] @ phi, left[half:] @ phi[:, half:]
    return torch.cat([upper, torch.cat([upper[:, half:].T, lower], 1)])


def evidence(
    logit: Logit, choices: Choices, theta: Tensor, precision: Tensor, groups: Tensor, updates: int
) -> tuple[Tensor, Tensor, float]:
    """theta[P], the groups' precisions, and the number of effective parameters, where the evidence is largest."""
    information: Tensor | None = None
    count = torch.bincount(groups, minlength=len(precision)).double()
    effective = count
    for _ in range(updates):
        penalty = precision[groups]
        theta, information = maximised(logit, choices, theta, penalty, information)
        spread = torch.linalg.inv(information + torch.diag(penalty)).diagonal()
        square = torch.zeros_like(precision).index_add_(0, groups, theta.square())
        trace = torch.zeros_like(precision).index_add_(0, groups, spread)
        effective = (count - precision * trace).clamp_min(1e-6)
        precision = (effective / square.clamp_min(1e-12)).clamp(1e-2, 1e8)
        precision[0] = FREE
        precision = processes.agreed(precision)
    return theta, precision, float(effective[1:].sum())


def maximised(
    logit: Logit, choices: Choices, theta: Tensor, penalty: Tensor, information: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """theta[P] at which likelihood less penalty/2 theta^2 is largest (damped Newton), and the information matrix there.

    A matrix that is given is kept for as long as it serves.
    """
    some = choices.some(HESSIAN_ROWS, seed=0)
    more = choices.mass / some.mass

    def objective(at: Tensor) -> float:
        return logit.log_likelihood(at, choices) - 0.5 * float(penalty @ at.square())

    value, given = objective(theta), information is not None
    for _ in range(50):
        if information is None:
            information = more * logit.information(theta, some)
        slope = logit.gradient(theta, choices) - penalty * theta
        step = processes.agreed(torch.linalg.solve(information + torch.diag(penalty), slope))
        size, gain = 1.0, -1.0
        while gain <= 0 and size > 1e-3:
            gain = objective(theta + size * step) - value
            size = size if gain > 0 else size / 2
        if gain > 0:
            theta, value = theta + size * step, value + gain
        if gain < GAIN and not (given and gain <= 0):
            break
        if not given or size < 1:
            information, given = None, False
    assert information is not None
    return theta, information


def cross_validated(logit: Logit, choices: Choices, theta: Tensor, penalty: Tensor, fold: Tensor) -> Tensor:
    """Weighted log-likelihood [n] of every choice under weights maximised without its fold[n] (from theta[P], where
    all choices have their maximum).
    """
    some = choices.some(HESSIAN_ROWS, seed=0)
    information = choices.mass / some.mass * logit.information(theta, some)
    found = torch.zeros(len(choices.rows), dtype=torch.float64, device=theta.device)
    for k in fold.unique().tolist():
        mine = fold == k
        inside = Choices(choices.model, choices.panel, choices.rows[~mine], {})
        outside = Choices(choices.model, choices.panel, choices.rows[mine], {})
        without, _ = maximised(logit, inside, theta, penalty, inside.mass / choices.mass * information)
        found[mine] = logit.log_likelihoods(without, outside)
    return found
