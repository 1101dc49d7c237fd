"""A scenario compiled for a fitted study: what it does to states, rewards and menus, as tensor functions.

Feature changes are applied in the order given, each ``where`` read on the state before any change. Rewards, menus and
movements to the next state are then changed ``where`` the changed state says so. Conditions may name state columns and
segment columns; a member's segment does not change.

A changed static feature stays changed. A feature that moves by itself can only be ``set`` (it is held there every
period); that, and any change of a column on which the movement of others or the menu may depend, is a change of
dynamics, whose effect rests on the fitted transition model. A randomised column (a
price) is taken to move learned columns through the choices alone. A change of the dynamics themselves says how a column
moves, not why: it rests on the fitted transition model, and on rewards and tastes staying what they are.

An added action has what it gives and what follows it from the action it is like. As far as what follows is concerned,
actions fall into *courses*: an added action whose state is not put to anything afterwards shares its model's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from irl.bellman import Nests
from irl.config import InputError
from irl.counterfactual import conditions
from irl.counterfactual.checks import problems_of
from irl.data.column import Column
from irl.data.schema import StateSchema
from irl.declared import Condition
from irl.dynamics import Movement, TransitionModel
from irl.scenario import AddChange, Change, DynamicsChange, FeatureChange, RewardChange, Scenario


@dataclass(frozen=True)
class Intervention:
    """The changes of one case. The empty one, ``Intervention(schema, ())``, is the baseline.

    Throughout, state[N, F] is what the panel or the dynamics say and *faced* is that after the feature changes; members
    see, and choose by, what they face. segment[N]. ``added``: the names of actions beside the study's; one that no
    change adds is on no menu (in the baseline of a scenario that adds it). ``passing``: the changes end again.
    """

    schema: StateSchema
    changes: tuple[Change, ...]
    added: tuple[str, ...] = ()
    passing: bool = False

    @property
    def actions(self) -> tuple[str, ...]:
        """The study's, then those added: the A' columns of menus, rewards and policies."""
        return (*self.schema.actions, *self.added)

    @cached_property
    def like(self) -> tuple[int, ...]:
        """For every action, the study's action that it is, or is like."""
        likes = [0 if change is None else self.schema.actions.index(change.like) for change in self._added]
        return (*range(len(self.schema.actions)), *likes)

    @cached_property
    def courses(self) -> tuple[int, ...]:
        """For every action, its course: actions of one course are followed by the same. The first A are the study's."""
        own, following = list(range(len(self.schema.actions))), len(self.schema.actions)
        for change, like in zip(self._added, self.like[following:], strict=True):
            alone = change is not None and bool(change.then)
            own.append(following if alone else like)
            following += alone
        return tuple(own)

    @cached_property
    def nests(self) -> Nests | None:
        """Which actions share part of their shocks: an added one with the one it is like."""
        shared = {self.schema.actions.index(c.like): c.nest for c in self._added if c is not None and c.nest}
        if not shared:
            return None
        assert not any(isinstance(nest, tuple) for nest in shared.values()), "a sweep is expanded into cases"
        part = [float(shared.get(a) or 0.0) for a in range(len(self.schema.actions))]  # type: ignore[arg-type]
        return Nests(self.like, tuple(1 - nest for nest in part))

    def state(self, state: Tensor, segment: Tensor) -> Tensor:
        """faced[N, F], and behind it columns of ``state`` that it does not tell (see :meth:`lasting`). To be applied
        once: a price raised by a fifth is not to be raised again."""
        faced = state.clone() if self._features else state
        for f, change in self._features:
            here = self._where(change.where, state, segment)
            faced[:, f] = torch.where(here, self._value(f, change, faced[:, f]), faced[:, f])
        return torch.cat([faced, state[:, self._overwritten]], 1) if self._overwritten else faced

    def lasting(self, faced: Tensor) -> Tensor:
        """faced[N, F] but for columns that were put to a value for now, which are as they will be again: what follows
        depends on them (on the price after a free month)."""
        if not self._overwritten:
            return faced
        lasting = faced[:, : len(self.schema.columns)].clone()
        lasting[:, self._overwritten] = faced[:, len(self.schema.columns) :]
        return lasting

    def movements(self, faced: Tensor, segment: Tensor) -> tuple[Movement, ...]:
        """How columns move otherwise than fitted at faced[N, F]."""
        parts = [change.dynamics for change in self.changes if change.dynamics is not None]
        return tuple(self._movement(part, faced, segment) for part in parts)

    def follow(
        self, dynamics: TransitionModel, state: Tensor, faced: Tensor, action: Tensor, uniform: Tensor, segment: Tensor
    ) -> Tensor:
        """A draw of the next state[N, F], before next period's changes: what does not move is as it was.

        action[N] counts ``actions``; uniform[N, n_random] in (0, 1).
        """
        faced = faced[:, : len(self.schema.columns)]
        like = action if not self.added else action.new_tensor(self.like)[action]
        following = dynamics.sample(faced, like, uniform, self.movements(faced, segment))
        for a, change in enumerate(self._added, start=len(self.schema.actions)):
            for name, value in change.then.items() if change is not None else ():
                f = self.schema.index(name)
                following[:, f] = torch.where(action == a, self.schema.columns[f].code(value), following[:, f])
        static = [f for f, _ in self._features if self.schema.columns[f].dynamics == "static"]
        following[:, static] = state[:, static]
        return following

    def over_actions(self, of: Callable[[Tensor], Tensor], faced: Tensor) -> Tensor:
        """[N, A', ...] of a function of states that gives [N, A, ...]: for an added action, what it gives for the
        action that it is like, at the state that it faces."""
        values = of(faced)
        columns = [values]
        for change, like in zip(self._added, self.like[len(self.schema.actions) :], strict=True):
            own = values if change is None or not change.facing else of(self._facing(change, faced))
            columns.append(own[:, like : like + 1])
        return torch.cat(columns, 1) if self.added else values

    def reward(self, reward: Tensor, faced: Tensor, segment: Tensor) -> Tensor:
        """reward[N, A'] (see :meth:`over_actions`) after the changes."""
        parts = [change.reward for change in self.changes if change.reward is not None]
        reward = reward.clone() if parts else reward
        for change in parts:
            a = self.actions.index(change.action)
            here = self._where(change.where, faced, segment)
            reward[:, a] = torch.where(here, _moved(change, reward[:, a]), reward[:, a])
        return reward

    def menu(self, faced: Tensor, segment: Tensor) -> Tensor:
        """menu[N, A'] after the changes; empty in terminal states.

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
        for added, like in zip(self._added, self.like[len(self.schema.actions) :], strict=True):
            here = before[:, like] & (self._where(added.where, faced, segment) if added is not None else False)
            menu = torch.cat([menu, here.unsqueeze(1)], 1)
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
        """The dynamics are changed (by an added action, too), or a feature on which its own movement, that of others,
        the menu, or an end may depend."""
        columns = self.schema.columns
        parents = {p for c in columns if c.dynamics == "table" for p in c.parents}
        rules = [self.schema.terminal, *(condition for _, condition in self.schema.available)]
        parents |= {self.schema.index(name) for condition in rules for name in condition}
        learned = any(c.dynamics == "learned" for c in columns)
        moved = any(change.dynamics is not None for change in self.changes)
        return (moved or max(self.courses) >= len(self.schema.actions)) or any(
            f in parents or columns[f].dynamics != "static" or (learned and columns[f].assigned != "randomised")
            for f, _ in self._features
        )

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """For every segment, the first segment whose members are treated alike (as far as the state does not say), and
        reached by some change, or by none, alike."""
        wheres = [change.part.where for change in self.changes]
        parts = [conditions.segments_where(self.schema, where).tolist() for where in wheres]
        treated = list(zip(self.reached, *parts, strict=True))
        return tuple(treated.index(each) for each in treated)

    @cached_property
    def reached(self) -> tuple[bool, ...]:
        """For every segment, whether any change may concern its members; the others go on as in the baseline."""
        if any(self.schema.columns[f].name in self.schema.segment_columns for f, _ in self._features):
            return (True,) * len(self.schema.segments)
        parts = [conditions.segments_reached(self.schema, change.part.where).tolist() for change in self.changes]
        return tuple(any(each) for each in zip(*parts, strict=True)) if parts else (False,) * len(self.schema.segments)

    @cached_property
    def _features(self) -> list[tuple[int, FeatureChange]]:
        parts = [change.feature for change in self.changes if change.feature is not None]
        return [(self.schema.index(part.name), part) for part in parts]

    @cached_property
    def _overwritten(self) -> list[int]:
        """Columns that stay as they are and are put to a value where, or as long as, something holds that may end."""
        columns, found = self.schema.columns, []
        moving = {c.name for c in columns if c.dynamics != "static"}
        for f, change in self._features:
            told = change.set is None and change.scale != 0
            if columns[f].dynamics == "static" and not told and (self.passing or moving & set(change.where)):
                found.append(f)
        return list(dict.fromkeys(found))

    @cached_property
    def _added(self) -> tuple[AddChange | None, ...]:
        """The change that adds each of ``added``."""
        changes = {change.add.action: change.add for change in self.changes if change.add is not None}
        return tuple(changes.get(name) for name in self.added)

    def _facing(self, change: AddChange, faced: Tensor) -> Tensor:
        """faced[N, F] as the reward of an added action sees it."""
        seen = faced.clone()
        for name, value in change.facing.items():
            seen[:, self.schema.index(name)] = self.schema.columns[self.schema.index(name)].code(value)
        return seen

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
    problems = problems_of(scenario, schema)
    if problems:
        raise InputError(f"scenario {scenario.name!r}:\n  " + "\n  ".join(problems))
    passing = scenario.timing.length is not None
    return Intervention(schema, scenario.changes, added_actions(scenario), passing)


def added_actions(scenario: Scenario) -> tuple[str, ...]:
    """The names of the actions that a scenario adds."""
    return tuple(change.add.action for change in scenario.changes if change.add is not None)


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
        said += _effect_cautions(intervention.schema.columns[f], faced[:, f], state[:, f])
    for new in (new for new in intervention._added if new is not None):
        for f in (intervention.schema.index(name) for name in new.facing):
            seen = intervention._facing(new, faced)
            said += _effect_cautions(intervention.schema.columns[f], seen[:, f], faced[:, f])
        said.append(
            f"{new.action}: that it shares {new.nest or 0.0:g} of its taste shock with {new.like} is assumed; what it "
            "takes from other actions, and what it adds to values, hangs on that"
        )
    for gone in (change.remove for change in intervention.changes if change.remove is not None):
        said.append(
            f"who chose {gone.action} turns to the other actions in proportion to their shares in the same state "
            "(logit's independence of irrelevant alternatives)"
        )
    return said


def _effect_cautions(column: Column, faced: Tensor, before: Tensor) -> list[str]:
    """What the effect of putting a column's values from before[N] to faced[N] rests on."""
    said = []
    if column.assigned != "randomised":
        said.append(
            f"{column.name} is not declared `assigned: randomised`: members who differ in it may differ in taste, "
            "and the answer takes those differences for its effect"
        )
    slack = 1e-5 * max(abs(column.minimum), abs(column.maximum))
    outside = (faced < column.minimum - slack) | (faced > column.maximum + slack)
    share = float((outside & (faced != before)).double().mean())
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
