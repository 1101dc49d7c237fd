"""What training or ``RUN/falsification.json`` says: each assumption's test, its p-value, and what it cannot see."""

from __future__ import annotations

from irl.report.record import Record, at
from irl.report.tables import DASH, Table, number, probability

LEVEL = 0.05
CLEAR = 3.0
"""Standard errors by which the network must explain held-out choices better before the reward's form is said to miss
something."""
HOW_TO = "Not asked yet: scripts/falsify.py --run RUN tests what the estimate assumes."


def falsification_table(record: Record) -> Table | None:
    """Every test; those that reject at the level, divided by how many were done (Bonferroni), are flagged."""
    checks = at(record.falsification, "checks", default=[])
    if not checks:
        return None
    rejected = _rejected(record)
    rows = [
        (
            c["name"],
            c["null"],
            number(c["statistic"], 1),
            DASH if c["p"] is None else str(c["df"]),
            probability(c["p"]),
            f"not tested: {c['why']}" if c["why"] else c["cannot_see"],
        )
        for c in checks
    ]
    return Table(
        title="What would show the model to be wrong",
        header=("test", "null hypothesis", "χ²", "df", "p", "cannot see"),
        rows=tuple(rows),
        labels=2,
        flagged=frozenset(i for i, c in enumerate(checks) if c["name"] in rejected),
        note=f"Score tests, clustered by member, or as declared. Marked: p below {LEVEL} divided by the number of "
        "tests. A test may be moved by what another one is for; not to be rejected is not to be right.",
    )


def sentences(record: Record) -> list[str]:
    """One for each test that rejects, else one for all; none if it was not asked."""
    done = [c for c in at(record.falsification, "checks", default=[]) if c["p"] is not None]
    if not done or cautions(record):
        return cautions(record)
    return [f"None of {len(done)} tests rejects what the estimate assumes, which does not say that it holds."]


def cautions(record: Record) -> list[str]:
    """One sentence for each test that rejects, and one on reading several; the reward's form, by which they all may be
    moved, first."""
    names, missed = _rejected(record), _missed_by_form(record)
    rejected = [c for c in at(record.falsification, "checks", default=[]) if c["name"] in names]
    said = [f"The panel contradicts that {c['null']} (p {_p(c['p'])}). The test sees {c['sees']}." for c in rejected]
    if missed:
        return missed + said
    if len(rejected) > 1:
        first = min(rejected, key=lambda c: (c["p"], -c["statistic"] / c["df"]))
        said.append(
            f"One thing that is wrong may move several of these {len(rejected)} tests: look first at the strongest, "
            f"{first['name']}, put that right, and test again."
        )
    return said


def _missed_by_form(record: Record) -> list[str]:
    gap, se = (at(record.metrics, "refit", name) for name in ("form_gap", "form_gap_se"))
    if gap is None or not se or gap <= CLEAR * se:
        return []
    return [
        f"The reward's form misses something: the policy network, which has none, explains the choices of held-out "
        f"members better, by {number(gap, 4)} of log-likelihood a choice (standard error {number(se, 4)}). Rewards and "
        "answers to scenarios are off by more than their intervals say, and tests of other assumptions may reject for "
        "that. Offer the reward more: columns that `reward.columns` leaves out, a number as an `ordinal` of levels, "
        "`reward.structure: full`."
    ]


def _p(p: float) -> str:
    said = probability(p)
    return said if said.startswith("<") else f"= {said}"


def _rejected(record: Record) -> set[str]:
    done = [c for c in at(record.falsification, "checks", default=[]) if c["p"] is not None]
    return {c["name"] for c in done if c["p"] < LEVEL / len(done)}
