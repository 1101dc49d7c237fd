"""Where a condition holds that may name state columns and segment columns, and what is wrong with one.

A column that is both is read from the state; a member's segment does not change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from irl.config import nearest, unknown
from irl.data.encode import label
from irl.data.schema import StateSchema
from irl.declared import Between, Condition


def holds(schema: StateSchema, condition: Condition, state: Tensor, segment: Tensor) -> Tensor:
    """bool[N]: the rows of state[N, F] and segment[N] where all of the condition holds."""
    of_state = {name: values for name, values in condition.items() if name in schema.names}
    here = schema.matches(state, of_state)
    if len(of_state) < len(condition):
        here = here & segments_where(schema, condition).to(segment.device)[segment]
    return here


def segments_where(schema: StateSchema, condition: Condition) -> Tensor:
    """bool[S]: the segments in which the part of a condition holds that is not about state columns."""
    of_segments = {
        name: {label(v) for v in values}
        for name, values in condition.items()
        if name not in schema.names and not isinstance(values, Between)
    }
    parts = _segment_parts(schema) if of_segments else [{}] * len(schema.segments)
    return torch.tensor([all(part[n] in allowed for n, allowed in of_segments.items()) for part in parts])


def segments_reached(schema: StateSchema, condition: Condition) -> Tensor:
    """bool[S]: the segments in which a condition may hold, by what it says of columns that members keep."""
    fixed = {
        name: {label(v) for v in values}
        for name, values in condition.items()
        if name in schema.segment_columns
        and not isinstance(values, Between)
        and (name not in schema.names or schema.columns[schema.index(name)].dynamics == "static")
    }
    parts = _segment_parts(schema)
    return torch.tensor([all(part.get(n, None) in {None, *allowed} for n, allowed in fixed.items()) for part in parts])


def problems_of(condition: Condition, schema: StateSchema, place: str) -> list[str]:
    """What is wrong with a condition that stands at ``place``, one sentence each."""
    problems = schema.problems_of({n: v for n, v in condition.items() if n in schema.names}, place)
    for name, values in condition.items():
        if name in schema.names:
            continue
        if name not in schema.segment_columns:
            known = [*schema.names, *(c for c in schema.segment_columns if c not in schema.names)]
            problems += unknown(name, known, place, "state or segment column")
        elif isinstance(values, Between):
            problems.append(f"{place}.{name}: segments are labels; list them instead of a range")
        elif any(len(part) < len(schema.segment_columns) for part in _segment_parts(schema)):
            problems.append(f"{place}.{name}: labels that contain ' | ' hide which segment is meant; rename them")
        else:
            labels = sorted({part[name] for part in _segment_parts(schema)})
            problems += [
                f"{place}.{name}: no segment {label(v)!r}{nearest(label(v), labels)}"
                for v in values
                if label(v) not in labels
            ]
    return problems


def _segment_parts(schema: StateSchema) -> list[dict[str, str]]:
    """For every segment, segment column -> label; empty where a joined label cannot be taken apart."""
    columns = schema.segment_columns
    split = [[name] if len(columns) == 1 else name.split(" | ") for name in schema.segments]
    return [dict(zip(columns, parts, strict=True)) if len(parts) == len(columns) else {} for parts in split]
