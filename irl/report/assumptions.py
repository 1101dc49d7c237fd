"""What each answer rests on: every normalisation, exclusion and form, whether it was tested, and how far answers move.

Rows are assumptions, in the order in which they narrow down the reward. How far rewards move is told by
``sensitivity.json`` (discount, anchor's reward) and by what a run found of its members (types, attention); how far
scenarios move by ``assumptions.json`` (variants), by the bands of the anchor's reward, and by the nests tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from irl.report import contracts
from irl.report.falsification import LEVEL
from irl.report.record import ALL, Record, at
from irl.report.tables import DASH, Table, number, percent, probability, signed

HOW_TO = (
    "How far scenarios move is not looked into yet: scripts/assumptions.py --run RUN answers them again at other "
    "discounts (those of scripts/sensitivity.py) and by other runs (--against)."
)
SURPLUS = "surplus"


def rests_table(record: Record) -> list[Table]:
    """The assumptions, and the scenarios' answers under each variant; the second where there are any."""
    rows = [_row(record, *each) for each in _assumptions(record)]
    first = Table(
        title="What the answers rest on",
        header=(
            "assumption",
            "what rests on it",
            "tested, p",
            "relaxed to",
            "mean rewards move by, at most",
            "plan shares of scenarios, points",
            "surplus of scenarios",
        ),
        rows=tuple(rows),
        labels=1,
        note="Moves are the largest over actions, segments and cases, from the answer as estimated, of what was tried; "
        "rewards and surplus per period in reward units; shares in the last period (for the anchor's reward, means "
        f"over the periods). A dash: not tried, or nothing to try. Tests reject below {LEVEL} divided by their number.",
    )
    second = _answers_table(record)
    return [first] if second is None else [first, second]


def _assumptions(record: Record) -> list[tuple[str, str, str, str, float | None, float | None, float | None]]:
    """(assumption, what rests on it, test, relaxed to, move of rewards, of shares, of surplus)."""
    config, annual = record.config, _annual(record)
    prices = [name for name, feature in config.data.state.items() if feature.assigned == "randomised"]
    alike = ", alike for all plans" if config.money and config.money.one_coefficient and len(prices) > 1 else ""
    nests, band, nothing = _nests(record), _bands(record), (None, None, None)
    return [
        (
            f"The discount factor is {number(config.discount, 4)} a period.",
            "All rewards and all answers: behaviour fits nearly as well at others.",
            "discount",
            f"{min(annual):.3g} to {max(annual):.3g} a year" if annual else "",
            _moved(record, lambda p: not p["shift"]),
            *_variants(record, "discount"),
        ),
        (
            f"The reward of {record.anchor} is {config.anchor.reward}.",
            "The level of all rewards; scenarios that scale rewards or change dynamics.",
            "anchor",
            f"up to {_largest_shift(record):g} more or less" if _largest_shift(record) else "",
            _moved(record, lambda p: bool(p["shift"])),
            *band,
        ),
        (
            "Taste shocks are logit, independent over actions and periods.",
            "How actions replace each other: new and removed ones first.",
            "iia",
            "shared shocks of an added action" if nests[0] is not None else "",
            None,
            *nests,
        ),
        (
            _attention_said(record),
            "Rewards of joining and staying: who did not decide has shown no taste.",
            "attention",
            ", ".join(["λ = 1"] * (record.config.attention is not None) + _labels(record, "attention")),
            _at_full_attention(record),
            *_variants(record, "attention"),
        ),
        (
            _types_said(record),
            "What a benefit adds: who uses it may also like it.",
            "hidden types",
            _others(record, "types"),
            None,
            *_variants(record, "types"),
        ),
        *(
            (said, "Scenarios that change what periods inside contracts give, or what moves there.", "", "", *nothing)
            for said in contracts.assumed(record)
        ),
        (
            "Rewards and dynamics stay as they are.",
            "Everything that is said of later periods.",
            "stationarity",
            "",
            None,
            None,
            None,
        ),
        (
            f"The reward is {config.reward.structure} in {', '.join(config.reward.columns) or 'all columns'}.",
            "Effects of what varies little, and of combinations that are rare.",
            "",
            _others(record, "reward"),
            None,
            *_variants(record, "reward"),
        ),
        (
            f"{', '.join(prices)} varied for reasons unrelated to taste, and counts where it is paid{alike}."
            if prices
            else "No price is declared to have varied at random.",
            "Price scenarios and everything in money.",
            "money" if alike else "",
            _others(record, "money"),
            None,
            *_variants(record, "money"),
        ),
    ]


def _row(
    record: Record,
    assumption: str,
    rests: str,
    test: str,
    relaxed: str,
    rewards: float | None,
    shares: float | None,
    surplus: float | None,
) -> tuple[str, ...]:
    checks = {c["name"]: c["p"] for c in at(record.falsification, "checks", default=[])}
    found = (number(rewards), percent(shares, 2, unit=""), number(surplus, 3))
    return assumption, rests, probability(checks.get(test)), relaxed or DASH, *found


