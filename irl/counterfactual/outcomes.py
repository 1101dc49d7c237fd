"""From a scenario and a panel to the outcomes table: solve baseline and cases, roll out, put side by side.

The table's columns are ``case, segment, period, outcome, baseline, scenario, change, low, high``; both baseline and
scenario are simulated from the model. Outcomes by segment and period (0 = the first simulated choice):

    share_<action>           share of the members present
    membership               share not at the anchor
    join                     of those at the anchor the period before, the share who are not now
    cancel, switch, renewal  of the members the period before: gone; on another paid action; still members
    survival                 share still members so many periods after joining (life table of joiners in the simulation)
    use_<feature>            mean of a learned ordinal, count or number
    revenue, margin          money paid, and that less the cost of serving, per member present (where declared)

and without a period (the baseline of those from ``surplus`` on is 0 by definition):

    tenure                   expected periods as a member from joining, within those simulated
    revenue_total, margin_total  money over all periods per member at the start, undiscounted
    surplus                  (1 - discount) times the mean change of the soft value at the start, in reward units per
                             period, over the members who have a choice there; by segment only, since each has its
                             own unit
    surplus_money            the same in money: divided by the segment's price coefficient, where that is clearly
                             positive (:mod:`irl.counterfactual.money`)
    gainers, losers          share of those members better, or worse, off by more than 0.001 reward units per period
    elasticity_<outcome>     arc elasticity of a mean share, or of membership, to the price faced, where a case changes
                             one randomised number and nothing else; over all periods and, with its period, at the last

Where the anchor is a column's action or a policy, no action stands for not being a member, and the outcomes from
``membership`` to ``survival`` and ``tenure`` are left out. ``low`` and ``high`` are the bounds of a 95 % interval of
``change`` (:mod:`irl.counterfactual.intervals`); they are empty where the model has no standard errors, and where a
row rests on too few members to tell. A rate of nobody has no row.

Limits: the intervals hold the dynamics fixed; money is counted at the prices that members face, so that a change
declared in reward units moves no revenue of itself; a period of the simulation is one row of the panel, so studies with
a `duration` column are refused.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from irl.config import InputError
from irl.counterfactual import contracts, population
from irl.counterfactual.anchor_errors import MOST_ROWS, TOLERANCE, Dependence, dependence
from irl.counterfactual.forward import Compile
from irl.counterfactual.identification import classify
from irl.counterfactual.intervals import Comparison, compared, t_quantile
from irl.counterfactual.intervention import Intervention, added_actions, cautions, compile_scenario
from irl.counterfactual.kept import KeptSums
from irl.counterfactual.money import below_zero, check_money, paid, price_coefficients
from irl.counterfactual.rates import Axes
from irl.counterfactual.rollout import Starts, rollout
from irl.counterfactual.scenario_policy import ScenarioPolicy
from irl.counterfactual.solve import solve
from irl.counterfactual.support import Tally, support
from irl.counterfactual.timing import Policy, remembered, solve_path
from irl.counterfactual.type_draws import parameter_draws, start_scores
from irl.data.disclosure import Withheld, withheld
from irl.data.encode import ALL
from irl.data.fit import segment_problems
from irl.data.panel import Panel, panel_from_frame
from irl.declared import Money
from irl.draws import representative
from irl.fitted import FittedModel, Z
from irl.scenario import BASELINE, Scenario, cases, scenario_from
from irl.transitions import DRAWS, States, Transitions

COLUMNS = ["case", "segment", "period", "outcome", "baseline", "scenario", "change", "low", "high"]
PARAMETER_DRAWS = 16
"""Draws of the reward's parameters behind the intervals; with no more parameters than that, as many as parameters,
whose second moments are the covariance exactly."""
MOST_DRAWN = 8_000
"""Rows from which transitions are drawn at most; of a larger panel so many are taken at random."""
SEEN = 1_000_000
"""Rows of a panel in files that stand for all: what is seen in the data, and where transitions start."""
Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Answer:
    """The outcomes table, and how it was computed: per case (and "baseline") the rounds, convergence and warnings; if
    money is declared, its currency, the price coefficients, and notes on what is missing."""

    outcomes: pd.DataFrame
    solved: dict[str, dict[str, Any]]
    members: int
    money: dict[str, Any] | None = None

    def warnings(self) -> list[str]:
        """What a reader of the table has to know, each once."""
        said = [text for how in self.solved.values() for text in how["warnings"]]
        said += self.money["notes"] if self.money else []
        said += [
            f"{label}: the policy did not converge in {how['rounds']} rounds; take its numbers with care"
            for label, how in self.solved.items()
            if not how["converged"]
        ]
        return list(dict.fromkeys(said))


@dataclass(frozen=True)
class Question:
    """A scenario that fits a study, and the members it is asked for: what can be refused has been.

    ``rows`` are the states of the frame, and ``panel`` the frame if it is one; ``about`` says what the start population
    is.
    """

    model: FittedModel
    scenario: Scenario
    interventions: dict[str, Intervention]
    rows: States
    starts: Starts
    about: tuple[str, ...] = ()
    panel: Panel | None = None

    @property
    def withheld(self) -> Withheld:
        """What of the answer is not to be written: by the members of the data who may start, not by those drawn."""
        segments, real = self.model.schema.segments, self.starts.real
        members = torch.bincount(self.starts.segment, minlength=len(segments)) if real is None else real
        return withheld(dict(zip(segments, members.tolist(), strict=True)), self.model.config.data.min_cell)

    def answer(
        self,
        *,
        tick: Tick = lambda stage, done, of: None,
        bands: bool = True,
        compile: Compile | None = None,
        folder: Path | None = None,
    ) -> Answer:
        """Solve and simulate baseline and cases; ``tick(stage, done, of)`` reports progress. Without ``bands``, answers
        that depend on the anchor's reward come without how far. ``compile``: how forward passes are compiled;
        ``folder``: where the simulation's sums are kept meanwhile."""
        model, scenario = self.model, self.scenario
        parameters, shares, width = self._drawn_parameters()
        policies = self._policies(parameters, tick, compile)
        starts, baseline = self.starts, policies[BASELINE].at(0)
        if shares is not None and starts.row is not None:
            starts = replace(starts, score=start_scores(baseline, starts, self.panel, shares))
        seen = Tally(support(model.schema, self.rows.state, self.rows.segment))
        prices = {label: changed_price(each) for label, each in self.interventions.items()}
        reported, money = used_columns(model), money_of(model, scenario)
        used = tuple(dict.fromkeys([*reported, *(f for f in prices.values() if f is not None)]))
        counts = rollout(
            model,
            policies,
            starts,
            periods=scenario.periods,
            seed=scenario.seed,
            used=used,
            paid=None if money is None else partial(paid, model.schema, money),
            tick=lambda done, of: tick("simulate", done, of),
            visit=seen,
            kept=None if folder is None else KeptSums(folder, seen, every=model.config.estimation.checkpoint_seconds),
        )
        seen.add_up(policies)
        worth = None if money is None else price_coefficients(model, money, self.rows, parameters)
        axes = axes_of(baseline, used, reported=len(reported), paid=money is not None)
        parts, solved = [], {}
        for label, price in prices.items():
            if label != BASELINE:
                own = axes if price is None else replace(axes, price=used.index(price))
                found = compared(counts[BASELINE], counts[label], own, worth=worth, width=width)
                parts.append(outcome_table(model, label, found))
        for i, (label, policy) in enumerate(policies.items()):
            tick("anchor", i, len(policies))
            rests = self._dependence(baseline, policy, bands)
            said = cautions(policy.intervention, self.rows.state, self.rows.segment)
            said += self.about if label == BASELINE else ()
            said += contracts.cautions(model, policy.intervention, self.rows)
            said += contracts.left_out(counts[label], policy.news)
            said += rests.warnings(label) + seen.warnings(label, BASELINE)
            solved[label] = _record(policy, said) | rests.plain() | {"outside": seen.plain(label)}
        tick("anchor", len(policies), len(policies))
        about = None
        if money is not None and worth is not None:
            about = {"currency": money.currency, "price_coefficients": worth.estimates, "notes": list(worth.notes)}
        return Answer(pd.concat(parts, ignore_index=True), solved, len(starts.state), about)

    def _drawn_parameters(self) -> tuple[Tensor | None, Tensor | None, float]:
        """Draws of the parameters and of the types' shares, less their estimates, and how many standard deviations of
        what they make of an outcome its interval reaches; None where the model has no standard errors."""
        model = self.model
        if not model.has_standard_errors:
            return None, None, math.nan
        assert model.refit is not None
        several = len(model.refit.covariance) + (0 if model.shares is None else len(model.shares.covariance))
        drawn = parameter_draws(model, min(PARAMETER_DRAWS, several), seed=self.scenario.seed)
        return *drawn, Z if several <= PARAMETER_DRAWS else t_quantile(PARAMETER_DRAWS)

    def _policies(self, parameters: Tensor | None, tick: Tick, compile: Compile | None) -> dict[str, Policy]:
        """The solved policies of baseline and cases."""
        of = len(self.interventions)
        tick("solve", 0, of)
        unchanged = self.interventions[BASELINE]
        baseline = solve(self.model, unchanged, self._follow(unchanged), draws=parameters, compile=compile)
        policies: dict[str, Policy] = {BASELINE: baseline}
        for i, (label, intervention) in enumerate(list(self.interventions.items())[1:], start=1):
            tick("solve", i, of)
            follow = partial(self._follow, parameters=parameters)
            policies[label] = solve_path(baseline, intervention, self.scenario.timing, follow)
        tick("solve", of, of)
        return policies

    def _dependence(self, baseline: ScenarioPolicy, policy: Policy, bands: bool) -> Dependence:
        """How a case's answer depends on what behaviour does not tell; with ``bands``, how far."""
        timing = self.scenario.timing
        if not bands:
            return Dependence(classify(policy.intervention.changes, self.model.schema, timing))
        again = partial(
            solve_path,
            intervention=policy.intervention,
            timing=timing,
            rows=remembered(partial(self._follow, most=MOST_ROWS)),
            tolerance=TOLERANCE,
        )
        unchanged, about = self._follow(self.interventions[BASELINE]), self.scenario
        return dependence(
            baseline, policy, timing, unchanged, again, self.starts, periods=about.periods, seed=about.seed
        )

    def _follow(
        self, intervention: Intervention, *, most: int | None = None, parameters: Tensor | None = None
    ) -> Callable[[int], Transitions]:
        """What follows (so many of) the rows under an intervention, as a function of the segment they are taken to be
        of, with what draws of the parameters make of contracts."""
        (rows, draws), seed = self._drawn_from, self.scenario.seed
        if most is not None and draws == DRAWS:
            rows = self.rows.at_most(most, seed=seed)
        of = partial(contracts.followed, self.model, intervention, seed=seed, draws=draws, parameters=parameters)
        return lambda segment: of(rows.of_segment(segment))

    @cached_property
    def _drawn_from(self) -> tuple[States, int]:
        """The states whose transitions are drawn, and how often, the same for baseline and cases."""
        programmes = list(self.interventions.values())
        return representative(self.model.dynamics, programmes, self.rows, most=MOST_DRAWN, seed=self.scenario.seed)


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


