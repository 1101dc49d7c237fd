"""Figures of so few members that they might say something of one of them are neither written nor shown.

Withheld are the segments of fewer than ``data.min_cell`` members and, since what is left out could be had by
subtracting the others from ``all``, the smallest of the others until those withheld are at least two segments and
``min_cell`` members together (complementary suppression). What can be subtracted is then a figure of that many members.
If all members together are too few, nothing is left.

Limits: members of a segment are counted, not those behind each figure (a hazard at an age that few reach). The model
itself knows its segments by name, and answers for any of them: whoever may have the model has that. Predictions by row
are by row. Two releases of the same panel can be compared with each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from irl import processes
from irl.config import InputError
from irl.data.encode import ALL
from irl.data.panel import Panel

CHUNK = 1_000_000
"""Rows looked at together."""


@dataclass(frozen=True)
class Withheld:
    """The segments whose figures are withheld, of those that there are, and the least number of members of others."""

    least: int = 1
    segments: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.names)

    def left(self, content: Any) -> Any:
        """``content`` (plain values) without figures of withheld segments: keys of mappings by segment, rows with a
        ``segment``, and sentences that begin with its name."""
        if not self.names:
            return content
        if isinstance(content, Mapping):
            by_segment = bool(content) and {*content} <= {*self.segments, ALL}
            return {k: self.left(v) for k, v in content.items() if not (by_segment and k in self.names)}
        if isinstance(content, (list, tuple)):
            return [self.left(part) for part in content if not self._is_of_one(part)]
        return content

    def _is_of_one(self, part: Any) -> bool:
        if isinstance(part, str):
            names = (*self.names, *(f"segment {name}" for name in self.names))
            return part.startswith(tuple(name + end for name in names for end in ": "))
        return isinstance(part, Mapping) and part.get("segment") in self.names

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"min_cell": self.least, "segments": list(self.names)}

    def refuse_nothing(self) -> None:
        """InputError if no figure would be left."""
        if ALL in self.names:
            raise InputError(
                f"fewer than {self.least} members (`data.min_cell`): no figure of so few is written; take more members"
            )


NOTHING = Withheld()
"""Nothing is withheld."""


def said(plain: Mapping[str, Any]) -> list[str]:
    """What is withheld, given :meth:`Withheld.plain`: a sentence, if anything is."""
    names = list(plain.get("segments", ()))
    if not names:
        return []
    which = "All figures are" if ALL in names else f"Figures of {', '.join(names)} are"
    why = f"fewer than {plain['min_cell']} members (`data.min_cell`)"
    return [f"{which} withheld: {why}, or could be used to work out those of such."]


def withheld(members: Mapping[str, int], least: int, *, together: int | None = None) -> Withheld:
    """What to withhold, given the members of each segment and of all ``together`` (by default their sum); segments
    without any count for nothing."""
    present = {name: number for name, number in members.items() if number > 0}
    hidden = {name: number for name, number in present.items() if number < least}
    others = sorted((number, name) for name, number in present.items() if name not in hidden)
    while hidden and others and (len(hidden) < 2 or sum(hidden.values()) < least):
        number, name = others.pop(0)
        hidden[name] = number
    if (sum(present.values()) if together is None else together) < least:
        hidden[ALL] = 0
    return Withheld(least, tuple(members), tuple(hidden))


def withheld_of(panel: Panel, least: int) -> Withheld:
    """What to withhold of a panel; a member counts in every segment that it has a row in."""
    members = members_by_segment(panel.schema.segments, panel.segment, panel.member)
    if panel.origin is not None:
        members = {name: int(processes.total(number)) for name, number in members.items()}
    return withheld(members, least, together=panel.among_all[1])


def members_by_segment(segments: tuple[str, ...], segment: Tensor, member: Tensor) -> dict[str, int]:
    """The members of each segment, of rows with segment[N] and member[N], which rises."""
    seen = torch.zeros(int(member[-1:].max()) + 1, len(segments), dtype=torch.bool)
    for first in range(0, len(member), CHUNK):
        rows = slice(first, first + CHUNK)
        seen[member[rows].long().cpu(), segment[rows].long().cpu()] = True
    return dict(zip(segments, seen.sum(0).tolist(), strict=True))
