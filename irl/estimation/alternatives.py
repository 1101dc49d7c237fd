"""What the model leaves out, as terms that could be added to the logits of the observed choices.

Every alternative is a direction z(s, a): where the model holds, choices less their probabilities are uncorrelated with
it, whatever is known before the choice goes into it (:mod:`irl.estimation.falsification`):

    stationarity  1{later half} of every action but the base, and 1{later half} r(s,a)
    hidden types  d(a) E, E the sum of the same member's other residuals along d; d = 1{a is not the base}, and r(s,a):
                  the score of the variance of a random coefficient of d
    attention     1{a = default} / pi(a|s), the default being the action before: the score of the share that renews
                  without deciding
    iia           -log pi(a | one of the plans) of the plans: the score of their dissimilarity
    discount      a column that moves and is kept out of the reward: it may count for what follows only
    anchor        the same of a column that never changes, by which the dynamics differ: an environment

The base is the anchor action (else the first). Sources: Chesher (1984) for the variance; McFadden (1987) for the nest;
Magnac & Thesmar (2002) for exclusions; the share of the inattentive as in Abaluck & Adams-Prassl (2021), but at 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from irl.data.panel import Panel
from irl.data.column import Column
from irl.data.schema import StateSchema
from irl.dynamics import start_parents
from irl.fitted import FittedModel

LEAST_PROBABILITY = 0.05
"""Floor of the default's probability in 1/pi: a rare default would decide alone."""


@dataclass(frozen=True)
class Residuals:
    """Of the n decisions: rows [n] of the panel; pi, reward (reward units), error = 1{a} - pi, each [n, A], float64."""

    model: FittedModel
    panel: Panel
    rows: Tensor
    pi: Tensor
    reward: Tensor
    error: Tensor

    @property
    def paid(self) -> list[int]:
        return [a for a in range(self.pi.shape[1]) if a != self.model.schema.base]

    def dummies(self) -> Tensor:
        """1{a = b} [n, A, A - 1] of every action b but the base."""
        own = torch.eye(self.pi.shape[1], dtype=self.pi.dtype, device=self.pi.device)[:, self.paid]
        return own.expand(len(self.rows), *own.shape)


@dataclass(frozen=True)
class Alternative:
    """A direction: z [n, A, K], or why there is none. ``twice``: every product of two residuals is in it twice."""

    name: str
    null: str
    sees: str
    cannot_see: str
    z: Tensor | str
    twice: bool = False


def alternatives(found: Residuals) -> list[Alternative]:
    """All of them, in the order above."""
    return [
        Alternative(
            name="stationarity",
            null="rewards are the same in the first and the second half of the panel",
            sees="tastes, costs or unrecorded offers that drift or jump",
            cannot_see="changes that cancel within each half, and changes of the dynamics; a season that the state "
            "does not hold looks like drift",
            z=_later_half(found),
        ),
        Alternative(
            name="hidden types",
            null="given the state, a member's choices are independent over time",
            sees="tastes for plans or for what they give that differ between members and are in no column",
            cannot_see="types that the columns give away; habits and serially correlated shocks look the same",
            z=_other_residuals(found),
            twice=True,
        ),
        Alternative(
            name="attention",
            null="members decide every period; nobody renews because they did not look",
            sees="more repeating of the last action, where the model finds it unlikely, than its logit can bend to",
            cannot_see="inattention that is the same in all states that look alike: it is taken for a cost of "
            "switching; who the inattentive are",
            z=_default(found),
        ),
        Alternative(
            name="iia",
            null="plans share no part of their taste shocks (independence of irrelevant alternatives)",
            sees="plans that are closer substitutes for each other than for leaving",
            cannot_see="nests that split the plans; little, where menus and plans' values hardly vary",
            z=_within_nest(found),
        ),
        Alternative(
            name="discount",
            null="what `reward.columns` leaves out and that moves counts only through what follows",
            sees="a wrong discount factor, and a wrong exclusion: not which",
            cannot_see="anything, if the columns left out do not move what follows",
            z=_excluded(found, static=False),
        ),
        Alternative(
            name="anchor",
            null="members of environments with different dynamics, whose column `reward.columns` leaves out, have the "
            "same rewards",
            sees="a wrong reward of the anchor, a wrong discount factor, tastes that differ: not which",
            cannot_see="a constant error of the anchor's reward, where no state is terminal; anything, if dynamics "
            "hardly differ",
            z=_excluded(found, static=True),
        ),
    ]


