"""The report's sentences: what was estimated, what identifies it, what to be careful about."""

from __future__ import annotations

import math
from typing import Any

from irl.data.disclosure import said
from irl.report.answers import currency
from irl.report.attention import cautions as attention_cautions
from irl.report.changes import where
from irl.report.estimates import anchor_shares, trained
from irl.report.falsification import cautions as falsification_cautions
from irl.report.record import ALL, Record, ScenarioRecord, at
from irl.report.sensitivity import cautions as sensitivity_cautions
from irl.report.tables import number, percent, signed
from irl.report.types import cautions as type_cautions

LARGEST_CONDITION = 1e14
"""Above this condition number float64 has about two digits left, and the solution rests on the ridge."""
UNEXPLAINED = 0.5
"""Share of the projected residual of a constant that the Q step may leave before the report warns."""
MISFIT = 0.1
"""Share of a number's moves that may lie elsewhere than its fitted distributions say before the report warns."""
STEPS = {"policy": "P", "anchor_q": "Q", "reward": "R", "dynamics": "dynamics", "refit": "refit"}


def estimated(record: Record) -> str:
    """One sentence: what was learned from how much."""
    rows, members = (at(record.metrics, "panel", key) for key in ("rows", "members"))
    counted = f" from {rows:,} rows of {members:,} members" if rows is not None and members is not None else ""
    paid = " and ".join(f"“{a}”" for a in record.paid)
    mean = "the mean under " if record.config.anchor.policy is not None else ""
    verb = "are" if len(record.paid) > 1 else "is"
    return f"What {paid} {verb} worth, relative to {mean}{record.anchor}, was recovered{counted}."


def adds_most(record: Record) -> list[str]:
    """One sentence: the benefit that adds most to the reward of each paid action, on average over all choices."""
    found, said = at(record.metrics, "contributions", default={}), []
    for action in record.paid:
        means = {name: at(cell, "mean") for name, cell in at(found, action, ALL, default={}).items()}
        known = {name: mean for name, mean in means.items() if mean is not None}
        most = max(known, key=lambda name: known[name]) if known else ""
        if most and known[most] > 0:
            said.append(f"“{most}” to “{action}” ({signed(known[most])})")
    return [f"Of the benefits, what adds most, in reward units on average: {', '.join(said)}."] if said else []


def headlines(scenario: ScenarioRecord) -> list[str]:
    """One sentence per case: what happens to membership (else to the share that moves most), and where most."""
    found = [f"{scenario.name}: {scenario.problem}"] if scenario.problem else []
    table = scenario.outcomes[scenario.outcomes["period"].notna()]
    for case in scenario.cases:
        rows, what = table[(table["case"] == case) & (table["outcome"] == "membership")], "members"
        if rows.empty:
            rows = table[(table["case"] == case) & table["outcome"].str.startswith("share_")]
            rows = rows[rows["period"] == rows["period"].max()]
            if rows.empty:
                continue
            name = rows["outcome"][rows["change"].abs().idxmax()]
            rows, what = rows[rows["outcome"] == name], f"“{name.removeprefix('share_')}”"
        last = rows[rows["period"] == rows["period"].max()].set_index("segment")
        parts = last.drop(index=ALL, errors="ignore")
        most = str(parts["change"].abs().idxmax()) if len(parts) else ALL
        whole: Any = last.loc[ALL if ALL in last.index else most]
        within = f" [{signed(100 * whole.low, 1)}, {signed(100 * whole.high, 1)}]" if not math.isnan(whole.low) else ""
        change = f"{signed(100 * whole.change, 1)} points{within}"
        said = f"{percent(whole.baseline)} → {percent(whole.scenario)} ({change})"
        where = f", most in {most} ({signed(100 * parts['change'][most], 1)} points)" if len(parts) > 1 else ""
        named = scenario.name if case == scenario.name else f"{scenario.name}, {case}"
        depends = at(scenario.metrics, "solved", case, "identification", "behaviour") is False
        band = f" {anchored(scenario, case)[0]} See how far under this scenario." if depends else ""
        found.append(
            f"{named}: {what} {said} in period {int(rows['period'].max())}{where}.{_in_money(scenario, case)}{band}"
        )
    return found


def _in_money(scenario: ScenarioRecord, case: str) -> str:
    """What the case does to revenue, margin and surplus of all, as far as they are known; begins with a space."""
    money, table = currency(scenario), scenario.outcomes
    whole = table[(table["case"] == case) & (table["segment"] == ALL) & table["period"].isna()].set_index("outcome")
    over = f"{money} per member over {len(scenario.periods)} periods"
    shown = {
        "revenue_total": ("Revenue", over),
        "margin_total": ("margin", over),
        "surplus_money": ("members' surplus", f"{money} per member and period"),
    }
    said = []
    for name, (what, unit) in shown.items():
        if name in whole.index:
            row: Any = whole.loc[name]
            bounds = "" if math.isnan(row.low) else f" [{signed(row.low, 2)}, {signed(row.high, 2)}]"
            said.append(f"{what} {signed(row.change, 2)}{bounds} {unit}")
    return f" {'; '.join(said)}." if said else ""


