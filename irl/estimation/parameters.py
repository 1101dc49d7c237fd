"""The reward's parameters: which features enter whose reward with weights of their own, and how these are scaled.

All features do, each for every action but the fixed one; money is the exception. Where a study declares what members
pay (``money.price``) and an amount is a column, that column is a price: of the action that pays it, in the states in
which it is due. Two restrictions follow, on the reward only (what follows may depend on a price as on any other
column):

    paid    A price enters the reward of what pays it, where it is due. Elsewhere it says nothing about what members
            like. Left free, its effect is split between the state in which it is paid and those in which it is not (a
            year's price, between signing up and the months inside the contract): their sum over a contract is known
            well, the parts are not, and with them go the price coefficient and the answers to scenarios that keep to
            one part.
    shared  A unit of money counts the same whatever it is paid for (``money.one_coefficient``; the constant marginal
            utility of money of discrete choice models, Small & Rosen 1981): prices that were assigned at random enter
            linearly, with one coefficient. Scenarios take prices to where no test has been, and the errors of slopes
            that each plan's own test gives grow with the distance.

What money is worth may differ by who a member is, by static categories and levels. That it differs by what a member
does or uses now is left out: else the many ways in which it might are weighed against the few in which it does.

An amount that counts only where a category or ordinal has certain levels enters by its products with their indicators;
where the features hold no such products, it enters everywhere, and shares nothing.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from irl import processes
from irl.crossings import Crossings
from irl.declared import Condition, Flow
from irl.fitted import FittedModel
from irl.transitions import States

CHUNK = 16384
"""Rows whose features are held at once."""
INTERCEPT = "intercept"
"""The group of the constants."""
Who = frozenset[tuple[int, int]]
"""Static columns and the codes that they have."""


@dataclass(frozen=True)
class Parameters:
    """P parameters of the reward, and the weights of (A - 1) Dx raw features that they stand for.

    Attributes
    ----------
    raw : float64 [(A - 1) Dx, P], the weights, one action after the other, are raw times the parameters. One parameter
        to a feature that varies, the weight of it standardised, but for those that share one.
    groups : int64 [P], parameters of the same columns of one action share a group; 0 is the intercepts.
    """

    raw: Tensor
    groups: Tensor

    @property
    def used(self) -> Tensor:
        """Numbers [U] of the weights that may differ from 0."""
        return (self.raw != 0).any(1).nonzero().squeeze(1)

    def by_action(self, theta: Tensor, actions: int) -> Tensor:
        """Weights [A - 1, Dx] of theta[P], of ``actions`` - 1 actions."""
        return (self.raw @ theta).view(actions - 1, -1)

    def of(self, weights: Tensor) -> Tensor:
        """theta[P] of the weights [A - 1, Dx] that it gave."""
        found: Tensor = torch.linalg.lstsq(self.raw, weights.reshape(-1, 1)).solution.squeeze(1)
        return found


def reward_parameters(model: FittedModel, states: States) -> Parameters:
    """Those of the model's reward, its features standardised over ``states``."""
    x = torch.cat([model.terms(s) for s in states.state.split(CHUNK)]).double()
    mean, sd = processes.mean(x), processes.spread(x, correction=0)
    varies = sd > 1e-4 * processes.highest(x.abs().amax(0)).clamp_min(1e-12)  # what does not vary stays out
    mean[0], sd[0], varies[0] = 0.0, 1.0, model.config.reward.intercept
    if not model.config.reward.intercept:
        mean.zero_()
    varies[_untested(model, states)] = False
    enters, own = entering(model).to(varies.device) & varies, model.terms.groups.tolist()
    found: list[tuple[Hashable, dict[tuple[int, int], float]]] = []  # group, weight of every (action, feature)
    taken = set[tuple[int, int]]()
    for who, slopes in _shared_slopes(model).items():
        slopes = {(b, d): slope for (b, d), slope in slopes.items() if bool(enters[b, d])}
        taken |= slopes.keys()
        if slopes:
            largest = max(abs(slope) * float(sd[d]) for (_, d), slope in slopes.items())
            group = frozenset(column for column, _ in who)
            found.append((("money", group), {at: slope / largest for at, slope in slopes.items()}))
    for b, d in enters.nonzero().tolist():
        if (b, d) not in taken:
            found.append(((b, own[d]) if own[d] else INTERCEPT, {(b, d): 1 / float(sd[d])}))
    raw = torch.zeros(len(enters), len(mean), len(found), dtype=torch.float64)
    for p, (_, weights) in enumerate(found):
        for (b, d), weight in weights.items():
            raw[b, d, p] += weight
            raw[b, 0, p] -= weight * float(mean[d])  # 0 for the constant
    number = {group: g for g, group in enumerate(dict.fromkeys([INTERCEPT, *(group for group, _ in found)]))}
    groups = torch.tensor([number[group] for group, _ in found])
    return Parameters(raw.flatten(0, 1).to(mean.device), groups.to(mean.device))


