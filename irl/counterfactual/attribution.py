"""What each benefit is worth over a member's lifetime, by segment: did they renew for shipping or for video?

A benefit's part of the reward is the reward as it is less the reward if the benefit were at its lowest level,

    r_b(s,a) = r(s,a) - r(s with b lowest, a),         an anchor action's being 0,

as in irl.estimation.findings. Where the reward has no interaction between two benefits (``additive``, ``linear``), it
is the sum of these parts and of a rest, and so is what members collect: the *lifetime contribution* of b is

    C_b = E[ sum_t gamma^t r_b(s_t, a_t) | s_0 ],      total = sum_b C_b + rest,

of members who act by the fitted policy under the programme as it is. It is what b is worth given what they do: levels
of b that membership itself raises count for b, and nobody chooses anew. With interactions (``full``) parts do not add
up, and *removal effects* are given instead: V - V(without b), b at its lowest level in the reward only (use still moves
as it did), each under its own optimal policy (:mod:`irl.counterfactual.solve`); they overlap where benefits substitute.

Averages are over members at their first choice (``start``) and over all choices in the panel (``visited``), by weight
and, with hidden types, over each member's posterior, in reward units. Intervals are 95 %, by the delta method with
exact derivatives, clustered as the refit is:
C_b is moved by the parameters through r_b and, by the policy gradient theorem (Sutton et al. 2000), through the policy,

    dC_b = E[ sum_t gamma^t ( dr_b + sum_a pi (q_b - sum_a' pi q_b) dQ/alpha ) ],  q_b = r_b + its continuation,

dQ that of the optimum (envelope theorem); a removal effect through the two rewards alone (envelope theorem).
Conditional on gamma, logit shocks, the anchor's reward, no hidden state, the features, the fitted dynamics, and the
states averaged over. Rewards of different segments are in units of their own shocks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from irl import bellman
from irl.config import InputError
from irl.counterfactual.intervention import Intervention
from irl.counterfactual.solve import solve
from irl.counterfactual.visits import Groups, visits
from irl.data.disclosure import withheld_of
from irl.data.encode import ALL
from irl.data.panel import Panel, expanded, typed
from irl.draws import drawn, representative
from irl.fitted import FittedModel, Z
from irl.refitted import Refitted
from irl.transitions import States, Transitions, Unchanged

RESULT = "attribution.json"
ROWS = 8_000
"""States from which what follows is drawn, at most."""
Tick = Callable[[int, int], None]


class Loading(NamedTuple):
    """A reward at N states: values [N, A], and what it is linear in: x [N, Dx], mu [N, A]."""

    values: Tensor
    x: Tensor
    reference: Tensor


@dataclass(frozen=True, kw_only=True)
class Without(FittedModel):
    """The model whose members get nothing out of a benefit: its column counts as lowest in the reward."""

    benefit: int

    def reward_of(self, state: Tensor, anchor_reward: Tensor | None = None) -> Tensor:
        return reward_with(self, state, self.benefit).values

    @property
    def reward_weights(self) -> None:
        """None: the reward is that of another state."""
        return None


@torch.no_grad()
def reward_with(model: FittedModel, state: Tensor, lowest: int | None = None) -> Loading:
    """The reward, with column ``lowest`` at its lowest level; an anchor action's stays what it is."""
    assert model.refit is not None
    schema, seen = model.schema, state
    if lowest is not None:
        seen = schema.lowest(state, schema.names[lowest])
    known = schema.known_reward(seen if schema.anchor is None else state)
    x, reference = model.terms(seen).double(), schema.reference(seen, schema.menu(seen)).double()
    return Loading(model.refit.reward(x, known, reference), x, reference)


def additive(model: FittedModel) -> bool:
    """Whether the reward has no term in which two benefits meet."""
    benefits = {model.schema.index(name) for name in model.config.reward.benefits}
    return all(len(benefits & columns) < 2 for columns in model.terms.columns_of)