def ask(
    model: FittedModel, scenario: Scenario | Mapping[str, Any] | str | Path, frame: pd.DataFrame | Panel
) -> Question:
    """The scenario checked against the study and the frame; arguments and errors as :func:`simulate`.

    A panel of the model's schema may take the place of the frame. Of one that is not in memory all members start, and
    ``SEEN`` rows stand for the others.
    """
    scenario = scenario_from(scenario)
    check_study(model)
    interventions = {BASELINE: Intervention(model.schema, (), added_actions(scenario))}
    population.check_population(scenario.population, model.schema)
    check_money(money_of(model, scenario), model.config.data, model.schema)
    interventions |= {label: compile_scenario(case, model.schema) for label, case in cases(scenario).items()}
    typed = frame if isinstance(frame, Panel) else model.with_types(frame, seed=scenario.seed)
    panel, states = _rows(model, typed)
    rows = states if panel is None or panel.scratch is None else states.at_most(SEEN, seed=scenario.seed)
    for label, each in interventions.items():
        each.menu(each.state(rows.state, rows.segment), rows.segment)  # refuses to leave nothing to choose
        if problems := contracts.problems_of(model, each, rows) + below_zero(model, scenario.money, label, each, rows):
            raise InputError(f"scenario {scenario.name!r}:\n  " + "\n  ".join(problems))
    first = population.start_rows(model.schema, panel, states, start=scenario.start)
    starts = population.draw_starts(states, first, scenario, model.schema)
    if typed is frame:  # the types, if there are any, are known
        starts = replace(starts, row=None)
    about = population.cautions(scenario, model.config.data.entry, panel)
    return Question(model, scenario, interventions, rows, starts, tuple(about), panel)


