"""Where a simulation leaves the data: states with a pair of columns that was never observed together.

A pair is two levels that occur in no row of the data, or a number outside the range observed with a level. Segments
count as a column unless the state says them. The share of simulated member-periods in such states, among the members
that a rollout shows, is reported and warned about above ``MOST_OUTSIDE``: there rewards, choices and dynamics are
extrapolated.

Why pairs: each column alone says too little (a price may be usual, but not in that segment), and all columns together
too much: most combinations of ten columns occur in no panel. Limits: two numbers are not compared with each other; the
data are the rows that the scenario was asked with, by default the panel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor

from irl.data.schema import StateSchema
from irl.processes import add_up

MOST_OUTSIDE = 0.05
"""Share of simulated member-periods outside the support above which a warning is due."""
SLACK = 1e-5
"""By how much, relative to its size, a number may exceed what was observed: the state is float32."""


@dataclass(frozen=True)
class Support:
    """What was observed. Columns are numbered as in the state; the segment is the last.

    seen : (column, column) -> bool[L, L'], by the codes of two discrete columns; the last code is "unseen".
    ranges : (discrete column, number) -> lowest and highest [2, L].
    """

    names: tuple[str, ...]
    seen: dict[tuple[int, int], Tensor]
    ranges: dict[tuple[int, int], Tensor]

    def outside(self, state: Tensor, segment: Tensor) -> Tensor:
        """bool[N, pairs] of state[N, F] and segment[N]: the pairs (``seen``, then ``ranges``) never observed."""
        values = torch.cat([state, segment.unsqueeze(1).to(state.dtype)], 1).T.contiguous()
        codes = {f: values[f].long() for f in {f for pair in self.seen for f in pair} | {i for i, _ in self.ranges}}
        found = [~seen[codes[i], codes[j]] for (i, j), seen in self.seen.items()]
        for (i, f), bounds in self.ranges.items():
            low, high = bounds[:, codes[i]]
            found.append((values[f] < low) | (values[f] > high))
        return torch.stack(found, 1)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(self.names[i], self.names[j]) for i, j in (*self.seen, *self.ranges)]


def support(schema: StateSchema, state: Tensor, segment: Tensor) -> Support:
    """What is observed in state[N, F] and segment[N]."""
    columns = schema.columns
    levels = {f: len(c.labels) + 1 for f, c in enumerate(columns) if c.discrete}
    if not levels or not set(schema.segment_columns) & set(schema.names):
        levels[len(columns)] = len(schema.segments) + 1
    values = torch.cat([state, segment.unsqueeze(1).to(state.dtype)], 1)
    codes = {f: values[:, f].long() for f in levels}
    seen = {}
    for i, j in combinations_with_replacement(levels, 2):
        both = torch.bincount(codes[i] * levels[j] + codes[j], minlength=levels[i] * levels[j]) > 0
        seen[i, j] = both.view(levels[i], levels[j])
        seen[i, j][-1], seen[i, j][:, -1] = False, False
    ranges = {}
    for f in (f for f, c in enumerate(columns) if not c.discrete):
        slack = SLACK * values[:, f].abs().max()
        for i in levels:
            low = values.new_full((levels[i],), torch.inf).scatter_reduce_(0, codes[i], values[:, f], "amin")
            high = values.new_full((levels[i],), -torch.inf).scatter_reduce_(0, codes[i], values[:, f], "amax")
            ranges[i, f] = torch.stack([low - slack, high + slack])
    names = (*schema.names, " and ".join(schema.segment_columns) or "segment")
    return Support(names, seen, ranges)


@dataclass
class Tally:
    """Counts the simulated member-periods outside a support, by case; called with every state that is visited."""

    support: Support
    visited: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    by_pair: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, case: str, state: Tensor, segment: Tensor) -> None:
        outside = self.support.outside(state, segment)
        self.visited[case] = self.visited.get(case, 0) + len(state)
        self.left[case] = self.left.get(case, 0) + int(outside.any(1).sum())
        self.by_pair[case] = self.by_pair.get(case, 0) + outside.sum(0)

    def add_up(self, cases: Iterable[str]) -> None:
        """Of a group of processes, each takes the counts of all."""
        for case in cases:
            own = [self.visited.get(case, 0), self.left.get(case, 0)]
            by_pair = self.by_pair.get(case, torch.zeros(len(self.support.pairs), dtype=torch.long))
            counts = torch.cat([torch.tensor(own), by_pair.cpu()])
            add_up([counts])
            self.visited[case], self.left[case] = int(counts[0]), int(counts[1])
            self.by_pair[case] = counts[2:]

    def share(self, case: str) -> float:
        """Share of the member-periods of a case outside the support."""
        return self.left[case] / max(self.visited[case], 1)

    def plain(self, case: str) -> dict[str, Any]:
        """The share and the pair of columns that leaves the data most often (none where none does), for JSON."""
        most = int(self.by_pair[case].argmax())
        return {"share": self.share(case), "mostly": list(self.support.pairs[most]) if self.left[case] else []}

    def warnings(self, case: str, baseline: str) -> list[str]:
        """A sentence if the case is simulated outside the data too often."""
        if not self.share(case) > MOST_OUTSIDE:
            return []
        much = f"{100 * self.share(case):.0f} % of the simulated member-periods"
        beside = f" ({100 * self.share(baseline):.0f} % in the baseline)" if case != baseline else ""
        pair = dict.fromkeys(self.plain(case)["mostly"])
        where = " and ".join(pair) + (" together" if len(pair) > 1 else "")
        return [
            f"{case}: {much}{beside} are in states unlike any in the data, mostly because of {where}; there the "
            "answer is extrapolated"
        ]
