"""A scenario compiled for a fitted study: what it does to states, rewards and menus, as tensor functions.

Feature changes are applied in the order given, each ``where`` read on the state before any change. Rewards and menus
are then changed ``where`` the changed state says so. Conditions may name state columns and segment columns; a member's
segment does not change.

A changed static feature stays changed. A feature that moves by itself can only be ``set`` (it is held there every
period); that, and any change of a column on which the movement of others or the menu may depend, is a change of
dynamics, whose effect rests on the fitted transition model. A randomised column (a
price) is taken to move learned columns through the choices alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from irl.config import Between, Condition, InputError, nearest, unknown
from irl.data.encode import label
from irl.data.schema import StateSchema
from irl.scenario import Change, FeatureChange, RemoveChange, RewardChange, Scenario


@dataclass(frozen=True)
class Intervention:
    """The changes of one case. The empty one, ``Intervention(schema, ())``, is the baseline.

    Throughout, state[N, F] is what the panel or the dynamics say and *faced* is that after the feature changes; members
    see, and choose by, what they face. segment[N].
    """

    schema: StateSchema
    changes: tuple[Change, ...]

    def state(self, state: Tensor, segment: Tensor) -> Tensor:
        """faced[N, F]. To be applied once: a price raised by a fifth is not to be raised again."""
        faced = state.clone() if self._features else state
        for f, change in self._features:
            here = self._where(change.where, state, segment)
            faced[:, f] = torch.where(here, self._value(f, change, faced[:, f]), faced[:, f])
        return faced

    def before_changes(self, following: Tensor, state: Tensor) -> Tensor:
        """The state[N, F] before next period's changes, of ``following[N, F]``, which the dynamics made of *faced*.

        What does not move is again as it was in ``state``.
        """
        static = [f for f, _ in self._features if self.schema.columns[f].dynamics == "static"]
        if static:
            following = following.clone()
            following[:, static] = state[:, static]
        return following

    def reward(self, reward: Tensor, faced: Tensor, segment: Tensor) -> Tensor:
        """reward[N, A] after the changes."""
        parts = [change.reward for change in self.changes if change.reward is not None]
        reward = reward.clone() if parts else reward
        for change in parts:
            a = self.schema.actions.index(change.action)
            here = self._where(change.where, faced, segment)
            reward[:, a] = torch.where(here, _moved(change, reward[:, a]), reward[:, a])
        return reward

    def menu(self, faced: Tensor, segment: Tensor) -> Tensor:
        """menu[N, A] after the changes; empty in terminal states.

        Raises
        ------
        InputError
            If the changes leave nothing to choose in a state that is not terminal.
        """
        before = self.schema.menu(faced)
        if self.schema.terminal:
            before = before & ~self.schema.is_terminal(faced).unsqueeze(1)
        parts = [change.remove for change in self.changes if change.remove is not None]
        menu = before.clone() if parts else before
        for change in parts:
            a = self.schema.actions.index(change.action)
            menu[:, a] &= ~self._where(change.where, faced, segment)
        if parts and bool((lost := before.any(1) & ~menu.any(1)).any()):
            example = self.schema.decode(faced[lost.nonzero()[0]]).iloc[0].to_dict()
            place = ", ".join(f"{name} {value}" for name, value in example.items())
            gone = ", ".join(repr(change.action) for change in parts)
            raise InputError(
                f"removing {gone} leaves nothing to choose in some states (first: {place}); "
                "leave these states out with `where`"
            )
        return menu

    @cached_property
    def changes_dynamics(self) -> bool:
        """A feature is changed on which its own movement, that of others, the menu, or an end may depend."""
        columns = self.schema.columns
        parents = {p for c in columns if c.dynamics == "table" for p in c.parents}
        conditions = [self.schema.terminal, *(condition for _, condition in self.schema.available)]
        parents |= {self.schema.index(name) for condition in conditions for name in condition}
        learned = any(c.dynamics == "learned" for c in columns)
        return any(
            f in parents or columns[f].dynamics != "static" or (learned and columns[f].assigned != "randomised")
            for f, _ in self._features
        )

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """For every segment, the first segment whose members are treated alike (as far as the state does not say)."""
        conditions = [dict(part.where) for part in map(_part, self.changes)]
        treated = list(zip(*(self._segments(condition).tolist() for condition in conditions), strict=True))
        return tuple(treated.index(each) for each in treated) if treated else (0,) * len(self.schema.segments)

    @cached_property
    def _features(self) -> list[tuple[int, FeatureChange]]:
        parts = [change.feature for change in self.changes if change.feature is not None]
        return [(self.schema.index(part.name), part) for part in parts]

    def _value(self, f: int, change: FeatureChange, values: Tensor) -> Tensor:
        column = self.schema.columns[f]
        if change.set is None:
            return _moved(change, values)
        assert not isinstance(change.set, tuple), "a sweep is expanded into cases before it is compiled"
        value = column.labels.index(label(change.set)) if column.discrete else change.set
        return torch.full_like(values, float(value))

    def _where(self, condition: Condition, state: Tensor, segment: Tensor) -> Tensor:
        of_state = {name: values for name, values in condition.items() if name in self.schema.names}
        holds = self.schema.matches(state, of_state)
        if len(of_state) < len(condition):
            holds = holds & self._segments(condition).to(segment.device)[segment]
        return holds

    def _segments(self, condition: Condition) -> Tensor:
        """bool[S]: the segments in which the part of a condition holds that is not about state columns."""
        of_segments = {
            name: {label(v) for v in values}
            for name, values in condition.items()
            if name not in self.schema.names and not isinstance(values, Between)
        }
        parts = _segment_parts(self.schema) if of_segments else [{}] * len(self.schema.segments)
        return torch.tensor([all(part[n] in allowed for n, allowed in of_segments.items()) for part in parts])


def compile_scenario(scenario: Scenario, schema: StateSchema) -> Intervention:
    """The intervention of a scenario without sweeps.

    Raises
    ------
    InputError
        If it names what the study does not have, removes or rewards the anchor, or asks for the effect of a feature
        whose variation says nothing about its effect. All problems at once.
    """
    problems: list[str] = []
    for i, change in enumerate(scenario.changes, start=1):
        part, place = _part(change), f"change {i}"
        problems += _condition_problems(part.where, schema, place)
        if isinstance(part, FeatureChange):
            problems += _feature_problems(part, schema, place)
            continue
        strange = unknown(part.action, schema.actions, place, "action")
        problems += strange
        if not strange:
            problems += _anchor_problems(part, schema, place)
    if problems:
        raise InputError(f"scenario {scenario.name!r}:\n  " + "\n  ".join(problems))
    return Intervention(schema, scenario.changes)


def cautions(intervention: Intervention, state: Tensor, segment: Tensor) -> list[str]:
    """What an answer rests on that the panel does not show; state[N, F] and segment[N] of the panel's rows."""
    said = []
    faced = intervention.state(state, segment)
    for i, change in enumerate(intervention.changes, start=1):
        part = _part(change)
        seen = state if isinstance(part, FeatureChange) else faced
        if not bool(intervention._where(part.where, seen, segment).any()):
            said.append(f"change {i} applies to no row of the panel: its `where` holds nowhere")
    for f in dict.fromkeys(f for f, _ in intervention._features):
        column = intervention.schema.columns[f]
        if column.assigned != "randomised":
            said.append(
                f"{column.name} is not declared `assigned: randomised`: members who differ in it may differ in taste, "
                "and the answer takes those differences for its effect"
            )
        slack = 1e-5 * max(abs(column.minimum), abs(column.maximum))
        outside = (faced[:, f] < column.minimum - slack) | (faced[:, f] > column.maximum + slack)
        share = float((outside & (faced[:, f] != state[:, f])).double().mean())
        if share > 0:
            seen_range = f" ({column.minimum:g} to {column.maximum:g})" if not column.discrete else ""
            said.append(
                f"{column.name} is put outside its observed range{seen_range} in {100 * share:.0f} % of the rows, "
                "where its effect is extrapolated"
            )
    return said