def _untested(model: FittedModel, states: States) -> list[int]:
    """Features that would give a tested price an effect of its own where it is the same for all, as the constant is.
    Of a column in one level of which alone it varies, that level says what all have."""
    found: list[int] = []
    for price in {price for price, _ in tested_prices(model)}:
        by: dict[frozenset[int], dict[Who, list[int]]] = {}  # lasting columns -> levels -> features
        for d, columns in enumerate(model.terms.columns_of):
            if price in columns and (who := _who(model, d)):
                by.setdefault(frozenset(column for column, _ in who), {}).setdefault(who, []).append(d)
        for levels in by.values():
            varies = {who: _varies(states, price, who) for who in levels}
            if not all(varies.values()):
                alone = sum(varies.values()) == 1
                found += [d for who, features in levels.items() if alone or not varies[who] for d in features]
    return found


def _varies(states: States, column: int, who: Who) -> bool:
    """Whether a column has more than one value among those who are so."""
    here = torch.ones_like(states.segment, dtype=torch.bool)
    for f, code in who:
        here &= states.state[:, f] == code
    value = states.state[here, column]
    bounds = torch.stack([value, -value], 1)
    high, low = processes.highest(torch.cat([bounds, bounds.new_full((1, 2), -torch.inf)]).amax(0)).tolist()
    return bool(high > -low)


def entering(model: FittedModel) -> Tensor:
    """bool [A - 1, Dx]: whether a feature of the reward enters that of an action (all but the fixed one)."""
    enters = _paid(model)
    shared = {at for slopes in _shared_slopes(model).values() for at in slopes}
    for price, b in tested_prices(model):
        for d, columns in enumerate(model.terms.columns_of):
            if price in columns and (b, d) not in shared:
                enters[b, d] = False
    return enters


def _paid(model: FittedModel) -> Tensor:
    """bool [A - 1, Dx]: the same, as far as prices enter where they are paid."""
    schema, terms, payers = model.schema, model.terms, _payers(model)
    enters = torch.ones(len(schema.actions) - 1, terms.width, dtype=torch.bool)
    for price, paid_by in payers.items():
        made_of = torch.tensor([price in columns for columns in terms.columns_of])
        who = {price, *_lasting(model)}
        for b, action in enumerate(a for a in range(len(schema.actions)) if a != schema.base):
            if action not in paid_by:
                enters[b, made_of] = False
                continue
            where = paid_by[action].where
            due = torch.tensor([_due(model, d, where) for d in range(terms.width)])
            confined = bool((made_of & due).any())
            known = who | {schema.index(c) for c in where if confined}
            by_who = torch.tensor([columns <= known for columns in terms.columns_of])
            enters[b, made_of & ~(by_who & due if confined else by_who)] = False
    return enters


def _payers(model: FittedModel) -> dict[int, dict[int, Flow]]:
    """The columns that are prices (an amount of some action), and of each the actions that pay units of it, and
    where."""
    schema, money, found = model.schema, model.config.money, dict[int, dict[int, Flow]]()
    if money is not None and schema.anchor is not None:
        for price in (flow.amount for flow in money.price.values() if isinstance(flow.amount, str)):
            paid_by = {action: flow for action, flow in money.price.items() if units_paid(flow, price)}
            found[schema.index(price)] = {schema.actions.index(action): flow for action, flow in paid_by.items()}
    return found


