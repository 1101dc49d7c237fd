"""The tables of hidden types: how many members are of each, what tells them apart, and what speaks for their number."""

from __future__ import annotations

from irl.report.record import Record, at
from irl.report.tables import Table, estimate, number, percent


def type_table(record: Record) -> Table | None:
    """Share of the members, reward of every paid action, and what each benefit adds to it, by type; None without."""
    found = at(record.metrics, "types")
    if found is None:
        return None
    benefits = record.config.reward.benefits
    header = [f"reward of {action}" for action in record.paid]
    header += [f"{benefit} adds to {action}" for action in record.paid for benefit in benefits]
    rows = []
    for label, share in found["share"].items():
        cells = [estimate(at(found, "reward", action, label)) for action in record.paid]
        cells += [estimate(at(found, "contributions", action, label, b)) for action in record.paid for b in benefits]
        rows.append((label, percent(share, unit=""), *cells))
    return Table(
        title="Hidden types, in reward units",
        header=("type", "members, %", *header),
        rows=tuple(rows),
        note="Type 1 is the one that most rarely chooses anything but the anchor. Means over the states that members "
        f"of the type visit; a member's likeliest type has a probability of {percent(found['certainty'])} on average. "
        "Brackets: 95 % interval of the mean over these states. No column shows the types: they stand on the form of "
        "the model, logit shocks and all.",
    )


def number_table(record: Record) -> Table | None:
    """Mixtures of one type and more, as fitted without the held-out members; None without hidden types."""
    found = at(record.metrics, "types_start", "by_number")
    if not found:
        return None
    best, fewer = min(row["bic"] for row in found), fewer_would_do(record)
    return Table(
        title="How many hidden types",
        header=("types", "log-likelihood", "of held-out members", "parameters", "BIC above the best"),
        rows=tuple(
            (
                f"{row['types']:.0f}",
                number(row["log_likelihood"], 4),
                number(row["held_out_log_likelihood"], 4),
                number(row["parameters"], 0),
                number(row["bic"] - best, 1),
            )
            for row in found
        ),
        note="Log-likelihoods per choice, the types integrated out, of the mixture that the estimation starts from "
        "(choice probabilities shifted by type, no reward yet). Members held out speak for the number with the "
        "highest; the BIC, which counts members, for the one with 0." + (f" {fewer}" if fewer else ""),
    )


def cautions(record: Record) -> list[str]:
    """That fewer types would do, if they would; and that the likelihood fell, if it did."""
    fell = "The likelihood of the hidden types fell within a round of the refit: take their rewards with care."
    fewer = fewer_would_do(record)
    return ([fewer] if fewer else []) + ([fell] if at(record.metrics, "refit", "monotone") is False else [])


def fewer_would_do(record: Record) -> str | None:
    """What to do if the BIC is best with fewer types than the study has."""
    found, asked = at(record.metrics, "types_start", "by_number", default=[]), at(record.metrics, "types", "number")
    if not found or asked is None:
        return None
    best = int(min(found, key=lambda row: float(row["bic"]))["types"])
    if best >= asked:
        return None
    return f"The data do not call for {asked} hidden types: by the BIC {best} will do. Train with `types: {best}`."
