"""A scenario compiled for a fitted study: what it does to states, rewards and menus, as tensor functions.

Feature changes are applied in the order given, each ``where`` read on the state before any change. Rewards, menus and
movements to the next state are then changed ``where`` the changed state says so. Conditions may name state columns and
segment columns; a member's segment does not change.

A changed static feature stays changed. A feature that moves by itself can only be ``set`` (it is held there every
period); that, and any change of a column on which the movement of others or the menu may depend, is a change of
dynamics, whose effect rests on the fitted transition model. A randomised column (a
price) is taken to move learned columns through the choices alone. A change of the dynamics themselves says how a column
moves, not why: it rests on the fitted transition model, and on rewards and tastes staying what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from irl.config import Between, Condition, InputError, unknown
from irl.counterfactual import conditions
from irl.data.encode import label
from irl.data.schema import StateSchema
from irl.dynamics import Movement
from irl.scenario import Change, DynamicsChange, FeatureChange, RemoveChange, RewardChange, Scenario


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

    def movements(self, faced: Tensor, segment: Tensor) -> tuple[Movement, ...]:
        """How columns move otherwise than fitted at faced[N, F]."""
        parts = [change.dynamics for change in self.changes if change.dynamics is not None]
        return tuple(self._movement(part, faced, segment) for part in parts)

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
        """The dynamics are changed, or a feature on which its own movement, that of others, the menu, or an end may
        depend."""
        columns = self.schema.columns
        parents = {p for c in columns if c.dynamics == "table" for p in c.parents}
        rules = [self.schema.terminal, *(condition for _, condition in self.schema.available)]
        parents |= {self.schema.index(name) for condition in rules for name in condition}
        learned = any(c.dynamics == "learned" for c in columns)
        return any(change.dynamics is not None for change in self.changes) or any(
            f in parents or columns[f].dynamics != "static" or (learned and columns[f].assigned != "randomised")
            for f, _ in self._features
        )

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """For every segment, the first segment whose members are treated alike (as far as the state does not say)."""
        wheres = [change.part.where for change in self.changes]
        treated = list(zip(*(conditions.segments_where(self.schema, w).tolist() for w in wheres), strict=True))
        return tuple(treated.index(each) for each in treated) if treated else (0,) * len(self.schema.segments)

    @cached_property
    def _features(self) -> list[tuple[int, FeatureChange]]:
        parts = [change.feature for change in self.changes if change.feature is not None]
        return [(self.schema.index(part.name), part) for part in parts]

    def _movement(self, part: DynamicsChange, faced: Tensor, segment: Tensor) -> Movement:
        assert not isinstance(part.shift, tuple), "a sweep is expanded into cases before it is compiled"
        like = faced.clone() if part.like else None
        for name, value in part.like.items():
            assert like is not None
            like[:, self.schema.index(name)] = self.schema.columns[self.schema.index(name)].code(value)
        here = self._where(part.where, faced, segment)
        return Movement(self.schema.index(part.name), here, like, part.shift or 0.0)

    def _value(self, f: int, change: FeatureChange, values: Tensor) -> Tensor:
        column = self.schema.columns[f]
        if change.set is None:
            return _moved(change, values)
        assert not isinstance(change.set, tuple), "a sweep is expanded into cases before it is compiled"
        return torch.full_like(values, column.code(change.set))

    def _where(self, condition: Condition, state: Tensor, segment: Tensor) -> Tensor:
        return conditions.holds(self.schema, condition, state, segment)


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
        part, place = change.part, f"change {i}"
        problems += conditions.problems_of(part.where, schema, f"{place}.where")
        if isinstance(part, FeatureChange):
            problems += _feature_problems(part, schema, place)
            continue
        if isinstance(part, DynamicsChange):
            problems += _dynamics_problems(part, schema, place)
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
        part = change.part
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
        problems = column.setting_problems(change.set, f"{place} set")
        if problems:
            return problems
    if column.minimum == column.maximum:
        return [f"{place} never varies in the panel, so nothing can be learned about its effect"]
    if column.kind == "numeric" and column.assigned != "randomised":
        return [
            f"{place}: its effect is not identified, since its variation in the panel is not declared unrelated to "
            "taste. If it is (a price test), say `assigned: randomised` for it and train again; else state the change "
            "in reward units: `reward: {action: ..., add: ...}`"
        ]
    return []


def _dynamics_problems(change: DynamicsChange, schema: StateSchema, place: str) -> list[str]:
    strange = unknown(change.name, schema.names, place, "state column")
    if strange:
        return strange
    column, place = schema.columns[schema.index(change.name)], f"{place}: {change.name!r}"
    if column.dynamics == "static":
        return [f"{place} is static: it does not move; `feature: {{name: {change.name}, set: ...}}` changes it"]
    if column.dynamics == "clock":
        return [f"{place} is a clock: it moves by itself, whatever happens"]
    if change.name in schema.reference_columns:
        return [f"{place} says what the anchor is, which is given: its movement cannot be changed"]
    problems = []
    if change.shift is not None and column.kind == "category":
        problems.append(f"{place} is a category: its levels have no order to `shift` along; use `like`")
    parents = [schema.names[p] for p in column.parents] if column.dynamics == "table" else list(schema.names)
    for name, value in change.like.items():
        if name == change.name:
            problems.append(f"{place} like: its own value stays what it is; name other columns")
        elif name in schema.segment_columns and name not in schema.names:
            problems.append(
                f"{place} like: movement depends on the state only, and {name!r} is no state column; list it under "
                "`data.state` and train again"
            )
        elif name in schema.names and name not in parents:
            problems.append(f"{place} like: it moves by its parents only ({', '.join(parents)}), not by {name!r}")
        else:
            strange = unknown(name, [p for p in parents if p != change.name], f"{place} like", "state column")
            problems += strange or schema.columns[schema.index(name)].setting_problems(value, f"{place} like {name!r}")
    return problems
