"""Main effects and interactions of the state's columns: features of rewards, and of the values that follow."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from irl.data.schema import StateSchema

BENDS = {-math.inf: "", -1.0: ">-1sd", 0.0: ">+0sd", 1.0: ">+1sd"}
"""Where the effect of a number may bend, in standard deviations from its mean; the first is its trend."""
MOST_PAIRS = (250, 150)
"""Features of pairs of moving columns above which the time counts by its rank there; above which they are left out."""


def standard(kind: str, levels: int, centre: float, scale: float) -> tuple[float, float]:
    """Centre and scale of a scalar input; ordinals are spread over [-1, 1]."""
    return ((levels - 1) / 2, max(levels - 1, 1) / 2) if kind == "ordinal" else (centre, scale)


class Crossings(nn.Module):
    """Main effects and interactions of the state's columns, x[N, D], first column 1: products of up to three inputs.

    Inputs are indicators of every level (none is left out: these features are made for estimators that shrink, which
    should not depend on which level comes first) and standardised numbers; a column that never varies gives none, and
    a number gives three hinges max(z - k, 0) besides, so that its effect may bend, for every level of a static category
    in its own way (but for tested prices, which scenarios take to where no test has been); so does an ordinal whose
    moves are alike, with its trend, so that levels of few rows follow the others. What never changes about
    a member (segment, a price assigned once) is crossed with every other column, since the effect of anything may
    differ by it; and, so that a tested price may count for one segment under one plan only, static categories are
    crossed with randomised and table columns at once. Columns that move are crossed pair by pair, ordinals by their
    standardised rank, those that tell the time by every level (seasons go up and down), as long as these are no more
    than ``MOST_PAIRS``; else by the rank, too, or not at all.

    Parameters
    ----------
    names : the columns to use; empty: all.
    alone : columns that are crossed with no other moving one but those that tell the time.
    of : if given, only features in which one of these columns has a part.
    beyond : names of features that are left out, since others have them.

    Attributes
    ----------
    names : [D], of the features.
    groups : int64 [D], features of the same columns share a group; 0 is the constant.
    columns_of : [D], the state columns that each feature is made of.
    """

    column: Tensor
    code: Tensor
    centre: Tensor
    scale: Tensor
    knot: Tensor
    factors: Tensor
    groups: Tensor

    def __init__(
        self,
        schema: StateSchema,
        names: tuple[str, ...] = (),
        *,
        alone: tuple[str, ...] = (),
        of: tuple[str, ...] = (),
        beyond: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        columns = schema.columns
        wanted = {schema.index(name) for name in of}
        used = [f for f, c in enumerate(columns) if c.minimum < c.maximum and (not names or c.name in names)]
        inputs: list[_Input] = []
        for f in used:
            c = columns[f]
            if c.discrete:
                inputs += [_Input(f, f"{c.name}={label}", code=code) for code, label in enumerate(c.labels)]
            else:
                inputs.append(_Input(f, c.name, centre=c.centre, scale=c.scale))
        fixed = {f for f in used if columns[f].dynamics == "static"}
        labelled = {f for f in fixed if columns[f].kind == "category"}
        tested = {f for f in fixed if columns[f].assigned == "randomised"}
        moved = {f for f in used if columns[f].dynamics == "table"}
        at = range(len(inputs))
        chosen: list[tuple[int, ...]] = [(), *((i,) for i in at)]
        for i, j in itertools.combinations(at, 2):
            f, g = inputs[i].column, inputs[j].column
            if f != g and (f in fixed or g in fixed):
                chosen.append((i, j))
        kinds = ([a for a in at if inputs[a].column in kind] for kind in (labelled, tested, moved))
        chosen += [(i, j, k) for i, j, k in itertools.product(*kinds) if inputs[i].column != inputs[j].column]
        moving = [f for f in used if f not in fixed]
        for f in [*moving, *(f for f in used if f in fixed - tested and not columns[f].discrete)]:
            c = columns[f]
            knots = list(BENDS)[not c.alike :] if c.alike or not c.discrete else []
            bends = range(len(inputs), len(inputs) + len(knots))
            inputs += [_Input(f, c.name + BENDS[k], centre=c.centre, scale=c.scale, knot=k) for k in knots]
            chosen += [(k,) for k in bends]
            if not c.discrete:
                chosen += [(i, k) for i in at if inputs[i].column in labelled for k in bends]
        levels = {f: [i for i in at if inputs[i].column == f] for f in moving}
        ranks = dict(levels)
        for f in (f for f in moving if columns[f].kind == "ordinal"):
            ranks[f] = [len(inputs)]
            inputs.append(_Input(f, columns[f].name, None, *standard("ordinal", len(columns[f].labels), 0.0, 1.0)))
        clocks = {f for f in moving if columns[f].dynamics == "clock"}
        apart = {f for f in moving if columns[f].name in alone}
        seasons = ranks | {f: levels[f] for f in clocks}
        crossed = [
            (f, g)
            for f, g in itertools.combinations(moving, 2)
            if (not wanted or wanted & {f, g}) and (not apart & {f, g} or clocks & {f, g})
        ]
        pairs = ([p for f, g in crossed for p in itertools.product(each[f], each[g])] for each in (seasons, ranks))
        chosen += next((some for some, most in zip(pairs, MOST_PAIRS, strict=True) if len(some) <= most), [])
        if wanted:
            chosen = [product for product in chosen if not product or wanted & {inputs[i].column for i in product}]
        named = {product: " x ".join(inputs[i].name for i in product) or "1" for product in chosen}
        chosen = [product for product in chosen if not product or named[product] not in beyond]
        of_columns = [tuple(sorted(inputs[i].column for i in product)) for product in chosen]
        keys = [(f, any(inputs[i].knot is not None for i in p)) for f, p in zip(of_columns, chosen, strict=True)]
        number = {key: g for g, key in enumerate(dict.fromkeys(keys))}
        padded = [[1 + i for i in product] + [0] * (3 - len(product)) for product in chosen]  # input 0 is the constant
        self.names = tuple(named[product] for product in chosen)
        self.columns_of = tuple(frozenset(f) for f in of_columns)
        self.register_buffer("column", torch.tensor([i.column for i in inputs], dtype=torch.long))
        self.register_buffer("code", torch.tensor([-1.0 if i.code is None else float(i.code) for i in inputs]))
        self.register_buffer("centre", torch.tensor([i.centre for i in inputs]))
        self.register_buffer("scale", torch.tensor([i.scale for i in inputs]))
        self.register_buffer("knot", torch.tensor([-math.inf if i.knot is None else i.knot for i in inputs]))
        self.register_buffer("factors", torch.tensor(padded, dtype=torch.long).T.contiguous())
        self.register_buffer("groups", torch.tensor([number[key] for key in keys], dtype=torch.long))
        self.width = len(chosen)

    def forward(self, state: Tensor) -> Tensor:
        raw = state.T.contiguous().index_select(0, self.column)
        indicator = (raw == self.code.unsqueeze(1)).to(state.dtype)
        number = (raw - self.centre.unsqueeze(1)) / self.scale.unsqueeze(1)
        knot = self.knot.unsqueeze(1)
        number = torch.where(knot.isinf(), number, (number - knot).clamp_min(0))
        inputs = torch.where(self.code.unsqueeze(1) < 0, number, indicator)
        inputs = torch.cat([torch.ones_like(state[:, :1]).T, inputs])
        first, second, third = (inputs.index_select(0, factor) for factor in self.factors)
        return (first * second * third).T


@dataclass(frozen=True)
class _Input:
    """One input of the crossings: the indicator of a level (``code``), or a standardised number, or its hinge."""

    column: int
    name: str
    code: int | None = None
    centre: float = 0.0
    scale: float = 1.0
    knot: float | None = None