def _answers_table(record: Record) -> Table | None:
    """The last period's membership (else every share) and the surplus, over all segments, by variant."""
    answers = at(record.assumptions, "answers", default=[])
    labels = list(at(record.assumptions, "variants", default={}))
    if not answers or not labels:
        return None
    found: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for answer in answers:
        for row in answer["rows"]:
            key = (answer["scenario"], row["case"], row["segment"], row["outcome"])
            found.setdefault(key, {})[answer["variant"]] = row["change"]
    members = {key[:2] for key in found if key[3] == "membership"}
    rows = []
    for (scenario, case, segment, outcome), values in found.items():
        whole = segment == ALL or len(record.segments) == 1
        if whole and (outcome == "membership" or (scenario, case) not in members):
            cells = (signed(100 * values[v], 2) if v in values else DASH for v in ("", *labels))
            rows.append((scenario, case, outcome.removeprefix("share_"), *cells))
    differs = "; ".join(f"{label}: {_differences(each)}" for label, each in record.assumptions["variants"].items())
    return Table(
        title="Scenarios under other assumptions: change in the last period, percentage points, all segments",
        header=("scenario", "case", "share of", "as estimated", *labels),
        rows=tuple(rows),
        labels=3,
        note=f"Without intervals, on the same simulated members. {differs}.",
    )


def _differences(differs: dict[str, tuple[Any, Any]]) -> str:
    shown = [f"{place} {theirs} instead of {ours}" for place, (ours, theirs) in list(differs.items())[:3]]
    return ", ".join(shown) + (f" and {len(differs) - 3} more" if len(differs) > 3 else "")


def _variants(record: Record, option: str) -> tuple[float | None, float | None]:
    """The largest move of a share and of a surplus under the variants that differ in this option."""
    labels = _labels(record, option)
    base, moves = {}, []
    for answer in at(record.assumptions, "answers", default=[]):
        for row in answer["rows"]:
            key = (answer["scenario"], row["case"], row["segment"], row["outcome"])
            if not answer["variant"]:
                base[key] = row["change"]
            elif answer["variant"] in labels:
                moves.append((key, row["change"]))
    by = [(key[3] == SURPLUS, abs(change - base[key])) for key, change in moves if key in base]
    return _most(m for surplus, m in by if not surplus), _most(m for surplus, m in by if surplus)


def _labels(record: Record, option: str) -> list[str]:
    variants = at(record.assumptions, "variants", default={})
    return [label for label, differs in variants.items() if any(p.split(".")[0] == option for p in differs)]


def _others(record: Record, option: str) -> str:
    return ", ".join(_labels(record, option))


def _bands(record: Record) -> tuple[float | None, float | None]:
    """How far shares and surplus reach in the bands of the anchor's reward."""
    moves = []
    for scenario in record.scenarios:
        for case in scenario.cases:
            for name, by in at(scenario.metrics, "solved", case, "anchor_band", "outcomes", default={}).items():
                for change, low, high in by.values():
                    moves.append((name == SURPLUS, max(change - low, high - change)))
    return _most(m for surplus, m in moves if not surplus), _most(m for surplus, m in moves if surplus)


def _nests(record: Record) -> tuple[float | None, float | None]:
    """How far apart the cases of a scenario are that differ in the nest of an added action alone."""
    spans: dict[tuple[str, ...], list[float]] = {}
    for scenario in record.scenarios:
        for case in scenario.cases:
            head, nested, _ = case.rpartition(" nest ")
            rows = scenario.outcomes[scenario.outcomes["case"] == case] if nested else scenario.outcomes[:0]
            rows = rows[rows["outcome"].isin([SURPLUS]) | rows["outcome"].str.startswith("share_")]
            places = rows[["segment", "outcome", "period"]].astype(str).itertuples(index=False)
            for place, change in zip(places, rows["change"].astype(float), strict=True):
                spans.setdefault((scenario.folder, head, *place), []).append(change)
    spread = [(key[3] == SURPLUS, max(v) - min(v)) for key, v in spans.items() if len(v) > 1]
    return _most(m for surplus, m in spread if not surplus), _most(m for surplus, m in spread if surplus)


def _moved(record: Record, which: Callable[[Any], bool]) -> float | None:
    """The largest move of a mean reward over the points of sensitivity.json."""
    points = at(record.sensitivity, "points", default=[])
    own = next((p for p in points if not p["shift"] and p["discount"] == record.sensitivity.get("study")), None)
    if own is None:
        return None
    return _most(
        abs(p["rewards"][a][s] - mean)
        for p in points
        if p is not own and p["converged"] and which(p)
        for a, by in own["rewards"].items()
        for s, mean in by.items()
        if mean is not None and at(p, "rewards", a, s) is not None
    )


def _annual(record: Record) -> list[float]:
    year = at(record.sensitivity, "about", "periods_per_year", default=1.0)
    points = at(record.sensitivity, "points", default=[])
    return [p["discount"] ** year for p in points if not p["shift"] and p["converged"]]


def _largest_shift(record: Record) -> float:
    return max((abs(p["shift"]) for p in at(record.sensitivity, "points", default=[])), default=0.0)


def _types_said(record: Record) -> str:
    number_of = record.config.types.number
    return "No tastes are hidden." if number_of == 1 else f"Hidden tastes come in {number_of} types."


def _attention_said(record: Record) -> str:
    if record.config.attention is None:
        return "Every member decides in every period."
    shifters = record.config.attention.shifters
    return "Who does not decide gets the default" + (
        f"; {', '.join(shifters)} moves nothing else." if shifters else "."
    )


def _at_full_attention(record: Record) -> float | None:
    """How far mean rewards would be from what was found if everybody decided, where attention was estimated."""
    always = at(record.metrics, "attention", "reward_always_decided", default={})
    return _most(
        abs(cell["mean"] - at(record.metrics, "reward_summary", action, segment, "mean"))
        for action, by in always.items()
        for segment, cell in by.items()
    )


def _most(values: Iterable[float]) -> float | None:
    return max(values, default=None)