def units_paid(flow: Flow, price: str) -> float:
    """Money paid per unit of a price: 1 where it is the amount, and what is paid ``per`` unit."""
    return float(flow.amount == price) + flow.per.get(price, 0.0)


def _lasting(model: FittedModel) -> list[int]:
    """The columns of levels that never change about a member."""
    return [f for f, c in enumerate(model.schema.columns) if c.dynamics == "static" and c.discrete]


def tested_prices(model: FittedModel) -> list[tuple[int, int]]:
    """(column, place among the actions but the fixed one) of the prices that share a coefficient: assigned at random,
    and kept by the features to where they are paid."""
    schema, money, enters = model.schema, model.config.money, _paid(model)
    if money is None or not money.one_coefficient:
        return []
    places, found = [a for a in range(len(schema.actions)) if a != schema.base], []
    for price, paid_by in _payers(model).items():
        for action, flow in paid_by.items():
            b = places.index(action) if action in places else -1
            own = [d for d, c in enumerate(model.terms.columns_of) if b >= 0 and price in c and bool(enters[b, d])]
            confined = own and all(_due(model, d, flow.where) for d in own)
            if schema.columns[price].assigned == "randomised" and confined:
                found.append((price, b))
    return found


def _shared_slopes(model: FittedModel) -> dict[Who, dict[tuple[int, int], float]]:
    """By who members are, where features can tell it for every price: the weights, by action and feature, of a unit of
    money paid."""
    enters, tested, payers = _paid(model), tested_prices(model), _payers(model)
    places = [a for a in range(len(model.schema.actions)) if a != model.schema.base]
    found: dict[Who, dict[tuple[int, int], float]] = {}
    seen: dict[Who, set[tuple[int, int]]] = {}
    for price, b in tested:
        units = units_paid(payers[price][places[b]], model.schema.names[price])
        for d, columns in enumerate(model.terms.columns_of):
            slope = _slope(model, d, price) if price in columns and bool(enters[b, d]) else None
            if slope is not None:
                who = _who(model, d)
                found.setdefault(who, {})[b, d] = slope * units
                seen.setdefault(who, set()).add((price, b))
    return {who: slopes for who, slopes in found.items() if seen[who] == set(tested)}


def _inputs(model: FittedModel, feature: int) -> list[int]:
    """Inputs of a product of the crossings."""
    assert isinstance(model.terms, Crossings)
    return [i - 1 for i in model.terms.factors[:, feature].tolist() if i]


def _slope(model: FittedModel, feature: int, price: int) -> float | None:
    """The weight of the feature at which a unit of the price counts one; None if it is not linear in the price."""
    terms = model.terms
    if not isinstance(terms, Crossings):
        return None if terms.counted[feature - 1] == 0 else 1.0
    own = [i for i in _inputs(model, feature) if int(terms.column[i]) == price]
    linear = len(own) == 1 and terms.code[own[0]] < 0 and bool(terms.knot[own[0]].isinf())
    return float(terms.scale[own[0]]) if linear else None


def _who(model: FittedModel, feature: int) -> Who:
    """The levels of lasting columns that a feature is confined to."""
    terms = model.terms
    if not isinstance(terms, Crossings):
        return frozenset()
    lasting = set(_lasting(model))
    return frozenset(
        (int(terms.column[i]), int(terms.code[i]))
        for i in _inputs(model, feature)
        if terms.code[i] >= 0 and int(terms.column[i]) in lasting
    )


def _due(model: FittedModel, feature: int, where: Condition) -> bool:
    """Whether a feature is 0 wherever the condition does not hold, by indicators of its levels alone."""
    terms, schema = model.terms, model.schema
    if not isinstance(terms, Crossings):
        return not where
    inputs = _inputs(model, feature)
    for name, allowed in where.items():
        f = schema.index(name)
        codes = [int(terms.code[i]) for i in inputs if int(terms.column[i]) == f and terms.code[i] >= 0]
        state = torch.zeros(len(codes), len(schema.columns))
        state[:, f] = torch.tensor(codes, dtype=state.dtype)
        if not codes or not bool(schema.matches(state, {name: allowed}).any()):
            return False
    return True