def facts(record: Record) -> list[tuple[str, str]]:
    """(what and its unit, value) of the study."""
    config, panel = record.config, at(record.metrics, "panel", default={})
    counted = {
        "rows": "rows, one per member and period",
        "members": "members",
        "transitions": "transitions",
        "gaps": "transitions dropped at gaps",
    }
    found = [(label, f"{at(panel, name):,}") for name, label in counted.items() if at(panel, name) is not None]
    rows, members = at(panel, "rows"), at(panel, "members")
    if rows and members:
        found.insert(2, ("periods per member, on average", f"{rows / members:,.1f}"))
    decisions = sum(int(at(s, "decisions", default=0)) for s in at(panel, "segments", default={}).values())
    if decisions:
        found.append(("decisions, rows with a choice", f"{decisions:,}"))
    sampled = at(panel, "sampling", default={})
    what = {
        "single": "members with one row, which serve choice probabilities only",
        "begun": "members who begin in a state that only follows a choice other than the anchor",
        "ended": "members whose rows end before the panel does",
        "exits": "of them, declared exits",
        "worth": "rows that the weights are worth",
    }
    found += [(label, f"{at(sampled, key):,.0f}") for key, label in what.items() if at(sampled, key)]
    if config.data.entry is not None:
        found.append(("how members entered, as declared", config.data.entry))
    if config.data.until is not None:
        found.append(("last period fitted on", str(config.data.until)))
    if config.data.held_out:
        found.append(("held out", f"members{where(config.data.held_out)}"))
    known = config.anchor.reward
    return [
        *found,
        ("actions", ", ".join(config.data.actions)),
        ("segments", ", ".join(at(panel, "segments", default={})) or "–"),
        _anchor(record),
        ("anchor's reward, reward units", f"column {known}" if isinstance(known, str) else number(known)),
        ("discount γ, per period", f"{config.discount:g}"),
        ("temperature α, reward units", f"{config.temperature:g}"),
        ("seed", str(config.seed)),
    ]


def identification(record: Record) -> str:
    """Why the rewards are what they are, and what they are not, in plain words."""
    config = record.config
    known = config.anchor.reward
    worth = f"given by the column “{known}”" if isinstance(known, str) else f"known to be {number(known)}"
    return (
        f"Choices alone fit many rewards. They become unique once it is given that the {reward_of_anchor(record)} is "
        f"{worth}, that members discount the next period by {config.discount:g}, that their changing tastes are "
        "independent logit shocks, and that nothing unobserved drives both what members choose now and later (no "
        "hidden state). If one of these is wrong, so are the rewards. Only the reward divided by the temperature α is "
        "identified, and α may differ between segments: compare actions within a segment, not raw numbers across "
        "segments."
    )


def identified(record: Record) -> list[str]:
    """What the choices tell, given what is assumed."""
    known = reward_of_anchor(record)
    return [
        f"The reward of every choice relative to the {known}, in units of the temperature, at states like those that "
        "members visit.",
        "What lump-sum changes of rewards and removed actions do to choices, whatever the anchor's reward is.",
        "The surplus of members in money, where a price varied for reasons unrelated to taste.",
    ]


def not_identified(record: Record) -> list[str]:
    """What is assumed or declared, and what no choice can tell."""
    gamma = record.config.discount
    most = number((1 + gamma) / (1 - gamma), 0)
    return [
        f"The {reward_of_anchor(record)}: declared. If it is off by δ in some states, rewards are off by up to "
        f"{most} δ there and elsewhere, and so are answers to scaled rewards and changed dynamics.",
        f"The discount factor γ = {gamma:g} and the temperature α = {record.config.temperature:g}: assumed. Some "
        "panels can tell discount factors apart: scripts/sensitivity.py looks.",
        "Levels of values; rewards of one segment against another's in raw units.",
        "Tastes that no column shows, apart from habit and the price of switching"
        + (", beyond the declared hidden types." if record.config.types.number > 1 else ", unless types are declared."),
    ]


def reward_of_anchor(record: Record) -> str:
    """Whose reward is known."""
    return f"{'mean reward under' if record.config.anchor.policy is not None else 'reward of'} {record.anchor}"


def _anchor(record: Record) -> tuple[str, str]:
    """What kind of anchor it is, and which."""
    anchor, actions = record.config.anchor, record.config.data.actions
    if anchor.policy is None:
        return "anchor, its reward is known", anchor.action or record.anchor
    weights = [(a, w) for a, w in zip(actions, anchor.weights(actions), strict=True) if w != 0]
    said = [f"{a} as column “{w}” says" if isinstance(w, str) else f"{a} {w:g}" for a, w in weights]
    what = "uniform over the menu" if anchor.policy == "uniform" else ", ".join(said)
    return "reference policy, its mean reward is known", what


