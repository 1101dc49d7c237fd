"""How members came into the panel and left it, and what in its rows says that it is not the sample it is taken for.

    single      members with one row: nothing follows it, so they serve choice probabilities only
    begun       members whose first state follows, in this panel, only a choice other than the anchor: they were in the
                middle of something when observation began
    ended       members whose rows end before the panel does, at no terminal state
    leaving     the same by what was chosen in the last row, as a share of the rows with a choice after which there
                could have been another, and whether it depends on the choice given the segment: likelihood ratio
                G2 = 2 sum n log(n / expected), chi-squared (Agresti, Categorical Data Analysis, section 2.4)
    worth       rows that would tell as much, were their weights alike: (sum w)^2 / sum w^2 (Kish 1965)
    by_choice   mean weight after each choice, as a part of the segment's mean weight, over segments

Warned about besides: segments that are absent early or late; actions that a segment never chose where it could;
columns of the state whose levels all but say what is chosen, which are likely to have been noted after the choice;
levels in which all decisions are alike, as in a contract that the menu does not know; and tested numbers that are the
same for all members of a kind.

Choices given the state are estimated rightly from any sample that was drawn by the state. What is not said here cannot
be seen: members sampled by what they chose (without a weight), or who leave for what would have followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from irl import processes
from irl.data.panel import Panel, first_rows
from irl.declared import Data

AT_ONCE = 65_536
"""Rows that are looked at together."""
LEAST = 20
"""Members who left, transitions of a kind, and rows with an action on the menu, below which nothing is said."""
BEGUN = 0.05
"""Share of members in the middle of something with which newcomers (``entry: flow``) are doubted."""
UNEXPLAINED = 0.01
"""Share of members whose rows end without a declared exit beyond which a study that declares exits is doubted."""
LEVEL, APART = 0.01, 0.005
"""A p-value and a difference of rates beyond which leaving is said to depend on the choice."""
BY_CHOICE, SURE = 0.05, 4.0
"""A part of the mean weight, and so many standard errors, beyond which weights are said to depend on the choice."""
TOLD = 0.995
"""Share of decisions that follow from a column's level, each level's commonest, beyond which the column is doubted."""
BOUND = 300
"""Decisions, all alike, from which on a level is taken for one in which there is nothing to choose."""
LONG = 8
"""Periods of a panel from which on segments are looked for in its first and last quarter."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The figures above; None where there is nothing to tell. ``leaving``: {action: share}, ``p`` of its test."""

    members: int
    entry: str | None
    single: int
    begun: int | None
    ended: int | None
    exits: int | None
    leaving: dict[str, float]
    p: float | None
    worth: float | None
    by_choice: dict[str, float]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        counts = {
            "members with one row": self.single,
            "begun before their rows": self.begun,
            "ended before the panel": self.ended,
            "of them declared exits": self.exits,
            "rows that weights are worth": None if self.worth is None else round(self.worth),
        }
        return "\n".join(f"{name:<28}{count:>12,}" for name, count in counts.items() if count is not None)


