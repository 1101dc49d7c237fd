"""What members are forecast to choose, path by path, and how far that was from what they chose.

Forecasts of the model are draws: one of the reward's parameters (normal, with the refit's covariance; to first order,
as in :mod:`irl.counterfactual.solve`) and with it one path of choices and states for every member. Their quantiles hold
both what is not known of the parameters and the luck of as many members as were observed, who are independent of one
another. With 199 draws the observed value lies between the 5th and the 195th with probability .95 if all is as the
model says. The forecast is that of all draws together.

Limits: the interval holds the fitted dynamics fixed, the discount, logit shocks, the anchor's reward, and how probable
each member's hidden types are; values in
several periods and ages are of the same members, so that how many of them lie inside says less than their number.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from irl.counterfactual import spells
from irl.counterfactual.intervention import Intervention
from irl.counterfactual.outcomes import MOST_DRAWN
from irl.counterfactual.scenario_policy import ScenarioPolicy
from irl.counterfactual.solve import solve
from irl.counterfactual.spells import Bools, Counts, Floats, Ints, Rates
from irl.counterfactual.type_draws import parameter_draws
from irl.data.encode import ALL
from irl.data.panel import Panel
from irl.data.schema import StateSchema
from irl.draws import drawn, representative
from irl.dynamics import TransitionModel
from irl.fitted import FittedModel
from irl.transitions import States, Unchanged

DRAWS = 199
"""Paths behind an interval: of so many, the 5th from either end bounds exactly 95 %."""
LEAST = 20
"""Member-periods at risk below which an age's hazard is shown, but not scored."""
Policy = Callable[[Tensor, Tensor], Tensor]
"""(state [N, F], menu [N, A]) -> log pi [N, A]."""
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Observed:
    """M members over T periods, and the state from which each is forecast.

    action : [M, T], -1 where a member is not there or has ended; before ``start[M]`` it is history.
    followed : bool [M, T], where a forecast can be compared: from the start on, and not after a member left the panel
        other than by a terminal state.
    first : the first period of the shares.
    state : [M, F]; segment : [M].
    types : [M, K], the probabilities of each member's hidden types, which every draw draws anew; None: as in the state.
    """

    action: Ints
    start: Ints
    segment: Ints
    followed: Bools
    first: int
    state: Tensor
    types: Tensor | None = None

    @property
    def periods(self) -> int:
        """Choices to simulate for a member, at most."""
        return int(self.action.shape[1] - self.start.min())

    def starts(self, generator: torch.Generator) -> Tensor:
        """state [M, F], of types drawn by their probabilities."""
        if self.types is None:
            return self.state
        uniform = torch.rand(len(self.state), 1, generator=generator, dtype=torch.float64).to(self.state.device)
        kind = (uniform > self.types.cumsum(1)[:, :-1]).sum(1)
        return torch.cat([self.state[:, :-1], kind.unsqueeze(1).to(self.state.dtype)], 1)

    def count(self, schema: StateSchema, action: Ints | None = None) -> Counts:
        """Counts of what happened, or of other actions [M, T] of the same members."""
        path = self.action if action is None else action
        return counted(schema, path, self.start, self.segment, first=self.first)

    def after(self, simulated: Tensor) -> Ints:
        """The history, and from the start on simulated[M, periods] where a member is followed."""
        ahead = np.arange(self.action.shape[1]) - self.start[:, None]
        path = np.take_along_axis(simulated.cpu().numpy(), ahead.clip(0, self.periods - 1), axis=1)
        return np.where(ahead < 0, self.action, np.where(self.followed, path, -1))


def counted(schema: StateSchema, action: Ints, start: Ints, segment: Ints, *, first: int = 0) -> Counts:
    return spells.count(
        action,
        start,
        segment,
        segments=len(schema.segments),
        actions=len(schema.actions),
        anchor=schema.anchor,
        first=first,
    )


def observed_from(panel: Panel, rows: Tensor, *, first: int | None = None) -> Observed:
    """The members who start in ``rows[M]`` of ``panel``, all their rows; shares from period ``first`` on (default: the
    first of the panel)."""
    low = int(panel.period.min())
    width = int(panel.period.max()) - low + 1
    place = torch.full((panel.n_members,), -1, dtype=torch.long, device=rows.device)
    place[panel.member[rows]] = torch.arange(len(rows), device=rows.device)
    mine = (place[panel.member] >= 0).nonzero().squeeze(1)
    member, column = (x.cpu().numpy() for x in (place[panel.member[mine]], panel.period[mine] - low))
    ended = panel.schema.is_terminal(panel.state[mine]).cpu().numpy()
    action = np.full((len(rows), width), -1)
    action[member, column] = np.where(ended, -1, panel.action[mine].cpu().numpy())
    over = np.zeros(action.shape, dtype=bool)
    over[member[ended], column[ended]] = True
    start = (panel.period[rows] - low).cpu().numpy()
    followed = ((action >= 0) | np.logical_or.accumulate(over, axis=1)) & (np.arange(width) >= start[:, None])
    return Observed(
        action=action,
        start=start,
        segment=panel.segment[rows].cpu().numpy(),
        followed=followed,
        first=0 if first is None else first - low,
        state=panel.state[rows],
    )


