"""The tables of what was estimated: the anchor's support, rewards, contributions, coefficients; how each step ended.

Standard deviations and percentiles of rewards are spreads over visited states; what stands in brackets is an interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from irl.report.record import Record, at
from irl.report.tables import DASH, Table, estimate, number, percent, probability, scientific

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

CONDITIONAL = (
    "Brackets: 95 % interval, clustered by member, given the discount, logit shocks, the anchor's reward, no hidden "
    "state, and the features."
)
"""What the intervals of rewards are conditional on."""


@dataclass(frozen=True)
class AnchorShare:
    """How often the anchor was chosen in a segment; ``thin`` says why that is little, and is empty if it is not."""

    segment: str
    decisions: int
    share: float
    thin: str
    effective: float | None = None
    smallest: float | None = None
    floored: float | None = None
    overlap: float | None = None


def anchor_shares(record: Record) -> list[AnchorShare]:
    """One per segment of the panel. Of a reference policy the share says little: all its decisions count, by weight."""
    found, one_action = [], record.config.anchor.policy is None
    for segment, counts in at(record.metrics, "panel", "segments", default={}).items():
        decisions, share = int(at(counts, "decisions", default=0)), float(at(counts, "anchor_share", default=math.nan))
        support = at(record.metrics, "support", segment, default={})
        chosen = round(decisions * share) if decisions and math.isfinite(share) else 0
        reasons = []
        if one_action and decisions and not share >= LEAST_ANCHOR_SHARE:
            reasons.append(f"only {percent(share)} of decisions at the anchor (below {percent(LEAST_ANCHOR_SHARE, 0)})")
        if one_action and chosen < LEAST_ANCHOR_DECISIONS:
            reasons.append(f"only {chosen:,} decisions at the anchor (fewer than {LEAST_ANCHOR_DECISIONS})")
        effective, overlap = at(support, "effective_sample"), at(support, "overlap")
        if not reasons and effective is not None and effective < LEAST_EFFECTIVE_SAMPLE:
            reasons.append(f"decisions at the anchor count as {effective:,.0f} (below {LEAST_EFFECTIVE_SAMPLE})")
        floored = at(support, "floored_share")
        if floored is not None and floored > MOST_FLOORED:
            said = f"the anchor is nearly never chosen at {percent(floored)} of decisions (above {MOST_FLOORED:.0%})"
            reasons.append(said)
        if overlap is not None and overlap < LEAST_OVERLAP:
            reasons.append(f"states at the anchor and elsewhere overlap by {percent(overlap, 0)} only")
        smallest = at(support, "smallest_probability")
        thin = " and ".join(reasons)
        found.append(AnchorShare(str(segment), decisions, share, thin, effective, smallest, floored, overlap))
    return found


def anchor_table(record: Record) -> Table | None:
    """Anchor share by segment; thin ones flagged."""
    shares = anchor_shares(record)
    if not shares:
        return None
    title, share = f"How often {record.anchor} (the anchor) was chosen", "at the anchor, % of decisions"
    if record.config.anchor.policy is not None:
        title, share = "How far choices agree with the reference policy (the anchor)", "its weight of the choices, %"
    return Table(
        title=title,
        header=(
            "segment",
            "decisions",
            share,
            "effective sample",
            "smallest P(anchor), %",
            "P(anchor) under 1 %, % of decisions",
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
                percent(s.floored, 1, unit=""),
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
        note="p: two-sided, against 0; standard errors clustered by member, "
        + CONDITIONAL.partition("member, ")[2]
        + _compared(record),
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
        note=f"The hypothesis: all coefficients of features made of the column are 0.{said}{_compared(record)}",
    )


def _compared(record: Record) -> str:
    """What coefficients are of, where it is not the reward itself."""
    first = record.config.data.actions[0]
    return "" if record.config.anchor.action else f" Of the reward of the action less that of “{first}”."


def bootstrap_table(record: Record) -> Table | None:
    """Analytic standard errors beside those of resampled members."""
    found = at(record.bootstrap, "quantities", default=[])
    if not found:
        return None
    replicas, clusters = (int(at(record.bootstrap, key)) for key in ("replicas", "clusters"))
    lost = int(at(record.bootstrap, "unconverged", default=0))
    shrunk = record.config.reward.structure != "linear" or record.config.reward.select
    said = (
        " Rewards are shrunk: the analytic errors allow for that, the spread of the replicas does not."
        if shrunk
        else ""
    )
    said += f" {lost} replicas did not converge." if lost else ""
    return Table(
        title="Standard errors, analytic and by resampling members",
        header=("what", "action", "segment", "estimate", "standard error", "bootstrap", "ratio", "2.5 %", "97.5 %"),
        rows=tuple(
            (
                {"reward": "mean reward", "contribution": f"part of {at(row, 'name')}"}.get(
                    str(at(row, "kind")), str(at(row, "name"))
                ),
                str(at(row, "action")),
                str(at(row, "segment")) or DASH,
                *(number(at(row, key), 3) for key in ("estimate", "se", "bootstrap_se")),
                number(at(row, "ratio"), 2),
                *(number(at(row, key), 3) for key in ("low", "high")),
            )
            for row in found
        ),
        labels=3,
        note=f"{replicas:,} panels of {clusters:,} members or clusters drawn with replacement; dynamics and reward "
        "estimated on each, features and priors as found. Ratio: of the bootstrap's standard error to the analytic, "
        f"known to {percent((2 * replicas) ** -0.5, 0)}. The last columns: percentile interval.{said}",
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
        title="Predicted and observed frequencies of choices, held-out members",
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