def sampling(panel: Panel, data: Data) -> Sampling:
    """What a panel says of its own sampling; figures count rows and members alike, whatever their weight."""
    warnings: list[str] = []
    begun = _begun(panel)
    if begun is not None and data.entry == "flow" and begun > BEGUN * panel.n_members:
        warnings.append(
            f"`entry: flow` is declared, but {begun:,} of {panel.n_members:,} members begin in a state that only "
            "follows a choice other than the anchor: they had begun before, and their first rows are no newcomers'; "
            "declare `entry: stock`, or keep each member's rows from the beginning"
        )
    ended, exits, leaving, p = None, None, dict[str, float](), None
    if data.duration is None:
        last, at_risk = _last(panel)
        ended = int((last & at_risk).sum())
        left = last & at_risk
        if panel.leaves is not None:
            exits, left = int(panel.leaves.sum()), left & panel.leaves
            unexplained = int((last & at_risk & ~panel.leaves).sum())
            if unexplained > UNEXPLAINED * panel.n_members:
                warnings.append(
                    f"the rows of {unexplained:,} of {panel.n_members:,} members end before the panel does, with "
                    "neither `exit` nor a terminal state: it is not known why"
                )
        leaving, p = _leaving(panel, left, at_risk & panel.free)
        warnings += _informative(panel, leaving, p)
    worth, by_choice = None, dict[str, float]()
    if data.weight is not None:
        weight = panel.weight.double()
        worth = float(weight.sum().square() / weight.square().sum())
        by_choice, sure = _by_choice(panel)
        if sure and by_choice:
            said = ", ".join(f"{action} {ratio:.2f}" for action, ratio in by_choice.items())
            warnings.append(
                f"weights depend on what was chosen (mean weight after a choice, as a part of the segment's: {said}): "
                "the sample was drawn by choices, and estimates weight it back; percentiles, counts of decisions and "
                "of members do not"
            )
    return Sampling(
        members=panel.n_members,
        entry=data.entry,
        single=int((panel.member.bincount() == 1).sum()),
        begun=begun,
        ended=ended,
        exits=exits,
        leaving=leaving,
        p=p,
        worth=worth,
        by_choice=by_choice,
        warnings=(*warnings, *_absent(panel), *_never(panel), *_told(panel), *_untested(panel)),
    )


def _at_anchor(panel: Panel) -> Tensor:
    """bool[N]: the anchor was chosen, where it is an action."""
    found = torch.empty_like(panel.free)
    for i in _parts(panel):
        mu = panel.schema.reference(panel.state[i], panel.menu[i])
        found[i] = mu.gather(1, panel.action[i].unsqueeze(1)).squeeze(1) == 1
    return found


def _parts(panel: Panel) -> Iterator[slice]:
    """All rows, some at a time: a large panel is in files."""
    yield from (slice(first, min(first + AT_ONCE, panel.n_rows)) for first in range(0, panel.n_rows, AT_ONCE))


def _begun(panel: Panel) -> int | None:
    """Members whose first state only follows a choice other than the anchor; None if that cannot be told."""
    columns = [f for f, c in enumerate(panel.schema.columns) if c.dynamics == "table"]
    sizes = [panel.schema.columns[f].levels + 1 for f in columns]
    at_anchor, moved = _at_anchor(panel), (panel.next_row >= 0) & ~panel.ends  # an end is no state to begin in
    if not columns or panel.schema.anchor_weights or int((at_anchor & moved).sum()) < LEAST:
        return None

    def cell(rows: Tensor) -> Tensor:
        """The combination of levels that each row is in."""
        state, code = panel.state[rows][:, columns].long(), torch.zeros_like(rows)
        for k, size in enumerate(sizes):
            code = code * size + state[:, k]
        return code

    every = torch.arange(AT_ONCE, device=moved.device)
    seen = torch.cat([cell(i.start + every[: i.stop - i.start]).unique() for i in _parts(panel)]).unique()
    follows = torch.zeros(2, len(seen), dtype=torch.bool, device=moved.device)
    begin = torch.zeros(len(seen), dtype=torch.long, device=moved.device)
    first = first_rows(panel.member)
    for i in _parts(panel):
        rows = i.start + moved[i].nonzero().squeeze(1)
        after = torch.searchsorted(seen, cell(panel.next_row[rows]))
        for side, mine in enumerate((at_anchor[rows], ~at_anchor[rows])):
            follows[side, after[mine]] = True
        own = torch.searchsorted(seen, cell(i.start + first[i].nonzero().squeeze(1)))
        begin += torch.bincount(own, minlength=len(begin))
    return int(begin[~follows[0] & follows[1]].sum())


def _last(panel: Panel) -> tuple[Tensor, Tensor]:
    """bool[N]: members' last rows, terminal ones apart; rows after which the panel goes on."""
    last = torch.cat([first_rows(panel.member)[1:], panel.member.new_ones(1, dtype=torch.bool)])
    for i in _parts(panel):
        last[i] &= ~panel.schema.is_terminal(panel.state[i])
    return last, panel.period < panel.period.max()


