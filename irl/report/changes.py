"""A scenario's changes in words: what, where, for how long, and for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from irl.declared import Between, Condition
from irl.report.record import ScenarioRecord
from irl.scenario import Change, DynamicsChange, FeatureChange, Population, RewardChange, Timing


def changes_in_words(scenario: ScenarioRecord) -> list[str]:
    """One sentence per change of a scenario, and who is simulated if not the members as they are."""
    if scenario.scenario is None:
        return []
    asked, population = scenario.scenario, scenario.scenario.population
    said = [_change(change, _when(asked.timing)) for change in asked.changes]
    return [*said, *([_population(population)] if population else [])]


def _when(timing: Timing) -> str:
    """When changes hold, as the end of a sentence; empty if from the start on and for good."""
    first, known = timing.start, ", announced at the start" if timing.announced else ", as a surprise"
    said = f", from period {first} on" if first else ""
    if timing.length is not None:
        last = first + timing.length - 1
        said = f", in period {first}" if last == first else f", in periods {first} to {last}"
    return f"{said}{known if first else ''}"


def _population(population: Population) -> str:
    said = [f"members{where(population.where)}"] if population.where else []
    for column, shares in population.reweight.items():
        each = ", ".join(f"{label}: {100 * share:.3g} %" for label, share in shares.items())
        said.append(f"drawn such that by {column} the shares are {each}")
    if population.set:
        said.append(f"starting with {_settings(population.set)}")
    return f"Baseline and scenario are simulated for {'' if population.where else 'members '}{', '.join(said)}."


def _change(change: Change, held: str) -> str:
    if change.reward is not None:
        part: Any = change.reward
        unit = " reward unit" if part.add in (1, -1) else " reward units"
        words = f"The reward of “{part.action}” is {_amounts(part, unit)}"
    elif change.feature is not None:
        part = change.feature
        words = f"“{part.name}” is {_amounts(part, '')}"
    elif change.dynamics is not None:
        part = change.dynamics
        words = f"“{part.name}” moves {_movement(part)}"
    elif change.add is not None:
        part = change.add
        said = [f"at its reward with {_settings(part.facing)}"] if part.facing else []
        said += [f"leading to {_settings(part.then)}"] if part.then else []
        said += [] if part.nest is None else [f"sharing {_listed(part.nest)} of its taste shock"]
        words = f"“{part.action}” is offered, like “{part.like}”{''.join(f', {text}' for text in said)},"
    else:
        assert change.remove is not None, "a change is one of the five"
        part = change.remove
        words = f"“{part.action}” is taken off the menu"
    return f"{words}{where(part.where) or (' for everyone' if held else ' for everyone, always')}{held}."


def _amounts(part: RewardChange | FeatureChange, unit: str) -> str:
    said = []
    set_to = part.set if isinstance(part, FeatureChange) else None
    if set_to is not None:
        said.append(f"set to {_listed(set_to)}")
    if part.scale is not None:
        said.append(f"multiplied by {_listed(part.scale)}")
    if isinstance(part.add, tuple):
        said.append(f"changed by {_listed(part.add)}{unit}")
    elif part.add is not None:
        said.append(f"{'lowered' if part.add < 0 else 'raised'} by {_listed(abs(part.add))}{unit}")
    sweep = any(isinstance(amount, tuple) for amount in (set_to, part.scale, part.add))
    return " and then ".join(said) + (" (a sweep: one case each)" if sweep else "")


def _movement(part: DynamicsChange) -> str:
    said = [f"as it does for members with {_settings(part.like)}"] if part.like else []
    if part.shift is not None:
        sweep = " (a sweep: one case each)" if isinstance(part.shift, tuple) else ""
        said.append(f"with its ups and downs shifted by {_listed(part.shift)}{sweep}")
    return " and ".join(said)


def _settings(settings: Mapping[str, Any]) -> str:
    return " and ".join(f"{column} {_listed(value)}" for column, value in settings.items())


def where(condition: Condition) -> str:
    """A condition as the end of a sentence; empty if there is none."""
    if not condition:
        return ""
    parts = []
    for column, values in condition.items():
        if isinstance(values, Between):
            sides = [f"at least {values.min:g}"] if values.min is not None else []
            sides += [f"at most {values.max:g}"] if values.max is not None else []
            parts.append(f"{column} is {' and '.join(sides) or 'anything'}")
        else:
            parts.append(f"{column} is {_listed(values)}")
    return " where " + " and ".join(parts)


def _listed(values: Any) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    many: Sequence[Any] = values if isinstance(values, tuple) else (values,)
    numeric = [isinstance(v, (int, float)) and not isinstance(v, bool) for v in many]
    texts = [f"{v:g}".replace("-", "−") if n else str(v) for v, n in zip(many, numeric, strict=True)]
    return " or ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