def _part(change: Change) -> RewardChange | FeatureChange | RemoveChange:
    part = change.reward or change.feature or change.remove
    assert part is not None, "a change is exactly one of the three"
    return part


def _moved(change: RewardChange | FeatureChange, values: Tensor) -> Tensor:
    """``scale`` first, then ``add``."""
    assert not isinstance(change.scale, tuple) and not isinstance(change.add, tuple), "a sweep is expanded into cases"
    return values * (1.0 if change.scale is None else change.scale) + (change.add or 0.0)


def _anchor_problems(part: RewardChange | RemoveChange, schema: StateSchema, place: str) -> list[str]:
    """An anchor action stays on the menu, at its known reward, in the states where it is one. (A reference policy over
    several actions only says how rewards were found; scenarios may change and remove any of them.)"""
    remedy, removed = "", isinstance(part, RemoveChange)
    column = schema.anchor_by_state
    if column is not None:
        labels = schema.columns[schema.index(column)].labels
        spared = part.where.get(column)
        if part.action not in labels:
            return []
        if spared is not None and not isinstance(spared, Between) and part.action not in map(label, spared):
            return []
        others = ", ".join(name for name in labels if name != part.action)
        remedy = f" where {column!r} names it; leave these states out: `where: {{{column}: [{others}]}}`"
    elif schema.anchor is None or schema.actions[schema.anchor] != part.action:
        return []
    if removed and not remedy:
        return [
            f"{place}: the anchor {part.action!r} cannot be removed: it is what joining and leaving are counted from, "
            "and has to be available wherever there is a choice"
        ]
    if removed:
        return [f"{place}: {part.action!r} is the anchor and has to be available{remedy}"]
    remedy = remedy or "; change the other actions' rewards"
    return [f"{place}: the reward of the anchor {part.action!r} is known by assumption{remedy}"]


