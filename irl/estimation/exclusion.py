"""Which features enter whose reward: all, but a price only as money that is paid.

Where a study declares what members pay (``money.price``) and an amount is a column, that column is a price: of the
action that pays it, in the states in which it is due. Elsewhere it says nothing about what members like. Left free, its
effect is split between the state in which it is paid and those in which it is not (a year's price, between signing up
and the months inside the contract): their sum over a contract is known well, the parts are not, and with them go the
price coefficient and the answers to scenarios that keep to one part.

What money is worth may differ by who a member is, by static categories and levels. That it differs by what a member
does or uses now is left out: else the many ways in which it might are weighed against the few in which it does.

An amount that counts only where a category or ordinal has certain levels enters by its products with their indicators;
where the features hold no such products, it enters everywhere. This is a restriction of the reward only: what follows
may depend on a price as on any other column.
"""

from __future__ import annotations

import torch
from torch import Tensor

from irl.declared import Condition, Flow
from irl.fitted import FittedModel
from irl.networks import Crossings


def entering(model: FittedModel) -> Tensor:
    """bool [A - 1, Dx]: whether a feature of the reward enters that of an action (all but the fixed one)."""
    schema, terms, money = model.schema, model.terms, model.config.money
    paid = [a for a in range(len(schema.actions)) if a != schema.base]
    enters = torch.ones(len(paid), terms.width, dtype=torch.bool)
    if money is None or schema.anchor is None:
        return enters
    flows: dict[str, dict[int, Flow]] = {
        flow.amount: {} for flow in money.price.values() if isinstance(flow.amount, str)
    }
    for action, flow in money.price.items():
        if isinstance(flow.amount, str):
            flows[flow.amount][schema.actions.index(action)] = flow
    for name, payers in flows.items():
        price = schema.index(name)
        made_of = torch.tensor([price in columns for columns in terms.columns_of])
        who = {price, *(f for f, c in enumerate(schema.columns) if c.dynamics == "static" and c.discrete)}
        for b, a in enumerate(paid):
            if a not in payers:
                enters[b, made_of] = False
                continue
            where = payers[a].where
            due = torch.tensor([_due(model, d, where) for d in range(terms.width)])
            confined = bool((made_of & due).any())
            known = who | {schema.index(c) for c in where if confined}
            by_who = torch.tensor([columns <= known for columns in terms.columns_of])
            enters[b, made_of & ~(by_who & due if confined else by_who)] = False
    return enters


def _due(model: FittedModel, feature: int, where: Condition) -> bool:
    """Whether a feature is 0 wherever the condition does not hold, by indicators of its levels alone."""
    terms, schema = model.terms, model.schema
    if not isinstance(terms, Crossings):
        return False
    inputs = [i - 1 for i in terms.factors[:, feature].tolist() if i]
    for name, allowed in where.items():
        f = schema.index(name)
        codes = [int(terms.code[i]) for i in inputs if int(terms.column[i]) == f and terms.code[i] >= 0]
        state = torch.zeros(len(codes), len(schema.columns))
        state[:, f] = torch.tensor(codes, dtype=state.dtype)
        if not codes or not bool(schema.matches(state, {name: allowed}).any()):
            return False
    return True
