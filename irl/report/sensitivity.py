"""How far the answers rest on assumptions: what ``RUN/sensitivity.json`` says, in tables, sentences and figures.

Two discounts are compared by the held-out log-likelihoods of the same groups of members: the sum of the differences and
its standard error, sqrt(G) times their standard deviation (Vuong 1989). Within two standard errors of the best they
cannot be told apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from irl.report.record import ALL, Record, at
from irl.report.tables import DASH, Table, number, percent, signed

APART = 2.0
"""Standard errors of the paired difference beyond which one discount is said to fit worse than another."""
NOISE = 0.1
"""Nats below which a difference may be what the maximisation leaves."""
LEAST_GROUPS = 100
"""Below so many groups of members no verdict is given. The standard error takes the transition model as known, and
noise in it speaks for little patience. Of panels of a machine that wears out, the true discount was called worse in 19
of 40 (40 members x 8 periods), 5 of 30 (200 x 10), 0 of 20 (1,000 x 20); with the true transition model in 1 of 30
(40 x 8) and 0 of 30 (200 x 10)."""

UNIDENTIFIED = (
    "Choices identify the discount factor only where something moves what follows and not the reward of now (Magnac & "
    "Thesmar 2002); what the panel says here comes from the form of the reward."
)
HOW_TO = "Not looked into yet: scripts/sensitivity.py --run RUN refits at other discounts and rewards of the anchor."


@dataclass(frozen=True)
class Fit:
    """One discount: ``behind`` the best in held-out log-likelihood (nats), and the standard error of that.

    ``penalised`` is the log-likelihood of all choices less effective parameters, behind its best; ``moved`` the mean
    absolute difference of the choice probabilities from the study's (None if that is not there).
    """

    discount: float
    annual: float
    behind: float
    error: float
    penalised: float
    effective: float
    moved: float | None
    converged: bool
    study: bool
    groups: int

    @property
    def tied(self) -> bool:
        """Whether it fits as well as the best, as far as the panel can tell."""
        return self.converged and self.behind <= APART * self.error + NOISE

    @property
    def worse(self) -> bool:
        """Whether the panel speaks against it."""
        return self.converged and not self.tied and self.groups >= LEAST_GROUPS

    @property
    def remark(self) -> str:
        if not self.converged:
            return "not solved to accuracy"
        if self.groups < LEAST_GROUPS:
            return "too few members to say"
        return "worse" if self.worse else "cannot be told from the best"

    @property
    def label(self) -> str:
        return f"{self.annual:.3g}" + (" (study)" if self.study else "")


def profile(record: Record) -> list[Fit]:
    """Every discount tried, from low to high; the best is one whose equations were solved, if any was."""
    points = _discounts(record)
    if not points:
        return []
    year, study = float(record.sensitivity["about"]["periods_per_year"]), record.sensitivity["study"]
    solved = [p for p in points if p["converged"]] or points
    best = max(solved, key=lambda p: math.fsum(p["held_out"]))
    most = max(p["log_likelihood"] - p["effective_parameters"] for p in solved)
    found = []
    for p in points:
        differences = [b - o for b, o in zip(best["held_out"], p["held_out"], strict=True)]
        behind, groups = math.fsum(differences), len(differences)
        squares = math.fsum((d - behind / groups) ** 2 for d in differences)
        found.append(
            Fit(
                discount=p["discount"],
                annual=p["discount"] ** year,
                behind=behind,
                error=math.sqrt(groups / (groups - 1) * squares),
                penalised=most - p["log_likelihood"] + p["effective_parameters"],
                effective=p["effective_parameters"],
                moved=_moved(record, p),
                converged=p["converged"],
                study=p["discount"] == study,
                groups=groups,
            )
        )
    return found


def sentences(record: Record) -> list[str]:
    """What the panel says of the discount, and what a shift of the anchor's reward does, in words."""
    fits = profile(record)
    found = []
    if len(fits) > 1:
        found = [_verdict(fits), *_of_study(fits), UNIDENTIFIED, _movement(record, fits)]
    moved = [m for p in _shifts(record) if p["shift"] and (m := _moved(record, p)) is not None]
    if moved:
        largest = max(abs(p["shift"]) for p in _shifts(record))
        found.append(
            f"Another reward of {record.anchor}, up to {largest:g} away, moves choice probabilities by "
            f"at most {percent(max(moved), 2, unit='')} points on average. In theory a constant shift moves every "
            "reward by as much and no choice, unless states are terminal, contracts bind, or actions lack a constant."
        )
    return found