def check_study(model: FittedModel) -> None:
    """InputError if members of this study cannot be simulated."""
    schema, data = model.schema, model.config.data
    problems = segment_problems(schema)
    if not schema.knows_anchor_reward:
        problems.append(
            f"the anchor's reward column {schema.anchor_reward!r} is not a state column, so its future is unknown; "
            "list it under `data.state` and train again"
        )
    if data.duration is not None:
        problems.append(f"its rows last several periods (`duration: {data.duration}`); rows of one period are needed")
    if problems:
        raise InputError("this study cannot answer scenarios:\n  " + "\n  ".join(problems))


def _rows(model: FittedModel, frame: pd.DataFrame | Panel) -> tuple[Panel | None, States]:
    """The frame as a panel if it is one, and its rows' states."""
    if isinstance(frame, Panel):
        panel = frame.to(model.device)
        return panel, States(panel.state, panel.segment, panel.weight)
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


def used_columns(model: FittedModel) -> tuple[int, ...]:
    """State columns reported as ``use_<feature>``: learned and not a category."""
    columns = model.schema.columns
    return tuple(f for f, c in enumerate(columns) if c.dynamics == "learned" and c.kind != "category")


def changed_price(intervention: Intervention) -> int | None:
    """The randomised number (a column of the state) that is all that an intervention changes; else None."""
    names = {None if change.feature is None else change.feature.name for change in intervention.changes}
    if len(names) != 1 or None in names:
        return None
    f = intervention.schema.index(str(names.pop()))
    column = intervention.schema.columns[f]
    return f if column.kind == "numeric" and column.assigned == "randomised" else None