def attribute(
    model: FittedModel, panel: Panel, *, seed: int = 0, rows: int = ROWS, tick: Tick = lambda done, of: None
) -> dict[str, Any]:
    """What each declared benefit contributes, as plain values for JSON.

    A panel that does not show the members' hidden types is taken once per type, weighted by the posterior.

    ``kind`` is contribution or removal. ``start`` and ``visited``: {segment or "all": ``choices`` averaged over,
    ``benefits`` {name: interval}, ``gaps`` [``of``, ``over``, interval of the difference], largest benefit first}; an
    interval is mean, se, low, high (None without standard errors) in reward units. Contributions come with ``total``
    and ``rest`` and, by benefit, ``of_benefits``, the share of their sum, and ``of_total``, of the total; each None
    unless what it is a share of is surely positive. ``kernel``: condition (None if infinite), converged, and the rounds
    of the worst policy, if solved anew.

    Raises
    ------
    InputError
        If no benefits are declared, there was no refit, nobody in the panel has a choice, or it has too few members.
    """
    check(model)
    names = model.config.reward.benefits
    withheld = withheld_of(panel, model.config.data.min_cell)
    withheld.refuse_nothing()
    copies = 1 if panel.schema.hidden else model.schema.types
    if copies > 1:
        coded = typed(panel, model.schema, torch.zeros_like(panel.member))
        panel = expanded(panel, model.schema, model.posterior(coded))
    cells, groups = _cells(panel, copies)
    programme, every = Unchanged(model.schema), States(panel.state, panel.segment, panel.weight)
    states, draws = representative(model.dynamics, [programme], every, most=rows, seed=seed)
    transitions = drawn(model.dynamics, programme, states, seed=seed, draws=draws)
    method = _contributions if (adds := additive(model)) else _removals
    mean, gradient, how = method(model, transitions, groups, tick)
    how["condition"] = how["condition"] if math.isfinite(how["condition"]) else None
    assert model.refit is not None
    refit = model.refit if model.has_standard_errors else None
    found: dict[str, Any] = {"kind": "contribution" if adds else "removal", "start": {}, "visited": {}, "kernel": how}
    for g, (place, segment, choices) in enumerate(cells):
        found[place][segment] = {"choices": choices, **_cell(names, mean[g], gradient[g], refit, adds)}
    shown: dict[str, Any] = withheld.left(found)
    return shown | {
        "withheld": withheld.plain(),
        "discount": model.config.discount,
        "rows": len(states.state),
        "seed": seed,
    }


def check(model: FittedModel) -> None:
    """InputError if the benefits of the model cannot be told apart."""
    if not model.config.reward.benefits:
        raise InputError("no benefits are declared: list their state columns under `reward.benefits` and train again")
    if model.refit is None:
        raise InputError(
            "this run has no refit, whose reward is what benefits are read from: train with `estimation.refit.rounds` "
            "of at least 1, an anchor reward that is a number or a state column, and no `data.duration`"
        )


