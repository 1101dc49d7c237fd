"""Money: what members pay and cost in a state, and what a unit of it is worth to a segment.

The price coefficient kappa of a segment is minus the mean effect of a price on the reward of the action that pays it,

    kappa = -E[ r(s with the price at its highest, a) - r(s with it at its lowest, a) ] / (highest - lowest),

over the rows of the segment in which a may be chosen and is paid for; highest and lowest as observed. It is linear in
the reward's parameters, so that its standard error follows from their covariance. Several prices are combined with
weights inverse to their variances. Only prices that are columns and varied for reasons unrelated to taste (``assigned:
randomised``) count, and a kappa less than ``CLEAR`` standard errors above 0 is not used: what is divided by it would be
anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from irl.config import InputError
from irl.counterfactual.intervention import Intervention
from irl.data.column import measure
from irl.data.schema import StateSchema
from irl.declared import Data, Flow, Money
from irl.fitted import FittedModel, free_rows
from irl.transitions import States

CLEAR = 2.0
"""Standard errors by which a price coefficient has to be above 0."""
APART = 3.0
"""Standard errors between one price's coefficient and the weighted mean beyond which a note says so."""
CHUNK = 16384
"""Rows whose features are held at once."""


def check_money(money: Money | None, data: Data, schema: StateSchema) -> None:
    """InputError naming all that does not fit the study."""
    if money is None:
        return
    problems = money.problems(data)
    for kind, flows in (("price", money.price), ("cost", money.cost)) if not problems else ():
        for action, flow in flows.items():
            problems += schema.problems_of(flow.where, f"money.{kind}.{action}.where")
    if problems:
        raise InputError("prices and costs do not fit the study:\n  " + "\n  ".join(problems))


def below_zero(
    model: FittedModel, money: Money | None, case: str, intervention: Intervention, rows: States
) -> list[str]:
    """Prices (columns of ``money.price``, the study's or ``money``'s, never below 0 in the panel) that a case puts
    below 0, one sentence each."""
    schema, found = model.schema, list[str]()
    faced = intervention.state(rows.state, rows.segment)
    flows = [flow for each in (model.config.money, money) if each is not None for flow in each.price.values()]
    names = [name for f in flows for name in (f.amount, *f.per) if isinstance(name, str)]
    facing = [change.add.facing for change in intervention.changes if change.add is not None]
    prices = [schema.columns[schema.index(name)] for name in dict.fromkeys(names)]
    for column in (price for price in prices if price.kind == "numeric" and price.minimum >= 0):
        own = [float(seen[column.name]) for seen in facing if column.name in seen]
        low = float(torch.cat([faced[:, schema.index(column.name)], faced.new_tensor([0.0, *own])]).min())
        if low < 0:
            found.append(
                f"{case}: the price {column.name!r} becomes {low:g} (in the panel {column.minimum:g} to "
                f"{column.maximum:g}): put it to 0 or more"
            )
    return found


def paid(schema: StateSchema, money: Money, faced: Tensor) -> Tensor:
    """What members at faced[N, F] pay for each action and what serving them costs, [N, A, 2], in the currency."""
    out = faced.new_zeros(len(faced), len(schema.actions), 2, dtype=torch.float64)
    for k, flows in enumerate((money.price, money.cost)):
        for name, flow in flows.items():
            due = schema.matches(faced, flow.where)
            out[:, schema.actions.index(name), k] = torch.where(due, _amount(schema, flow, faced), 0.0)
    return out


@dataclass(frozen=True)
class PriceCoefficients:
    """kappa by segment [S], in reward units per unit of money; NaN where it is not clearly positive.

    slopes : [S, B], how kappa moves along each draw of the parameters.
    estimates : segment -> value, se, and by price column the value and se that these combine, as plain values.
    notes : what is missing and why, one sentence each.
    """

    value: Tensor
    slopes: Tensor
    estimates: dict[str, dict[str, Any]]
    notes: tuple[str, ...]


