"""What the model leaves out, as terms that could be added to the logits of the observed choices.

Every alternative is a direction z(s, a): where the model holds, choices less their probabilities are uncorrelated with
it, whatever is known before the choice goes into it (:mod:`irl.estimation.falsification`):

    stationarity  1{later half} of every action but the base, and 1{later half} r(s,a)
    common shocks 1{period} of all actions but the base together, for every period but the first (or so many spans)
    hidden types  d(a) E, E the sum of the same member's other residuals along d; d = 1{a is not the base}, and r(s,a):
                  the score of the variance of a random coefficient of d
    attention     1{a = default} / pi(a|s), the default being what most do who did the same before: the score of the
                  share that renews without deciding; and its products with columns that move and are kept out of the
                  reward
    iia           for every plan, the columns that are the price of one other plan alone, assigned at random, and so are
                  kept out of its reward; without such, -log pi(a | one of the plans) of the plans, the score of their
                  dissimilarity, which errors of the reward's form move as well
    money         what a plan costs, where it is due, for every tested price but one: its coefficient apart from theirs
    discount      columns that move and are kept out of the reward, and what follows, c(s,a): a discount factor too high
                  or low gives c a coefficient of its own
    anchor        an environment (a column that never changes, by which the dynamics differ) kept out of the reward, and
                  its products with the columns that the reward has and that move

The base is the anchor action (else the first). Sources: Chesher (1984) for the variance; McFadden (1987) for the nest;
McFadden, Tye & Train (1977) for other plans' prices; Magnac & Thesmar (2002) for exclusions; the share of the
inattentive as in Abaluck & Adams-Prassl (2021), but at 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from irl.data.column import Column
from irl.data.panel import Panel
from irl.data.schema import StateSchema
from irl.dynamics import start_parents
from irl.estimation.parameters import tested_prices, units_paid
from irl.fitted import FittedModel

SPANS = 24
"""Spans of periods, at most, that may have a shock of their own."""
LEAST_PROBABILITY = 0.05
"""Floor of the default's probability in 1/pi: a rare default would decide alone."""


@dataclass(frozen=True)
class Residuals:
    """Of the n decisions: rows [n] of the panel; and, each [n, A], float64, pi, reward and follows = c(s,a) (in reward
    units), error = 1{a} - pi."""

    model: FittedModel
    panel: Panel
    rows: Tensor
    pi: Tensor
    reward: Tensor
    follows: Tensor
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
            name="common shocks",
            null="no period is better or worse for all members than the state says",
            sees="seasons, campaigns and events that no column of the state shows",
            cannot_see="what differs between members, or moves them between plans alone; calendar columns of the state "
            "take for theirs what comes back every year",
            z=_periods(found),
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
            sees="renewals that move with a column kept out of the reward, such as a reminder; without one, renewals "
            "against what plans give, beyond what a cost of switching explains",
            cannot_see="without such a column, inattention where values hardly differ between states, which is taken "
            "for a cost of switching; a reward of the wrong form looks the same",
            z=_default(found),
        ),
        Alternative(
            name="iia",
            null="plans share no part of their taste shocks (independence of irrelevant alternatives)",
            sees="plans that are closer substitutes for each other than for leaving",
            cannot_see="nests that split the plans; where no plan has a price of its own (`money.price`) that was "
            "assigned at random, a nest from a reward whose form is wrong",
            z=_within_nest(found),
        ),
        Alternative(
            name="money",
            null="a unit of money counts the same whatever it is paid for (`money.one_coefficient`)",
            sees="a plan whose price is felt more, or less, than that of the others",
            cannot_see="effects that bend with the price, alike for all; what money is worth to whom",
            z=_own_price(found),
        ),
        Alternative(
            name="discount",
            null="what `reward.columns` leaves out and that moves counts only through what follows",
            sees="a wrong discount factor, and a wrong exclusion: not which",
            cannot_see="anything, if the columns left out do not move what follows",
            z=_discount(found),
        ),
        Alternative(
            name="anchor",
            null="members of environments with different dynamics, whose column `reward.columns` leaves out, have the "
            "same rewards",
            sees="a wrong reward of the anchor, a wrong discount factor, tastes that differ: not which",
            cannot_see="a constant error of the anchor's reward, where no state is terminal; anything, if dynamics "
            "hardly differ",
            z=_anchor(found),
        ),
    ]


