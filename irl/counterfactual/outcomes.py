"""From a scenario and a panel to the outcomes table: solve baseline and cases, roll out, put side by side.

The table's columns are ``case, segment, period, outcome, baseline, scenario, change, low, high``; both baseline and
scenario are simulated from the model. Outcomes by segment and period (0 = the first simulated choice):

    share_<action>           share of the members present
    membership               share not at the anchor
    join                     of those at the anchor the period before, the share who are not now
    cancel, switch, renewal  of the members the period before: gone; on another paid action; still members
    survival                 share still members so many periods after joining (life table of joiners in the simulation)
    use_<feature>            mean of a learned ordinal, count or number
    surplus                  (1 - discount) times the mean change of the soft value at the start, in reward units per
                             period, over the members who have a choice there
    gainers                  share of those members better off by more than 0.001 reward units per period

Where the anchor is a column's action or a policy, no action stands for not being a member, and the outcomes from
``membership`` to ``survival`` are left out. ``surplus`` and ``gainers`` have no period; their baseline is 0 by
definition. ``low`` and ``high`` are the bounds of a 95 % interval of ``change``, by the delta method on draws of the
reward's parameters; they are empty where the model has no standard errors, and for ``gainers``, which counts members
beyond a threshold. A rate of nobody has no row.

Limits: the intervals hold the dynamics, the start states and the luck of the simulated members fixed; a period of the
simulation is one row of the panel, so studies with a `duration` column are refused.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from irl.config import InputError
from irl.counterfactual.anchor_errors import TOLERANCE, dependence
from irl.counterfactual.intervention import Intervention, added_actions, cautions, compile_scenario
from irl.counterfactual.population import check_population, draw_starts
from irl.counterfactual.rollout import Counts, Starts, rollout
from irl.counterfactual.solve import solve
from irl.counterfactual.support import Tally, support
from irl.counterfactual.timing import Policy, remembered, solve_path
from irl.data.panel import Panel, panel_from_frame
from irl.fitted import FittedModel, Z
from irl.scenario import BASELINE, Scenario, cases, scenario_from
from irl.transitions import States, Transitions, drawn

COLUMNS = ["case", "segment", "period", "outcome", "baseline", "scenario", "change", "low", "high"]
ALL = "all"
"""Label of the rows over all segments together."""
PARAMETER_DRAWS = 16
"""Draws of the reward's parameters behind the intervals; with no more parameters than that, as many as parameters,
whose second moments are the covariance exactly."""
MOST_DRAWN = 15_000
"""Rows from which transitions are drawn at most; of a larger panel so many are taken at random."""
SMALL = 1e-4
"""Step of the numerical derivatives of rates, in units of a draw of the parameters."""
Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Answer:
    """The outcomes table, and how it was computed: per case (and "baseline") the rounds, convergence and warnings."""

    outcomes: pd.DataFrame
    solved: dict[str, dict[str, Any]]
    members: int

    def warnings(self) -> list[str]:
        """What a reader of the table has to know, each once."""
        said = [text for how in self.solved.values() for text in how["warnings"]]
        said += [
            f"{label}: the policy did not converge in {how['rounds']} rounds; take its numbers with care"
            for label, how in self.solved.items()
            if not how["converged"]
        ]
        return list(dict.fromkeys(said))


@dataclass(frozen=True)
class Question:
    """A scenario that fits a study, and the members it is asked for: what can be refused has been.

    ``rows`` are the states of the frame.
    """

    model: FittedModel
    scenario: Scenario
    interventions: dict[str, Intervention]
    rows: States
    starts: Starts

    def answer(self, *, tick: Tick = lambda stage, done, of: None) -> Answer:
        """Solve and simulate baseline and cases; ``tick(stage, done, of)`` reports progress."""
        model, scenario = self.model, self.scenario
        parameters, width = None, math.nan
        if model.has_standard_errors:
            assert model.refit is not None
            several = len(model.refit.covariance)
            parameters = model.refit.draws(min(PARAMETER_DRAWS, several), seed=scenario.seed)
            width = Z if several <= PARAMETER_DRAWS else t_quantile(PARAMETER_DRAWS)
        unchanged = self._follow(self.interventions[BASELINE])
        tick("solve", 0, len(self.interventions))
        baseline = solve(model, self.interventions[BASELINE], unchanged, draws=parameters)
        policies: dict[str, Policy] = {BASELINE: baseline}
        for i, (label, intervention) in enumerate(list(self.interventions.items())[1:], start=1):
            tick("solve", i, len(self.interventions))
            policies[label] = solve_path(baseline, intervention, scenario.timing, self._follow)
        tick("solve", len(policies), len(policies))
        seen = Tally(support(model.schema, self.rows.state, self.rows.segment))
        used = used_columns(model)
        counts = rollout(
            model,
            policies,
            self.starts,
            periods=scenario.periods,
            seed=scenario.seed,
            used=used,
            tick=lambda done, of: tick("simulate", done, of),
            visit=seen,
        )
        seen.add_up(policies)
        names = [model.schema.names[f] for f in used]
        actions = self.interventions[BASELINE].actions
        tables = {label: outcome_table(model, c, names, actions) for label, c in counts.items()}
        errors = {label: outcome_slopes(model, c, names, actions) for label, c in counts.items()}
        parts = []
        for label in policies:
            if label != BASELINE:
                welfare = _welfare(model, counts[label], counts[BASELINE])
                change = width * np.sqrt(np.mean((errors[label] - errors[BASELINE]) ** 2, axis=1))
                table = tables[label].assign(width=change)
                parts.append(_beside(label, tables[BASELINE], table, welfare.assign(width=width * welfare.pop("se"))))
        solved = {}
        for i, (label, policy) in enumerate(policies.items()):
            tick("anchor", i, len(policies))
            again = partial(
                solve_path,
                intervention=policy.intervention,
                timing=scenario.timing,
                rows=remembered(self._follow),
                tolerance=TOLERANCE,
            )
            rests = dependence(
                baseline,
                policy,
                scenario.timing,
                unchanged,
                again,
                self.starts,
                periods=scenario.periods,
                seed=scenario.seed,
            )
            said = cautions(policy.intervention, self.rows.state, self.rows.segment)
            said += rests.warnings(label) + seen.warnings(label, BASELINE)
            solved[label] = _record(policy, said) | rests.plain() | {"outside": seen.plain(label)}
        tick("anchor", len(policies), len(policies))
        return Answer(pd.concat(parts, ignore_index=True), solved, len(self.starts.state))

    def _follow(self, intervention: Intervention) -> Callable[[int], Transitions]:
        """What follows the rows under an intervention, as a function of the segment that they are taken to be of."""
        seed, rows = self.scenario.seed, self.rows.at_most(MOST_DRAWN, seed=self.scenario.seed)
        return lambda segment: drawn(self.model.dynamics, intervention, rows.of_segment(segment), seed=seed)


def simulate(
    model: FittedModel, scenario: Scenario | Mapping[str, Any] | str | Path, frame: pd.DataFrame
) -> pd.DataFrame:
    """The outcomes table of a scenario, starting from the members in ``frame``.

    ``frame`` is a panel (member, period, action and state columns). With state and segment columns only, each row is
    taken as a member, and transitions are drawn from the fitted dynamics. What the answer rests on beyond the panel is
    issued as Python warnings.

    Raises
    ------
    InputError
        If the scenario does not fit the study, or the frame cannot be read.
    """
    found = ask(model, scenario, frame).answer()
    for text in found.warnings():
        warnings.warn(text, stacklevel=2)
    return found.outcomes


def ask(model: FittedModel, scenario: Scenario | Mapping[str, Any] | str | Path, frame: pd.DataFrame) -> Question:
    """The scenario checked against the study and the frame; arguments and errors as :func:`simulate`."""
    scenario = scenario_from(scenario)
    check_study(model)
    interventions = {BASELINE: Intervention(model.schema, (), added_actions(scenario))}
    check_population(scenario.population, model.schema)
    interventions |= {label: compile_scenario(case, model.schema) for label, case in cases(scenario).items()}
    panel, rows = _rows(model, frame)
    for each in interventions.values():
        each.menu(each.state(rows.state, rows.segment), rows.segment)  # refuses to leave nothing to choose
    starts = draw_starts(rows, _first_or_last(model, panel, rows, scenario), scenario, model.schema)
    return Question(model, scenario, interventions, rows, starts)


def check_study(model: FittedModel) -> None:
    """InputError if members of this study cannot be simulated."""
    schema, data = model.schema, model.config.data
    problems = []
    if not schema.knows_anchor_reward:
        problems.append(
            f"the anchor's reward column {schema.anchor_reward!r} is not a state column, so its future is unknown; "
            "list it under `data.state` and train again"
        )
    if data.duration is not None:
        problems.append(f"its rows last several periods (`duration: {data.duration}`); rows of one period are needed")
    if ALL in schema.segments and len(schema.segments) > 1:
        problems.append(f"a segment is called {ALL!r}, which is what the rows over all segments are called; rename it")
    if problems:
        raise InputError("this study cannot answer scenarios:\n  " + "\n  ".join(problems))


def _rows(model: FittedModel, frame: pd.DataFrame) -> tuple[Panel | None, States]:
    """The frame as a panel if it is one, and its rows' states."""
    data = model.config.data
    if all(name in frame.columns for name in (data.member, data.period, data.action)):
        panel = panel_from_frame(frame, model.config, schema=model.schema).to(model.device)
        return panel, States(panel.state, panel.segment, panel.weight)
    if data.member in frame.columns and bool(frame[data.member].duplicated().any()):
        lost = [repr(name) for name in (data.period, data.action) if name not in frame.columns]
        raise InputError(
            f"some members ({data.member!r}) have several rows, but there is no column {' or '.join(lost)}: "
            "give it too, or one row a member"
        )
    state = model.schema.encode(frame).to(model.device)
    segment = model.schema.segment_codes(frame).to(model.device)
    return None, States(state, segment, torch.ones(len(state), device=model.device))


