"""What the columns of the state tensor mean: labels and codes, conditions, the menu.

:mod:`irl.data.fit` learns labels, means and ranges from a panel; a :class:`StateSchema` then turns any frame that has
the state columns into ``state[N, F]`` and evaluates conditions on it in pure torch, so that rollouts apply the same
menu.

Choices made here: categories get codes in the natural order of their labels (numbers as numbers); the code
``len(labels)`` is reserved for a category never seen when the schema was fitted (the column that names the anchor takes
no such label). Limit: numeric values beyond 2^24 lose digits in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from irl.config import InputError, nearest, unknown
from irl.data.column import Column
from irl.data.encode import Finding, finding, labelled, missing_columns, numbers, segments_of
from irl.declared import TYPE, Between, Condition

UNSEEN = "(unseen)"


@dataclass(frozen=True, kw_only=True)
class StateSchema:
    """The state, the actions and the segments of a study, as fitted on its panel.

    Attributes
    ----------
    columns : the F columns of ``state[N, F]``, in the order of the configuration
    actions : the A actions, in the order of ``menu[N, A]``
    anchor : index of the anchor action; None if the anchor depends on the state or is a policy
    anchor_by_state : the column whose label is the anchor action in each state, if there is one
    anchor_weights : [A], of the reference policy if it is declared by weights: numbers, or the columns that hold them
    anchor_reward : the known reward: a number, or the column that holds it
    segments : labels; several segment columns are joined with " | "; ("all",) without any
    available : (action index, condition) of the actions that are not always available
    terminal : condition of the states after which there is nothing (empty: none)
    defaults : (action index, condition) of what happens without a decision; empty where everything is decided
    shifters : columns that move attention and are kept out of choices and rewards
    """

    columns: tuple[Column, ...]
    actions: tuple[str, ...]
    anchor: int | None
    anchor_by_state: str | None = None
    anchor_weights: tuple[float | str, ...] = ()
    anchor_reward: float | str
    segment_columns: tuple[str, ...] = ()
    segments: tuple[str, ...] = ("all",)
    available: tuple[tuple[int, Condition], ...] = ()
    terminal: Condition
    defaults: tuple[tuple[int, Condition], ...] = ()
    shifters: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @property
    def knows_anchor_reward(self) -> bool:
        """Whether g(s) follows from the state: it is a number, or a state column."""
        return not isinstance(self.anchor_reward, str) or self.anchor_reward in self.names

    def known_reward(self, state: Tensor) -> Tensor:
        """g(s)[N] of state[N, F], in reward units; needs ``knows_anchor_reward``."""
        if not isinstance(self.anchor_reward, str):
            return torch.full_like(state[:, 0], float(self.anchor_reward))
        f = self.index(self.anchor_reward)
        if not self.columns[f].discrete:
            return state[:, f]
        values = [*map(float, self.columns[f].labels), torch.nan]
        return torch.tensor(values, device=state.device)[state[:, f].long()]

    @property
    def hidden(self) -> tuple[str, ...]:
        """The column of the hidden types, if there are any: it is the last."""
        return tuple(column.name for column in self.columns if column.hidden)

    @property
    def types(self) -> int:
        """Number of hidden types."""
        return self.columns[-1].levels if self.hidden else 1

    def with_types(self, number: int, *, dynamics: bool) -> StateSchema:
        """The schema with the column of so many hidden types."""
        labels, hidden = tuple(str(k + 1) for k in range(number)), "all" if dynamics else "tastes"
        column = Column(
            name=TYPE, kind="category", dynamics="static", labels=labels, maximum=float(number - 1), hidden=hidden
        )
        return replace(self, columns=(*self.columns, column))

    @property
    def without_types(self) -> StateSchema:
        """The schema of what data show: without the column of the hidden types, if there is one."""
        return replace(self, columns=tuple(column for column in self.columns if not column.hidden))

    @property
    def base(self) -> int:
        """The action from which the others' utilities are counted: the anchor action, else the first."""
        return 0 if self.anchor is None else self.anchor

    @property
    def reference_columns(self) -> tuple[str, ...]:
        """The state columns that the reference policy is read from."""
        named = (self.anchor_by_state, *self.anchor_weights)
        return tuple(dict.fromkeys(name for name in named if isinstance(name, str)))

    @property
    def referred(self) -> tuple[int, ...]:
        """The actions that the reference policy ever takes."""
        if self.anchor is not None:
            return (self.anchor,)
        if self.anchor_by_state is not None:
            labels = self.columns[self.index(self.anchor_by_state)].labels
            return tuple(a for a, name in enumerate(self.actions) if name in labels)
        return tuple(a for a, weight in enumerate(self.anchor_weights) if isinstance(weight, str) or weight > 0)

    def reference_weights(self, state: Tensor) -> Tensor:
        """[..., A] of state[..., F]: what the reference policy is proportional to, whatever the menu."""
        ones, zeros = torch.ones_like(state[..., 0]), torch.zeros_like(state[..., 0])
        if self.anchor is not None:
            parts = [ones if a == self.anchor else zeros for a in range(len(self.actions))]
        elif self.anchor_by_state is not None:
            f = self.index(self.anchor_by_state)
            codes = {name: code for code, name in enumerate(self.columns[f].labels)}
            parts = [(state[..., f] == codes.get(name, -1)).to(state.dtype) for name in self.actions]
        else:
            parts = [
                state[..., self.index(weight)].clamp_min(0) if isinstance(weight, str) else weight * ones
                for weight in self.anchor_weights
            ]
        return torch.stack(parts, dim=-1)

    def reference(self, state: Tensor, menu: Tensor | None = None) -> Tensor:
        """mu[..., A], the policy whose mean reward sum_a mu(a|s) r(s,a) = g(s) is known; rows sum to 1. ``menu``: by
        default the schema's.

        An anchor action, of all states or of the state, has mu 1. Weights are restricted to menu[..., A] and add up to
        1; where that leaves nothing, which panels are refused for but drawn states may come to, mu is uniform.
        """
        weights = self.reference_weights(state)
        if not self.anchor_weights:
            return weights
        menu = self.menu(state) if menu is None else menu
        weights = weights * menu
        weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, menu.to(weights.dtype))
        return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)

    def index(self, name: str) -> int:
        """Position of a column in the state tensor; InputError with the nearest name if there is none."""
        if name not in self.names:
            raise InputError(unknown(name, self.names, "state", "column")[0])
        return self.names.index(name)

    def lowest(self, state: Tensor, name: str) -> Tensor:
        """state[N, F] with a column at its lowest level or value (a copy)."""
        f = self.index(name)
        return state.index_fill(1, torch.tensor([f], device=state.device), self.columns[f].minimum)

    def encode(self, frame: pd.DataFrame) -> Tensor:
        """``frame`` as float32 state[N, F], rows in the frame's order; other columns are ignored.

        Raises
        ------
        InputError
            Naming every column that is missing or holds something unusable, with the first offending rows.
        """
        findings = missing_columns(self.names, frame, "state ")
        state, found = encode_columns(self, frame)
        findings += found
        if findings:
            lines = [f.text(lambda row: f"row {row + 1}") for f in findings]
            raise InputError("the state cannot be read:\n  " + "\n  ".join(lines))
        return torch.from_numpy(state)

    def decode(self, state: Tensor) -> pd.DataFrame:
        """state[N, F] as a frame of labels (``(unseen)`` for the reserved code) and values."""
        values = state.detach().cpu().numpy()
        series: dict[str, Any] = {}
        for i, column in enumerate(self.columns):
            if column.discrete:
                known = np.array([*column.labels, UNSEEN], dtype=object)
                series[column.name] = pd.Series(known[values[:, i].astype(np.int64)], dtype="str")
            else:
                series[column.name] = values[:, i].round().astype(np.int64) if column.kind == "count" else values[:, i]
        return pd.DataFrame(series)

    def segment_codes(self, frame: pd.DataFrame) -> Tensor:
        """int64[N]: the segment of every row of ``frame``.

        Raises
        ------
        InputError
            If a segment column is missing or holds a segment that the schema does not know.
        """
        missing = [c for c in self.segment_columns if c not in frame.columns]
        if missing:
            raise InputError("\n".join(f"segment column {c!r} is missing{nearest(c, frame.columns)}" for c in missing))
        codes, labels = segments_of(frame, self.segment_columns)
        strange = sorted({name for name in labels if name not in self.segments})
        if strange or (codes < 0).any():
            what = f"unknown: {', '.join(map(repr, strange))}" if strange else "some are missing"
            raise InputError(f"segments cannot be read ({what}); known: {', '.join(self.segments)}")
        return torch.from_numpy(np.array([self.segments.index(name) for name in labels], dtype=np.int64)[codes])

    def matches(self, state: Tensor, condition: Condition) -> Tensor:
        """bool[...]: where all columns of ``condition`` hold in state[..., F]. An empty condition holds everywhere.

        Raises
        ------
        InputError
            If the condition names an unknown column or label.
        """
        problems = self.problems_of(condition, "condition")
        if problems:
            raise InputError("\n".join(problems))
        holds = torch.ones(state.shape[:-1], dtype=torch.bool, device=state.device)
        for name, values in condition.items():
            i = self.index(name)
            holds = holds & self.columns[i].holds(state[..., i], values)
        return holds

    def menu(self, state: Tensor) -> Tensor:
        """bool[..., A]: the actions available in state[..., F]."""
        conditions = dict(self.available)
        return torch.stack([self.matches(state, conditions.get(a, {})) for a in range(len(self.actions))], dim=-1)

    def is_terminal(self, state: Tensor) -> Tensor:
        """bool[...]: the states after which there is nothing."""
        holds = self.matches(state, self.terminal)
        return holds if self.terminal else ~holds

    def default(self, state: Tensor) -> Tensor:
        """int64[...]: what happens without a decision in state[..., F], the first whose condition holds; -1: none."""
        found = torch.full(state.shape[:-1], -1, dtype=torch.long, device=state.device)
        for action, condition in reversed(self.defaults):
            found = found.masked_fill(self.matches(state, condition), action)
        return found

    def problems_of(self, condition: Condition, place: str) -> list[str]:
        """What is wrong with a condition: unknown columns, labels that never occur, ranges of unordered columns."""
        problems: list[str] = []
        for name, values in condition.items():
            if name not in self.names:
                problems += unknown(name, self.names, place, "state column")
                continue
            problems += self.columns[self.names.index(name)].problems_of(values, f"{place}.{name}")
        return problems

    def to_json(self) -> dict[str, Any]:
        """The schema as plain str, int, float, list and dict."""
        plain = asdict(self)
        for name in ("available", "defaults"):
            plain[name] = [[action, _plain(condition)] for action, condition in getattr(self, name)]
        plain["terminal"] = _plain(self.terminal)
        return {key: _lists(value) for key, value in plain.items()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> StateSchema:
        """The schema that ``to_json`` wrote."""
        columns = [{**c, "labels": tuple(c["labels"]), "parents": tuple(c["parents"])} for c in plain["columns"]]
        return cls(
            columns=tuple(Column(**c) for c in columns),
            actions=tuple(plain["actions"]),
            anchor=plain["anchor"],
            anchor_by_state=plain.get("anchor_by_state"),
            anchor_weights=tuple(plain.get("anchor_weights", ())),
            anchor_reward=plain["anchor_reward"],
            segment_columns=tuple(plain["segment_columns"]),
            segments=tuple(plain["segments"]),
            available=tuple((action, _condition(c)) for action, c in plain["available"]),
            terminal=_condition(plain["terminal"]),
            defaults=tuple((action, _condition(c)) for action, c in plain.get("defaults", ())),
            shifters=tuple(plain.get("shifters", ())),
        )


def encode_columns(schema: StateSchema, frame: pd.DataFrame) -> tuple[NDArray[np.float32], list[Finding]]:
    """state[N, F], NaN in every cell that cannot be used or whose column is missing, and what is wrong with cells."""
    state = np.full((len(frame), len(schema.columns)), np.nan, dtype=np.float32)
    findings: list[Finding] = []
    for i, column in enumerate(schema.columns):
        if list(frame.columns).count(column.name) == 1:
            read = codes_of if column.discrete else values_of
            state[:, i], found = read(column, frame[column.name])
            findings += found
            if column.name == schema.anchor_by_state:
                remedy = "Only labels of the panel that was fitted can be answered for"
                what = f"state column {column.name!r} names an anchor that it never named"
                findings += finding(what, state[:, i] == column.levels, values=frame[column.name], remedy=remedy)
    return state, findings


def codes_of(column: Column, values: pd.Series) -> tuple[NDArray[np.float64], list[Finding]]:
    """Codes of a category's or ordinal's values, NaN where they cannot be used, and what is wrong with those."""
    found, labels = labelled(values)
    place = {known: code for code, known in enumerate(column.labels)}
    strange = column.levels if column.kind == "category" else -1
    recode = np.array([place.get(x, strange) for x in labels] + [-1], dtype=np.int64)
    codes = recode[found]
    what = f"state column {column.name!r}"
    remedy = "Fill them in: a label such as 'unknown' is one like any other"
    findings = finding(f"{what}: missing values", found < 0, values=values, remedy=remedy)
    if column.kind == "ordinal":
        findings += finding(
            f"{what}: values that are not among its levels {_listed(column.labels)}",
            (found >= 0) & (codes < 0),
            values=values,
            remedy="Correct the rows or declare the `levels`",
        )
    return np.where(codes >= 0, codes, np.nan), findings


def values_of(column: Column, values: pd.Series) -> tuple[NDArray[np.float64], list[Finding]]:
    """A count's or number's values, NaN where they cannot be used, and what is wrong with those."""
    result, strange = numbers(values)
    with np.errstate(over="ignore"):
        unusable = ~np.isfinite(result.astype(np.float32)) & ~strange
    what = f"state column {column.name!r}"
    remedy = "Write them as 1234.5, without units or separators of thousands"
    findings = finding(f"{what} ({column.kind}): values that are not numbers", strange, values=values, remedy=remedy)
    remedy = "Fill them in, say with the median, and add a 0/1 column to the state that says where"
    findings += finding(f"{what}: missing or infinite values", unusable, values=values, remedy=remedy)
    bad = unusable | strange
    if column.kind == "count":
        uncounted = ~bad & ((result < 0) | (result != np.round(result)))
        findings += finding(f"{what} (count): negative or fractional values", uncounted, values=values)
        bad = bad | uncounted
    return np.where(bad, np.nan, result), findings


def _listed(labels: tuple[str, ...]) -> str:
    return ", ".join(labels) if len(labels) <= 12 else f"{', '.join(labels[:10])}, … {labels[-1]}"


def _plain(condition: Condition) -> dict[str, Any]:
    return {k: v.model_dump() if isinstance(v, Between) else list(v) for k, v in condition.items()}


def _condition(plain: Mapping[str, Any]) -> Condition:
    return {k: Between(**v) if isinstance(v, dict) else tuple(v) for k, v in plain.items()}


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value
