"""A scenario: what is asked, not how it is answered.

A YAML file with a name, a horizon, who is simulated, and a list of changes, each to a reward, a state feature or the menu,
and each ``where`` a condition on state columns or segment columns holds. One number of one change may be a list: a
sweep, whose values are answered side by side as cases. Names are checked against a fitted study by
:mod:`irl.counterfactual.intervention`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from irl.config import Condition, InputError, Section, read_yaml, validated

Amount = float | tuple[float, ...] | None


class RewardChange(Section):
    """The reward of an action: ``scale`` first, then ``add`` (reward units)."""

    action: str
    add: Amount = None
    scale: Amount = None
    where: Condition = {}

    @model_validator(mode="after")
    def _says_something(self) -> RewardChange:
        return _at_least_one(self, ("add", "scale"))


class FeatureChange(Section):
    """A state column: ``set`` it, or ``scale`` it and then ``add`` to it (declared units)."""

    name: str
    set: float | str | bool | tuple[float | str | bool, ...] | None = None
    add: Amount = None
    scale: Amount = None
    where: Condition = {}

    @model_validator(mode="after")
    def _says_something(self) -> FeatureChange:
        if self.set is not None and (self.add is not None or self.scale is not None):
            raise ValueError("give either `set`, or `add` and `scale`")
        return _at_least_one(self, ("set", "add", "scale"))


class RemoveChange(Section):
    """An action taken off the menu."""

    action: str
    where: Condition = {}


class Change(Section):
    """One change: exactly one of ``reward``, ``feature``, ``remove``."""

    reward: RewardChange | None = None
    feature: FeatureChange | None = None
    remove: RemoveChange | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Change:
        if sum(part is not None for part in (self.reward, self.feature, self.remove)) != 1:
            raise ValueError("give exactly one of `reward`, `feature`, `remove`")
        return self


class Scenario(Section):
    """What is asked."""

    name: str = Field(min_length=1)
    periods: int = Field(36, ge=1, description="number of simulated choices")
    members: int | Literal["all"] = Field(
        "all", description="a number: that many, drawn with replacement, segment shares kept; all: each member once"
    )
    start: Literal["first", "last"] = Field("first", description="from each member's first or newest row")
    seed: int = Field(0, ge=0, description="of the simulation; baseline and cases share their random numbers")
    changes: tuple[Change, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_sweep(self) -> Scenario:
        if isinstance(self.members, int) and self.members < 1:
            raise ValueError("`members` must be at least 1, or `all`")
        if len(_sweeps(self)) > 1:
            raise ValueError("only one number of one change may be a list (a sweep)")
        return self

    @property
    def folder_name(self) -> str:
        """The name as a folder's name."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_") or "scenario"


def load_scenario(path: str | Path) -> Scenario:
    """Read a scenario's YAML file; InputError for anything missing, unknown or contradictory."""
    return validated(Scenario, read_yaml(path), str(path))


def scenario_from(content: Scenario | Mapping[str, Any] | str | Path) -> Scenario:
    """A scenario as it is, from a mapping, or from a file."""
    if isinstance(content, Scenario):
        return content
    return validated(Scenario, content, "scenario") if isinstance(content, Mapping) else load_scenario(content)


def cases(scenario: Scenario) -> dict[str, Scenario]:
    """Case label -> scenario without lists: one per value of the sweep, or the scenario under its own name."""
    found = _sweeps(scenario)
    if not found:
        return {scenario.name: scenario}
    index, kind, option, values = found[0]
    expanded = {}
    for value in values:
        part = getattr(scenario.changes[index], kind).model_copy(update={option: value})
        changes = list(scenario.changes)
        changes[index] = changes[index].model_copy(update={kind: part})
        subject = part.name if kind == "feature" else part.action
        expanded[f"{subject} {option} {value}"] = scenario.model_copy(update={"changes": tuple(changes)})
    if len(expanded) < len(values):
        raise InputError(f"scenario {scenario.name!r}: the sweep lists a value twice")
    return expanded


def _sweeps(scenario: Scenario) -> list[tuple[int, str, str, tuple[Any, ...]]]:
    """(change, kind, option, values) of every list among the numbers of the changes."""
    found = []
    for index, change in enumerate(scenario.changes):
        for kind, options in (("reward", ("add", "scale")), ("feature", ("set", "add", "scale"))):
            part = getattr(change, kind)
            for option in options if part is not None else ():
                if isinstance(getattr(part, option), tuple):
                    found.append((index, kind, option, getattr(part, option)))
    return found


def _at_least_one(part: Any, options: Iterable[str]) -> Any:
    options = tuple(options)
    if all(getattr(part, option) is None for option in options):
        raise ValueError(f"give at least one of {', '.join(f'`{o}`' for o in options)}")
    return part