def _first_or_last(model: FittedModel, panel: Panel | None, rows: States, scenario: Scenario) -> Tensor:
    """Row index [M] of each member's start: first or newest row at which there is something to choose or to sit out."""
    present = model.schema.menu(rows.state).any(1) & ~model.schema.is_terminal(rows.state)
    usable = present.nonzero().squeeze(1)
    if not len(usable):
        raise InputError("there is nobody to simulate: no row of the data is in a state in which something happens")
    if panel is None:
        return usable
    differs = panel.member[usable][1:] != panel.member[usable][:-1]
    edge = differs.new_ones(1)
    return usable[torch.cat([edge, differs] if scenario.start == "first" else [differs, edge])]


def used_columns(model: FittedModel) -> tuple[int, ...]:
    """State columns reported as ``use_<feature>``: learned and not a category."""
    columns = model.schema.columns
    return tuple(f for f, c in enumerate(columns) if c.dynamics == "learned" and c.kind != "category")


def outcome_table(model: FittedModel, counts: Counts, used: list[str], actions: tuple[str, ...]) -> pd.DataFrame:
    """One case's outcomes by segment and period: columns segment, period, outcome, value (NaN: a rate of nobody)."""
    labels = _labels(model)
    arrays = {name: _with_total(tensor) for name, tensor in counts.tensors().items()}
    parts = [
        pd.DataFrame(
            {
                "segment": np.repeat(labels, array.shape[1]),
                # survival starts one period after joining; everything else with the first simulated choice
                "period": np.tile(np.arange(array.shape[1]) + (outcome == "survival"), len(labels)),
                "outcome": outcome,
                "value": array.ravel(),
            }
        )
        for outcome, array in _outcomes(model, arrays, used, actions).items()
    ]
    return pd.concat(parts, ignore_index=True)