def _leaving(panel: Panel, left: Tensor, at_risk: Tensor) -> tuple[dict[str, float], float | None]:
    """By action, the share of the rows at risk that were the member's last; p that it does not depend on it."""
    actions, segments = panel.n_actions, len(panel.schema.segments)
    n = torch.zeros(segments * actions * 2, dtype=torch.float64, device=left.device)
    for i in _parts(panel):
        cell = (panel.segment[i] * actions + panel.action[i]) * 2 + (left[i] & at_risk[i])
        n += torch.bincount(cell[at_risk[i]], minlength=len(n))
    n = n.view(segments, actions, 2)
    total = n.sum((0, 2))
    rates = n[..., 1].sum(0) / total
    found = {a: float(rates[k]) for k, a in enumerate(panel.schema.actions) if total[k] > 0}
    if float(n[..., 1].sum()) < LEAST:
        return found, None
    expected = n.sum(2, keepdim=True) * n.sum(1, keepdim=True) / n.sum((1, 2), keepdim=True).clamp_min(1)
    statistic = 2 * torch.where(n > 0, n * (n / expected.clamp_min(1e-300)).log(), 0.0).sum()
    mixed = (n.sum(1) > 0).all(1)  # segments in which some left and some stayed
    df = float((((n.sum(2) > 0).sum(1) - 1).clamp_min(0) * mixed).sum())
    if not df:
        return found, None
    return found, float(torch.special.gammaincc(torch.tensor(df / 2, dtype=torch.float64), statistic.cpu() / 2))


def _informative(panel: Panel, leaving: dict[str, float], p: float | None) -> list[str]:
    if p is None or p >= LEVEL or max(leaving.values()) - min(leaving.values()) < APART:
        return []
    rates = ", ".join(f"{action} {100 * rate:.1f} %" for action, rate in leaving.items())
    said = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    most = max(leaving, key=lambda action: leaving[action])
    more = ""
    if panel.schema.anchor is not None and most == panel.schema.actions[panel.schema.anchor]:
        more = (
            f"; if the data hold members only, not to be seen any more is to stay at {most}: declare a `terminal` "
            "state, or give the rows that are missing"
        )
    return [
        f"members leave the panel more often after some choices than others (last row of a member, of those with the "
        f"choice: {rates}; {said} given the segment): what follows is learned from those who stay, rightly if they are "
        f"like those who leave in the same state, and shares by period are of those left{more}"
    ]


def _by_choice(panel: Panel) -> tuple[dict[str, float], bool]:
    """Mean weight after each choice relative to the segment's, and whether some surely differs from 1 by much."""
    weight, rows = panel.weight.double(), panel.free
    segments = len(panel.schema.segments)
    mean = torch.zeros(segments, dtype=torch.float64, device=weight.device).index_add_(
        0, panel.segment[rows], weight[rows]
    ) / torch.bincount(panel.segment[rows], minlength=segments).clamp_min(1)
    relative, found, sure = weight / mean[panel.segment].clamp_min(1e-300), {}, False
    for k, action in enumerate(panel.schema.actions):
        own = relative[rows & (panel.action == k)]
        if len(own) >= LEAST:
            found[action] = float(own.mean())
            error = float(own.std()) / len(own) ** 0.5
            sure |= abs(found[action] - 1) > max(BY_CHOICE, SURE * error)
    return found, sure