def _cells(panel: Panel, copies: int) -> tuple[list[tuple[str, str, int]], Groups]:
    """(start or visited, segment or "all", choices) of each group with any, and the choices they are made of, each so
    many times."""
    rows = panel.free.nonzero().squeeze(1)
    if not len(rows):
        raise InputError("nobody has anything to choose from: are all rows in contracts or terminal states?")
    member, segment = panel.member[rows], panel.segment[rows]
    first = torch.cat([member.new_ones(1, dtype=torch.bool), member[1:] != member[:-1]])
    weight = panel.weight[rows].double()
    of = {name: segment == code for code, name in enumerate(panel.schema.segments)}
    of |= {ALL: torch.ones_like(first)}
    cells, columns = [], []
    for place, here in (("start", first), ("visited", torch.ones_like(first))):
        for name, mine in of.items():
            if bool((chosen := here & mine).any()):
                cells.append((place, name, int(chosen.sum()) // copies))
                columns.append(weight * chosen / (weight * chosen).sum())
    return cells, Groups(panel.state[rows], torch.stack(columns, 1))


Found = tuple[Tensor, Tensor, dict[str, Any]]
"""mean [G, K] of K quantities, gradient [G, K, A, Dx] by theta, and how the kernel was solved."""


def _contributions(model: FittedModel, rows: Transitions, groups: Groups, tick: Tick) -> Found:
    """Of each benefit, and (last) of the whole reward."""
    schema, alpha = model.schema, model.config.temperature
    columns = [schema.index(name) for name in model.config.reward.benefits]

    def log_policy(state: Tensor) -> Tensor:
        menu = Unchanged(schema).menu(state, torch.zeros(len(state), dtype=torch.long, device=state.device))
        return model.log_policy_of(state, menu)

    def parts(state: Tensor) -> tuple[list[Loading], Tensor]:
        """The reward and those without each benefit, and r [N, A, K]."""
        whole, *less = (reward_with(model, state, f) for f in (None, *columns))
        return [whole, *less], torch.stack([*(whole.values - one.values for one in less), whole.values], 2)

    tick(0, 3)
    found = visits(model, rows, log_policy, lambda state: parts(state)[1])
    width, d = model.terms.width, found.weights.shape[1]
    g, k, a = groups.share.shape[1], len(columns) + 1, len(schema.actions)
    mean = groups.share.new_zeros(g, k)
    gradient = mean.new_zeros(g, k, a, width)
    swayed = mean.new_zeros(g, k, a, d)  # what dQ = x dtheta + phi dw counts for, through the policy
    tick(1, 3)
    for state, share in itertools.chain(groups.chunks(), found.behind(found.loading(groups))):
        log_pi, phi, inertia = log_policy(state).double(), model.basis(state).double(), model.inertia_of(state)
        decided, pi = log_pi.exp(), bellman.seen_policy(log_pi, inertia).exp()
        (whole, *less), r = parts(state)
        mean += share.T @ torch.einsum("na,nak->nk", pi, r)
        own = _slope(share, pi, whole)
        gradient[:, -1] += own
        for i, one in enumerate(less):
            gradient[:, i] += own - _slope(share, pi, one)
        q = (r + torch.einsum("nd,adk->nak", phi, found.weights)) * (pi > 0).unsqueeze(2)
        sway = decided.unsqueeze(2) * (q - torch.einsum("na,nak->nk", decided, q).unsqueeze(1)) / alpha
        if inertia is not None:  # nothing sways what passes without a decision
            sway = sway * inertia.within(decided > 0)[:, None, None]
        sway = share[:, :, None, None] * sway.mT.unsqueeze(1)
        swayed += (sway.flatten(1).T @ phi).view_as(swayed)
    gradient += swayed[..., :width]  # the basis begins with the terms
    tick(2, 3)
    for state, share in found.behind(swayed.flatten(0, 1).permute(1, 2, 0)):
        slope = _slope(share, found.probability(state), reward_with(model, state))
        gradient += slope.view_as(gradient)
    tick(3, 3)
    return mean, gradient, {"condition": found.condition, "converged": found.converged}


def _removals(model: FittedModel, rows: Transitions, groups: Groups, tick: Tick) -> Found:
    """V - V(without), each under its own optimal policy."""
    names = model.config.reward.benefits
    tick(0, len(names) + 1)
    whole = _optimum(model, None, rows, groups)
    found, held = [whole], {f.name: getattr(model, f.name) for f in fields(FittedModel)}
    for done, name in enumerate(names, start=1):
        tick(done, len(names) + 1)
        lowest = model.schema.index(name)
        found.append(_optimum(Without(**held, benefit=lowest), lowest, rows, groups))
    tick(len(names) + 1, len(names) + 1)
    mean = torch.stack([whole.value - one.value for one in found[1:]], 1)
    gradient = torch.stack([whole.slope - one.slope for one in found[1:]], 1)
    how = {
        "condition": max(one.condition for one in found),
        "converged": all(one.converged for one in found),
        "rounds": max(one.rounds for one in found),
    }
    return mean, gradient, how


@dataclass(frozen=True)
class _Optimum:
    """Mean value [G] under the policy that is optimal for a reward, and its slope [G, A, Dx] by theta."""

    value: Tensor
    slope: Tensor
    condition: float
    converged: bool
    rounds: int


def _optimum(model: FittedModel, lowest: int | None, rows: Transitions, groups: Groups) -> _Optimum:
    """Of a model whose reward has column ``lowest`` at its lowest level, under the programme as it is."""
    policy = solve(model, Intervention(model.schema, ()), rows.of_segment)

    def facing(state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        segment = torch.zeros(len(state), dtype=torch.long, device=state.device)
        return state, policy.menu(state, segment), segment

    found = visits(
        model, rows, lambda state: policy.decided(*facing(state)), lambda state: model.reward_of(state).unsqueeze(2)
    )
    value = groups.share.new_zeros(groups.share.shape[1])
    slope = value.new_zeros(len(value), len(model.schema.actions), model.terms.width)
    for state, share in groups.chunks():
        value += share.T @ policy.value(*facing(state)).double()
    for state, share in itertools.chain(groups.chunks(), found.behind(found.loading(groups))):
        slope += _slope(share, found.probability(state), reward_with(model, state, lowest))
    converged = policy.converged and found.converged
    return _Optimum(value, slope, max(policy.condition, found.condition), converged, policy.rounds)


def _slope(share: Tensor, pi: Tensor, reward: Loading) -> Tensor:
    """How sum_s D_g(s) sum_a pi(a|s) r(s,a) moves with theta, [G, A, Dx]: r's slope is (e_a - mu(s)) (x) x(s)."""
    own = pi - reward.reference * pi.sum(1, keepdim=True)
    weighted = (share.unsqueeze(2) * own.unsqueeze(1)).flatten(1)  # [N, G A]
    return (weighted.T @ reward.x).view(share.shape[1], pi.shape[1], -1)


def _cell(names: Sequence[str], mean: Tensor, gradient: Tensor, refit: Refitted | None, adds: bool) -> dict[str, Any]:
    """One group's findings, of mean [K] and gradient [K, A, Dx]."""

    def of(contrast: Tensor) -> dict[str, Any]:
        value = float(contrast @ mean)
        if refit is None:
            return {"mean": value, "se": None, "low": None, "high": None}
        se = float(refit.error_of(torch.einsum("k,kad->ad", contrast, gradient).unsqueeze(0)))
        return {"mean": value, "se": se, "low": value - Z * se, "high": value + Z * se}

    one = torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    benefits = {name: of(one[i]) for i, name in enumerate(names)}
    order = sorted(range(len(names)), key=lambda i: -benefits[names[i]]["mean"])
    gaps = [{"of": names[i], "over": names[j], **of(one[i] - one[j])} for i, j in itertools.combinations(order, 2)]
    cell: dict[str, Any] = {"benefits": benefits, "gaps": gaps}
    if adds:
        together = one[:-1].sum(0)
        cell |= {"total": of(one[-1]), "rest": of(one[-1] - together)}
        for key, whole in (("of_benefits", of(together)), ("of_total", cell["total"])):
            positive = (whole["mean"] if whole["low"] is None else whole["low"]) > 0
            for own in benefits.values():
                own[key] = own["mean"] / whole["mean"] if positive else None
    return cell