def _condition_problems(condition: Condition, schema: StateSchema, place: str) -> list[str]:
    problems = schema.problems_of({n: v for n, v in condition.items() if n in schema.names}, f"{place}.where")
    for name, values in condition.items():
        if name in schema.names:
            continue
        if name not in schema.segment_columns:
            known = [*schema.names, *(c for c in schema.segment_columns if c not in schema.names)]
            problems += unknown(name, known, f"{place}.where", "state or segment column")
        elif isinstance(values, Between):
            problems.append(f"{place}.where.{name}: segments are labels; list them instead of a range")
        elif any(len(part) < len(schema.segment_columns) for part in _segment_parts(schema)):
            problems.append(f"{place}.where.{name}: labels that contain ' | ' hide which segment is meant; rename them")
        else:
            labels = sorted({part[name] for part in _segment_parts(schema)})
            problems += [
                f"{place}.where.{name}: no segment {label(v)!r}{nearest(label(v), labels)}"
                for v in values
                if label(v) not in labels
            ]
    return problems


def _segment_parts(schema: StateSchema) -> list[dict[str, str]]:
    """For every segment, segment column -> label; empty where a joined label cannot be taken apart."""
    columns = schema.segment_columns
    split = [[name] if len(columns) == 1 else name.split(" | ") for name in schema.segments]
    return [dict(zip(columns, parts, strict=True)) if len(parts) == len(columns) else {} for parts in split]


def _feature_problems(change: FeatureChange, schema: StateSchema, place: str) -> list[str]:
    strange = unknown(change.name, schema.names, place, "state column")
    if strange:
        return strange
    column, place = schema.columns[schema.index(change.name)], f"{place}: {change.name!r}"
    if change.name == schema.anchor_reward:
        return [f"{place} is the anchor's reward, which is known by assumption; change the other actions' rewards"]
    if change.name in schema.reference_columns:
        return [f"{place} says what the anchor is, which is given: it can be asked in `where`, but not changed"]
    if change.set is None and column.discrete:
        return [f"{place} is of kind {column.kind}: `set` it to a level instead of adding or scaling"]
    if change.set is None and column.dynamics != "static":
        return [
            f"{place} moves by itself ({column.dynamics}); `add` and `scale` would compound from period to period: "
            "`set` it"
        ]
    if change.set is not None and not isinstance(change.set, tuple):
        problems = schema.problems_of({change.name: (change.set,)}, f"{place} set")
        if problems:
            return problems
        if not column.discrete and isinstance(change.set, bool):
            return [f"{place} is {column.kind}: set it to a number"]
        if column.kind == "count" and (float(change.set) < 0 or float(change.set) % 1):
            return [f"{place} is a count: set it to 0, 1, 2, …"]
    if column.minimum == column.maximum:
        return [f"{place} never varies in the panel, so nothing can be learned about its effect"]
    if column.kind == "numeric" and column.assigned != "randomised":
        return [
            f"{place}: its effect is not identified, since its variation in the panel is not declared unrelated to "
            "taste. If it is (a price test), say `assigned: randomised` for it and train again; else state the change "
            "in reward units: `reward: {action: ..., add: ...}`"
        ]
    return []