def _later_half(found: Residuals) -> Tensor | str:
    period = found.panel.period[found.rows]
    later = (period > period.median()).double()
    if not later.any():
        return "all decisions are of one period"
    return torch.cat([found.dummies(), _beyond_base(found).unsqueeze(2)], 2) * later[:, None, None]


def _periods(found: Residuals) -> Tensor | str:
    _, at = found.panel.period[found.rows].unique(return_inverse=True)
    number = int(at.max()) + 1
    if number == 1:
        return "all decisions are of one period"
    spans = min(number, SPANS)
    own = torch.eye(spans, dtype=found.pi.dtype, device=at.device)[at * spans // number, 1:]
    return found.dummies().sum(2, keepdim=True) * own.unsqueeze(1)


def _beyond_base(found: Residuals) -> Tensor:
    """r(s,a) less the base's [n, A], over its standard deviation."""
    beyond = found.reward - found.reward[:, [found.model.schema.base]]
    return beyond / beyond[:, found.paid].std().clamp_min(1e-12)


def _other_residuals(found: Residuals) -> Tensor | str:
    if found.panel.n_members == len(found.rows):
        return "no member decided twice"
    member, d = found.panel.member[found.rows], _tastes(found)
    own = torch.einsum("na,nak->nk", found.error, d)
    total = own.new_zeros(found.panel.n_members, own.shape[1]).index_add_(0, member, own)[member]
    return d * (total - own).unsqueeze(1)


def _tastes(found: Residuals) -> Tensor:
    """d [n, A, 2] of the coefficients that may differ between members."""
    return torch.stack([found.dummies().sum(2), _beyond_base(found)], 2)


def products_variance(found: Residuals) -> Tensor:
    """Variance [2, 2] that the model gives to the sum over members of products of residuals, sum_t cov_pi(d) E_t E_t',
    E_t the sum of the residuals before t. Squares of members' sums, in its stead, are large with the sum itself (both
    are skewed), and a correct panel was rejected in 18 % instead of 5 % (40 panels of 250 x 12)."""
    member, d = found.panel.member[found.rows], _tastes(found)
    own = torch.einsum("na,nak->nk", found.error, d)
    before = own.cumsum(0) - own
    first = torch.ones_like(member, dtype=torch.bool)
    first[1:] = member[1:] != member[:-1]
    before = before - before[first][first.long().cumsum(0) - 1]
    centred = d - torch.einsum("na,nak->nk", found.pi, d).unsqueeze(1)
    before = before * found.panel.weight[found.rows].double().unsqueeze(1)
    return torch.einsum("na,nak,nal,nk,nl->kl", found.pi, centred, centred, before, before)


def _default(found: Residuals) -> Tensor | str:
    default, known = default_action(found)
    if not known.any():
        return "nobody's default is on the menu"
    at = default.unsqueeze(1)
    likely = found.pi.gather(1, at).squeeze(1).clamp_min(LEAST_PROBABILITY)
    z = torch.zeros_like(found.pi).scatter_(1, at, (known / likely).unsqueeze(1)).unsqueeze(2)
    x = _excluded(found, static=False)
    return z if isinstance(x, str) else torch.cat([z, z * x.unsqueeze(1)], 2)


def default_action(found: Residuals) -> tuple[Tensor, Tensor]:
    """What happens where nobody decides [n], and where that is known and on the menu (bool [n]).

    The likeliest choice, by the model, of all who did the same before and whose categories that the action moves (a
    status) have the same labels; without such categories, what was done before itself. A contract that has run out may
    be renewed as another plan: what was done before alone would miss that.
    """
    panel, schema = found.panel, found.model.schema
    before = torch.full_like(panel.next_row, -1)
    linked = (panel.next_row >= 0).nonzero().squeeze(1)
    before[panel.next_row[linked]] = panel.action[linked]
    before = before[found.rows]
    moved = [f for f, c in enumerate(schema.columns) if c.kind == "category" and c.dynamics == "table"]
    default, known = before.clamp_min(0), before >= 0
    if moved:
        seen = torch.cat([before.unsqueeze(1), panel.state[found.rows][:, moved].long()], 1)
        _, group = seen.unique(dim=0, return_inverse=True)
        likely = found.pi.new_zeros(int(group.max()) + 1, found.pi.shape[1]).index_add_(0, group, found.pi)
        default, known = likely.argmax(1)[group], torch.ones_like(known)
    return default, known & panel.menu[found.rows].gather(1, default.unsqueeze(1)).squeeze(1)


def _within_nest(found: Residuals) -> Tensor | str:
    if found.model.schema.anchor is None:
        return "without an anchor action there is no leaving to set the plans apart from"
    if not ((found.pi[:, found.paid] > 0).sum(1) > 1).any():
        return "nowhere are there two plans to choose from"
    prices = _other_prices(found)
    return prices if prices.shape[2] else _dissimilarity(found)


def _dissimilarity(found: Residuals) -> Tensor:
    """z [n, A, 1]: -log pi(a | one of the plans)."""
    plans = found.pi[:, found.paid]
    share = plans / plans.sum(1, keepdim=True).clamp_min(1e-300)
    z = torch.zeros_like(found.pi)
    z[:, found.paid] = torch.where(share > 0, -share.clamp_min(1e-6).log(), 0.0)
    return z.unsqueeze(2)


def _other_prices(found: Residuals) -> Tensor:
    """z [n, A, K]: for every column assigned at random that only one plan pays, and every other plan, the column."""
    model, money = found.model, found.model.config.money
    flows = {} if money is None else money.price
    prices = dict.fromkeys(f.amount for f in flows.values() if isinstance(f.amount, str))
    charged = [(name, a) for name in prices for a, f in flows.items() if units_paid(f, name)]
    z = found.pi.new_zeros(*found.pi.shape, 0)
    for name, payer in charged:
        f = model.schema.index(name)
        if sum(name == other for other, _ in charged) > 1 or model.schema.columns[f].assigned != "randomised":
            continue
        x = _values(model.schema.columns[f], found.panel.state[found.rows, f].double())[:, :1]
        others = [k for k, a in enumerate(found.paid) if model.schema.actions[a] != payer]
        z = torch.cat([z, found.dummies()[:, :, others] * x.unsqueeze(1)], 2)
    return z


def _own_price(found: Residuals) -> Tensor | str:
    model, state = found.model, found.panel.state[found.rows]
    prices, money = tested_prices(model), model.config.money
    if money is None or len(prices) < 2:
        return "no two prices were assigned at random and share a coefficient"
    directions = []
    for f, b in prices[1:]:
        action = model.schema.actions[found.paid[b]]
        x = _values(model.schema.columns[f], state[:, f].double())[:, 0]
        due = model.schema.matches(state, money.price[action].where)
        directions.append(found.dummies()[:, :, b] * (x * due).unsqueeze(1))
    return torch.stack(directions, 2)


def _discount(found: Residuals) -> Tensor | str:
    x = _excluded(found, static=False)
    if isinstance(x, str):
        return x
    follows = found.follows / found.follows.std().clamp_min(1e-12)
    return torch.cat([_for_every_plan(found, x), follows.unsqueeze(2)], 2)


def _anchor(found: Residuals) -> Tensor | str:
    environment = _excluded(found, static=True)
    if isinstance(environment, str):
        return environment
    schema, columns = found.model.schema, found.model.config.reward.columns
    state = found.panel.state[found.rows].double()
    moving = [f for f, c in enumerate(schema.columns) if c.name in columns and c.dynamics != "static"]
    moving = [f for f in moving if schema.columns[f].kind != "category"]
    x = [torch.ones_like(state[:, :1]), *(_values(schema.columns[f], state[:, f])[:, :1] for f in moving)]
    return _for_every_plan(found, (environment.unsqueeze(2) * torch.cat(x, 1).unsqueeze(1)).flatten(1))


def _for_every_plan(found: Residuals, x: Tensor) -> Tensor:
    """x [n, K] as a direction of its own for every action but the base, [n, A, K (A - 1)]."""
    return (found.dummies().unsqueeze(3) * x[:, None, None]).flatten(2)


def _excluded(found: Residuals, *, static: bool) -> Tensor | str:
    """Values [n, K] of the columns that are kept out of the reward, or why there are none."""
    schema, columns = found.model.schema, found.model.config.reward.columns
    if not columns:
        return "`reward.columns` leaves no column out of the reward"
    out = [(f, c) for f, c in enumerate(schema.columns) if c.name not in columns and c.minimum < c.maximum]
    out = [(f, c) for f, c in out if (c.dynamics == "static") == static and (not static or _moves(schema, f))]
    if not out:
        kind = "never changes and moves the dynamics" if static else "moves"
        return f"`reward.columns` leaves out no column that {kind}"
    state = found.panel.state[found.rows]
    return torch.cat([_values(c, state[:, f].double()) for f, c in out], 1)


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
