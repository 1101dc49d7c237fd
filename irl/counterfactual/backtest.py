"""Was it right? A study fitted up to period T0 forecasts the later ones; one fitted without an arm forecasts it.

*Backtest* (``data.until``): every member with a row in the period after T0 starts from it, as observed - the state is
known, and what the programme set from outside, a price, is in it - and is simulated to the end of the panel. Compared
with what happened, by segment: plan shares by period, lengths of spells, hazards of rejoining, leaving and switching
by age (:mod:`irl.counterfactual.spells`); and with what simpler forecasts say:

    last       everything stays as it was in the last period that was fitted on
    average    as it was on average over these periods
    logit      a static logit of the action on the state's columns, simulated with the same dynamics

*Experiment* (``data.held_out``): every member of the arm starts from the first row. Simpler forecasts there:

    control    nothing happens: as in the members who were fitted on
    logit      the reduced form: of the action on the member's first state (its price in it) and the period

With hidden types members are of types drawn by what they chose before T0, or, in the arm, by their first state alone.
Members count alike, whatever their weight. Members who leave the panel are followed for as long as they are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from irl.config import InputError
from irl.counterfactual.forecast import (
    DRAWS,
    Observed,
    Policy,
    Tick,
    choice_paths,
    compared,
    counted,
    draws_of,
    observed_from,
    policy_for,
)
from irl.counterfactual.outcomes import check_study
from irl.counterfactual.spells import Counts, Floats, Rates
from irl.counterfactual.static_logit import fit_static_logit
from irl.data.disclosure import withheld
from irl.data.encode import factorized, label
from irl.data.panel import Panel, panel_from_frame
from irl.data.periods import period_numbers
from irl.data.split import fitted_rows, held_out, numbered
from irl.data.store import is_store
from irl.declared import TYPE, Data
from irl.fitted import FittedModel
from irl.networks import Encoder

RESULT = "backtest.json"
PATHS = 40
"""Paths of every member behind the static logit's forecast."""


def check(data: Data) -> None:
    """InputError if the study leaves nothing out, or what it leaves out is not there."""
    if is_store(data.path):
        raise InputError(
            f"{data.path}: a store holds the rows that are fitted on, and not those left out: give the raw files as "
            "`data.path`"
        )
    if data.until is None and not data.held_out:
        raise InputError(
            "this study is fitted on all rows, so there is nothing to forecast: train it with data.until=PERIOD (a "
            "backtest) or data.held_out={COLUMN: [VALUE]} (an experiment's arm)"
        )


def backtest(
    model: FittedModel, frame: pd.DataFrame, *, seed: int = 0, draws: int = DRAWS, tick: Tick = lambda done, of: None
) -> dict[str, Any]:
    """The periods after ``data.until`` of a frame with all rows of the study, as plain values for JSON.

    Raises
    ------
    InputError
        If nobody has a row in the period after, members of this study cannot be simulated, or the frame cannot be read.
    """
    check_study(model)
    data = model.config.data
    if data.held_out:
        frame = frame[~held_out(frame, data)].reset_index(drop=True)
    frame, types = _typed(model, frame, seed)
    fitted, whole = _panel(model, fitted_rows(frame, data)), _panel(model, frame)
    last = numbered(frame, data)[1]
    rows = (_present(whole) & (whole.period == last + 1)).nonzero().squeeze(1)
    if not len(rows):
        raise InputError(f"nobody has a row in the period after {data.until}: there is nothing to compare with")
    observed = observed_from(whole, rows, first=last + 1)
    observed = replace(observed, types=_types_of(model, types, frame, whole, rows))
    before = observed_from(fitted, _first_rows(fitted))
    periods = observed.action.shape[1] - observed.first
    others = {
        "logit": _static(model, fitted, observed, seed),
        "last": _steady(before.count(model.schema), _last(model, before), periods, last=True),
        "average": _steady(before.count(model.schema), before.count(model.schema), periods, last=False),
    }
    found = _forecast(model, fitted, observed, others, seed=seed, draws=draws, tick=tick)
    return {"until": data.until, "periods": _labels(frame, model, whole, observed.first), **found}


