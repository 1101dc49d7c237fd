"""From a scenario and a panel to the outcomes table: solve baseline and cases, roll out, put side by side.

The table's columns are ``case, segment, period, outcome, baseline, scenario, change, low, high``; both baseline and
scenario are simulated from the model. Outcomes by segment and period (0 = the first simulated choice):

    share_<action>           share of the members present
    membership               share not at the anchor
    join                     of those at the anchor the period before, the share who are not now
    cancel, switch, renewal  of the members the period before: gone; on another paid action; still members
    survival                 share still members so many periods after joining (life table of joiners in the simulation)
    use_<feature>            mean of a learned ordinal, count or number
    surplus                  (1 - discount) times the mean change of the soft value at the start, reward units per period
    gainers                  share of members better off by more than 0.001 reward units per period

``surplus`` and ``gainers`` have no period; their baseline is 0 by definition. ``low`` and ``high`` bound ``change`` and are
empty as long as the model carries no standard errors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from irl.config import InputError
from irl.counterfactual.intervention import Intervention, compile_scenario, warn_confounded
from irl.counterfactual.rollout import Counts, Starts, rollout
from irl.counterfactual.solve import ScenarioPolicy, Transitions, drawn, logged, solve
from irl.data.panel import Panel, panel_from_frame
from irl.fitted import FittedModel
from irl.scenario import Scenario, cases, scenario_from

COLUMNS = ["case", "segment", "period", "outcome", "baseline", "scenario", "change", "low", "high"]
ALL = "all"
"""Label of the rows over all segments together."""


@dataclass(frozen=True)
class Answer:
    """The outcomes table, and how it was computed: per case (and "baseline") the rounds, convergence and warnings."""

    outcomes: pd.DataFrame
    solved: dict[str, dict[str, Any]]
    members: int


def simulate(
    model: FittedModel, scenario: Scenario | Mapping[str, Any] | str | Path, frame: pd.DataFrame
) -> pd.DataFrame:
    """The outcomes table of a scenario, starting from the members in ``frame``.

    ``frame`` is a panel (member, period, action and state columns). With state and segment columns only, each row is taken
    as a member, and transitions are drawn from the fitted dynamics.

    Raises
    ------
    InputError
        If the scenario does not fit the study, or the frame cannot be read.
    """
    return answer(model, scenario, frame).outcomes


def answer(
    model: FittedModel,
    scenario: Scenario | Mapping[str, Any] | str | Path,
    frame: pd.DataFrame,
    *,
    tick: Callable[[str, int, int], None] = lambda stage, done, of: None,
) -> Answer:
    """As :func:`simulate`, with the record of how it was computed; ``tick`` reports progress."""
    scenario = scenario_from(scenario)
    if isinstance(model.schema.anchor_reward, str) and model.schema.anchor_reward not in model.schema.names:
        raise InputError(
            f"the anchor's reward column {model.schema.anchor_reward!r} is not a state column, so its future is unknown; "
            "list it under `data.state` and train again"
        )
    compiled = {label: compile_scenario(case, model.schema) for label, case in cases(scenario).items()}
    panel, states = _rows(model, frame)
    baseline = Intervention(model.schema, ())
    policies: dict[str, ScenarioPolicy] = {}
    solved: dict[str, dict[str, Any]] = {}
    for i, (label, intervention) in enumerate([("baseline", baseline), *compiled.items()]):
        policies[label] = solve(model, intervention, _transitions(model, intervention, panel, states, scenario.seed))
        solved[label] = _record(policies[label], warn_confounded(intervention))
        tick("solve", i + 1, 1 + len(compiled))
    starts = draw_starts(states, _first_or_last(panel, states, scenario), scenario)
    used = used_columns(model)
    counts = rollout(
        model,
        policies,
        starts,
        periods=scenario.periods,
        seed=scenario.seed,
        used=used,
        tick=lambda done, of: tick("rollout", done, of),
    )
    names = [model.schema.names[f] for f in used]
    tables = {label: outcome_table(model, c, names) for label, c in counts.items()}
    surplus = {label: _welfare(model, c, counts["baseline"]) for label, c in counts.items()}
    parts = [_beside(label, tables["baseline"], tables[label], surplus[label]) for label in compiled]
    return Answer(pd.concat(parts, ignore_index=True), solved, len(starts.state))


def _rows(model: FittedModel, frame: pd.DataFrame) -> tuple[Panel | None, Transitions]:
    """The frame as a panel if it is one, and its rows' states (with placeholders where nothing is logged)."""
    data = model.config.data
    if all(name in frame.columns for name in (data.member, data.period, data.action)):
        panel = panel_from_frame(frame, model.config, schema=model.schema).to(model.device)
        return panel, _unlinked(panel.state, panel.segment, panel.anchor_reward, panel.weight)
    state = model.schema.encode(frame).to(model.device)
    segment = torch.from_numpy(model.schema.segment_codes(frame)).to(model.device)
    return None, _unlinked(state, segment, model.anchor_reward(frame), torch.ones(len(state), device=model.device))


def _unlinked(state: Tensor, segment: Tensor, anchor_reward: Tensor, weight: Tensor) -> Transitions:
    zero = torch.zeros_like(segment)
    return Transitions(state, zero, state, weight, zero.bool(), segment, anchor_reward, weight)


def _transitions(
    model: FittedModel, intervention: Intervention, panel: Panel | None, states: Transitions, seed: int
) -> Transitions:
    """Logged where they serve (a panel with enough of them, dynamics unchanged), else drawn."""
    if panel is not None and not intervention.changes_dynamics and bool((panel.next_choice >= 0).any()):
        return logged(panel)
    return drawn(model, intervention, states.state, states.segment, states.anchor_reward, states.weight, seed=seed)