@torch.no_grad()
def choice_paths(
    dynamics: TransitionModel, policy: Policy, state: Tensor, *, periods: int, generator: torch.Generator
) -> Tensor:
    """int64 [M, periods]: the actions of members who start in state[M, F]; -1 once ended."""
    actions = len(dynamics.schema.actions)
    programme, segment = Unchanged(dynamics.schema), torch.zeros(len(state), dtype=torch.long, device=state.device)
    path = torch.full((len(state), periods), -1, dtype=torch.long, device=state.device)
    for t in range(periods):
        uniform = torch.rand(len(state), actions + dynamics.n_random, generator=generator).clamp(1e-7, 1 - 1e-7)
        uniform = uniform.to(state.device)
        menu = programme.menu(state, segment)
        here = menu.any(1)
        action = (policy(state, menu) - (-uniform[:, :actions].log()).log()).argmax(1)
        path[:, t] = torch.where(here, action, -1)
        if t < periods - 1:
            following = dynamics.sample(state, action, uniform[:, actions:])
            state = torch.where(here.unsqueeze(1), following, state)
    return path


def policy_for(model: FittedModel, panel: Panel, observed: Observed, *, seed: int, draws: int) -> ScenarioPolicy:
    """The optimal policy of the members observed, solved on the states of the panel that was fitted on and on the same
    with the randomised columns (prices) as members of their segment have them at the start."""
    schema = model.schema
    states = States(panel.state, panel.segment, panel.weight)
    assigned = [f for f, c in enumerate(schema.columns) if c.assigned == "randomised"]
    if assigned:
        states = _beside_new(states, observed, assigned, torch.Generator().manual_seed(seed))
    programme = Unchanged(schema)
    rows, often = representative(model.dynamics, [programme], states, most=MOST_DRAWN, seed=seed)
    transitions = drawn(model.dynamics, programme, rows, seed=seed, draws=often)
    parameters = None
    if model.has_standard_errors:
        parameters = parameter_draws(model, draws, seed=seed)[0]
    return solve(model, Intervention(schema, ()), transitions.of_segment, draws=parameters)


def _beside_new(states: States, observed: Observed, columns: Sequence[int], generator: torch.Generator) -> States:
    """The states, and the same with these columns as of members observed, drawn within the segment."""
    moved = states.state.clone()
    for code in np.unique(observed.segment):
        donors = torch.from_numpy(np.flatnonzero(observed.segment == code))
        mine = (states.segment == int(code)).nonzero().squeeze(1)
        donor = donors[torch.randint(len(donors), (len(mine),), generator=generator)].to(moved.device)
        for f in columns:
            moved[mine, f] = observed.state[donor, f]
    return States(torch.cat([states.state, moved]), states.segment.repeat(2), states.weight.repeat(2))


def draws_of(
    policy: ScenarioPolicy, observed: Observed, *, seed: int, draws: int, tick: Tick = lambda done, of: None
) -> list[Counts]:
    """Counts of every draw: parameters, and a path of each member."""
    generator = torch.Generator().manual_seed(seed)
    segment = torch.from_numpy(observed.segment).to(observed.state.device)
    found = []
    for b in range(draws):
        mine = at_draw(policy, b)
        path = choice_paths(
            policy.model.dynamics,
            lambda state, menu, mine=mine: mine.log_policy(state, menu, segment),  # type: ignore[misc]
            observed.starts(generator),
            periods=observed.periods,
            generator=generator,
        )
        found.append(observed.count(policy.model.schema, observed.after(path)))
        tick(b + 1, draws)
    return found


def at_draw(policy: ScenarioPolicy, b: int) -> ScenarioPolicy:
    """The policy at the b-th draw of the parameters, to first order."""
    if policy.draws is None or policy.weight_draws is None:
        return policy
    refit = copy.deepcopy(policy.model.refit)
    assert refit is not None
    refit.theta += policy.draws[b]
    weights = policy.weights + policy.weight_draws[:, b]
    model = replace(policy.model, refit=refit)
    return replace(policy, model=model, weights=weights, draws=None, weight_draws=None)


