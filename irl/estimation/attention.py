"""Attention: how likely members are to decide at all, estimated together with what they decide.

    P(a|s) = lambda(s) pi(a|s) + (1 - lambda(s)) 1{a = d(s)} ,     lambda a logit in eta (irl.attention)

P step: the likelihood of the mixture, in the network and eta at once (:class:`SeenPolicy`); shifters are kept out of
the network. Refit: eta joins theta in one conditional logit (:class:`Inattentive`), whose Newton steps use the expected
information of the mixture, so that no EM is needed. What follows depends on eta too: the kernel gives, beside what
every feature is worth, how that moves with eta,

    dW / d eta = sum over what follows of gamma^k lambda (1 - lambda) x (V - Q(.,d)) ,  V - Q(s,d) = -alpha log pi(d|s)

under the policy as it is, so that at the fixed point of the refit's rounds the scores are those of the full likelihood.
Where a column says which periods passed without a decision, the likelihood falls into two parts, and eta is the logit
of that column but for what it does to what follows.

On the simulated market (two segments, 4,000 x 36, lambda .33, and .9 of the 30 % who are reminded) lambda was found as
.33 and .34, and .92, and the rewards of joining, -1.43 and -1.46, as -1.46 and -1.45. Without reminders (one segment,
3,000 x 36, lambda .5): .47, and -1.58 for -1.81, at a likelihood that is hardly above that of lambda = 1.

Source: the mixture of a default and a choice is that of Abaluck & Adams-Prassl (2021), Hortacsu, Madanizadeh & Puller
(2017), here with members who know that they will not always decide. Limits: shifters identify the ratio of lambda
between their levels whatever the reward, and its level by the form of the reward and of the logit (without shifters,
these alone identify anything); the P step's network does not know that what follows may depend on a shifter, the refit
does; the intervals of scenarios hold lambda at its estimate, though those of rewards contain its error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from irl import bellman
from irl.attention import AttentionLogit, likely
from irl.config import InputError
from irl.data.panel import Panel
from irl.estimation.findings import reward_summary
from irl.estimation.logit import CHUNK, Choices, Logit
from irl.estimation.types import newton_step
from irl.fitted import FittedModel, Z
from irl.networks import PolicyNetwork

STEPS = 25
"""Newton steps of a logit with two outcomes: more than enough."""
FEW, MOST_CELLS = 4, 60
"""Values of a number up to which each is reported, and combinations of levels up to which all are."""
ROUNDS = 5
"""Rounds of the refit, at least, unless it settles: lambda and what follows have to do so together."""


class SeenPolicy(nn.Module):
    """log pi~(a|s): what is seen of members who decide by ``policy`` as often as ``attention`` says."""

    def __init__(self, policy: PolicyNetwork, attention: AttentionLogit) -> None:
        super().__init__()
        self.policy, self.attention = policy, attention

    def forward(self, state: Tensor, menu: Tensor) -> Tensor:
        """log pi~[N, A]; -inf where ``menu[N, A]`` is False."""
        return bellman.seen_policy(self.policy(state, menu), self.attention.inertia(state))


@torch.no_grad()
def fit_observed(attention: AttentionLogit, panel: Panel, rows: Tensor) -> None:
    """eta, in place, where panel.active says which of the rows[N] (bool) passed without a decision."""
    rows = rows & passable(attention, panel)
    x, active = attention.features(panel.state[rows]).double(), panel.active[rows].double()
    target, weight = torch.stack([1 - active, active], 1), panel.weight[rows].double()
    coef, none = x.new_zeros(2, x.shape[1]), torch.zeros_like(target)
    for _ in range(STEPS):
        coef = newton_step(x, target, weight, none, coef, 0)
    attention.weight.copy_(coef[1])


def passable(attention: AttentionLogit, panel: Panel) -> Tensor:
    """bool[N]: something could be decided, and the default was on the menu."""
    menu, default = panel.menu, attention.schema.default(panel.state)
    return panel.free & (default >= 0) & menu.gather(1, default.clamp_min(0).unsqueeze(1)).squeeze(1)


def slope(model: FittedModel, state: Tensor, log_pi: Tensor) -> Tensor:
    """dW/d eta [N, E] at state[N, F] through the present choice: lambda (1 - lambda) (V - Q(s,d)) x, of log pi[N, A] of
    members who decide."""
    assert model.attention is not None
    inertia = model.attention.inertia(state)
    menu = log_pi > -torch.inf
    there = inertia.passive(log_pi.shape[1]).bool() & menu
    gain = -model.config.temperature * torch.where(there, log_pi, 0.0).sum(1)
    attention = inertia.within(menu).double()
    return (attention * (1 - attention) * gain).unsqueeze(1) * model.attention.features(state).double()


@dataclass(frozen=True)
class Decisions:
    """Of n choices: phi [n, D], x [n, E], weight [n]; pi [n, A]; lambda [n], 1 where the default is not on the menu;
    whether it is there [n]; default = 1{a = d} [n, A], 0 where it is not there; log P(a|s) [n]. With w = P(decided | a
    happened), error = w (1{a} - pi) [n, A] and surprise = w - lambda [n] are the scores of the logits of both."""

    phi: Tensor
    x: Tensor
    weight: Tensor
    pi: Tensor
    attention: Tensor
    there: Tensor
    default: Tensor
    log_seen: Tensor
    error: Tensor
    surprise: Tensor


@dataclass(frozen=True)
class Inattentive(Logit):
    """The logit of members who do not always decide, in theta[P + E]: the reward's weights, then eta.

    ``map`` [A, D, P + E] has in its last columns how what follows moves with eta. ``told``: whether the panel says
    which periods passed without a decision.
    """

    attention: AttentionLogit
    told: bool

    @property
    def flat(self) -> Tensor:
        """[A D + E, P + E]: what theta does to the logits, by action and feature, and to alpha times eta itself."""
        size = len(self.attention.weight)
        own = self.temperature * torch.eye(size, dtype=self.map.dtype, device=self.map.device)
        return torch.cat([super().flat, nn.functional.pad(own, (self.map.shape[2] - size, 0))])

    def log_likelihoods(self, theta: Tensor, choices: Choices) -> Tensor:
        return torch.cat([rows.log_seen * rows.weight for rows in self.rows(theta, choices)])

    def gradient(self, theta: Tensor, choices: Choices) -> Tensor:
        choice, own = torch.zeros_like(self.offset), self.offset.new_zeros(len(self.attention.weight))
        for r in self.rows(theta, choices):
            choice += ((r.error * r.weight.unsqueeze(1)).to(r.phi).T @ r.phi).double()
            own += (r.surprise * r.weight) @ r.x
        return self.flat.T @ torch.cat([choice.flatten(), own]) / self.temperature

    def curvature(self, theta: Tensor, choices: Choices) -> Tensor:
        """[A D + E, A D + E]: the expected squares and products of the scores over alpha^2. With w = P(decided | the
        default happened), g = e_d - pi and v = lambda pi_d (1 - w), or v = 0 where it is told who decided,

            lambda cov_pi(e_a (x) phi) - v g g' ,    -v g x' ,    P(d) (lambda - w) (1 - w) x x'

        (the last lambda (1 - lambda) x x' where it is told).
        """
        actions, d = self.offset.shape
        width = actions * d
        total = self.offset.new_zeros(width + len(self.attention.weight), width + len(self.attention.weight))
        for r in self.rows(theta, choices):
            pi_d = (r.pi * r.default).sum(1)
            seen_d = r.attention * pi_d + (1 - r.attention)
            decided = r.attention * pi_d / seen_d.clamp_min(1e-300)
            mixed = torch.zeros_like(pi_d) if self.told else r.there * r.attention * pi_d * (1 - decided)
            g, phi = r.default - r.pi, r.phi
            for a in range(actions):
                here = slice(a * d, (a + 1) * d)
                for b in range(a, actions):
                    w = r.attention * r.pi[:, a] * (float(a == b) - r.pi[:, b]) - mixed * g[:, a] * g[:, b]
                    block = ((phi * (w * r.weight).unsqueeze(1).to(phi)).T @ phi).double()
                    there = slice(b * d, (b + 1) * d)
                    total[here, there] += block
                    if a != b:
                        total[there, here] += block.T
                cross = ((phi * (-mixed * g[:, a] * r.weight).unsqueeze(1).to(phi)).T @ r.x.to(phi)).double()
                total[here, width:] += cross
                total[width:, here] += cross.T
            own = r.attention * (1 - r.attention) if self.told else seen_d * (r.attention - decided) * (1 - decided)
            total[width:, width:] += (r.x * (own * r.there * r.weight).unsqueeze(1)).T @ r.x
        return total / self.temperature**2

    def rows(self, theta: Tensor, choices: Choices) -> Iterator[Decisions]:
        """The choices in chunks, at theta[P + E]."""
        panel = choices.panel
        assert isinstance(panel, Panel)
        eta, at = theta[-len(self.attention.weight) :], choices.rows.split(CHUNK)
        for i, (phi, known, menu, action, weight) in zip(at, choices.chunks(), strict=True):
            state = panel.state[i]
            x = self.attention.features(state).double()
            inertia = bellman.Inertia(likely(x @ eta), self.attention.schema.default(state))
            log_pi = self.log_policy(theta, phi, known, menu).double()
            default, attention = inertia.passive(menu.shape[1]) * menu, inertia.within(menu)
            chosen = action.unsqueeze(1)
            decided, surprise = _surprises(inertia, log_pi, action, panel.active[i] if self.told else None)
            log_seen = bellman.seen_policy(log_pi, inertia).gather(1, chosen).squeeze(1)
            if self.told:
                log_own = attention.log() + log_pi.gather(1, chosen).squeeze(1)
                log_seen = torch.where(decided > 0, log_own, torch.log1p(-attention))
            pi = log_pi.exp()
            yield Decisions(
                phi=phi,
                x=x,
                weight=weight.double(),
                pi=pi,
                attention=attention,
                there=default.any(1),
                default=default,
                log_seen=log_seen,
                error=decided.unsqueeze(1) * (nn.functional.one_hot(action, menu.shape[1]) - pi),
                surprise=surprise,
            )


def surprises(attention: AttentionLogit, panel: Panel, rows: Tensor, log_pi: Tensor) -> tuple[Tensor, Tensor]:
    """w [n] = P(decided | what happened) of the panel's rows[n], members deciding by log pi[n, A], and w - lambda, 0
    where everything is decided."""
    told = panel.active[rows] if panel.tells_active else None
    return _surprises(attention.inertia(panel.state[rows]), log_pi, panel.action[rows], told)


def _surprises(inertia: bellman.Inertia, log_pi: Tensor, action: Tensor, told: Tensor | None) -> tuple[Tensor, Tensor]:
    attention = inertia.within(log_pi > -torch.inf).to(log_pi)
    decided = bellman.decided_share(log_pi, inertia).gather(1, action.unsqueeze(1)).squeeze(1)
    if told is not None:
        decided = torch.where(attention < 1, told.to(log_pi), decided)
    return decided, torch.where(attention < 1, decided - attention, 0.0)


def checked(model: FittedModel, panel: Panel) -> None:
    """InputError if a study whose panel has been read cannot have inattention."""
    if model.refit is None:
        raise InputError(
            "attention: it is told from the reward by the refit, which needs an anchor reward that is a number or a "
            "state column"
        )
    if model.config.data.active is not None and not panel.tells_active:
        raise InputError("data.active: every period was decided; leave out `data.active` and `attention`")


def found_of(model: FittedModel, always: FittedModel, panel: Panel) -> dict[str, Any]:
    """What was found of attention, as plain values for JSON.

    ``identified_by``: column (it is told which periods passed), shifters, or form. ``mean``: of lambda over choices in
    which the default could happen. ``cells``, of every combination of the levels of `by` and the shifters (halves of
    a number of many values; none if there are more than ``MOST_CELLS``): levels, choices, share_default of them, and
    lambda, se, low, high (None without standard errors). ``reward_always_decided``: as ``reward_summary``, of the refit
    in which every period is decided.
    """
    attention, declared = model.attention, model.config.attention
    assert attention is not None and declared is not None
    rows = passable(attention, panel)
    state, weight = panel.state[rows], panel.weight[rows].double()
    passed = (attention.schema.default(state) == panel.action[rows]).double()
    parts = [_levels(panel, name, state) for name in declared.columns]
    at = torch.stack([code for code, _ in parts], 1) if parts else torch.zeros(len(state), 1, dtype=torch.long)
    kinds, at = at.to(state.device).unique(dim=0, return_inverse=True)
    cells = []
    for k, codes in enumerate(kinds.tolist() if len(kinds) <= MOST_CELLS else ()):
        mine = at == k
        x = attention.features(state[mine]).double().mean(0)
        log_odds = x @ attention.weight.detach().double()
        error = (x @ attention.covariance @ x).clamp_min(0).sqrt() if model.has_standard_errors else None
        low, high = (None, None) if error is None else (log_odds - Z * error, log_odds + Z * error)
        probability = likely(log_odds)
        cells.append({
            "levels": {n: said[c] for n, (_, said), c in zip(declared.columns, parts, codes, strict=False)},
            "choices": int(mine.sum()),
            "share_default": float(passed[mine] @ weight[mine] / weight[mine].sum()),
            "lambda": float(probability),
            "se": None if error is None else float(probability * (1 - probability) * error),
            "low": None if low is None else float(likely(low)),
            "high": None if high is None else float(likely(high)),
        })  # fmt: skip
    return {
        "identified_by": "column" if panel.tells_active else "shifters" if model.schema.shifters else "form",
        "mean": float(attention(state).detach().double() @ weight / weight.sum()),
        "cells": cells,
        "reward_always_decided": reward_summary(always, panel),
    }


def _levels(panel: Panel, name: str, state: Tensor) -> tuple[Tensor, list[str]]:
    """Which level of a column state[N, F] is at [N], and what the levels are called."""
    f = panel.schema.index(name)
    column, values = panel.schema.columns[f], state[:, f]
    if column.discrete:
        return values.long().clamp_max(len(column.labels) - 1), list(column.labels)
    known = values.unique()
    if len(known) <= FEW:
        return (values.unsqueeze(1) == known).long().argmax(1), [f"{v:g}" for v in known.tolist()]
    middle = values.median()
    return (values > middle).long(), [f"up to {float(middle):g}", f"above {float(middle):g}"]