def _first_or_last(panel: Panel | None, states: Transitions, scenario: Scenario) -> Tensor:
    """Row index [M] of each member's start: first or newest row at which there is something to choose or to sit out."""
    rows = torch.arange(len(states.state), device=states.state.device)
    if panel is None:
        return rows
    usable = rows[panel.menu.any(1) & ~panel.schema.is_terminal(panel.state)]
    member = panel.member[usable]
    edge = torch.ones(len(usable), dtype=torch.bool, device=usable.device)
    differs = member[1:] != member[:-1]
    if scenario.start == "first":
        edge[1:] = differs
    else:
        edge[:-1] = differs
    return usable[edge]


def draw_starts(states: Transitions, rows: Tensor, scenario: Scenario) -> Starts:
    """Start states: every member once, or so many drawn with replacement with segment shares kept."""
    segment = states.segment[rows]
    if scenario.members != "all":
        generator = torch.Generator().manual_seed(scenario.seed)
        n, total = torch.bincount(segment).tolist(), len(segment)
        exact = [scenario.members * k / total for k in n]
        quota = [int(x) for x in exact]
        by_remainder = sorted(range(len(n)), key=lambda s: quota[s] - exact[s])
        for s in by_remainder[: scenario.members - sum(quota)]:
            quota[s] += 1
        picked = []
        for s, k in enumerate(quota):
            mine = (segment == s).nonzero().squeeze(1)
            if k:
                picked.append(mine[torch.randint(len(mine), (k,), generator=generator).to(mine.device)])
        rows = rows[torch.cat(picked)]
    return Starts(states.state[rows], states.segment[rows])


def used_columns(model: FittedModel) -> tuple[int, ...]:
    """State columns reported as ``use_<feature>``: learned and not a category."""
    columns = model.schema.columns
    return tuple(f for f, c in enumerate(columns) if c.dynamics == "learned" and c.kind != "category")


def outcome_table(model: FittedModel, counts: Counts, used: list[str]) -> pd.DataFrame:
    """One case's outcomes by segment and period: columns segment, period, outcome, value."""
    schema = model.schema
    arrays = {name: getattr(counts, name).cpu().numpy() for name in counts.__dataclass_fields__}
    if len(schema.segments) > 1:
        arrays = {name: np.concatenate([x, x.sum(0, keepdims=True)]) for name, x in arrays.items()}
    labels = [*schema.segments, ALL] if len(schema.segments) > 1 else list(schema.segments)
    a = schema.anchor
    present, chose, moved = arrays["present"], arrays["chose"], arrays["moved"]
    paid = [k for k in range(len(schema.actions)) if k != a]
    was_out, was_member = moved[:, :, a].sum(-1), moved[:, :, paid].sum((-1, -2))
    stayed_put = sum(moved[:, :, k, k] for k in paid)
    remained = moved[:, :, paid][..., paid].sum((-1, -2))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {f"share_{name}": chose[:, :, k] / present for k, name in enumerate(schema.actions)}
        values["membership"] = 1 - chose[:, :, a] / present
        values["join"] = moved[:, :, a][..., paid].sum(-1) / was_out
        values["cancel"] = 1 - remained / was_member
        values["switch"] = (remained - stayed_put) / was_member
        values["renewal"] = remained / was_member
        values["survival"] = np.cumprod(arrays["stayed"] / arrays["at_risk"], axis=1)
        for u, name in enumerate(used):
            values[f"use_{name}"] = arrays["use"][:, :, u] / present
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
        for outcome, array in values.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    return table[np.isfinite(table["value"])]


def _welfare(model: FittedModel, counts: Counts, baseline: Counts) -> pd.DataFrame:
    """Surplus and gainers by segment: columns segment, outcome, value."""
    schema = model.schema
    change = ((counts.value - baseline.value) * (1 - model.config.discount)).cpu().numpy()
    gained, members = counts.gained.cpu().numpy(), counts.members.cpu().numpy()
    labels = list(schema.segments)
    if len(labels) > 1:
        labels.append(ALL)
        change, gained, members = (np.append(x, x.sum()) for x in (change, gained, members))
    some = members > 0
    rows = {"surplus": change[some] / members[some], "gainers": gained[some] / members[some]}
    kept = [label for label, keep in zip(labels, some, strict=True) if keep]
    return pd.concat([pd.DataFrame({"segment": kept, "outcome": k, "value": v}) for k, v in rows.items()])


def _beside(label: str, baseline: pd.DataFrame, scenario: pd.DataFrame, welfare: pd.DataFrame) -> pd.DataFrame:
    """Baseline and one case side by side, in the columns of the outcomes table."""
    keys = ["segment", "period", "outcome"]
    table = baseline.rename(columns={"value": "baseline"}).merge(
        scenario.rename(columns={"value": "scenario"}), on=keys, how="outer", sort=False
    )
    welfare = welfare.rename(columns={"value": "scenario"}).assign(baseline=0.0, period=pd.NA)
    table["period"] = table["period"].astype("Int64")
    welfare["period"] = welfare["period"].astype("Int64")
    table = pd.concat([table, welfare], ignore_index=True)
    table["case"], table["change"] = label, table["scenario"] - table["baseline"]
    table["low"] = table["high"] = np.nan
    return table[COLUMNS]


def _record(policy: ScenarioPolicy, warnings: list[str]) -> dict[str, Any]:
    return {
        "rounds": policy.rounds,
        "converged": policy.converged,
        "policy_change": policy.change,
        "condition": policy.condition,
        "drawn_transitions": policy.intervention.changes_dynamics,
        "warnings": warnings,
    }