def money_of(model: FittedModel, scenario: Scenario) -> Money | None:
    """Prices and costs: the scenario's, or else the study's."""
    return scenario.money or model.config.money


def axes_of(policy: Policy, used: tuple[int, ...], *, reported: int, paid: bool) -> Axes:
    """What the counts of a rollout of ``policy`` stand for; of the ``used`` columns the first are outcomes."""
    schema, actions = policy.model.schema, policy.intervention.actions
    names = tuple(schema.names[f] for f in used)
    return Axes(len(schema.segments), actions, schema.anchor, policy.model.config.discount, names, reported, paid)


def outcome_table(model: FittedModel, case: str, found: Comparison) -> pd.DataFrame:
    """A case beside the baseline, in the columns of the outcomes table; what is known of neither is left out."""
    labels = list(model.schema.segments)
    labels += [ALL] if len(labels) > 1 else []
    parts = []
    for before, after in zip(found.baseline, found.scenario, strict=True):
        periods = after.values.size // len(labels)
        period = [pd.NA] if after.first is None else list(range(after.first, after.first + periods))
        parts.append(
            pd.DataFrame(
                {
                    "segment": np.repeat(labels, periods),
                    "period": pd.array(period * len(labels), dtype="Int64"),
                    "outcome": after.name,
                    "baseline": before.values.ravel(),
                    "scenario": after.values.ravel(),
                }
            )
        )
    table = pd.concat(parts, ignore_index=True)
    table["case"], table["change"] = case, table["scenario"] - table["baseline"]
    table["low"], table["high"] = table["change"] - found.reach, table["change"] + found.reach
    return pd.DataFrame(table.dropna(subset=["baseline", "scenario"], how="all")[COLUMNS])


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