def compared(
    observed: Counts,
    model: Sequence[Counts],
    others: Mapping[str, Rates],
    *,
    schema: StateSchema,
    members: Ints,
) -> dict[str, Any]:
    """{segment or "all": what was observed, forecast by the model with a 95 % interval and by ``others``}, as plain
    values for JSON (None: of nobody).

    By action: ``share`` [T], ``mean_share`` over the periods, ``leave`` and ``switch`` [K] by age, ``leaves`` and
    ``switches`` over all ages, ``length`` of spells in periods, each {observed, model, low, high, others ...}, and
    ``at_risk`` [K]. ``errors``: mean and worst absolute error by quantity and forecast (hazards: weighted by members
    at risk, ages with at least ``LEAST``); ``inside``: how many observed values lie in the interval, of how many.
    """
    known = observed.at_risk >= LEAST
    total = model[0]
    for one in model[1:]:
        total = total + one
    tables = {name: _quantities(schema, r, known) for name, r in {"model": total.rates(), **others}.items()}
    truth, drawn_ = (
        _quantities(schema, observed.rates(), known),
        [_quantities(schema, one.rates(), known) for one in model],
    )
    bounds = {name: _bounds(np.stack([one[name] for one in drawn_])) for name in truth}
    labels = [*schema.segments, ALL] if len(schema.segments) > 1 else list(schema.segments)
    found = {}
    for g, name in enumerate(labels):
        cell: dict[str, Any] = {"members": int(members.sum() if name == ALL else members[g])}
        if not cell["members"]:
            continue
        cell |= {"at_risk": _by_action(schema, "leave", observed.at_risk[g])}
        errors, inside = {}, {}
        for quantity, value in truth.items():
            low, high = bounds[quantity][0][g], bounds[quantity][1][g]
            values = {"observed": value[g], "low": low, "high": high} | {k: t[quantity][g] for k, t in tables.items()}
            split = {k: _by_action(schema, quantity, v.T if quantity == "share" else v) for k, v in values.items()}
            cell[quantity] = {a: {k: split[k][a] for k in split} for a in split["observed"]}
            weight = _scored(schema, quantity, value[g], observed.at_risk[g])
            errors[quantity] = {k: _errors(t[quantity][g], value[g], weight) for k, t in tables.items()}
            hit = (weight > 0) & (value[g] >= low - 1e-12) & (value[g] <= high + 1e-12)
            inside[quantity] = [int(hit.sum()), int(((weight > 0) & np.isfinite(low)).sum())]
        found[name] = cell | {"errors": errors, "inside": inside}
    return found


def _quantities(schema: StateSchema, rates: Rates, known: Bools) -> dict[str, Floats]:
    """Name -> [G, ...]; of switching only where there are two plans beside the anchor."""
    present = np.isfinite(rates.share)
    total = np.where(present, rates.share, 0.0).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / present.sum(1)
    found = {
        "share": rates.share,
        "mean_share": mean,
        "leave": rates.leave,
        "leaves": rates.leaves,
        "length": rates.length(known),
    }
    if schema.anchor is not None and len(schema.actions) > 2:
        found |= {"switch": rates.switch, "switches": rates.switches}
    return found


def _bounds(values: Floats) -> tuple[Floats, Floats]:
    """Low and high of values[B, ...]: the k-th from either end, k = (B + 1) / 40; NaN where any draw has none."""
    k = max(round((len(values) + 1) / 40), 1)
    ordered = np.sort(values, axis=0)
    missing = np.isnan(values).any(0)
    low, high = (np.where(missing, np.nan, edge) for edge in (ordered[k - 1], ordered[len(values) - k]))
    return low, high


def _scored(schema: StateSchema, quantity: str, value: Floats, at_risk: Floats) -> Floats:
    """The weight of every value of a quantity in its errors; 0: it does not count."""
    weight = np.isfinite(value).astype(float)
    if quantity in ("leave", "switch"):
        weight = weight * np.where(at_risk >= LEAST, at_risk, 0.0)
    if quantity in ("leaves", "switches"):
        weight = weight * (at_risk.sum(1) >= LEAST)
    if quantity.startswith("switch") and schema.anchor is not None:
        weight[schema.anchor] = 0.0
    return weight


def _errors(forecast: Floats, value: Floats, weight: Floats) -> dict[str, float] | None:
    here = weight > 0
    if not here.any() or np.isnan(forecast[here]).any():
        return None
    error = np.abs(forecast[here] - value[here])
    return {"mean": float(np.average(error, weights=weight[here])), "worst": float(error.max())}


def _by_action(schema: StateSchema, quantity: str, values: Floats) -> dict[str, Any]:
    """values[A, ...] by action, as plain numbers (None for NaN); of switching without the anchor."""
    return {
        action: _plain(values[a])
        for a, action in enumerate(schema.actions)
        if not (quantity.startswith("switch") and a == schema.anchor)
    }


def _plain(value: Any) -> Any:
    if np.ndim(value):
        return [_plain(v) for v in value]
    return float(value) if np.isfinite(value) else None