def experiment(
    model: FittedModel, frame: pd.DataFrame, *, seed: int = 0, draws: int = DRAWS, tick: Tick = lambda done, of: None
) -> dict[str, Any]:
    """The arm ``data.held_out`` of a frame with all rows of the study, as plain values for JSON.

    Raises
    ------
    InputError
        If nobody is in the arm, members of this study cannot be simulated, or the frame cannot be read.
    """
    check_study(model)
    data = model.config.data
    frame, types = _typed(model, frame, seed)
    inside = held_out(frame, data)
    if not inside.any():
        raise InputError("`data.held_out` holds for no row: there is nobody to compare with")
    arm_rows = frame[inside].reset_index(drop=True)
    fitted, arm = _panel(model, fitted_rows(frame, data)), _panel(model, arm_rows)
    observed = observed_from(arm, _first_rows(arm))
    observed = replace(observed, types=_types_of(model, types, arm_rows, arm, _first_rows(arm)))
    low, periods = int(arm.period.min()), observed.action.shape[1]
    control = observed_from(fitted, _first_rows(fitted))
    theirs = control.count(model.schema)
    shift = low - int(fitted.period.min())
    at = np.arange(periods) + shift
    there = (at >= 0) & (at < theirs.chose.shape[1])
    rates = theirs.rates()
    share = np.where(there[None, :, None], rates.share[:, at.clip(0, theirs.chose.shape[1] - 1)], np.nan)
    others = {
        "control": Rates(share, rates.leave, rates.switch, rates.leaves, rates.switches),
        "logit": _reduced_form(model, fitted, arm, observed),
    }
    found = _forecast(model, fitted, observed, others, seed=seed, draws=draws, tick=tick)
    condition = data.model_dump(mode="json", include={"held_out"})["held_out"]
    return {"held_out": condition, "periods": _labels(arm_rows, model, arm, 0), **found}


def _forecast(
    model: FittedModel,
    fitted: Panel,
    observed: Observed,
    others: Mapping[str, Rates],
    *,
    seed: int,
    draws: int,
    tick: Tick,
) -> dict[str, Any]:
    members = np.bincount(observed.segment, minlength=len(model.schema.segments))
    hidden = withheld(dict(zip(model.schema.segments, members.tolist(), strict=True)), model.config.data.min_cell)
    hidden.refuse_nothing()
    policy = policy_for(model, fitted, observed, seed=seed, draws=draws)
    paths = draws_of(policy, observed, seed=seed, draws=draws, tick=tick)
    segments = compared(observed.count(model.schema), paths, others, schema=model.schema, members=members)
    return {
        "forecasts": ["model", *others],
        "draws": draws,
        "parameters_drawn": policy.draws is not None,
        "converged": policy.converged,
        "seed": seed,
        "segments": hidden.left(segments),
        "withheld": hidden.plain(),
    }


def _typed(model: FittedModel, frame: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The frame, its members numbered and each of a hidden type that is drawn, and their probabilities [M, K]: given
    what they chose in the rows that were fitted on, or the first state of those without any."""
    if model.shares is None:
        return frame, None
    data = model.config.data
    codes = factorized(frame[data.member])[0]
    frame = frame.assign(**{data.member: pd.Series(codes, index=frame.index).where(codes >= 0)})
    fitted = fitted_rows(frame, data)
    known = model.type_probabilities(fitted).groupby(fitted[data.member].to_numpy()).first()
    first = frame.sort_values(data.period, kind="stable").drop_duplicates(data.member).set_index(data.member)
    others = first.loc[first.index.difference(known.index)].drop(columns=[data.action])
    found = pd.concat([known, model.type_probabilities(others)] if len(others) else [known]).sort_index()
    uniform = np.random.default_rng(seed).random((len(found), 1))
    kind = pd.Series(1 + (uniform > found.to_numpy().cumsum(1)[:, :-1]).sum(1), index=found.index)
    return frame.assign(**{TYPE: frame[data.member].map(kind)}), found


def _types_of(
    model: FittedModel, types: pd.DataFrame | None, frame: pd.DataFrame, panel: Panel, rows: Tensor
) -> Tensor | None:
    """Probabilities [M, K] of the members who start in ``rows``[M] of the panel of ``frame``."""
    if types is None:
        return None
    own = types.loc[np.unique(frame[model.config.data.member])].to_numpy()
    return torch.tensor(own, device=rows.device)[panel.member[rows]]


def _panel(model: FittedModel, frame: pd.DataFrame) -> Panel:
    return panel_from_frame(frame, model.config, schema=model.schema).to(model.device)


def _present(panel: Panel) -> Tensor:
    """bool[N]: rows in which something is chosen or sat out."""
    return panel.menu.any(1) & ~panel.schema.is_terminal(panel.state)


def _first_rows(panel: Panel) -> Tensor:
    """Row index [M] of each member's first row in which something happens."""
    rows = _present(panel).nonzero().squeeze(1)
    member = panel.member[rows]
    return rows[torch.cat([member.new_ones(1, dtype=torch.bool), member[1:] != member[:-1]])]


def _labels(frame: pd.DataFrame, model: FittedModel, panel: Panel, first: int) -> list[str]:
    """How the period column writes each period of the panel, from its ``first`` on."""
    data = model.config.data
    number = period_numbers(frame[data.period], pd.factorize(frame[data.member])[0])[0]
    shown = dict(zip(number.tolist(), frame[data.period], strict=True))
    low, high = int(panel.period.min()), int(panel.period.max())
    return [label(shown[p]) if p in shown else str(p) for p in range(low + first, high + 1)]


def _last(model: FittedModel, before: Observed) -> Counts:
    """Counts of the last period of ``before``, and of the moves into it."""
    start = np.full_like(before.start, before.action.shape[1] - 1)
    return counted(model.schema, before.action, start, before.segment)


def _steady(whole: Counts, window: Counts, periods: int, *, last: bool) -> Rates:
    """The rates of ``window``, in each of so many periods; where it has nobody, those of ``whole``."""
    rates, rest = window.rates(), whole.rates()
    chose = window.chose[:, -1:] if last else window.chose.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.repeat(chose / chose.sum(2, keepdims=True), periods, axis=1)

    def or_rest(name: str) -> Floats:
        own, other = getattr(rates, name), getattr(rest, name)
        return np.asarray(np.where(np.isnan(own), other, own))

    return Rates(share, *(or_rest(name) for name in ("leave", "switch", "leaves", "switches")))


def _static(model: FittedModel, fitted: Panel, observed: Observed, seed: int) -> Rates:
    """A static logit of the state's columns, simulated with the fitted dynamics."""
    schema, encoder = model.schema, Encoder(model.schema, without=model.schema.hidden).to(model.device)

    def columns(state: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(state[:, :1]), encoder(state)], 1)

    rows = fitted.free.nonzero().squeeze(1)
    logit = fit_static_logit(
        columns(fitted.state[rows]),
        fitted.action[rows],
        fitted.menu[rows],
        fitted.segment[rows],
        fitted.weight[rows],
        segments=len(schema.segments),
    )
    segment = torch.from_numpy(observed.segment).to(model.device)
    policy: Policy = lambda state, menu: logit.log_policy(columns(state), menu, segment)  # noqa: E731
    generator = torch.Generator().manual_seed(seed + 1)
    total: Counts | None = None
    for _ in range(PATHS):
        path = choice_paths(model.dynamics, policy, observed.state, periods=observed.periods, generator=generator)
        one = observed.count(schema, observed.after(path))
        total = one if total is None else total + one
    assert total is not None
    return total.rates()


