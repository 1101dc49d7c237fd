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
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn

from irl.fitted import FittedModel
from irl.networks import Crossings, Encoder, LinearTerms, Trunk

Key = tuple[int, float, float, float, float]
"""An input: column, code of the level (-1: a number), centre, scale, and the least value (-inf: none)."""
PASS, PRODUCT, FLOP = 0.3, 1.5, 1 / 30
"""Nanoseconds, roughly, of one core: of an elementwise step, of a product of three inputs, of a multiply-add."""


ROWS = 2048
"""States whose hidden units are held at once on a CPU, so that they stay in its cache."""


class Forward:
    """``weights[K, D]`` times the basis of ``model``: state[N, F] -> [K, N], float32."""

    def __init__(self, model: FittedModel, weights: Tensor) -> None:
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
        self._set_inputs(order, device)
        self._set_trunks([(trunk, [moved[i] for i in places]) for trunk, places in deep], last, device)
        self._set_products(products, len(weights), device)

    def _place(self, key: Key) -> int:
        return self._places.setdefault(key, len(self._places))

    def _set_inputs(self, keys: list[Key], device: torch.device) -> None:
        self.levels = sum(key[1] >= 0 for key in keys)
        self.width = len(keys) + 1  # the last input is 1
        self.column = torch.tensor([key[0] for key in keys], dtype=torch.long, device=device)
        about = torch.tensor([key[1:] for key in keys], dtype=torch.float32, device=device).view(-1, 4, 1)
        self.code = about[: self.levels, 0]
        self.centre, self.scale, self.least = about[self.levels :, 1:].unbind(1)

    def _set_trunks(self, deep: list[tuple[Trunk, list[int]]], last: list[Tensor], device: torch.device) -> None:
        rows, self.blocks, start = [], [], 0
        for trunk, places in deep:
            first, *rest = (layer for layer in trunk.layers if isinstance(layer, nn.Linear))
            row = torch.zeros(first.out_features, self.width)
            row[:, places] = first.weight.detach().cpu()
            row[:, -1] = first.bias.detach().cpu()
            rows.append(row)
            self.blocks.append((slice(start, start + len(row)), rest))
            start += len(row)
        self.hidden = start
        self.first = torch.cat([torch.zeros(0, self.width), *rows]).to(device)
        self.last = torch.cat(last, 1).float().to(device) if last else None

    def _set_products(self, products: dict[tuple[int, ...], Tensor], number: int, device: torch.device) -> None:
        one = self.width - 1
        split = _split(tuple(products))
        lefts = {left: i for i, left in enumerate(dict.fromkeys(left for left, _ in split.values()))}
        bilinear = number * len(lefts) * (self.width * FLOP + 2 * PASS)
        self.bilinear = bilinear < len(products) * (PRODUCT + number * FLOP)
        if self.bilinear:
            matrix = torch.zeros(number, len(lefts), self.width, dtype=torch.float64)
            for product, weight in products.items():
                left, right = split[product]
                matrix[:, lefts[left], one if right is None else right] += weight
            self.first = torch.cat([self.first, matrix.flatten(0, 1).float().to(device)])
            factors = [(*left, one, one)[:2] for left in lefts]
        else:
            self.weight = torch.stack(list(products.values()), 1).float().to(device)
            factors = [(*product, one, one, one)[:3] for product in products]
        self.factors = torch.tensor(factors, device=device).T.contiguous()
        self.number = number

    def inputs(self, state: Tensor) -> Tensor:
        """x[E, N]: indicators of levels, numbers, and 1."""
        raw = state.T.index_select(0, self.column)
        x = state.new_empty(self.width, len(state))
        torch.eq(raw[: self.levels], self.code, out=x[: self.levels])
        numbers = x[self.levels : -1]
        torch.sub(raw[self.levels :], self.centre, out=numbers)
        torch.maximum(numbers.div_(self.scale), self.least, out=numbers)
        x[-1] = 1
        return x

    @torch.no_grad()
    def __call__(self, state: Tensor) -> Tensor:
        state = state.T.contiguous().T
        if state.device.type != "cpu":
            return self._pass(state)
        return torch.cat([self._pass(part) for part in state.split(ROWS)], 1)

    def _pass(self, state: Tensor) -> Tensor:
        x = self.inputs(state)
        first = self.first @ x
        products = x.index_select(0, self.factors[0])
        for factor in self.factors[1:]:
            products *= x.index_select(0, factor)
        if self.bilinear:
            out = first[self.hidden :].view(self.number, *products.shape).mul_(products).sum(1)
        else:
            out = self.weight @ products
        if self.last is None:
            return out
        hidden = nn.functional.silu(first[: self.hidden], inplace=True)
        features, at = state.new_empty(self.last.shape[1], len(state)), 0
        for block, layers in self.blocks:
            h = hidden[block]
            for layer in layers:
                h = torch.addmm(layer.bias.unsqueeze(1), layer.weight, h)
                h = nn.functional.silu(h, inplace=True)
            features[at : at + len(h)] = h
            at += len(h)
        return out.addmm_(self.last, features)


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
