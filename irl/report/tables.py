"""The numbers of the report as tables of text, for page and terminal alike; and the recovery of a known reward.

Every heading carries its unit. Shares are in per cent, their changes in percentage points; rewards and surplus are in
reward units (the logit shock's scale is the temperature). A value that is missing is a dash.

Standard deviations and percentiles of rewards are spreads over visited states; what stands in brackets is an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from irl.report.record import Record, ScenarioRecord, at

LEAST_ANCHOR_SHARE = 0.05
"""Below this share of decisions at the anchor, log pi(anchor) rests on rare events; errors grow by gamma/(1-gamma)."""
LEAST_ANCHOR_DECISIONS = 200
"""Below so many decisions at the anchor, its value in a segment is learned mostly from other segments."""
LEAST_EFFECTIVE_SAMPLE = 200
"""Below this effective number of decisions at the anchor, a few rare ones carry the anchor's value."""
MOST_FLOORED = 0.05
"""Above this share of decisions with a probability of the anchor below 1 %, the Q step rests on its floor."""
LEAST_OVERLAP = 0.2
"""Below this overlap, states at the anchor and elsewhere are so different that the anchor's value is extrapolated."""
A_YEAR = 11
"""The twelfth simulated choice, shown besides the last: a year where periods are months."""
DASH = "–"
CONDITIONAL = (
    "Brackets: 95 % interval, clustered by member, given the discount, logit shocks, the anchor's reward, no hidden "
    "state, and the features."
)
"""What the intervals of rewards are conditional on."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text in rows and columns: the first ``labels`` columns name the row, ``flagged`` rows are warnings."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1
    flagged: frozenset[int] = frozenset()
    note: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows), f"{self.title}: ragged rows"


@dataclass(frozen=True)
class AnchorShare:
    """How often the anchor was chosen in a segment; ``thin`` says why that is little, and is empty if it is not."""

    segment: str
    decisions: int
    share: float
    thin: str
    effective: float | None = None
    smallest: float | None = None
    overlap: float | None = None


def anchor_shares(record: Record) -> list[AnchorShare]:
    """One per segment of the panel."""
    found = []
    for segment, counts in at(record.metrics, "panel", "segments", default={}).items():
        decisions, share = int(at(counts, "decisions", default=0)), float(at(counts, "anchor_share", default=math.nan))
        chosen = round(decisions * share) if decisions and math.isfinite(share) else 0
        reasons = []
        if decisions and not share >= LEAST_ANCHOR_SHARE:
            reasons.append(f"only {percent(share)} of decisions at the anchor (below {percent(LEAST_ANCHOR_SHARE, 0)})")
        if chosen < LEAST_ANCHOR_DECISIONS:
            reasons.append(f"only {chosen:,} decisions at the anchor (fewer than {LEAST_ANCHOR_DECISIONS})")
        support = at(record.metrics, "support", segment, default={})
        effective, overlap = at(support, "effective_sample"), at(support, "overlap")
        if not reasons and effective is not None and effective < LEAST_EFFECTIVE_SAMPLE:
            reasons.append(f"decisions at the anchor count as {effective:,.0f} (below {LEAST_EFFECTIVE_SAMPLE})")
        if at(support, "floored_share", default=0.0) > MOST_FLOORED:
            floored = percent(at(support, "floored_share"))
            reasons.append(f"the anchor is nearly never chosen at {floored} of decisions (above {MOST_FLOORED:.0%})")
        if overlap is not None and overlap < LEAST_OVERLAP:
            reasons.append(f"states at the anchor and elsewhere overlap by {percent(overlap, 0)} only")
        smallest = at(support, "smallest_probability")
        found.append(AnchorShare(str(segment), decisions, share, " and ".join(reasons), effective, smallest, overlap))
    return found


def anchor_table(record: Record) -> Table | None:
    """Anchor share by segment; thin ones flagged."""
    shares = anchor_shares(record)
    if not shares:
        return None
    return Table(
        title=f"How often “{record.config.anchor.action}” (the anchor) was chosen",
        header=(
            "segment",
            "decisions",
            "at the anchor, % of decisions",
            "effective sample",
            "smallest P(anchor), %",
            "overlap, %",
            "remark",
        ),
        rows=tuple(
            (
                s.segment,
                f"{s.decisions:,}",
                percent(s.share, unit=""),
                number(s.effective, 0),
                percent(s.smallest, 2, unit=""),
                percent(s.overlap, 0, unit=""),
                s.thin or "enough",
            )
            for s in shares
        ),
        flagged=frozenset(i for i, s in enumerate(shares) if s.thin),
        note=f"Flagged below {percent(LEAST_ANCHOR_SHARE, 0)} of decisions, {LEAST_ANCHOR_DECISIONS} decisions or an "
        f"effective {LEAST_EFFECTIVE_SAMPLE} at the anchor, {percent(LEAST_OVERLAP, 0)} overlap, or above "
        f"{percent(MOST_FLOORED, 0)} of decisions with P(anchor) under 1 %: there the rewards rest on few observations "
        "of the one choice whose reward is known. Effective sample: decisions at the anchor, weighted to stand for all "
        "visited states. Overlap: of the states visited at the anchor and elsewhere.",
    )


def reward_table(record: Record) -> Table | None:
    """Recovered reward of every action but the anchor by segment, over the visited states where it is available."""
    summary = at(record.metrics, "reward_summary", default={})
    rows = []
    for action in record.paid:
        for segment in record.segments:
            cell = at(summary, action, segment)
            if cell is not None:
                spread = [number(at(cell, key)) for key in ("sd", "p10", "p50", "p90")]
                share = percent(at(cell, "share_available"), unit="")
                rows.append((action, segment, estimate(cell), *spread, share))
    if not rows:
        return None
    return Table(
        title="Recovered reward by action and segment, in reward units",
        header=("action", "segment", "mean", "sd", "10th pct.", "median", "90th pct.", "available, % of rows"),
        rows=tuple(rows),
        labels=2,
        note="Per choice, over the visited states where the action is available. The sd and the percentiles are the "
        f"spread over states, not a confidence interval. {CONDITIONAL} Only the reward divided by the temperature is "
        "identified, and the scale of the shocks may differ between segments: compare actions within a segment.",
    )


def contribution_table(record: Record) -> Table | None:
    """What each benefit adds to the reward of every action, by segment."""
    found = at(record.metrics, "contributions", default={})
    benefits = record.config.reward.benefits
    rows = [
        (action, segment, *(estimate(at(found, action, segment, benefit)) for benefit in benefits))
        for action in record.paid
        for segment in record.segments
        if at(found, action, segment) is not None
    ]
    if not rows:
        return None
    return Table(
        title="What each benefit adds to the reward, in reward units",
        header=("action", "segment", *benefits),
        rows=tuple(rows),
        labels=2,
        note="Mean over the visited states where the action is available: the reward as it is less the reward if the "
        f"benefit were at its lowest level and all else the same. {CONDITIONAL} What a benefit adds is not what its "
        "removal would change: members would choose differently.",
    )


def coefficient_table(record: Record) -> Table | None:
    """The coefficients of a linear reward."""
    found = at(record.metrics, "coefficients", default=[])
    if not found:
        return None
    return Table(
        title="Coefficients of the reward, in reward units per unit of the column",
        header=("action", "column", "estimate", "standard error", "z", "p"),
        rows=tuple(
            (
                str(at(row, "action")),
                str(at(row, "name")),
                *(number(at(row, key), 4) for key in ("estimate", "se")),
                number(at(row, "z"), 2),
                probability(at(row, "p")),
            )
            for row in found
        ),
        labels=2,
        note="p: two-sided, against 0; standard errors clustered by member, " + CONDITIONAL.partition("member, ")[2],
    )


def wald_table(record: Record) -> Table | None:
    """Whether the reward depends on each column at all."""
    found = at(record.metrics, "wald", default=[])
    if not found:
        return None
    shrunk = record.config.reward.structure != "linear" or record.config.reward.select
    said = " Coefficients are shrunk, so that these tests are only indicative." if shrunk else ""
    return Table(
        title="Does the reward depend on the column? Wald tests",
        header=("action", "column", "χ²", "degrees of freedom", "p"),
        rows=tuple(
            (
                str(at(row, "action")),
                str(at(row, "column")),
                number(at(row, "chi2"), 1),
                str(at(row, "df")),
                probability(at(row, "p")),
            )
            for row in found
        ),
        labels=2,
        note=f"The hypothesis: all coefficients of features made of the column are 0.{said}",
    )


def step_table(record: Record) -> Table | None:
    """How each estimation step ended."""
    what = {
        "policy": ("P: choice probabilities", "held_out_loss", "nats per decision (negative log-likelihood)"),
        "anchor_q": ("Q: value of the anchor", "held_out_loss", "of the target's variance (squared distance)"),
        "reward": ("R: rewards", "held_out_loss", "of the targets' variance (squared error)"),
        "dynamics": ("dynamics: how states move", "held_out_log_prob", "nats per transition (mean log-likelihood)"),
        "refit": ("refit: rewards by likelihood", "held_out_log_likelihood", "nats per decision (mean log-likelihood)"),
    }
    rows = []
    for step, (label, key, unit) in what.items():
        metrics = at(record.metrics, step)
        if metrics is None:
            continue
        loop = trained(metrics)
        held_out = at(metrics, key, default=at(loop, key))
        best = at(loop, "best_epoch")
        rows.append((
            label,
            f"{number(held_out, 3)} {unit}" if held_out is not None else DASH,
            f"{at(loop, 'epochs')} ({best + 1})" if best is not None else DASH,
            number(at(metrics, "bellman_residual"), 3),
            scientific(at(metrics, "condition")),
            number(at(metrics, "step_seconds", default=at(loop, "seconds")), 1),
        ))  # fmt: skip
    if not rows:
        return None
    return Table(
        title="How each step ended",
        header=(
            "step",
            "on held-out members",
            "epochs (best)",
            "Bellman residual, reward units",
            "condition number",
            "s",
        ),
        rows=tuple(rows),
        labels=2,
        note="The Bellman residual is a root mean square on held-out rows; it contains the spread of what follows a "
        "state, so it does not go to zero. Losses compare runs on the same data.",
    )


def calibration_table(record: Record) -> Table | None:
    """Predicted choice probabilities against frequencies, on held-out members."""
    bins = at(record.metrics, "policy", "calibration", "all", default=[])
    if not bins:
        return None
    error = at(record.metrics, "policy", "expected_calibration_error")
    return Table(
        title="Are predicted choices as frequent as predicted? Held-out members",
        header=("predicted, %", "observed, %", "choices offered"),
        rows=tuple(
            (
                percent(at(b, "predicted"), unit=""),
                percent(at(b, "observed"), unit=""),
                number(at(b, "choices"), 0),
            )
            for b in bins
        ),
        note="Every action on the menu of every decision, by the probability that the P step gives it. Expected "
        f"calibration error, the mean difference: {percent(error, 2)}.",
    )


def trained(metrics: Any) -> Any:
    """The training loop's part of a step's metrics: nested under ``trained``, or the metrics themselves."""
    return at(metrics, "trained", default=metrics)


def last_periods(scenario: ScenarioRecord) -> list[int]:
    """The periods to show: the twelfth choice if it was simulated, and the last."""
    periods = scenario.periods
    return sorted({p for p in (A_YEAR, periods[-1]) if p in periods}) if periods else []


def share_table(record: Record, scenario: ScenarioRecord, period: int) -> Table | None:
    """Plan shares and membership at one period, baseline -> scenario."""
    columns = [(f"share_{a}", period, f"{a}, %") for a in record.config.data.actions] + [
        ("membership", period, "members, %")
    ]
    return _beside(record, scenario, columns, f"Plan shares at period {period} (choice {period + 1})", note=CHANGES)


def movement_table(record: Record, scenario: ScenarioRecord) -> Table | None:
    """Joining, leaving, staying at the last period, and survival."""
    if not scenario.periods:
        return None
    last = scenario.periods[-1]
    columns: list[tuple[str, int, str]] = [
        ("join", last, "join, % of non-members"),
        ("cancel", last, "cancel, % of members"),
        ("switch", last, "switch plan, % of members"),
        ("renewal", last, "renew, % of members"),
    ]
    survival = scenario.outcomes.loc[scenario.outcomes["outcome"] == "survival", "period"].dropna()
    for after in sorted({p for p in (A_YEAR + 1, survival.max()) if p in set(survival)}):
        columns.append(("survival", int(after), f"still a member {int(after)} periods after joining, %"))
    title = f"Joining, leaving and staying: rates per period at period {last}, and survival"
    return _beside(record, scenario, columns, title, note=CHANGES)


def use_table(record: Record, scenario: ScenarioRecord) -> Table | None:
    """Means of the learned features at the last period, in their own units."""
    found = [str(n) for n in scenario.outcomes["outcome"].unique() if str(n).startswith("use_")]
    if not found or not scenario.periods:
        return None
    last = scenario.periods[-1]
    columns = [(name, last, name.removeprefix("use_")) for name in found]
    title = f"Mean of each feature at period {last}, in its own units (levels count from 0)"
    return _beside(
        record, scenario, columns, title, scale=1.0, digits=2, note="Baseline → scenario (change{interval})."
    )


def welfare_table(record: Record, scenario: ScenarioRecord) -> Table | None:
    """Surplus and gainers by segment; the baseline is zero by definition."""
    by_key = _by_key(scenario)
    rows = []
    for segment in record.segments:
        for case in scenario.cases:
            surplus, gainers = (by_key.get((case, segment, o, None)) for o in ("surplus", "gainers"))
            if surplus is not None or gainers is not None:
                cells = (_single(surplus, 1.0, 3), _single(gainers, 100.0, 1))
                rows.append((*_row_labels(scenario, case, segment), *cells))
    if not rows:
        return None
    labels = _label_header(scenario)
    return Table(
        title="What members gain or lose",
        header=(*labels, "surplus, reward units per period", "better off, % of members"),
        rows=tuple(rows),
        labels=len(labels),
        note="Surplus is the mean change of members' expected value, before they see their shocks, per period. Better "
        "off: by more than 0.001 reward units per period.",
    )


def convergence_table(scenario: ScenarioRecord) -> Table | None:
    """How the optimal policy of the baseline and of every case was found."""
    solved = at(scenario.metrics, "solved", default={})
    if not solved:
        return None
    rows = tuple(
        (
            label,
            "yes" if at(how, "converged") else "NO",
            str(at(how, "rounds", default=DASH)),
            scientific(at(how, "policy_change")),
            scientific(at(how, "condition")),
            "changed" if at(how, "changes_dynamics") else "as estimated",
        )
        for label, how in solved.items()
    )
    return Table(
        title="How it was solved",
        header=("case", "converged", "rounds", "last change of probabilities", "condition number", "dynamics"),
        rows=rows,
        flagged=frozenset(i for i, row in enumerate(rows) if row[1] == "NO"),
    )


CHANGES = "Baseline → scenario (change in percentage points{interval}). Both are simulated from the model."


def _beside(
    record: Record,
    scenario: ScenarioRecord,
    columns: Sequence[tuple[str, int, str]],
    title: str,
    *,
    scale: float = 100.0,
    digits: int = 1,
    note: str,
) -> Table | None:
    """``columns`` (outcome, period, heading) side by side, a row per segment and case; empty ones are left out."""
    by_key = _by_key(scenario)
    present = {key[2:] for key in by_key}
    columns = [column for column in columns if column[:2] in present]
    rows, bounded = [], False
    for segment in record.segments:
        for case in scenario.cases:
            found = [by_key.get((case, segment, name, period)) for name, period, _ in columns]
            if any(row is not None for row in found):
                bounded = bounded or any(row is not None and _interval(row, scale, digits) for row in found)
                rows.append((*_row_labels(scenario, case, segment), *(_pair(row, scale, digits) for row in found)))
    if not rows:
        return None
    labels = _label_header(scenario)
    return Table(
        title=title,
        header=(*labels, *(heading for _, _, heading in columns)),
        rows=tuple(rows),
        labels=len(labels),
        note=note.format(interval=" and its interval" if bounded else ""),
    )


def _by_key(scenario: ScenarioRecord) -> dict[tuple[str, str, str, int | None], Any]:
    """(case, segment, outcome, period or None) -> row of the outcomes table."""
    rows: list[Any] = list(scenario.outcomes.itertuples(index=False))
    return {(r.case, r.segment, r.outcome, None if pd.isna(r.period) else int(r.period)): r for r in rows}


def _label_header(scenario: ScenarioRecord) -> tuple[str, ...]:
    return ("segment", "case") if len(scenario.cases) > 1 else ("segment",)


def _row_labels(scenario: ScenarioRecord, case: str, segment: str) -> tuple[str, ...]:
    return (segment, case) if len(scenario.cases) > 1 else (segment,)


def _pair(row: Any, scale: float, digits: int) -> str:
    if row is None:
        return DASH
    interval = _interval(row, scale, digits)
    both = f"{number(row.baseline * scale, digits)} → {number(row.scenario * scale, digits)}"
    return f"{both}{chr(10) if interval else ' '}({signed(row.change * scale, digits)}{interval})"


def _single(row: Any, scale: float, digits: int) -> str:
    if row is None:
        return DASH
    return (signed if scale == 1.0 else number)(row.scenario * scale, digits) + _interval(row, scale, digits)


def _interval(row: Any, scale: float, digits: int) -> str:
    """`` [low, high]`` if the table carries bounds, else nothing."""
    if pd.isna(row.low) or pd.isna(row.high):
        return ""
    return f" [{signed(row.low * scale, digits)}, {signed(row.high * scale, digits)}]"


def recovery(estimated: pd.DataFrame, truth: pd.DataFrame, cells: Sequence[Any] | pd.Series) -> pd.DataFrame:
    """How well rewards are recovered where the truth is known: per action and pooled.

    Parameters
    ----------
    estimated, truth : rewards of the visited rows [N], the same columns (one per action, without the anchor) in any
        order; NaN where an action is not available. A pair (row, action) counts where both are known.
    cells : label of each row [N], e.g. segment × status.

    Returns
    -------
    Index: the actions, then ``pooled``. Columns: ``pairs``, ``rmse`` and ``sd`` (of the truth) in reward units,
    ``r2`` = 1 - SSE / SST around the mean, and ``within`` = 1 - SSE / SST around the mean of each cell and action.
    SSE is sum (estimated - truth)^2 in both, so an estimate that misses a cell's mean loses ``within`` too. NaN where
    SST is 0.
    """
    if len(estimated) != len(truth) or len(cells) != len(truth) or set(estimated) != set(truth):
        raise ValueError("estimated, truth and cells must have the same rows, and the frames the same actions")
    cell = [str(c) for c in cells]
    parts = []
    for action in estimated.columns:
        pairs = pd.DataFrame({"h": estimated[action].to_numpy(float), "y": truth[action].to_numpy(float), "cell": cell})
        parts.append(pairs.assign(action=str(action)).dropna(subset=["h", "y"]))
    pooled = pd.concat(parts, ignore_index=True)
    pooled["cell_mean"] = pooled.groupby(["action", "cell"])["y"].transform("mean")
    scores = {action: _scores(pooled[pooled["action"] == str(action)]) for action in estimated.columns}
    return pd.DataFrame({**scores, "pooled": _scores(pooled)}).T.astype({"pairs": int})


def _scores(pairs: pd.DataFrame) -> dict[str, float]:
    h, y, cell_mean = (pairs[name].to_numpy() for name in ("h", "y", "cell_mean"))
    if not len(y):
        return {"pairs": 0, "rmse": math.nan, "sd": math.nan, "r2": math.nan, "within": math.nan}
    sse = float(((h - y) ** 2).sum())

    def explained(total: float) -> float:
        return 1 - sse / total if total > 1e-12 * len(y) else math.nan

    return {
        "pairs": len(y),
        "rmse": math.sqrt(sse / len(y)),
        "sd": float(y.std()),
        "r2": explained(float(((y - y.mean()) ** 2).sum())),
        "within": explained(float(((y - cell_mean) ** 2).sum())),
    }


def number(value: Any, digits: int = 2) -> str:
    """A number with a true minus sign and thousands separated; a dash if it is missing."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-")


def estimate(cell: Any, digits: int = 2) -> str:
    """``mean [low, high]`` of a finding; without the bounds where there are none."""
    bounds = [at(cell, key) for key in ("low", "high")]
    said = "" if None in bounds else f" [{number(bounds[0], digits)}, {number(bounds[1], digits)}]"
    return number(at(cell, "mean"), digits) + said


def probability(p: Any) -> str:
    """A p-value."""
    return DASH if p is None or not math.isfinite(p) else ("< 0.001" if p < 0.001 else f"{p:.3f}")


def signed(value: Any, digits: int = 2) -> str:
    """As :func:`number`, with a plus sign where it is positive."""
    text = number(value, digits)
    return f"+{text}" if text != DASH and value > 0 and any(c in "123456789" for c in text) else text


def percent(share: Any, digits: int = 1, *, unit: str = " %") -> str:
    """A share in per cent."""
    return DASH if share is None or not math.isfinite(share) else number(100 * share, digits) + unit


def scientific(value: Any) -> str:
    """A number of which the order of magnitude counts."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.1e}".replace("e-", "e−")