@torch.no_grad()
def price_coefficients(model: FittedModel, money: Money, rows: States, draws: Tensor | None) -> PriceCoefficients:
    """kappa of every segment, over ``rows``; ``draws`` [B, A, Dx] of the parameters less their estimate."""
    schema = model.schema
    nothing = torch.full((len(schema.segments), 1 if draws is None else len(draws)), torch.nan, dtype=torch.float64)
    prices = list(_randomised(schema, money))
    if not prices or model.refit is None or draws is None:
        why = (
            "no price is a column declared `assigned: randomised`"
            if not prices
            else "the model has no standard errors to judge it by"
        )
        note = f"surplus in {money.currency} is left out: what money is worth to members is not known, since {why}"
        return PriceCoefficients(nothing[:, 0], nothing, {}, (note,))
    effect, weight = _effects(model, money, prices, rows)  # [S, K, A, Dx], [S, K]
    theta = model.refit.theta
    kappa = -torch.einsum("skad,ad->sk", effect, theta)
    error = model.refit.error_of(effect.flatten(0, 1)).view_as(kappa)
    precision = torch.where(weight > 0, error.clamp_min(1e-300) ** -2, 0.0)
    share = precision / precision.sum(1, keepdim=True)  # NaN without a row
    combined = -torch.einsum("sk,skad->sad", share, effect)
    value, se = torch.einsum("sad,ad->s", combined, theta), model.refit.error_of(combined)
    clear = value >= CLEAR * se
    names = [column for _, column in prices]
    estimates, notes = {}, []
    for s, segment in enumerate(schema.segments):
        if bool(value[s].isfinite()):
            by_price = {
                name: {"value": float(kappa[s, k]), "se": float(error[s, k])}
                for k, name in enumerate(names)
                if weight[s, k] > 0
            }
            estimates[segment] = {"value": float(value[s]), "se": float(se[s]), "prices": by_price}
        if not bool(clear[s]) and bool((rows.segment == s).any()):
            found = f" ({float(value[s]):.3g}, standard error {float(se[s]):.2g})" if segment in estimates else ""
            notes.append(
                f"{segment}: surplus in {money.currency} is left out, here and for all: that a higher price lowers the "
                f"reward is not clear{found}"
            )
        apart = (kappa[s] - value[s]).abs() > APART * model.refit.error_of(effect[s] - combined[s])
        if bool(clear[s]) and bool((apart & (weight[s] > 0)).any()):
            each = ", ".join(f"{by_price[name]['value']:.3g} by {name}" for name in by_price)
            notes.append(
                f"{segment}: its prices disagree on what a unit of {money.currency} is worth ({each}); surplus in "
                f"{money.currency} uses their weighted mean {float(value[s]):.3g}"
            )
    slopes = torch.einsum("sad,bad->sb", combined, draws)
    return PriceCoefficients(torch.where(clear, value, torch.nan), slopes, estimates, tuple(notes))


def _amount(schema: StateSchema, flow: Flow, faced: Tensor) -> Tensor:
    """amount[N] at faced[N, F], wherever the flow's condition holds."""
    columns = {flow.amount: 1.0} if isinstance(flow.amount, str) else {}
    out = faced.new_full((len(faced),), 0.0 if isinstance(flow.amount, str) else flow.amount, dtype=torch.float64)
    for name, each in [*columns.items(), *flow.per.items()]:
        f = schema.index(name)
        levels = measure(schema.columns[f], faced.device)
        out = out + each * (faced[:, f].double() if levels is None else levels[faced[:, f].long()])
    return out


def _randomised(schema: StateSchema, money: Money) -> Iterator[tuple[int, str]]:
    """(action, price column) of the prices whose effect on a reward is known; an anchor action's reward is given."""
    for name, flow in money.price.items():
        action = schema.actions.index(name)
        if isinstance(flow.amount, str) and action != schema.anchor:
            column = schema.columns[schema.index(flow.amount)]
            if column.assigned == "randomised" and column.maximum > column.minimum:
                yield action, flow.amount


def _effects(model: FittedModel, money: Money, prices: list[tuple[int, str]], rows: States) -> tuple[Tensor, Tensor]:
    """Mean effect of a unit of each of K prices on the reward that pays it, as what the parameters are multiplied by,
    [S, K, A, Dx], and the weight [S, K] of the rows that it is a mean over."""
    schema, width = model.schema, model.terms.width
    total = torch.zeros(len(schema.segments), len(prices), len(schema.actions), width, dtype=torch.float64)
    total = total.to(rows.state.device)
    weight = total.new_zeros(len(schema.segments), len(prices))
    for first in range(0, len(rows.state), CHUNK):
        part = rows.only(slice(first, first + CHUNK))
        menu, free = schema.menu(part.state), free_rows(schema, part.state)
        for k, (action, name) in enumerate(prices):
            pays = free & menu[:, action] & schema.matches(part.state, money.price[schema.actions[action]].where)
            mine, column = part.only(pays), schema.columns[schema.index(name)]
            by_segment = one_hot(mine.segment, len(schema.segments)).double() * mine.weight.double().unsqueeze(1)
            weight[:, k] += by_segment.sum(0)
            for price, sign in ((column.maximum, 1.0), (column.minimum, -1.0)):
                state = mine.state.index_fill(1, torch.tensor([schema.index(name)], device=menu.device), price)
                own = (
                    one_hot(torch.tensor(action), len(schema.actions)).to(menu.device)
                    - schema.reference(state, menu[pays]).double()
                )
                load = (by_segment.unsqueeze(2) * own.unsqueeze(1)).flatten(1)  # [n, S A]
                total[:, k] += (
                    sign
                    / (column.maximum - column.minimum)
                    * (load.T @ model.terms(state).double()).view_as(total[:, k])
                )
    return total / weight.clamp_min(1e-300)[:, :, None, None], weight
