"""A scenario: what is asked, not how it is answered.

A YAML file with a name, a horizon, who is simulated, and a list of changes, each to a reward, a state feature, the
menu or the way a feature moves, and each ``where`` a condition on state columns or segment columns holds; and when they
hold. One number of one change may be a list: a sweep, whose values are answered side by side as cases. Names are
checked against a fitted study by :mod:`irl.counterfactual.intervention` and :mod:`irl.counterfactual.population`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from irl.config import Section, read_yaml, validated
from irl.declared import Condition, Money

BASELINE = "baseline"
"""What answers call the programme as it is; no scenario may have this name."""
SWEPT = {"reward": ("add", "scale"), "feature": ("set", "add", "scale"), "dynamics": ("shift",), "add": ("nest",)}
"""The numbers of each kind of change that may be a list."""
NESTS = (0.0, 0.5, 0.9)
"""The nest parameters that a new action is answered with where the scenario gives none: from shocks of its own, which
make something out of nothing, to hardly any."""
SLACK = 1e-6
"""By how much shares may miss 1 in adding up to it."""


def _amount(value: Any) -> Any:
    return _one_or_list(value, _number, "a finite number")


def _setting(value: Any) -> Any:
    return _one_or_list(value, _level, "a level or a finite number")


def _members(value: Any) -> Any:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("a whole number of at least 1, or `all`")


def _settings(value: Any) -> Any:
    if isinstance(value, Mapping) and None not in (levels := {name: _level(v) for name, v in value.items()}).values():
        return levels
    raise ValueError("state columns, each with one level or finite number")


def _shares(value: Any) -> Any:
    """Label -> share, labels as text (YAML and JSON read them differently)."""
    if not isinstance(value, Mapping) or not value:
        raise ValueError("labels, each with its share")
    shares = {_text(name): _number(v) for name, v in value.items()}
    if any(share is None or share < 0 for share in shares.values()):
        raise ValueError("each share is a number of at least 0")
    if (total := sum(share for share in shares.values() if share is not None)) > 1 + SLACK:
        raise ValueError(f"the shares add up to {total:g}, more than 1")
    return shares


def _text(name: Any) -> str:
    return str(int(name)) if isinstance(name, float) and name.is_integer() else str(name)


def _one_or_list(value: Any, read: Any, what: str) -> Any:
    """One value, or the values of a sweep as a tuple."""
    listed = [read(v) for v in value] if isinstance(value, (list, tuple)) else [read(value)]
    if value is not None and (not listed or None in listed):
        raise ValueError(f"{what}, or a list of them (a sweep)")
    if len(set(listed)) < len(listed):
        raise ValueError("the sweep lists a value twice")
    return tuple(listed) if isinstance(value, (list, tuple)) else listed[0]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:  # YAML reads 1e-3 (without a point) as text
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _level(value: Any) -> Any:
    return value if isinstance(value, (bool, str)) else _number(value)


Amount = Annotated[float | tuple[float, ...] | None, BeforeValidator(_amount)]
Setting = Annotated[bool | float | str | tuple[bool | float | str, ...] | None, BeforeValidator(_setting)]
Settings = Annotated[dict[str, bool | float | str], BeforeValidator(_settings)]
Shares = Annotated[dict[str, float], BeforeValidator(_shares)]


class RewardChange(Section):
    """The reward of an action: ``scale`` first, then ``add`` (reward units); inside a contract, of each of its periods
    for which ``where`` holds."""

    action: str
    add: Amount = None
    scale: Amount = None
    where: Condition = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_something(self) -> RewardChange:
        _at_least_one(self, ("add", "scale"))
        return self


class FeatureChange(Section):
    """A state column: ``set`` it, or ``scale`` it and then ``add`` to it (declared units)."""

    name: str
    set: Setting = None
    add: Amount = None
    scale: Amount = None
    where: Condition = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_something(self) -> FeatureChange:
        if self.set is not None and (self.add is not None or self.scale is not None):
            raise ValueError("give either `set`, or `add` and `scale`")
        _at_least_one(self, ("set", "add", "scale"))
        return self


class RemoveChange(Section):
    """An action taken off the menu."""

    action: str
    where: Condition = Field(default_factory=dict)


class AddChange(Section):
    """A new action, made of another.

    It is on the menu wherever ``like`` is (were nothing removed) and ``where`` holds. Its reward is that of ``like`` in
    the same state with the columns of ``facing`` at these values (a price of its own); what follows is what follows
    ``like``, with the columns of ``then`` put to these values (a shorter contract). Other changes of the scenario may
    change its reward further.

    ``nest`` is the part of its taste shock that it shares with ``like``, in [0, 1): 0, a shock of its own; near 1, a
    variant of the same thing. No panel without the action can tell it: a list, or nothing (:data:`NESTS`), answers with
    several.
    """

    action: str = Field(pattern=r"\S")
    like: str
    facing: Settings = Field(default_factory=dict)
    then: Settings = Field(default_factory=dict)
    nest: Amount = None
    where: Condition = Field(default_factory=dict)

    @model_validator(mode="after")
    def _a_part(self) -> AddChange:
        given = self.nest if isinstance(self.nest, tuple) else () if self.nest is None else (self.nest,)
        if not all(0 <= nest < 1 for nest in given):
            raise ValueError("`nest` is a part: at least 0 and below 1")
        return self


class DynamicsChange(Section):
    """How a state column moves: ``like`` it does for members in whose state these columns have these values (its own
    value, the rest of the state and the action stay theirs), then shifted.

    ``shift`` moves the distribution of the next value upwards (downwards if negative). Of an ordinal, it is added to
    the log odds of every level against the level below, P'(l) ~ P(l) exp(shift l); what was impossible stays so. Of a
    count or number, it is added to the centre of the distribution in declared units (:mod:`irl.dynamics`).
    """

    name: str
    like: Settings = Field(default_factory=dict)
    shift: Amount = None
    where: Condition = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_something(self) -> DynamicsChange:
        if not self.like and self.shift is None:
            raise ValueError("give at least one of `like`, `shift`")
        return self


class Change(Section):
    """One change: exactly one of ``reward``, ``feature``, ``remove``, ``add``, ``dynamics``."""

    reward: RewardChange | None = None
    feature: FeatureChange | None = None
    remove: RemoveChange | None = None
    add: AddChange | None = None
    dynamics: DynamicsChange | None = None

    @property
    def part(self) -> RewardChange | FeatureChange | RemoveChange | AddChange | DynamicsChange:
        """The one that it is."""
        part = self.reward or self.feature or self.remove or self.add or self.dynamics
        assert part is not None, "a change is exactly one of the five"
        return part

    @model_validator(mode="after")
    def _exactly_one(self) -> Change:
        kinds = tuple(type(self).model_fields)
        if sum(getattr(self, kind) is not None for kind in kinds) != 1:
            raise ValueError(f"give exactly one of {', '.join(f'`{kind}`' for kind in kinds)}")
        return self


class Timing(Section):
    """When the changes hold. Once they do, members know for how long."""

    start: int = Field(0, ge=0, description="the first period in which they hold; 0 = the first simulated choice")
    length: int | None = Field(None, ge=1, description="number of periods in which they hold; none: for good")
    announced: bool = Field(False, description="true: known from period 0 on; false: a surprise when they start")


class Population(Section):
    """Who is simulated, in the baseline as in the scenario, if not the panel's members as they are.

    ``where`` keeps the members whose start state (or segment) says so; ``reweight`` draws those left such that the
    labels of one column have the given shares (what the shares leave to 1 goes to the labels not named, in their
    proportions); ``set`` then puts columns that move by themselves to a value at the start.
    """

    where: Condition = Field(default_factory=dict)
    reweight: dict[str, Shares] = Field(default_factory=dict)
    set: Settings = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_column(self) -> Population:
        if len(self.reweight) > 1:
            raise ValueError("`reweight` one column: the shares of several do not say how they go together")
        if not (self.where or self.reweight or self.set):
            raise ValueError("give at least one of `where`, `reweight`, `set`")
        return self


class Scenario(Section):
    """What is asked."""

    name: str = Field(pattern=r"\S")
    periods: int = Field(36, ge=1, description="number of simulated choices")
    members: Annotated[int | Literal["all"], BeforeValidator(_members)] = Field(
        "all", description="a number: that many, drawn with replacement, segment shares kept; all: each member once"
    )
    start: Literal["first", "last"] = Field("first", description="from each member's first or newest row")
    timing: Timing = Field(default_factory=Timing, description="when the changes hold")
    population: Population | None = Field(None, description="who is simulated, if not the panel's members as they are")
    money: Money | None = Field(None, description="prices and costs, if not those that the study declares")
    seed: int = Field(0, ge=0, description="of the simulation; baseline and cases share their random numbers")
    changes: tuple[Change, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_sweep(self) -> Scenario:
        if self.name == BASELINE:
            raise ValueError(f"`name`: {BASELINE!r} is what answers call the programme as it is; choose another name")
        if len(_sweeps(self)) > 1:
            implied = any(change.add is not None and change.add.nest is None for change in self.changes)
            hint = "; an added action without a `nest` is one: give it a number" if implied else ""
            raise ValueError(f"only one number of one change may be a list (a sweep){hint}")
        if self.timing.start >= self.periods:
            raise ValueError(f"`timing.start`: the changes start after the last of {self.periods} periods")
        if self.population is not None and self.population.reweight and self.members == "all":
            raise ValueError("`population.reweight` draws members: say how many, `members: 20000`, instead of `all`")
        return self

    @property
    def folder_name(self) -> str:
        """The name as a folder's name: letters (of any script), digits and underscores, not too long for a disk."""
        return re.sub(r"[\W_]+", "_", self.name.lower())[:60].strip("_") or "scenario"


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
        subject = part.action if kind in ("reward", "add") else part.name
        expanded[f"{subject} {option} {value}"] = scenario.model_copy(update={"changes": tuple(changes)})
    return expanded


def _sweeps(scenario: Scenario) -> list[tuple[int, str, str, tuple[Any, ...]]]:
    """(change, kind, option, values) of every list among the numbers of the changes."""
    found = []
    for index, change in enumerate(scenario.changes):
        for kind, options in SWEPT.items():
            part = getattr(change, kind)
            for option in options if part is not None else ():
                value = NESTS if kind == "add" and part.nest is None else getattr(part, option)
                if isinstance(value, tuple):
                    found.append((index, kind, option, value))
    return found


def _at_least_one(part: Section, options: Iterable[str]) -> None:
    options = tuple(options)
    if all(getattr(part, option) is None for option in options):
        raise ValueError(f"give at least one of {', '.join(f'`{o}`' for o in options)}")