def _absent(panel: Panel) -> list[str]:
    """Segments of which the first or the last quarter of the periods has no row."""
    first, periods = int(panel.period.min()), int(panel.period.max() - panel.period.min()) + 1
    if periods < LONG:
        return []
    found = []
    for code, name in enumerate(panel.schema.segments):
        own = panel.period[panel.segment == code]
        if not len(own):
            continue
        since, until = int(own.min()) - first + 1, int(own.max()) - first + 1
        for what, absent in (("late", until <= periods - periods // 4), ("early", since > periods // 4)):
            if absent:
                found.append(
                    f"segment {name} is there in periods {since} to {until} of {periods} only: {what} ones say nothing "
                    "of it, and what they have in common with other segments is taken for its own"
                )
    return found


def _never(panel: Panel) -> list[str]:
    """Actions, the anchor apart, that a segment never chose where it could, in the whole panel."""
    schema, segments, actions = panel.schema, len(panel.schema.segments), panel.n_actions
    n = torch.zeros(2, segments, actions, dtype=torch.float64, device=panel.state.device)  # on the menu, chosen
    for i in _parts(panel):
        rows = panel.free[i] & panel.active[i]
        n[0].index_add_(0, panel.segment[i][rows], panel.menu[i][rows].double())
        cell = panel.segment[i][rows] * actions + panel.action[i][rows]
        n[1] += torch.bincount(cell, minlength=segments * actions).view(segments, actions)
    offered, chosen = n if panel.origin is None else processes.summed(n)
    found, thin = list[str](), (offered >= LEAST) & (chosen == 0)
    for k, action in enumerate(schema.actions):
        if k == schema.anchor:
            continue
        if not chosen[:, k].any() and (whole := int(offered[:, k].sum())) >= LEAST:
            found.append(
                f"nobody chose {action}, though it was on the menu in {whole:,} rows: its reward is what the prior "
                "makes of it"
            )
            continue
        found += [
            f"segment {name} never chose {action}, though it was on the menu in {int(offered[g, k]):,} rows: its "
            "reward there is what the prior and other segments make of it"
            for g, name in enumerate(schema.segments)
            if thin[g, k]
        ]
    return found


def _told(panel: Panel) -> list[str]:
    """Columns of the state that were noted after the choice, by all appearance: each level has a choice of its own; and
    levels in which there was no choice, by all appearance."""
    found = []
    for f, column in enumerate(panel.schema.columns):
        if not column.discrete or column.dynamics == "static" or column.hidden:
            continue
        levels, actions = column.levels + 1, panel.n_actions
        n = torch.zeros(levels * actions, dtype=torch.int64, device=panel.state.device)
        for i in _parts(panel):
            rows = panel.free[i] & panel.active[i]
            n += torch.bincount(panel.state[i][rows, f].long() * actions + panel.action[i][rows], minlength=len(n))
        counts = n.view(levels, actions)
        most, which = counts.max(1)
        told, decisions = int(most.sum()), int(n.sum())
        if told >= TOLD * max(decisions, LEAST) and len(which[most >= LEAST].unique()) > 1:
            found.append(
                f"state column {column.name!r} says what is chosen in {told / decisions:.1%} of the decisions: is "
                "it as it stood before the choice of its row? The state after it is that of the next row"
            )
            continue
        bound = ((most == counts.sum(1)) & (most >= BOUND) & (decisions > most))[: column.levels]
        for action in which[: column.levels][bound].unique().tolist():
            names = [column.labels[k] for k in bound.nonzero().squeeze(1).tolist() if which[k] == action]
            found.append(
                f"where {column.name!r} is {', '.join(names)}, all decisions are {panel.schema.actions[action]!r}: if "
                "nothing else could be chosen there (a contract), say so by `data.available`; else what the rest of "
                "the menu is worth there rests on nothing"
            )
    return found


def _untested(panel: Panel) -> list[str]:
    """Numbers assigned at random that do not vary where a category that never changes about a member has some level."""
    columns, found = panel.schema.columns, list[str]()
    for f, column in enumerate(columns):
        if column.assigned != "randomised" or column.discrete or column.minimum == column.maximum:
            continue
        for g, by in enumerate(columns):
            if by.kind != "category" or by.dynamics != "static" or by.hidden:
                continue
            low, high = torch.full((2, by.levels + 1), torch.inf).unbind()
            for i in _parts(panel):
                code, value = panel.state[i][:, g].long().cpu(), panel.state[i][:, f].float().cpu()
                low = low.scatter_reduce(0, code, value, "amin")
                high = high.scatter_reduce(0, code, -value, "amin")
            found += [
                f"{column.name!r} is assigned at random and yet {float(low[k]):g} for all of {by.name} = {label}: "
                "what it does to them is taken from the others, and nothing in the panel says whether it is the same"
                for k, label in enumerate(by.labels)
                if low[k] == -high[k]
            ]
    return found
