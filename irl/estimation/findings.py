"""What was found, in numbers: mean rewards by action and segment, what each benefit contributes, coefficients; each
with its standard error and 95 % interval where there is a refit to take them from.

Averages are over the states visited in the panel, by weight (spreads count rows alike), which are taken as given: the
intervals are those of the estimated reward, by the delta method (exact here, since rewards are linear in the
parameters).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from irl import processes
from irl.data.panel import Panel
from irl.estimation.contracts import contracts
from irl.estimation.curves import curves
from irl.estimation.logit import CHUNK
from irl.estimation.parameters import entering
from irl.estimation.rowwise import forward, parts
from irl.fitted import FittedModel, Z
from irl.networks import LinearTerms


def findings(model: FittedModel, panel: Panel) -> dict[str, Any]:
    """``reward_summary`` and ``contributions`` ({action: {segment or "all": ...}}), ``curves``, ``coefficients``,
    ``wald``, ``contracts``."""
    return {
        "reward_summary": reward_summary(model, panel),
        "contributions": contributions(model, panel),
        "curves": curves(model, panel),
        "coefficients": coefficients(model),
        "wald": wald_tests(model),
        "contracts": contracts(model, panel),
    }


def by_type(model: FittedModel, panel: Panel, posterior: Tensor) -> dict[str, Any]:
    """What tells hidden types apart, over states visited by members of types drawn by posterior[M, K].

    ``number``; ``share`` of the members, by type; ``certainty``, the mean probability of each member's likeliest type;
    ``reward`` and ``contributions`` as in :func:`findings`, with types for segments.
    """
    labels = panel.schema.columns[-1].labels
    schema = replace(panel.schema, segments=labels)
    panel = replace(panel, schema=schema, segment=panel.state[:, -1].long())
    return {
        "number": len(labels),
        "share": dict(zip(labels, posterior.mean(0).tolist(), strict=True)),
        "certainty": float(posterior.amax(1).mean()),
        "reward": reward_summary(model, panel),
        "contributions": contributions(model, panel),
    }


def reward_summary(model: FittedModel, panel: Panel) -> dict[str, Any]:
    """Mean and spread of the recovered reward over visited states where the action was available.

    {action: {segment or "all": {mean, se, low, high, sd, p10, p50, p90, share_available}}}, in reward units; ``se``,
    ``low`` and ``high`` (of the mean) are None without standard errors.
    """
    actions = panel.n_actions
    reward = forward(panel, lambda i: model.reward_of(panel.state[i], panel.anchor_reward[i]), actions)
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device=reward.device)
    cells = _cells(panel)
    errors = {}
    if model.has_standard_errors:
        errors = _standard_errors(model, cells, _contrasts(panel, cells, partial(_loadings, model)))
    found: dict[str, Any] = {action: {} for action in panel.schema.actions}
    for a, name in cells:
        available = _available(panel, (a, name))
        values, weight = reward[available, a].double(), panel.weight[available].double()
        p10, p50, p90 = torch.quantile(_thinned(processes.gathered(_thinned(values))), levels).tolist()
        mine = panel.free if name == "all" else panel.free & (panel.segment == panel.schema.segments.index(name))
        found[panel.schema.actions[a]][name] = {
            **interval(float(processes.mean(values, weight)), errors.get((a, name))),
            "sd": float(processes.spread(values, correction=0)),
            "p10": p10,
            "p50": p50,
            "p90": p90,
            "share_available": processes.total(available.sum()) / processes.total(mine.sum()),
        }
    return found


def contributions(model: FittedModel, panel: Panel) -> dict[str, Any]:
    """What each benefit adds to the reward, over visited states where the action was available: the reward as it is
    less the reward if the benefit were at its lowest level. An anchor action's reward is known, and left out.

    {action: {segment or "all": {benefit: {mean, se, low, high}}}}, in reward units; empty without a refit or benefits.
    """
    names, schema = model.config.reward.benefits, panel.schema
    if model.refit is None or not names:
        return {}
    cells = [cell for cell in _cells(panel) if cell[0] != schema.anchor]
    found: dict[str, Any] = {action: {} for action in schema.actions}
    for benefit in names:
        lowest = partial(schema.lowest, name=benefit)

        def added(state: Tensor, lowest: Callable[[Tensor], Tensor] = lowest) -> Tensor:
            return _loadings(model, state) - _loadings(model, lowest(state))

        def added_to_all(state: Tensor, lowest: Callable[[Tensor], Tensor] = lowest) -> Tensor:
            return (schema.known_reward(state) - schema.known_reward(lowest(state))).unsqueeze(1)

        contrasts = _contrasts(panel, cells, added)
        errors = _standard_errors(model, cells, contrasts) if model.has_standard_errors else {}
        amounts = (contrasts * model.refit.theta).sum((1, 2))
        if schema.anchor is None:  # what all actions earn may depend on the benefit too
            amounts = amounts + _means(panel, cells, added_to_all).squeeze(1)
        for (a, name), amount in zip(cells, amounts.tolist(), strict=True):
            of_segment = found[schema.actions[a]].setdefault(name, {})
            of_segment[benefit] = interval(amount, errors.get((a, name)))
    return {action: by for action, by in found.items() if by}


def coefficients(model: FittedModel) -> list[dict[str, Any]]:
    """The coefficients of a linear reward: action, name, estimate, se, z, p (two-sided, normal); else none.

    Where the anchor is no single action, they are those of the reward less that of the first action.
    """
    if model.refit is None or not isinstance(model.terms, LinearTerms):
        return []
    found, enters = [], entering(model).tolist()
    for a, own in zip(model.refit.paid, enters, strict=True):
        action, one = model.schema.actions[a], torch.eye(model.terms.width, dtype=torch.float64, device=model.device)
        contrast = one.new_zeros(len(one), len(model.schema.actions), len(one))
        contrast[:, a] = one
        error = model.refit.error_of(contrast)
        for i, name in enumerate(model.terms.names):
            if not own[i] or (name == "1" and not model.config.reward.intercept):
                continue
            estimate, se = float(model.refit.theta[a, i]), float(error[i])
            row: dict[str, Any] = {"action": action, "name": "constant" if name == "1" else name, "estimate": estimate}
            row |= {"se": None, "z": None, "p": None}
            if model.has_standard_errors and se > 0:
                row |= {"se": se, "z": estimate / se, "p": math.erfc(abs(estimate / se) / math.sqrt(2))}
            found.append(row)
    return found


def wald_tests(model: FittedModel) -> list[dict[str, Any]]:
    """For every action and column, whether the reward depends on the column at all: action, column, chi2, df, p.

    Tests that all coefficients (:func:`coefficients`) of features made of the column are 0. With shrinkage the
    covariance is the Bayesian one, and the test is only indicative. Left out where it does not enter
    (:mod:`irl.estimation.parameters`). Empty without standard errors.
    """
    if not model.has_standard_errors:
        return []
    assert model.refit is not None
    refit, width, found, enters = model.refit, model.terms.width, [], entering(model)
    for b, a in enumerate(refit.paid):
        for f, column in enumerate(model.schema.columns):
            made_of = torch.tensor([f in columns for columns in model.terms.columns_of])
            own = (made_of & enters[b]).nonzero().squeeze(1).to(model.device)
            if not len(own):
                continue
            at = b * width + own
            theta, covariance = refit.theta[a, own], refit.covariance[at][:, at]
            scale = covariance.diagonal().clamp_min(1e-300).sqrt()
            correlation = covariance / scale / scale.unsqueeze(1)
            rank = int(torch.linalg.matrix_rank(correlation, hermitian=True, rtol=1e-9))
            z = theta / scale
            chi2 = float(z @ torch.linalg.pinv(correlation, hermitian=True, rtol=1e-9) @ z)
            half = torch.tensor([rank / 2, chi2 / 2], dtype=torch.float64)
            p = float(torch.special.gammaincc(half[0], half[1]))
            found.append({"action": model.schema.actions[a], "column": column.name, "chi2": chi2, "df": rank, "p": p})
    return found


@dataclass(frozen=True)
class Quantity:
    """A finding linear in the parameters: the sum of contrast[A, Dx] times theta[A, Dx].

    ``kind`` is reward (a mean), contribution (of the benefit ``name``) or coefficient (of the feature ``name``);
    ``segment`` is empty for coefficients, ``name`` for rewards.
    """

    kind: str
    action: str
    segment: str
    name: str
    contrast: Tensor


def quantities(model: FittedModel, panel: Panel) -> list[Quantity]:
    """What :func:`findings` reports that is linear in the parameters, for every action but the anchor."""
    schema, terms, found = panel.schema, model.terms, list[Quantity]()
    cells = [cell for cell in _cells(panel) if cell[0] != schema.anchor]
    asked: list[tuple[str, str, Callable[[Tensor], Tensor]]] = [("reward", "", terms)]
    for benefit in model.config.reward.benefits:

        def added(state: Tensor, name: str = benefit) -> Tensor:
            difference: Tensor = terms(state) - terms(schema.lowest(state, name))
            return difference

        asked.append(("contribution", benefit, added))
    place = torch.eye(len(schema.actions), dtype=torch.float64, device=model.device)
    for kind, name, features in asked:
        for (a, segment), mean in zip(cells, _means(panel, cells, features), strict=True):
            found.append(Quantity(kind, schema.actions[a], segment, name, torch.outer(place[a], mean)))
    one = torch.eye(terms.width, dtype=torch.float64, device=model.device)
    at = {"constant" if name == "1" else name: i for i, name in enumerate(terms.names)}
    for row in coefficients(model):
        contrast = torch.outer(place[schema.actions.index(row["action"])], one[at[row["name"]]])
        found.append(Quantity("coefficient", row["action"], "", row["name"], contrast))
    return found


def interval(estimate: float, error: float | None) -> dict[str, float | None]:
    """The estimate (``mean``), its standard error and 95 % interval."""
    low, high = (None, None) if error is None else (estimate - Z * error, estimate + Z * error)
    return {"mean": estimate, "se": error, "low": low, "high": high}


Cell = tuple[int, str]
"""An action, and a segment or "all": visited states where the action was available."""


def _cells(panel: Panel) -> list[Cell]:
    """Those that were visited."""
    names = panel.schema.segments
    counts = torch.zeros(len(names), panel.n_actions, dtype=torch.float64, device=panel.state.device)
    for i in parts(panel.n_rows):
        counts.index_add_(0, panel.segment[i], (panel.menu[i] & panel.free[i].unsqueeze(1)).double())
    visited = processes.summed(counts) > 0
    found = []
    for a in range(panel.n_actions):
        found += [(a, name) for code, name in enumerate(names) if visited[code, a]]
        found += [(a, "all")] if names != ("all",) and bool(visited[:, a].any()) else []
    return found


def _available(panel: Panel, cell: Cell, i: slice = slice(None)) -> Tensor:
    """bool [n]: the rows of a cell."""
    a, name = cell
    rows = panel.free[i] & panel.menu[i, a]
    if name == "all":
        return rows
    return rows & (panel.segment[i] == panel.schema.segments.index(name))


def _means(panel: Panel, cells: Sequence[Cell], features: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean [K, Dx] of features(state) over the rows of each of K cells, by weight; one pass."""
    total, mass = torch.zeros(0), torch.zeros(0)
    for i in parts(panel.n_rows, CHUNK):
        members = torch.stack([_available(panel, cell, i) for cell in cells], 1)
        weighted = members * panel.weight[i].double().unsqueeze(1)
        part = weighted.T @ features(panel.state[i]).double()
        total, mass = (part, weighted.sum(0)) if not i.start else (total + part, mass + weighted.sum(0))
    mean: Tensor = processes.summed(total) / processes.summed(mass).unsqueeze(1)
    return mean