def limits(record: Record) -> list[str]:
    """What the numbers do not say."""
    found = [
        "Lasting differences in taste that no column shows are not modelled: they appear as habit, as the price "
        "of switching, or as the value of whatever loyal members use.",
        "Rewards at states that few members visit are extrapolated by the networks, and so is a far-off scenario.",
        "Whether members were sampled by what they chose cannot be seen, unless weights say so; nor whether they leave "
        "the data because of what would have followed.",
        "A removed action's members spread over the others in proportion (independence of irrelevant alternatives).",
        "Price effects are as good as the price test: they need prices that vary for reasons unrelated to taste.",
    ]
    if record.scenarios and not any(_bounded(s) for s in record.scenarios):
        noise = "small differences may be noise of estimation or simulation"
        found.insert(0, f"These scenarios carry no intervals: {noise}.")
    if record.config.market is not None:
        found.insert(0, "The members are simulated: segments, tastes and prices are invented, and describe no market.")
    return found


def cautions(record: Record) -> list[str]:
    """Everything that went wrong or rests on little, one sentence each, what is about the fits last; empty if nothing
    did."""
    found = [f"Segment {s.segment}: {s.thin}." for s in anchor_shares(record) if s.thin]
    found += [
        f"{text[0].upper()}{text[1:]}." for text in at(record.metrics, "panel", "sampling", "warnings", default=[])
    ]
    found += withheld(record)
    found += type_cautions(record)
    found += sensitivity_cautions(record)
    found += falsification_cautions(record)
    found += attention_cautions(record)
    for scenario in record.scenarios:
        found += [f"Scenario “{scenario.name}”: {text}" for text in scenario_cautions(scenario)]
    return found + _step_cautions(record)


def _step_cautions(record: Record) -> list[str]:
    """What went wrong in the estimation's steps."""
    found = []
    for step, label in STEPS.items():
        metrics = at(record.metrics, step, default={})
        if at(metrics, "fell_back"):
            found.append(
                f"The {label} step's equations were not solved to accuracy; fitted iteration (`solver: fqi`) was used."
            )
        elif at(metrics, "converged") is False:
            found.append(f"The {label} step's equations were not solved to accuracy (`converged` is false).")
        condition = at(metrics, "condition")
        if condition is not None and not condition < LARGEST_CONDITION:
            found.append(f"The {label} step's equations are nearly singular (condition number {condition:.0e}).")
        left = at(metrics, "unexplained")
        if left is not None and left > UNEXPLAINED:
            shown = "those shown are the refit's, which values choices anew"
            if not record.config.estimation.refit.rounds:
                shown = "give the panel more members, or the study a refit (`estimation.refit.rounds`)"
            found.append(
                f"The {label} step, by which rewards are found first, left {percent(left)} of a constant value's "
                f"residual unexplained (held-out members), so that these first rewards rest on little: {shown}."
            )
        for name, apart in at(metrics, "misfit", default={}).items():
            if apart > MISFIT:
                found.append(
                    f"“{name}” does not move as the transition model says: up to {percent(apart)} of its moves lie "
                    "elsewhere. Where it may jump, declare it as an `ordinal` of levels; scenarios that rest on its "
                    "moves are off."
                )
        losses = [x for x in at(trained(metrics), "history", default=[]) if isinstance(x, (int, float))]
        if any(not math.isfinite(x) for x in losses):
            found.append(f"The {label} step's held-out loss was not finite in some epoch.")
    return found


def withheld(record: Record) -> list[str]:
    """Which segments have no figures, since they have few members."""
    parts = (at(record.metrics, "panel"), record.attribution, *record.backtest.values())
    return list(dict.fromkeys(text for part in parts for text in said(at(part, "withheld", default={}))))


def scenario_cautions(scenario: ScenarioRecord) -> list[str]:
    """The warnings of one scenario, and its solves that did not converge."""
    found = [scenario.problem] if scenario.problem else []
    found += said(at(scenario.metrics, "withheld", default={}))
    for label, how in at(scenario.metrics, "solved", default={}).items():
        if at(how, "converged") is False:
            found.append(
                f"the policy of {label} did not converge: its probabilities still changed by "
                f"{at(how, 'policy_change', default=math.nan):.1e} on average after {at(how, 'rounds')} rounds."
            )
        found += [str(text) for text in at(how, "warnings", default=[])]
    found += [str(text) for text in at(scenario.metrics, "money", "notes", default=[])]
    own = (text.removeprefix(f"{scenario.name}: ") for text in found)  # a single case is called as the scenario is
    return list(dict.fromkeys(text if text.endswith(".") else f"{text}." for text in own))


def anchored(scenario: ScenarioRecord, case: str | None = None) -> list[str]:
    """What does and does not depend on the anchor's reward, of one case or of all, each sentence once."""
    cases = scenario.cases if case is None else [case]
    said = [at(scenario.metrics, "solved", label, "identification", "why") for label in cases]
    return [f"{text[0].upper()}{text[1:]}." for text in dict.fromkeys(said) if text]


def _bounded(scenario: ScenarioRecord) -> bool:
    return bool(scenario.outcomes["low"].notna().any())
