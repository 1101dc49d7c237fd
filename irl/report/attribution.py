"""What ``RUN/attribution.json`` says: each benefit's part of what members get over their lifetime, by segment."""

from __future__ import annotations

from typing import Any

from irl.report.estimates import CONDITIONAL
from irl.report.record import Record, at
from irl.report.tables import DASH, Table, estimate, number, percent

PLACES = {"start": "members at their first choice", "visited": "all choices"}
WHAT = {
    "contribution": "Discounted sum, over all periods to come, of the reward as it is less the reward if the benefit "
    "were at its lowest level, as members act under the programme as it is; parts and rest add up to the total "
    "(taste shocks not counted).",
    "removal": "What members would lose in value if the benefit counted as at its lowest level in the reward, and they "
    "chose anew. The reward has interactions between benefits, so that effects do not add up; `reward: {structure: "
    "additive}` gives contributions that do.",
}

INSIDE = (
    " Inside a contract nothing is chosen: a benefit counts there through its level when the contract is signed, which "
    "the lump is a function of, not through its levels in the contract's own periods."
)


def attribution_table(record: Record) -> Table | None:
    """Lifetime contribution (or removal effect) of each benefit by segment."""
    found, benefits = record.attribution, record.config.reward.benefits
    whole = ("rest", "total") if at(found, "kind") == "contribution" else ()
    rows = [
        (
            said,
            segment,
            *(estimate(at(cell, "benefits", name)) for name in benefits),
            *(estimate(cell[k]) for k in whole),
        )
        for place, said in PLACES.items()
        for segment, cell in at(found, place, default={}).items()
    ]
    if not rows:
        return None
    what = "What each benefit contributes" if whole else "What removing each benefit would take away"
    return Table(
        title=f"{what} over a member's lifetime, in reward units",
        header=("mean over", "segment", *benefits, *whole),
        rows=tuple(rows),
        labels=2,
        note=f"{WHAT[found['kind']]} {CONDITIONAL} Also given the fitted dynamics, and the states averaged over."
        + (INSIDE if at(record.metrics, "contracts") else ""),
    )


def share_table(record: Record) -> Table | None:
    """Each benefit's share of what all benefits contribute, and of the total."""
    if at(record.attribution, "kind") != "contribution":
        return None
    benefits = record.config.reward.benefits
    rows = []
    for segment, cell in record.attribution["start"].items():
        for key, said in (("of_benefits", "all benefits"), ("of_total", "the total reward")):
            shares = [at(cell, "benefits", name, key) for name in benefits]
            rows.append((segment, said, *(percent(share, 0, unit="") for share in shares)))
    return Table(
        title="Shares of lifetime contributions, %",
        header=("segment", "share of", *benefits),
        rows=tuple(rows),
        labels=2,
        note=f"Of members at their first choice. {DASH}: what it would be a share of is not surely positive.",
    )


def sentences(record: Record) -> list[str]:
    """For every segment, which benefit counts most, and whether it can be told from the next."""
    return [
        f"{segment}: {_first(cell)}"
        for segment, cell in at(record.attribution, "start", default={}).items()
        if at(cell, "gaps")
    ]


def _first(cell: Any) -> str:
    gap = cell["gaps"][0]
    share = at(cell, "benefits", gap["of"], "of_benefits")
    part = "" if share is None else f" ({percent(share, 0)} of what all benefits do)"
    if at(gap, "low") is None:
        return f"{gap['of']} counts most{part}, {number(gap['mean'])} more than {gap['over']}."
    if gap["low"] > 0:
        return f"{gap['of']} counts most{part}, {estimate(gap)} more than {gap['over']}."
    tied = [gap["of"]]
    for other in cell["gaps"]:
        if other["of"] == gap["of"] and other["low"] <= 0:
            tied.append(other["over"])
    return f"{', '.join(tied[:-1])} and {tied[-1]} cannot be told apart as what counts most."