def cautions(record: Record) -> list[str]:
    """The study's discount if the panel speaks against it, and discounts whose equations were not solved."""
    fits = profile(record)
    unsolved = [f.label for f in fits if not f.converged]
    found = [f"At {', '.join(unsolved)} a year the refit's equations were not solved to accuracy."] if unsolved else []
    return found + (_of_study(fits) if any(f.study and f.worse for f in fits) else [])


def profile_table(record: Record) -> Table | None:
    """How well every discount fits."""
    fits = profile(record)
    if not fits:
        return None
    return Table(
        title="How well each discount factor fits",
        header=(
            "discount, a year",
            "a period",
            "behind the best, held-out members, nats",
            "standard error",
            "behind the best, all members less effective parameters, nats",
            "effective parameters",
            "choices moved, points",
            "remark",
        ),
        rows=tuple(
            (
                f.label,
                number(f.discount, 4),
                number(f.behind, 1),
                number(f.error, 1),
                number(f.penalised, 1),
                number(f.effective, 1),
                percent(f.moved, 2, unit=""),
                f.remark,
            )
            for f in fits
        ),
        flagged=frozenset(i for i, f in enumerate(fits) if not f.converged or (f.study and f.worse)),
        note="Nats: differences of log-likelihoods. Held-out: every member's choices under weights found without that "
        "member's fold; the standard error is that of the paired difference by member, with the transition model taken "
        "as known: noise in it speaks for little patience. Choices moved: mean absolute "
        "difference of choice probabilities from the study's. " + UNIDENTIFIED,
    )


def moves(record: Record) -> tuple[list[float], dict[str, list[float]]]:
    """The annual discounts, and the mean reward of every action at each, over all segments (or the last one)."""
    points, segment = _discounts(record), _whole(record)
    rewards = {action: [float(at(p, "rewards", action, segment)) for p in points] for action in record.paid}
    return [f.annual for f in profile(record)], rewards


def tables_by_discount(record: Record) -> dict[str, Table]:
    """Mean rewards, contributions and coefficients at every discount, by name."""
    points, fits = _discounts(record), profile(record)
    heads = [f.label if f.converged else f"{f.label}, not solved" for f in fits]
    return _tables("discount", "by annual discount factor, in reward units", points, heads, record)


def tables_by_shift(record: Record) -> dict[str, Table]:
    """The same at every shift of the anchor's reward."""
    points = _shifts(record)
    heads = [signed(p["shift"], 2) if p["shift"] else "as in the study" for p in points]
    title = f"by what is added to the reward of {record.anchor}, in reward units"
    return _tables("anchor", title, points, heads, record) if len(points) > 1 else {}


def _tables(
    name: str, title: str, points: Sequence[Mapping[str, Any]], heads: Sequence[str], record: Record
) -> dict[str, Table]:
    if not points:
        return {}
    benefits = record.config.reward.benefits
    named = [(str(c["action"]), str(c["name"])) for c in points[0]["coefficients"]]

    def of(place: str) -> Callable[[Mapping[str, Any], str, str], Any]:
        if place == "rewards":
            return lambda p, action, segment: at(p, place, action, segment)
        if place == "contributions":
            return lambda p, action, benefit: at(p, place, action, _whole(record), benefit)
        return lambda p, action, column: dict(
            zip(named, (c["estimate"] for c in p["coefficients"]), strict=True)
        )[action, column]  # fmt: skip

    wanted = [
        ("rewards", "Mean reward", "segment", [(a, s) for a in record.paid for s in record.segments]),
        ("contributions", "What benefits add", "benefit", [(a, b) for a in record.paid for b in benefits]),
        ("coefficients", "Coefficients", "column", named),
    ]
    found = {}
    for place, what, label, keys in wanted:
        cell = of(place)
        rows = [(*key, *(number(cell(p, *key)) for p in points)) for key in keys]
        rows = [row for row in rows if set(row[2:]) != {DASH}]
        if rows:
            whole = " Over all segments together." if place == "contributions" and _whole(record) == ALL else ""
            note = f"From refits on fewer drawn states than the study's own, without standard errors.{whole}"
            found[f"{place}_by_{name}"] = Table(
                title=f"{what} {title}", header=("action", label, *heads), rows=tuple(rows), labels=2, note=note
            )
    return found


