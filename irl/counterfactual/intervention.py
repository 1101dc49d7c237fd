"""A scenario compiled for a fitted study: what it does to states, rewards and menus, as tensor functions.

Feature changes are applied in the order given, each ``where`` read on the state before any change. Rewards and menus are
then changed ``where`` the changed state says so. Conditions may name state columns and segment columns; a member's
segment does not change.

A changed static feature stays changed. A feature that moves by itself can only be ``set`` (it is held there every period);
that, and any change of a column that other columns' dynamics may depend on, is a change of dynamics: transitions are
then drawn from the fitted dynamics instead of taken from the panel. A randomised column (a price) is taken to move
learned columns through the choices alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from irl.config import Between, Condition, InputError, nearest, unknown
from irl.data.schema import StateSchema
from irl.scenario import Change, FeatureChange, Scenario


@dataclass(frozen=True)
class Intervention:
    """The changes of one case. The empty one, ``Intervention(schema, ())``, is the baseline."""

    schema: StateSchema
    changes: tuple[Change, ...]

    def state(self, state: Tensor, segment: Tensor) -> Tensor:
        """state[N, F] as members face it; ``segment[N]``."""
        changed = state
        for change in self.changes:
            if change.feature is not None:
                f = self.schema.index(change.feature.name)
                here = self._where(change.feature.where, state, segment)
                value = _changed_values(change.feature, self.schema, changed[:, f])
                changed = changed.index_copy(
                    1, torch.tensor([f], device=state.device), torch.where(here, value, changed[:, f]).unsqueeze(1)
                )
        return changed

    def reward(self, reward: Tensor, state: Tensor, segment: Tensor) -> Tensor:
        """reward[N, A] after the changes, at the changed ``state[N, F]``."""
        for change in self.changes:
            if change.reward is not None:
                a = self.schema.actions.index(change.reward.action)
                here = self._where(change.reward.where, state, segment).to(reward.dtype)
                scale = 1.0 if change.reward.scale is None else _number(change.reward.scale)
                add = 0.0 if change.reward.add is None else _number(change.reward.add)
                delta = torch.zeros_like(reward)
                delta[:, a] = here * ((scale - 1.0) * reward[:, a] + add)
                reward = reward + delta
        return reward

    def menu(self, menu: Tensor, state: Tensor, segment: Tensor) -> Tensor:
        """menu[N, A] after the changes, at the changed ``state[N, F]``."""
        for change in self.changes:
            if change.remove is not None:
                a = self.schema.actions.index(change.remove.action)
                here = self._where(change.remove.where, state, segment)
                menu = menu & ~(here.unsqueeze(1) & (torch.arange(menu.shape[1], device=menu.device) == a))
        return menu

    @property
    def changes_states(self) -> bool:
        return any(change.feature is not None for change in self.changes)

    @property
    def changes_dynamics(self) -> bool:
        """A feature is changed on which the movement of others (or its own) may depend."""
        changed = [self.schema.index(c.feature.name) for c in self.changes if c.feature is not None]
        columns = self.schema.columns
        learned = any(c.dynamics == "learned" for c in columns)
        return any(
            columns[f].dynamics != "static"
            or any(f in c.parents for c in columns if c.dynamics == "table")
            or (learned and columns[f].assigned != "randomised")
            for f in changed
        )

    def _where(self, condition: Condition, state: Tensor, segment: Tensor) -> Tensor:
        of_state = {name: values for name, values in condition.items() if name in self.schema.names}
        holds = self.schema.matches(state, of_state)
        if len(of_state) < len(condition):
            listed = _segments_where(self.schema, {n: v for n, v in condition.items() if n not in of_state})
            holds = holds & torch.tensor(listed, device=state.device)[segment]
        return holds


def compile_scenario(scenario: Scenario, schema: StateSchema) -> Intervention:
    """The intervention of a scenario without sweeps.

    Raises
    ------
    InputError
        If it names what the study does not have, removes the anchor or a whole menu, or asks for the effect of a feature
        whose variation says nothing about its effect. All problems at once.
    """
    problems: list[str] = []
    for i, change in enumerate(scenario.changes, start=1):
        place = f"change {i}"
        part = change.reward or change.feature or change.remove
        assert part is not None
        problems += _condition_problems(part.where, schema, place)
        if change.feature is not None:
            problems += _feature_problems(change.feature, schema, place)
            continue
        action = change.reward.action if change.reward is not None else change.remove.action if change.remove else ""
        strange = unknown(action, schema.actions, place, "action")
        problems += strange
        if not strange and schema.actions.index(action) == schema.anchor:
            problems.append(_anchor_problem(change, action, place))
    if problems:
        raise InputError(f"scenario {scenario.name!r}:\n  " + "\n  ".join(problems))
    return Intervention(schema, scenario.changes)


def _anchor_problem(change: Change, action: str, place: str) -> str:
    if change.remove is not None:
        return f"{place}: the anchor {action!r} cannot be removed: leaving is always possible, and values start from it"
    return f"{place}: the anchor's reward is known by assumption; change the other actions' rewards instead"


def _condition_problems(condition: Condition, schema: StateSchema, place: str) -> list[str]:
    problems = schema.problems_of({n: v for n, v in condition.items() if n in schema.names}, f"{place}.where")
    for name, values in condition.items():
        if name in schema.names:
            continue
        if name not in schema.segment_columns:
            known = [*schema.names, *schema.segment_columns]
            problems += unknown(name, known, f"{place}.where", "state or segment column")
        elif isinstance(values, Between):
            problems.append(f"{place}.where.{name}: segments are labels; list them instead of a range")
        else:
            labels = sorted({label.split(" | ")[schema.segment_columns.index(name)] for label in schema.segments})
            problems += [
                f"{place}.where.{name}: no segment {str(v)!r}{nearest(str(v), labels)}"
                for v in values
                if str(v) not in labels
            ]
    return problems


def _segments_where(schema: StateSchema, condition: Condition) -> list[bool]:
    """Which segments satisfy a condition on segment columns."""
    parts = [dict(zip(schema.segment_columns, label.split(" | "), strict=True)) for label in schema.segments]
    return [
        all(part[n] in {str(v) for v in values} for n, values in condition.items() if not isinstance(values, Between))
        for part in parts
    ]


def _feature_problems(change: FeatureChange, schema: StateSchema, place: str) -> list[str]:
    strange = unknown(change.name, schema.names, place, "state column")
    if strange:
        return strange
    column = schema.columns[schema.index(change.name)]
    if column.discrete and change.set is None:
        return [f"{place}: {change.name!r} is a {column.kind}: `set` it to a level instead of adding or scaling"]
    if column.dynamics != "static" and change.set is None:
        return [
            f"{place}: {change.name!r} moves by itself ({column.dynamics}); `add` and `scale` would compound from period "
            "to period: `set` it"
        ]
    if change.set is not None:
        value = change.set if isinstance(change.set, (str, bool, int, float)) else ""
        problems = schema.problems_of({change.name: (value,)}, f"{place}.set")
        if problems:
            return problems
    if column.kind == "numeric" and column.assigned != "randomised":
        return [
            f"{place}: the effect of {change.name!r} is not identified: its variation in the panel is not declared unrelated "
            "to taste. If it is (a price test), say `assigned: randomised` for it and train again; else state the change "
            "in reward units: `reward: {action: ..., add: ...}`"
        ]
    if column.kind in ("count", "numeric") and column.minimum == column.maximum:
        return [f"{place}: {change.name!r} never varies in the panel, so nothing can be learned about its effect"]
    return []


def warn_confounded(intervention: Intervention) -> list[str]:
    """Warnings (also issued as Python warnings) about changes whose effect may be a difference of tastes."""
    said = []
    for change in intervention.changes:
        if change.feature is None:
            continue
        column = intervention.schema.columns[intervention.schema.index(change.feature.name)]
        if column.assigned != "randomised":
            said.append(
                f"{column.name} is not declared `assigned: randomised`: members who differ in it may differ in taste, "
                "and the answer takes those differences for its effect"
            )
    for text in said:
        warnings.warn(text, stacklevel=2)
    return said


def _changed_values(change: FeatureChange, schema: StateSchema, values: Tensor) -> Tensor:
    if change.set is not None:
        column = schema.columns[schema.index(change.name)]
        value = change.set
        assert not isinstance(value, tuple), "a sweep is expanded into cases before it is compiled"
        if column.discrete:
            probe = torch.arange(len(column.labels), dtype=values.dtype, device=values.device)
            states = torch.zeros(len(probe), len(schema.columns), dtype=values.dtype, device=values.device)
            states[:, schema.index(change.name)] = probe
            return torch.full_like(values, float(schema.matches(states, {change.name: (value,)}).long().argmax()))
        return torch.full_like(values, float(value))
    scale = 1.0 if change.scale is None else _number(change.scale)
    return values * scale + (0.0 if change.add is None else _number(change.add))


def _number(amount: float | Sequence[float]) -> float:
    assert not isinstance(amount, Sequence), "a sweep is expanded into cases before it is compiled"
    return float(amount)
