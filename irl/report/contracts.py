"""What is known of contracts, which run to their end: the lump, and how it falls apart if that is declared."""

from __future__ import annotations

from irl.report.record import Record, at
from irl.report.tables import Table, estimate, number, percent


def sentences(record: Record) -> list[str]:
    """One for each action that is somewhere all there is to choose."""
    said = []
    for action, found in at(record.metrics, "contracts", default={}).items():
        inside = f"“{action}” is all there is to choose in {percent(found['share'], 0)} of the rows, inside a contract"
        lump = (
            f"the reward of “{action}” where it is chosen is the lump of all periods to the next choice, discounted; "
            "a benefit counts in it through its level at signing"
        )
        declared = record.config.reward.same_flow_as.get(action)
        if declared is None:
            said.append(
                f"{inside}: {lump}. What it gives in a single period inside is not identified, and scenarios that need "
                f"it are refused or say so; `reward: {{same_flow_as: {{{action}: ...}}}}` declares it."
            )
        else:
            said_at = [f"{name} {value}" for name, value in declared.at.items()]
            said_at += [f"and {number(declared.add)} more"] if declared.add else []
            at_ = ", ".join(said_at)
            said.append(
                f"{inside}: {lump}. That its periods give what “{declared.action}” gives in the same state"
                f"{f' ({at_})' if at_ else ''} is declared, not found; choices do not speak about it."
            )
    forced = at(record.metrics, "contracts", default={})
    said += [
        f"`same_flow_as` names “{action}”, which is nowhere all there is to choose: it changes nothing."
        for action in record.config.reward.same_flow_as
        if action not in forced and "contracts" in record.metrics
    ]
    return said


def assumed(record: Record) -> list[str]:
    """What is assumed of a period inside each contract."""
    found = at(record.metrics, "contracts", default={})
    return [
        f"A period inside a contract of “{action}” gives what “{one['like']}” gives."
        if one["like"]
        else f"A period inside a contract of “{action}” gives what it gave: the lump stays."
        for action, one in found.items()
    ]


def contract_table(record: Record) -> Table | None:
    """How the lump of every contract whose flow is declared falls apart, by segment."""
    rows = []
    for action, found in at(record.metrics, "contracts", default={}).items():
        for segment, cell in found["segments"].items():
            parts = [number(cell[key]) for key in ("lump", "flows", "signing")]
            rows.append((action, segment, number(cell["periods"], 1), estimate(cell["flow"]), *parts))
    if not rows:
        return None
    return Table(
        title="Contracts, in reward units",
        header=("action", "segment", "periods", "flow inside, per period", "lump", "of it flows", "of it signing"),
        rows=tuple(rows),
        labels=2,
        note="The flow is that of the action declared in `same_flow_as`, a mean over the rows inside the contract. "
        "Lump, its discounted flows, and the rest, which is paid or felt when signing: means over the states in which "
        "it can be signed. Brackets: 95 % interval, given the declaration.",
    )