def _reduced_form(model: FittedModel, fitted: Panel, arm: Panel, observed: Observed) -> Rates:
    """Shares of a static logit on the period and on each member's first state; nothing is said of hazards."""
    schema, encoder = model.schema, Encoder(model.schema, without=model.schema.hidden).to(model.device)
    periods = fitted.period.unique()

    def columns(panel: Panel, rows: Tensor) -> Tensor:
        first = panel.state[_first_rows(panel)][_member_place(panel)[panel.member[rows]]]
        dummies = (panel.period[rows].unsqueeze(1) == periods).float()
        return torch.cat([torch.ones_like(first[:, :1]), dummies, encoder(first)], 1)

    rows = _present(fitted).nonzero().squeeze(1)
    everything = torch.ones_like(fitted.menu[rows])
    segment = _first_segment(fitted)[fitted.member[rows]]
    weight = torch.ones_like(fitted.weight[rows])
    logit = fit_static_logit(
        columns(fitted, rows), fitted.action[rows], everything, segment, weight, segments=len(schema.segments)
    )
    rows = _present(arm).nonzero().squeeze(1)
    segment = _first_segment(arm)[arm.member[rows]]
    pi = logit.log_policy(columns(arm, rows), torch.ones_like(arm.menu[rows]), segment).exp().cpu().numpy()
    pi[~torch.isin(arm.period[rows], periods).cpu().numpy()] = np.nan
    groups, width, actions = len(schema.segments), observed.action.shape[1], len(schema.actions)
    column = (arm.period[rows] - arm.period.min()).cpu().numpy()
    chose = np.zeros((groups, width, actions))
    np.add.at(chose, (segment.cpu().numpy(), column), pi)
    chose = np.concatenate([chose, chose.sum(0, keepdims=True)]) if groups > 1 else chose
    with np.errstate(invalid="ignore", divide="ignore"):
        share = chose / chose.sum(2, keepdims=True)
    shape = (len(chose), actions)
    unknown = np.full((*shape, observed.count(schema).at_risk.shape[2]), np.nan)
    return Rates(share, unknown, unknown, np.full(shape, np.nan), np.full(shape, np.nan))


def _member_place(panel: Panel) -> Tensor:
    """Place [members] of each member among those with a row in which something happens."""
    rows = _first_rows(panel)
    place = torch.zeros(panel.n_members, dtype=torch.long, device=rows.device)
    place[panel.member[rows]] = torch.arange(len(rows), device=rows.device)
    return place


def _first_segment(panel: Panel) -> Tensor:
    """Segment [members] at each member's first row in which something happens."""
    return panel.segment[_first_rows(panel)][_member_place(panel)]