def _later_half(found: Residuals) -> Tensor | str:
    period = found.panel.period[found.rows]
    later = (period > period.median()).double()
    if not later.any():
        return "all decisions are of one period"
    return torch.cat([found.dummies(), _beyond_base(found).unsqueeze(2)], 2) * later[:, None, None]


def _beyond_base(found: Residuals) -> Tensor:
    """r(s,a) less the base's [n, A], over its standard deviation."""
    beyond = found.reward - found.reward[:, [found.model.schema.base]]
    return beyond / beyond[:, found.paid].std().clamp_min(1e-12)


def _other_residuals(found: Residuals) -> Tensor | str:
    if found.panel.n_members == len(found.rows):
        return "no member decided twice"
    member = found.panel.member[found.rows]
    member_like = torch.zeros(found.panel.n_members, 1, dtype=found.pi.dtype, device=found.pi.device)
    is_paid = found.dummies().sum(2)
    parts = []
    for d in (is_paid, _beyond_base(found)):
        own = (found.error * d).sum(1, keepdim=True)
        total = member_like.clone().index_add_(0, member, own)[member]
        parts.append(d * (total - own))
    return torch.stack(parts, 2)


def _default(found: Residuals) -> Tensor | str:
    panel = found.panel
    before = torch.full_like(panel.next_row, -1)
    linked = (panel.next_row >= 0).nonzero().squeeze(1)
    before[panel.next_row[linked]] = panel.action[linked]
    default = before[found.rows]
    at = default.clamp_min(0).unsqueeze(1)
    known = (default >= 0) & panel.menu[found.rows].gather(1, at).squeeze(1)
    if not known.any():
        return "nobody's last action is on the menu again"
    likely = found.pi.gather(1, at).squeeze(1).clamp_min(LEAST_PROBABILITY)
    return torch.zeros_like(found.pi).scatter_(1, at, (known / likely).unsqueeze(1)).unsqueeze(2)


def _within_nest(found: Residuals) -> Tensor | str:
    if found.model.schema.anchor is None:
        return "without an anchor action there is no leaving to set the plans apart from"
    plans = found.pi[:, found.paid]
    if not ((plans > 0).sum(1) > 1).any():
        return "nowhere are there two plans to choose from"
    share = plans / plans.sum(1, keepdim=True).clamp_min(1e-300)
    z = torch.zeros_like(found.pi)
    z[:, found.paid] = torch.where(share > 0, -share.clamp_min(1e-6).log(), 0.0)
    return z.unsqueeze(2)


def _excluded(found: Residuals, *, static: bool) -> Tensor | str:
    schema, columns = found.model.schema, found.model.config.reward.columns
    if not columns:
        return "`reward.columns` leaves no column out of the reward"
    out = [(f, c) for f, c in enumerate(schema.columns) if c.name not in columns and c.minimum < c.maximum]
    out = [(f, c) for f, c in out if (c.dynamics == "static") == static and (not static or _moves(schema, f))]
    if not out:
        kind = "never changes and moves the dynamics" if static else "moves"
        return f"`reward.columns` leaves out no column that {kind}"
    state = found.panel.state[found.rows]
    x = torch.cat([_values(c, state[:, f].double()) for f, c in out], 1)
    return (found.dummies().unsqueeze(3) * x[:, None, None]).flatten(2)


def _moves(schema: StateSchema, static: int) -> bool:
    """Whether the dynamics of any column depend on column ``static``."""
    return any(
        c.dynamics == "learned" or (c.dynamics == "table" and static in (c.parents or start_parents(schema, f)))
        for f, c in enumerate(schema.columns)
    )


def _values(column: Column, value: Tensor) -> Tensor:
    """[n, K]: indicators of a category's levels but the first, else the standardised number and its square."""
    if column.kind == "category":
        return (value.unsqueeze(1) == torch.arange(1, len(column.labels), device=value.device)).double()
    x = (value - value.mean()) / value.std().clamp_min(1e-12)
    return torch.stack([x, x.square()], 1)
