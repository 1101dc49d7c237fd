"""Outcomes as functions of a simulation's counts: of one case, and of a case against the baseline.

*Arrays* are the sums of :class:`irl.counterfactual.counts.Counts` by name, [S', ...], S' the segments and, if there
are several, all of them together last. A rate of nobody is NaN. What is computed is in the head of
:mod:`irl.counterfactual.outcomes`.

    tenure      1 + sum_k survival(k), the restricted mean of the life table (Irwin 1949), k to the longest seen
    elasticity  (q1 - q0) / ((q1 + q0) / 2)  /  ((p1 - p0) / ((p1 + p0) / 2)), the arc elasticity (Allen 1933)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from irl.counterfactual.counts import Counts

Arrays = Mapping[str, NDArray[Any]]
UNSEEN = 0.05
"""The most of the area under a survival curve that may be supposed."""
MOVED = 0.02
"""Relative change of the mean price below which there is no elasticity to it: members whose price rises and falls."""


class Outcome(NamedTuple):
    """``values`` [S', T] whose first column is period ``first``; or [S'] without a period, ``first`` None."""

    name: str
    values: NDArray[Any]
    first: int | None = 0


@dataclass(frozen=True)
class Axes:
    """What the last axes of the counts stand for.

    used : names of the columns whose sums are kept, of which the first ``reported`` are outcomes.
    paid : whether sums of money are kept.
    price : which of ``used`` is the price whose change alone a case is about, if there is one.
    """

    segments: int
    actions: tuple[str, ...]
    anchor: int | None
    discount: float
    used: tuple[str, ...] = ()
    reported: int = 0
    paid: bool = False
    price: int | None = None


def arrays(counts: Counts) -> dict[str, NDArray[Any]]:
    """The sums by name [S', ...]."""
    return {name: with_total(tensor.cpu().numpy()) for name, tensor in counts.tensors().items()}


def with_total(by_segment: NDArray[Any]) -> NDArray[Any]:
    """by_segment[S, ...] with the sum over segments appended if there are several."""
    several = len(by_segment) > 1
    return np.concatenate([by_segment, by_segment.sum(0, keepdims=True)]) if several else by_segment


def levels(counts: Arrays, axes: Axes) -> list[Outcome]:
    """The outcomes of one case."""
    present, chose = counts["present"], counts["chose"]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = [Outcome(f"share_{name}", chose[:, :, k] / present) for k, name in enumerate(axes.actions)]
        if axes.anchor is not None:
            found += _membership(axes.anchor, counts)
        found += [
            Outcome(f"use_{name}", counts["use"][:, :, u] / present)
            for u, name in enumerate(axes.used[: axes.reported])
        ]
        if axes.paid:
            found += _money(counts["money"], present)
    return found


def effects(before: Arrays, after: Arrays, kappa: NDArray[Any], axes: Axes) -> list[Outcome]:
    """The outcomes of a case against the baseline; kappa[S], NaN where unknown.

    Reward units of different segments are not added up: ``surplus`` of all is NaN.
    """
    change = (1 - axes.discount) * (after["value"] - before["value"])
    with np.errstate(divide="ignore", invalid="ignore"):
        nobody = after["valued"][: axes.segments] == 0  # whose price coefficient does not matter to all
        worth = with_total(np.where(nobody, 0.0, change[: axes.segments] / kappa)) / after["valued"]
        surplus = change / after["valued"]
        surplus[axes.segments :] = np.nan
        found = [Outcome("surplus", surplus, None), Outcome("surplus_money", worth, None)]
        found += [
            Outcome(name, after[sums] / after["valued"], None)
            for name, sums in (("gainers", "gained"), ("losers", "lost"))
        ]
        if axes.price is not None:
            found += _elasticities(before, after, axes)
    return found


def _membership(anchor: int, counts: Arrays) -> list[Outcome]:
    """The outcomes of members, who are those not at the anchor."""
    present, chose, moved = counts["present"], counts["chose"], counts["moved"]
    paid = [k for k in range(chose.shape[-1]) if k != anchor]
    was_out, was_member = moved[:, :, anchor].sum(-1), moved[:, :, paid].sum((-1, -2))
    stayed_put = sum(moved[:, :, k, k] for k in paid)
    remained = moved[:, :, paid][..., paid].sum((-1, -2))
    survival = np.cumprod(counts["stayed"] / counts["at_risk"], axis=1)
    joined = survival[:, : max(present.shape[1] - 2, 0)]  # nobody joins before period 1
    return [
        Outcome("membership", 1 - chose[:, :, anchor] / present),
        Outcome("join", moved[:, :, anchor][..., paid].sum(-1) / was_out),
        Outcome("cancel", 1 - remained / was_member),
        Outcome("switch", (remained - stayed_put) / was_member),
        Outcome("renewal", remained / was_member),
        Outcome("survival", survival, 1),
        *([] if not joined.size else [Outcome("tenure", _tenure(joined), None)]),
    ]


def _tenure(survival: NDArray[Any]) -> NDArray[Any]:
    """The area under survival[S', K] and the period of joining. Past the last age that somebody is seen at, the curve
    stays where it is; where more than ``UNSEEN`` of the area would be that, nothing is known."""
    unseen = np.isnan(survival)
    last = np.fmin.accumulate(np.concatenate([np.ones((len(survival), 1)), survival], 1), axis=1)[:, 1:]
    area = 1 + last.sum(1)
    known: NDArray[Any] = np.where((last * unseen).sum(1) <= UNSEEN * area, area, np.nan)
    return known


def _money(money: NDArray[Any], present: NDArray[Any]) -> list[Outcome]:
    """Revenue and margin per member present, and per member at the start over all periods."""
    flows = {"revenue": money[:, :, 0], "margin": money[:, :, 0] - money[:, :, 1]}
    return [Outcome(name, flow / present) for name, flow in flows.items()] + [
        Outcome(f"{name}_total", flow.sum(1) / present[:, 0], None) for name, flow in flows.items()
    ]


def _elasticities(before: Arrays, after: Arrays, axes: Axes) -> list[Outcome]:
    """Of every share and of membership: over all periods, and at the last."""
    last = before["present"].shape[1] - 1
    found = []
    for first, periods in ((None, slice(None)), (last, slice(last, None))):
        relative: dict[str, list[NDArray[Any]]] = {}
        for case in (before, after):
            present, chose = case["present"][:, periods].sum(1), case["chose"][:, periods].sum(1)
            shares = {f"share_{name}": chose[:, k] / present for k, name in enumerate(axes.actions)}
            shares |= {} if axes.anchor is None else {"membership": 1 - chose[:, axes.anchor] / present}
            for name, share in (shares | {"price": case["use"][:, periods, axes.price].sum(1) / present}).items():
                relative.setdefault(name, []).append(share)
        price = _relative(*relative.pop("price"))
        price = np.where(np.abs(price) >= MOVED, price, np.nan)
        for name, (q0, q1) in relative.items():
            values = _relative(q0, q1) / price
            found.append(Outcome(f"elasticity_{name}", values if first is None else values[:, None], first))
    return found


def _relative(old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
    change: NDArray[Any] = (new - old) / ((new + old) / 2)
    return change