def _verdict(fits: Sequence[Fit]) -> str:
    tried = [f for f in fits if f.converged]
    if fits[0].groups < LEAST_GROUPS:
        return f"{fits[0].groups} groups of members are too few (below {LEAST_GROUPS}) to compare discount factors."
    if len(tried) < 2:
        return "Too few of the discount factors could be solved for to compare them."
    tied, best = [f for f in tried if f.tied], min(tried, key=lambda f: f.behind)
    if len(tied) == len(tried):
        ends = f"{tried[0].annual:.3g} and {tried[-1].annual:.3g}"
        return f"The panel cannot tell annual discount factors between {ends} apart."
    others = [f"{f.annual:.3g}" for f in tied if f is not best]
    but = f", and cannot tell it from {' or '.join(others)}" if others else ""
    worse = " and ".join(f"{f.annual:.3g}" for f in tried if not f.tied)
    return (
        f"The panel favours an annual discount factor of {best.annual:.3g} ({best.discount:.4g} a period){but}; it "
        f"speaks against {worse} (worse by more than {APART:g} standard errors)."
    )


def _of_study(fits: Sequence[Fit]) -> list[str]:
    """One sentence on the study's own discount."""
    own = next((f for f in fits if f.study), None)
    if own is None or not own.converged or own.groups < LEAST_GROUPS:
        return []
    said = f"The study's own discount factor, {own.annual:.3g} a year ({own.discount:.4g} a period),"
    if not own.worse:
        return [f"{said} is among those that cannot be told from the best."]
    return [f"{said} fits worse than the best one tried, by {own.behind:.1f} nats (standard error {own.error:.1f})."]


def _movement(record: Record, fits: Sequence[Fit]) -> str:
    """How much of the headline results moves over the discounts tried."""
    _, rewards = moves(record)
    said = [f"that of “{a}” from {number(r[0])} to {number(r[-1])}" for a, r in rewards.items()]
    moved = [f.moved for f in fits if f.moved is not None]
    most = f", and choice probabilities by at most {percent(max(moved), 2, unit='')} points on average" if moved else ""
    ends = f"{fits[0].annual:.3g} to {fits[-1].annual:.3g} a year"
    return f"From {ends} mean rewards move: {' and '.join(said)}{most}."


def _whole(record: Record) -> str:
    """All segments together, or the last one."""
    return record.segments[-1] if record.segments else ALL


def _discounts(record: Record) -> list[Mapping[str, Any]]:
    found = [p for p in at(record.sensitivity, "points", default=[]) if p["shift"] == 0]
    return sorted(found, key=lambda p: float(p["discount"]))


def _shifts(record: Record) -> list[Mapping[str, Any]]:
    points = at(record.sensitivity, "points", default=[])
    found = [p for p in points if p["discount"] == record.sensitivity["study"]]
    return sorted(found, key=lambda p: float(p["shift"]))


def _moved(record: Record, point: Mapping[str, Any]) -> float | None:
    """Mean absolute difference of the choice probabilities from those at the study's own discount and anchor."""
    own = next((p for p in _shifts(record) if p["shift"] == 0), None)
    if own is None or len(own["probabilities"]) != len(point["probabilities"]):
        return None
    pairs = zip(own["probabilities"], point["probabilities"], strict=True)
    return math.fsum(abs(a - b) for a, b in pairs) / len(own["probabilities"])
