"""Linear functions of a model's basis, evaluated in one wide pass instead of one feature at a time.

    out_k(s) = phi(s).w_k ,   phi = products of up to three inputs, and the features of the three trunks

All parts share their inputs (indicators of levels, standardised numbers, hinges). Each product is split into a left
factor (1, an input, or a product of two) and one right factor, the lefts chosen greedily so that few of them cover all
products; then with x(s) the inputs and l(s) the lefts

    sum_p w_kp p(s) = sum_l l(s) (M_k x(s))_l ,

one matrix product whose rows stand below the first layers of the trunks. That is exact up to the rounding of float32.
Where many functions are wanted of few products (draws of parameters), the products themselves are cheaper: the smaller
estimate of the two costs is taken, so that large bases need no other code. Inside, tensors are [features, N].
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import torch
from torch import Tensor, nn

from irl.crossings import Crossings
from irl.fitted import FittedModel
from irl.networks import Encoder, LinearTerms, Trunk

Compile = Literal["kernels", "graphs"]
"""How passes are compiled: by torch.compile; and recorded as CUDA graphs (where there is no CUDA, compiled alone)."""
Key = tuple[int, float, float, float, float]
"""An input: column, code of the level (-1: a number), centre, scale, and the least value (-inf: none)."""
PASS, PRODUCT, FLOP = 0.3, 1.5, 1 / 30
"""Nanoseconds, roughly, of one core: of an elementwise step, of a product of three inputs, of a multiply-add."""


ROWS = 2048
"""States whose hidden units are held at once on a CPU, so that they stay in its cache."""


@dataclass(frozen=True)
class Tables:
    """What one pass multiplies; E inputs, of which the first ``levels`` are indicators and the last is 1.

    column[E - 1], code[levels, 1], centre, scale, least[E - 1 - levels, 1] : where inputs come from (see ``Key``).
    first : [H + K L, E] of the H hidden units and, in the bilinear form, of every function and left factor; [H, E].
    blocks : the hidden units of each trunk, and (weight, bias) of its further layers.
    last : [K, features of the trunks]; None without.
    factors : [2, L] inputs whose products are the left factors; else [3, P], those of the products.
    weight : [K, P] of the products; None in the bilinear form.
    """

    levels: int
    column: Tensor
    code: Tensor
    centre: Tensor
    scale: Tensor
    least: Tensor
    number: int
    hidden: int
    first: Tensor
    blocks: tuple[tuple[int, int, tuple[tuple[Tensor, Tensor], ...]], ...]
    last: Tensor | None
    factors: Tensor
    weight: Tensor | None


def passed(tables: Tables, state: Tensor) -> Tensor:
    """The functions [K, N] of state[N, F]: a pure function of tensors, so that it can be compiled once for all."""
    t = tables
    raw = state.T.index_select(0, t.column)
    x = state.new_empty(len(t.column) + 1, len(state))
    torch.eq(raw[: t.levels], t.code, out=x[: t.levels])
    numbers = x[t.levels : -1]
    torch.sub(raw[t.levels :], t.centre, out=numbers)
    torch.maximum(numbers.div_(t.scale), t.least, out=numbers)
    x[-1] = 1
    first = t.first @ x
    products = x.index_select(0, t.factors[0])
    for factor in t.factors[1:]:
        products *= x.index_select(0, factor)
    if t.weight is None:
        out = first[t.hidden :].view(t.number, *products.shape).mul_(products).sum(1)
    else:
        out = t.weight @ products
    if t.last is None:
        return out
    hidden = nn.functional.silu(first[: t.hidden], inplace=True)
    features, at = state.new_empty(t.last.shape[1], len(state)), 0
    for start, end, layers in t.blocks:
        h = hidden[start:end]
        for weight, bias in layers:
            h = nn.functional.silu(torch.addmm(bias, weight, h), inplace=True)
        features[at : at + len(h)] = h
        at += len(h)
    return out.addmm_(t.last, features)


@cache
def compiled(mode: Compile) -> Callable[[Tables, Tensor], Tensor]:
    """``passed`` by torch.compile; ``graphs``: with CUDA graphs, whose outputs the next pass overwrites: copied."""
    if mode == "kernels":
        return torch.compile(passed, dynamic=True)
    recorded = torch.compile(passed, mode="reduce-overhead", dynamic=False)
    return lambda tables, state: recorded(tables, state).clone()


class Forward:
    """``weights[K, D]`` times the basis of ``model``: state[N, F] -> [K, N], float32."""

    def __init__(self, model: FittedModel, weights: Tensor, compile: Compile | None = None) -> None:
        device, weights = weights.device, weights.double().cpu()
        trunks = [n.trunk for n in (model.policy_network, model.anchor_network, model.reward_network)]
        self._places: dict[Key, int] = {}
        products: dict[tuple[int, ...], Tensor] = {}
        at = 0
        for part in (model.terms, model.crossings):
            if part is None:
                continue
            first = min(at, 1)  # the constant is there once
            for row, product, worth in _products(part):
                if row >= first:
                    place = tuple(sorted(self._place(key) for key in product))
                    added = worth * weights[:, at + row - first]
                    products[place] = products[place] + added if place in products else added
            at += part.width - first
        deep, last = [], []
        for trunk in trunks:
            own = weights[:, at : at + trunk.width]
            at += trunk.width
            keys = list(_encoded(trunk.encoder))
            if len(trunk.layers):
                deep.append((trunk, [self._place(key) for key in keys]))
                last.append(own)
                continue
            for i, key in enumerate(keys):  # no layer: the features are the inputs
                place = (self._place(key),)
                products[place] = products[place] + own[:, i] if place in products else own[:, i]
        assert at == weights.shape[1], "weights of another basis"
        order = sorted(self._places, key=lambda key: key[1] < 0)  # levels before numbers
        moved = {self._places[key]: place for place, key in enumerate(order)}
        products = {tuple(sorted(moved[i] for i in product)): w for product, w in products.items()}
        deep = [(trunk, [moved[i] for i in places]) for trunk, places in deep]
        self.tables = _tables(order, deep, last, products, len(weights), device)
        self._pass = passed if compile is None else compiled(compile)

    def _place(self, key: Key) -> int:
        return self._places.setdefault(key, len(self._places))

    @torch.no_grad()
    def __call__(self, state: Tensor) -> Tensor:
        state = state.T.contiguous().T
        if state.device.type != "cpu":
            return self._pass(self.tables, state)
        return torch.cat([self._pass(self.tables, part) for part in state.split(ROWS)], 1)


def _tables(
    inputs: list[Key],
    deep: list[tuple[Trunk, list[int]]],
    last: list[Tensor],
    products: dict[tuple[int, ...], Tensor],
    number: int,
    device: torch.device,
) -> Tables:
    levels, width = sum(key[1] >= 0 for key in inputs), len(inputs) + 1
    column = torch.tensor([key[0] for key in inputs], dtype=torch.long, device=device)
    about = torch.tensor([key[1:] for key in inputs], dtype=torch.float32, device=device).view(-1, 4, 1)
    centre, scale, least = about[levels:, 1:].unbind(1)
    rows, blocks, hidden = [torch.zeros(0, width)], [], 0
    for trunk, places in deep:
        first, *rest = (layer for layer in trunk.layers if isinstance(layer, nn.Linear))
        row = torch.zeros(first.out_features, width)
        row[:, places] = first.weight.detach().cpu()
        row[:, -1] = first.bias.detach().cpu()
        rows.append(row)
        layers = tuple((layer.weight.detach(), layer.bias.detach().unsqueeze(1)) for layer in rest)
        blocks.append((hidden, hidden + len(row), layers))
        hidden += len(row)
    one, split = width - 1, _split(tuple(products))
    lefts = {left: i for i, left in enumerate(dict.fromkeys(left for left, _ in split.values()))}
    bilinear = number * len(lefts) * (width * FLOP + 2 * PASS) < len(products) * (PRODUCT + number * FLOP)
    if bilinear:
        matrix = torch.zeros(number, len(lefts), width, dtype=torch.float64)
        for product, weight in products.items():
            left, right = split[product]
            matrix[:, lefts[left], one if right is None else right] += weight
        rows.append(matrix.flatten(0, 1).float())
        factors = [(*left, one, one)[:2] for left in lefts]
    else:
        factors = [(*product, one, one, one)[:3] for product in products]
    return Tables(
        levels=levels,
        column=column,
        code=about[:levels, 0],
        centre=centre,
        scale=scale,
        least=least,
        number=number,
        hidden=hidden,
        first=torch.cat(rows).to(device),
        blocks=tuple(blocks),
        last=torch.cat(last, 1).float().to(device) if last else None,
        factors=torch.tensor(factors, device=device).T.contiguous(),
        weight=None if bilinear else torch.stack(list(products.values()), 1).float().to(device),
    )


def _encoded(encoder: Encoder) -> Iterator[Key]:
    for column, code in zip(encoder.slot_column.tolist(), encoder.slot_code.tolist(), strict=True):
        yield column, code, 0.0, 1.0, -math.inf
    scalars = (encoder.scalar_column, encoder.centre, encoder.scale)
    for column, centre, scale in zip(*(each.tolist() for each in scalars), strict=True):
        yield column, -1.0, centre, scale, -math.inf


def _products(part: Crossings | LinearTerms) -> Iterator[tuple[int, list[Key], float]]:
    """(feature, inputs whose product counts towards it, how much)."""
    if isinstance(part, LinearTerms):
        yield 0, [], 1.0
        for d, column in enumerate(part.column.tolist()):
            if bool(part.counted[d]):
                yield d + 1, [(column, -1.0, 0.0, 1.0, -math.inf)], 1.0
                continue
            for code, worth in enumerate(part.worth[d].tolist()):
                if worth and not math.isnan(worth):
                    yield d + 1, [(column, float(code), 0.0, 1.0, -math.inf)], worth
        return
    keys: list[Key] = []
    about = (part.column, part.code, part.centre, part.scale, part.knot)
    for column, code, centre, scale, knot in zip(*(each.tolist() for each in about), strict=True):
        if code >= 0:
            keys.append((column, code, 0.0, 1.0, -math.inf))
        else:
            hinge = math.isfinite(knot)
            keys.append((column, -1.0, centre + knot * scale if hinge else centre, scale, 0.0 if hinge else -math.inf))
    for d, product in enumerate(part.factors.T.tolist()):
        yield d, [keys[i - 1] for i in product if i], 1.0


@lru_cache(maxsize=8)  # policies of one model, of every period and case, ask for the same
def _split(products: tuple[tuple[int, ...], ...]) -> dict[tuple[int, ...], tuple[tuple[int, ...], int | None]]:
    """product -> (left factor, right input), the left factor that most uncovered products share first."""
    choices: dict[tuple[int, ...], dict[tuple[int, ...], int | None]] = {
        product: {product[:i] + product[i + 1 :]: product[i] for i in range(len(product))} or {(): None}
        for product in products
    }
    shared = Counter(left for lefts in choices.values() for left in lefts)
    split: dict[tuple[int, ...], tuple[tuple[int, ...], int | None]] = {}
    while len(split) < len(choices):
        left = shared.most_common(1)[0][0]
        for product, lefts in choices.items():
            if product not in split and left in lefts:
                split[product] = (left, lefts[left])
                shared.subtract(lefts.keys())
        assert shared[left] <= 0, "every product with this left factor is covered"
    return split
