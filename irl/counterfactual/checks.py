"""What is wrong with a scenario's changes, given a study: names it does not have, and effects that nothing tells.

An anchor stays on the menu at its known reward; a feature can be changed only if its variation in the panel says what
it does; a movement only if the column moves.
"""

from __future__ import annotations

from irl.config import unknown
from irl.counterfactual import conditions
from irl.data.encode import label
from irl.data.schema import StateSchema
from irl.declared import Between
from irl.scenario import AddChange, DynamicsChange, FeatureChange, RemoveChange, RewardChange, Scenario


def problems_of(scenario: Scenario, schema: StateSchema) -> list[str]:
    """Everything that keeps the study from answering the scenario, one sentence each."""
    problems: list[str] = []
    added = [change.add for change in scenario.changes if change.add is not None]
    for i, change in enumerate(scenario.changes, start=1):
        part, place = change.part, f"change {i}"
        problems += conditions.problems_of(part.where, schema, f"{place}.where")
        if isinstance(part, FeatureChange):
            problems += _feature_problems(part, schema, place)
        elif isinstance(part, DynamicsChange):
            problems += _dynamics_problems(part, schema, place)
        elif isinstance(part, AddChange):
            problems += _added_problems(part, schema, place)
            problems += _twin_problems(part, added, place)
        else:
            new = [one.action for one in added] if isinstance(part, RewardChange) else []
            strange = unknown(part.action, [*schema.actions, *new], place, "action")
            problems += strange or _anchor_problems(part, schema, place)
    return problems


def _added_problems(part: AddChange, schema: StateSchema, place: str) -> list[str]:
    problems = unknown(part.like, schema.actions, f"{place}.like", "action")
    if part.action in schema.actions:
        problems.append(f"{place}: the study has an action {part.action!r} already; give the new one another name")
    anchors: tuple[str, ...] = () if schema.anchor is None else (schema.actions[schema.anchor],)
    if schema.anchor_by_state is not None:
        anchors = schema.columns[schema.index(schema.anchor_by_state)].labels
    if part.like in anchors:
        problems.append(
            f"{place}.like: {part.like!r} is an anchor, at a reward known by assumption; copy another action"
        )
    for name, value in part.facing.items():
        problems += _feature_problems(FeatureChange(name=name, set=value), schema, f"{place}.facing")
    for name, value in part.then.items():
        problems += _then_problems(name, value, schema, f"{place}.then")
    return problems


def _then_problems(name: str, value: bool | float | str, schema: StateSchema, place: str) -> list[str]:
    strange = unknown(name, schema.names, place, "state column")
    if strange:
        return strange
    column = schema.columns[schema.index(name)]
    if column.dynamics in ("static", "clock"):
        why = "never changes for a member" if column.dynamics == "static" else "moves by itself, whatever is chosen"
        return [f"{place}: {name!r} {why}"]
    if name in schema.reference_columns:
        return [f"{place}: {name!r} says what the anchor is, which is given"]
    return column.setting_problems(value, f"{place}: {name!r}")


def _twin_problems(part: AddChange, added: list[AddChange], place: str) -> list[str]:
    """Names used twice, and two copies of one action that share different parts of one shock."""
    first = next(one for one in added if one.action == part.action)
    if first is not part:
        return [f"{place}: {part.action!r} is added twice"]
    nests = {one.nest for one in added if one.like == part.like}
    if len(nests) > 1 and part is next(one for one in added if one.like == part.like):
        return [f"{place}: the copies of {part.like!r} are one nest: give them the same `nest`"]
    return []


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
