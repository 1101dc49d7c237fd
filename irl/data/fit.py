"""What is learned of a panel's columns before its rows are coded: labels, means, spreads, ranges, segments.

The rows may be given in parts and in any order; the schema is the same to the last bit (:mod:`irl.data.exact`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from irl.config import Config
from irl.data.column import TOLERANCE, Column
from irl.data.encode import ALL, Finding, label, labelled, natural_order, segments_of
from irl.data.exact import Moments
from irl.data.schema import StateSchema, codes_of, values_of
from irl.declared import Feature

MANY, PART = 20, 0.25
"""Labels, and labels for each member, with more than which a category that never changes says who a member is."""


def fit_schema(frame: pd.DataFrame, config: Config) -> StateSchema:
    """Labels, means and ranges of the state columns of ``frame``.

    Cells that cannot be used are left out and columns that are missing are taken as empty: finding fault is
    ``encode_columns``' part.
    """
    fit = SchemaFit(config)
    fit.add(frame)
    return fit.schema()


class SchemaFit:
    """The schema of rows that come in parts: ``add`` each, then ask for the ``schema``."""

    def __init__(self, config: Config) -> None:
        self.config = config
        names = list(config.data.state)
        self._columns = [
            _ColumnFit(name, feature, _parents(i, tuple(names.index(p) for p in feature.parents), feature))
            for i, (name, feature) in enumerate(config.data.state.items())
        ]
        self._segments = set[str]()

    def add(self, frame: pd.DataFrame) -> None:
        """Learn from these rows, columns as the study names them."""
        for column in self._columns:
            if column.name in frame.columns:
                column.add(frame[column.name])
        codes, segments = segments_of(frame, self.config.data.segment)
        self._segments |= {segments[code] for code in np.unique(codes[codes >= 0])}

    def schema(self) -> StateSchema:
        """What was learned."""
        config, data = self.config, self.config.data
        return StateSchema(
            columns=tuple(column.column() for column in self._columns),
            actions=data.actions,
            anchor=None if config.anchor.action is None else data.actions.index(config.anchor.action),
            anchor_by_state=config.anchor.by_state,
            anchor_weights=config.anchor.weights(data.actions),
            anchor_reward=config.anchor.reward,
            segment_columns=data.segment,
            segments=natural_order(self._segments),
            available=tuple((data.actions.index(a), condition) for a, condition in data.available.items()),
            terminal=data.terminal,
            defaults=tuple((data.actions.index(action), condition) for action, condition in config.defaults.items()),
            shifters=config.attention.shifters if config.attention else (),
        )


def _parents(i: int, declared: tuple[int, ...], feature: Feature) -> tuple[int, ...]:
    """With the column itself, where none was declared or where its moves are what is counted."""
    if feature.dynamics != "table" or i in declared:
        return declared
    return (*declared, i) if feature.alike or not declared else declared


class _ColumnFit:
    """One state column."""

    def __init__(self, name: str, feature: Feature, parents: tuple[int, ...]) -> None:
        self.name = name
        known: dict[str, Any] = {"parents": parents, "dynamics": feature.dynamics, "assigned": feature.assigned}
        known["alike"] = feature.alike
        if feature.kind == "ordinal":
            levels = range(feature.levels) if isinstance(feature.levels, int) else feature.levels or ()
            known["labels"] = tuple(label(v) for v in levels)
        self._empty = Column(name=name, kind=feature.kind, **known)
        self._known = {"name": name, "kind": feature.kind, **known}
        self._labels, self._moments = set[str](), Moments()

    def add(self, values: pd.Series) -> None:
        if self._empty.discrete:
            self._labels |= set(labelled(values)[1])
            if not self._empty.alike:
                return
        usable = (codes_of if self._empty.discrete else values_of)(self._empty, values)[0]
        self._moments.add(usable[np.isfinite(usable)])

    def column(self) -> Column:
        known, moments = dict(self._known), self._moments
        if self._empty.discrete:
            if self._empty.kind == "category":
                known["labels"] = natural_order(self._labels)
            codes = codes_of(Column(**known), pd.Series(sorted(self._labels), dtype=object))[0]
            codes = codes[np.isfinite(codes)]
            if len(codes):
                known |= {"minimum": float(codes.min()), "maximum": float(codes.max())}
        elif moments.n:
            known |= {"minimum": moments.minimum, "maximum": moments.maximum}
        if moments.n:
            sure = moments.sd > TOLERANCE * max(abs(moments.mean), 1e-30)
            known |= {"centre": moments.mean, "scale": moments.sd if sure else 1.0}
        return Column(**known)


def segment_problems(schema: StateSchema) -> list[str]:
    """A segment that is called as all of them together are."""
    if ALL not in schema.segments or len(schema.segments) == 1:
        return []
    return [f"a segment is called {ALL!r}, which is what the rows over all segments are called; rename it"]


def label_problems(schema: StateSchema, members: int) -> list[str]:
    """Categories that never change whose labels say who a member is, more or less."""
    return [
        f"state column {c.name!r}: a static category of {c.levels:,} labels for {members:,} members says who a member "
        "is, not what members have in common; leave it out, or group its labels"
        for c in schema.columns
        if c.kind == "category" and c.dynamics == "static" and c.levels >= MANY and c.levels > PART * members > 0
    ]


def fit_problems(columns: pd.Index, config: Config, schema: StateSchema, members: int) -> list[Finding]:
    """Labels in conditions that the data do not know, segments that cannot be told apart and labels that tell members
    apart; names that are not in ``columns`` are reported as missing."""
    places = [("terminal", config.data.terminal)]
    places += [(f"available.{action}", condition) for action, condition in config.data.available.items()]
    places += [(f"attention.default.{action}", condition) for action, condition in config.defaults.items()]
    money = config.money
    for kind, flows in (("price", money.price), ("cost", money.cost)) if money else ():
        places += [(f"money.{kind}.{action}.where", flow.where) for action, flow in flows.items()]
    problems = segment_problems(schema) + label_problems(schema, members)
    for place, condition in places:
        present = {name: values for name, values in condition.items() if name in columns}
        problems += schema.problems_of(present, place)
    for action, like in config.reward.same_flow_as.items():
        for name in (name for name in like.at if name in columns):
            column, place = schema.columns[schema.index(name)], f"reward.same_flow_as.{action}.at"
            problems += column.setting_problems(like.at[name], place)
    return [Finding(problem) for problem in problems]