def outcome_slopes(
    model: FittedModel, counts: Counts, used: list[str], actions: tuple[str, ...]
) -> NDArray[np.float64]:
    """How the value of each row of :func:`outcome_table` moves along each draw of the parameters [rows, B]; without
    draws, NaN [rows, 1]."""
    point = {name: _with_total(tensor) for name, tensor in counts.tensors().items()}
    if counts.slopes is None:
        return np.full((sum(a.size for a in _outcomes(model, point, used, actions).values()), 1), np.nan)
    slopes = {name: _with_total(tensor) for name, tensor in counts.slopes.tensors().items()}
    columns = []
    for b in range(counts.slopes.value.shape[-1]):
        sides = []
        for step in (SMALL, -SMALL):
            moved = {name: array + step * slopes[name][..., b] for name, array in point.items()}
            sides.append(np.concatenate([a.ravel() for a in _outcomes(model, moved, used, actions).values()]))
        columns.append((sides[0] - sides[1]) / (2 * SMALL))
    return np.stack(columns, axis=1)


def t_quantile(df: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion around the normal one (Abramowitz & Stegun 26.7.5)."""
    z = Z
    return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)


def _outcomes(
    model: FittedModel, arrays: Mapping[str, NDArray[Any]], used: list[str], actions: tuple[str, ...]
) -> dict[str, NDArray[Any]]:
    """outcome -> [S, T] of the counts' arrays."""
    schema = model.schema
    present, chose = arrays["present"], arrays["chose"]
    with np.errstate(divide="ignore", invalid="ignore"):
        values: dict[str, NDArray[Any]] = {f"share_{name}": chose[:, :, k] / present for k, name in enumerate(actions)}
        if schema.anchor is not None:
            values |= _membership(schema.anchor, arrays)
        for u, name in enumerate(used):
            values[f"use_{name}"] = arrays["use"][:, :, u] / present
    return values


def _membership(anchor: int, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The outcomes of members, who are those not at the anchor."""
    present, chose, moved = arrays["present"], arrays["chose"], arrays["moved"]
    paid = [k for k in range(chose.shape[-1]) if k != anchor]
    was_out, was_member = moved[:, :, anchor].sum(-1), moved[:, :, paid].sum((-1, -2))
    stayed_put = sum(moved[:, :, k, k] for k in paid)
    remained = moved[:, :, paid][..., paid].sum((-1, -2))
    return {
        "membership": 1 - chose[:, :, anchor] / present,
        "join": moved[:, :, anchor][..., paid].sum(-1) / was_out,
        "cancel": 1 - remained / was_member,
        "switch": (remained - stayed_put) / was_member,
        "renewal": remained / was_member,
        "survival": np.cumprod(arrays["stayed"] / arrays["at_risk"], axis=1),
    }


def _welfare(model: FittedModel, counts: Counts, baseline: Counts) -> pd.DataFrame:
    """Surplus and gainers by segment: columns segment, outcome, value (NaN without a member who has a choice), se."""
    per_period = 1 - model.config.discount
    change = _with_total((counts.value - baseline.value) * per_period)
    gained, valued = _with_total(counts.gained), _with_total(counts.valued)
    error = np.full_like(change, np.nan)
    if counts.slopes is not None and baseline.slopes is not None:
        moved = _with_total((counts.slopes.value - baseline.slopes.value) * per_period)
        error = np.sqrt(np.mean(moved**2, axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = {"surplus": (change / valued, error / valued), "gainers": (gained / valued, np.nan * error)}
    labels = _labels(model)
    return pd.concat(
        [pd.DataFrame({"segment": labels, "outcome": k, "value": v, "se": se}) for k, (v, se) in rows.items()]
    )


def _labels(model: FittedModel) -> list[str]:
    segments = list(model.schema.segments)
    return [*segments, ALL] if len(segments) > 1 else segments


def _with_total(counts: Tensor) -> NDArray[np.float64]:
    """counts[S, ...] as an array, with the sum over segments appended if there are several."""
    array = counts.cpu().numpy()
    return np.concatenate([array, array.sum(0, keepdims=True)]) if len(array) > 1 else array


def _beside(label: str, baseline: pd.DataFrame, scenario: pd.DataFrame, welfare: pd.DataFrame) -> pd.DataFrame:
    """Baseline and one case side by side, in the columns of the outcomes table."""
    table = baseline.rename(columns={"value": "baseline"}).assign(scenario=scenario["value"], width=scenario["width"])
    table["period"] = table["period"].astype("Int64")
    welfare = welfare.rename(columns={"value": "scenario"}).assign(baseline=0.0)
    welfare["period"] = pd.Series([pd.NA] * len(welfare), index=welfare.index, dtype="Int64")
    table, welfare = table.dropna(subset=["baseline", "scenario"], how="all"), welfare.dropna(subset=["scenario"])
    table = pd.concat([table, welfare], ignore_index=True)
    table["case"], table["change"] = label, table["scenario"] - table["baseline"]
    table["low"], table["high"] = table["change"] - table["width"], table["change"] + table["width"]
    return pd.DataFrame(table[COLUMNS])


def _record(policy: Policy, said: list[str]) -> dict[str, Any]:
    """How one policy was found, as plain values for JSON (which has no infinity: None)."""
    last = policy.at(sys.maxsize)
    change, condition = (x if math.isfinite(x) else None for x in (last.change, last.condition))
    return {
        "rounds": last.rounds,
        "converged": last.converged,
        "policy_change": change,
        "condition": condition,
        "changes_dynamics": policy.intervention.changes_dynamics,
        "warnings": said,
    }