def _loadings(model: FittedModel, state: Tensor) -> Tensor:
    """x(s) and, unless the anchor is an action, mu(a|s) x(s) of every action: [N, Dx] or [N, (1 + A) Dx]."""
    x: Tensor = model.terms(state)
    if model.schema.anchor is not None:
        return x
    reference = model.schema.reference(state, model.schema.menu(state))
    return torch.cat([x, (reference.unsqueeze(2) * x.unsqueeze(1)).flatten(1)], 1)


def _contrasts(panel: Panel, cells: Sequence[Cell], loadings: Callable[[Tensor], Tensor]) -> Tensor:
    """[K, A, Dx]: how the mean reward of each cell's action moves with theta: the mean of (e_a - mu(s)) (x) x(s)."""
    actions, means = len(panel.schema.actions), _means(panel, cells, loadings)
    own = means if panel.schema.anchor is not None else means[:, : means.shape[1] // (1 + actions)]
    found = means.new_zeros(len(cells), actions, own.shape[1])
    if panel.schema.anchor is None:
        found -= means[:, own.shape[1] :].view_as(found)
    for k, (a, _) in enumerate(cells):
        if a != panel.schema.anchor:
            found[k, a] += own[k]
    return found


def _standard_errors(model: FittedModel, cells: Sequence[Cell], contrasts: Tensor) -> dict[Cell, float]:
    """Of the mean reward of each cell's action."""
    assert model.refit is not None
    return dict(zip(cells, model.refit.error_of(contrasts).tolist(), strict=True))


def _thinned(values: Tensor, most: int = 1_000_000) -> Tensor:
    """At most so many of the values, evenly spaced: quantiles need no more, and torch takes no more than 16 million."""
    return values[:: max(1, -(-len(values) // most))]
