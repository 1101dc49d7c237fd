"""The tables of attention: how often members decide at all, and the rewards if every period had been decided."""

from __future__ import annotations

from irl.report.record import Record, at
from irl.report.tables import DASH, Table, estimate, number, percent

IDENTIFIED = {
    "column": "A column says which periods passed without a decision, so that λ is their share and rests on no form.",
    "shifters": "The shifters move attention and not the reward, so how often the default is left at one level of them "
    "against another gives the ratio of the λ, whatever the reward. Their level rests on more: on λ being a logit, and "
    "on the form of the reward, which says how far leaving the default is a matter of taste. The data by themselves "
    "bound it: no λ is below the share that leaves the default.",
    "form": "Not identified without assuming the form of the reward and logit shocks: no column shows who decided, and "
    "none is declared to move attention alone. Members who do not look, members for whom the default is worth more, "
    "and members who pay to leave it look alike. Rewards of defaults against others (what joining costs) rest on this "
    "λ; intervals do not contain that doubt. Declare `attention.shifters` (a reminder, an expiring card) or "
    "`data.active`.",
}
"""What λ rests on."""


def attention_table(record: Record) -> Table | None:
    """λ by the levels that it depends on; None without attention."""
    found = at(record.metrics, "attention")
    if found is None:
        return None
    assert record.config.attention is not None
    names = record.config.attention.columns
    rows = [
        (
            *(at(cell, "levels", name, default=DASH) for name in names),
            f"{cell['choices']:,}",
            percent(cell["share_default"], unit=""),
            _interval(cell),
        )
        for cell in found["cells"]
    ]
    return Table(
        title="How often members decide at all",
        header=(*names, "choices", "the default happened, %", "λ, the probability of a decision"),
        rows=tuple(rows),
        labels=len(names),
        flagged=frozenset(range(len(rows))) if found["identified_by"] == "form" else frozenset(),
        note="Where a default is declared and available; elsewhere everything is decided. Mean λ "
        f"{number(found['mean'])}. {IDENTIFIED[found['identified_by']]} Brackets: 95 % interval, clustered by member, "
        "given all that.",
    )


def always_table(record: Record) -> Table | None:
    """Mean rewards as estimated, and if members decided every period (λ = 1); None without attention."""
    always = at(record.metrics, "attention", "reward_always_decided")
    if always is None:
        return None
    rows = [
        (action, segment, estimate(at(record.metrics, "reward_summary", action, segment)), number(at(cell, "mean")))
        for action in record.paid
        for segment in record.segments
        if (cell := at(always, action, segment)) is not None
    ]
    likelihoods = [at(record.metrics, step, "log_likelihood") for step in ("refit", "refit_always_decided")]
    return Table(
        title="The same rewards if every period were decided (λ = 1), in reward units",
        header=("action", "segment", "with the estimated λ", "with λ = 1"),
        rows=tuple(rows),
        labels=2,
        note="Means over the visited states where the action is available. With λ = 1 every period in which the "
        "default happened counts as a decision for it, and what keeps members there is taken for cost or taste. "
        f"Log-likelihood per choice {number(likelihoods[0], 4)}, with λ = 1 {number(likelihoods[1], 4)}.",
    )


def sentences(record: Record) -> list[str]:
    """How often members decide, and what says so; none without attention."""
    found = at(record.metrics, "attention")
    if found is None:
        return []
    rests = {
        "column": "as a column tells",
        "shifters": "as the shifters tell",
        "form": "by the form of the model alone",
    }
    said = f"Members decide in {percent(found['mean'], 0)} of the periods in which a default would do it for them"
    return [f"{said}, {rests[found['identified_by']]}."]


def cautions(record: Record) -> list[str]:
    """A sentence if only the form of the model tells inattention from taste."""
    if at(record.metrics, "attention", "identified_by") != "form":
        return []
    return [
        "Attention is told from taste by the form of the model alone: λ, and the rewards of defaults against others, "
        "are not identified otherwise."
    ]


def _interval(cell: dict[str, float | None]) -> str:
    low, high = cell["low"], cell["high"]
    said = number(cell["lambda"], 3)
    return said if low is None or high is None else f"{said} [{number(low, 3)}, {number(high, 3)}]"
