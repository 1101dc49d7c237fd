"""RUN/report.html: one page that needs nothing else, for a reader who did not run the study.

The page has its style and figures inside, loads nothing and runs nothing (its own content policy forbids both),
follows the reader's light or dark setting, and fits a phone: tables scroll within their frame, figures are small panels
that wrap. Everything that comes from data is escaped, and no member's identifier is shown. A section without data is a
sentence.
"""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

import pandas as pd

from irl import runs
from irl.report import (
    answers,
    assumptions,
    attention,
    attribution,
    backtest,
    contracts,
    estimates,
    falsification,
    plots,
    sensitivity,
    tables,
    types,
    words,
)
from irl.report.changes import changes_in_words
from irl.report.curves import HOW_TO_READ, curve_panels, shown_segments
from irl.report.markup import absent, as_table, bullets, cautions, folded, grid, key, section
from irl.report.panel import Panel, series
from irl.report.record import ALL, Record, ScenarioRecord, at
from irl.report.style import STYLE
from irl.report.truth import Truth, truth_table

MOST_PANELS = 12
"""Segments drawn per figure; the tables have them all."""
MOST_CASES = 4
"""Cases of a sweep drawn as paths; the tables have them all."""


def write_report(record: Record, truth: Truth | str) -> Path:
    """Write ``report.html`` into the run's folder, all of it or nothing; the path."""
    path = record.folder / "report.html"
    runs.atomic_write(path, page(record, truth))
    return path


def page(record: Record, truth: Truth | str) -> str:
    """The whole page; ``truth`` is the comparison with known rewards, or why there is none."""
    name = record.folder.resolve().name
    body = [
        _header(record, name),
        section("summary", "In short", bullets(_summary(record, truth))),
        cautions("Read this first", words.cautions(record)),
        _study(record),
        _rewards(record),
        *_attribution(record),
        *(_checked(record, part) for part in backtest.parts(record)),
        *([_truth(record, truth)] if record.config.market is not None else []),
        *_scenarios(record),
        _anchor(record),
        _assumptions(record),
        _falsification(record),
        _steps(record),
        section("limits", "Limits", bullets(words.limits(record))),
        _footer(record),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(name)}: recovered rewards</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(body)}</main>\n</body>\n</html>\n"
    )


def _header(record: Record, name: str) -> str:
    links = [("study", "What was estimated"), ("rewards", "Rewards")]
    if record.attribution:
        links.append(("attribution", "Over a lifetime"))
    links += [(part, backtest.TITLES[part]) for part in backtest.parts(record)]
    if record.config.market is not None:
        links.append(("truth", "Against the truth"))
    links += [(f"scenario-{i}", s.name) for i, s in enumerate(record.scenarios, start=1)]
    links += [
        ("anchor", "The anchor"),
        ("assumptions", "Assumptions"),
        ("tests", "Tests"),
        ("steps", "Estimation"),
        ("limits", "Limits"),
    ]
    items = "".join(f'<li><a href="#{target}">{escape(text)}</a></li>' for target, text in links)
    return (
        f'<header>\n<p class="eyebrow">Run {escape(name)}</p>\n'
        "<h1>What members value, and what they would choose</h1>\n"
        f'<p class="lead">Rewards recovered from {escape(Path(record.config.data.path).name)}.</p>\n'
        f'<nav aria-label="Contents"><ul>{items}</ul></nav>\n</header>\n'
    )


def _summary(record: Record, truth: Truth | str) -> list[str]:
    """What a reader with one minute should know."""
    found = [words.estimated(record)]
    if isinstance(truth, Truth):
        r2 = truth.scores.loc["pooled", "r2"]
        found.append(f"Against the known rewards of the simulated market, R² is {tables.number(r2, 3)}.")
    found += words.adds_most(record)
    found += attention.sentences(record)
    lasting = attribution.sentences(record)
    found += [f"Over a lifetime, {text}" for text in lasting if text.startswith(f"{ALL}: ") or len(lasting) == 1]
    for part in backtest.parts(record):
        found.append(f"{backtest.TITLES[part]}: {' '.join(backtest.sentences(record, part)[:2])}")
    for scenario in record.scenarios:
        found += words.headlines(scenario)
    return found


def _study(record: Record) -> str:
    facts = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in words.facts(record)
    )
    known, unknown = words.identified(record), words.not_identified(record)
    said = (
        f"<h3>What makes the rewards unique</h3><p>{escape(words.identification(record))}</p>"
        f'<div class="sides"><div><h3>Identified, given this</h3>{bullets(known)}</div>'
        f"<div><h3>Not identified</h3>{bullets(unknown)}</div></div>{bullets(contracts.sentences(record))}"
    )
    return section("study", "What was estimated, and from what", f'<dl class="facts">{facts}</dl>\n{said}')


def _rewards(record: Record) -> str:
    table = estimates.reward_table(record)
    if table is None:
        return section("rewards", "Recovered reward", absent("This run has no summary of its rewards."))
    summary = at(record.metrics, "reward_summary", default={})
    rows = [
        {"action": action, "segment": segment, **{k: at(cell, k) for k in ("mean", "p10", "p90")}}
        for action in record.paid
        for segment in record.segments
        if at(cell := at(summary, action, segment), "mean") is not None
    ]
    panels: list[Panel] = []
    if rows:
        frame = pd.DataFrame(rows).astype({k: float for k in ("mean", "p10", "p90")})
        panels = plots.reward_panels(frame, record.paid, record.numbers(record.paid))
    known = f"The {words.reward_of_anchor(record)} is given, not estimated."
    odds = tables.number(math.exp(1 / record.config.temperature), 1)
    unit = f"One reward unit more, all else equal, multiplies the odds of a choice by {odds}."
    bar = "Bar: 10th to 90th percentile over visited states (a spread between states, not a confidence interval)."
    text = f"<p>{escape(f'{unit} {known} Dot: mean. {bar}')}</p>"
    more = [estimates.contribution_table(record), estimates.coefficient_table(record)]
    more += [contracts.contract_table(record), types.type_table(record), types.number_table(record)]
    more += [attention.attention_table(record), attention.always_table(record)]
    shown = "".join(as_table(t) for t in more if t is not None)
    checks = [estimates.wald_table(record), estimates.bootstrap_table(record)]
    opened = "".join(folded(t) for t in checks if t is not None)
    opened += _curves(record)
    return section("rewards", "Recovered reward", f"{text}{grid(panels)}{as_table(table)}{shown}{opened}")


def _curves(record: Record) -> str:
    """The rewards along every state feature, to be opened, an action at a time."""
    segments, shown = shown_segments(record), []
    keys = "".join(key(s, f"var(--c{series(n + 1)})") for n, s in enumerate(segments))
    for action in record.paid:
        panels = curve_panels(record, action)
        if panels:
            said = f'<p class="note">{escape(HOW_TO_READ)}</p><ul class="legend">{keys}</ul>'
            title = f"Reward of “{action}” along each feature of the state"
            shown.append(f"<details><summary>{escape(title)}</summary>{said}{grid(panels)}</details>\n")
    return "".join(shown)


def _attribution(record: Record) -> list[str]:
    table, shares = attribution.attribution_table(record), attribution.share_table(record)
    if table is None:
        return []
    said = bullets(attribution.sentences(record))
    shown = said + as_table(table) + (folded(shares) if shares else "")
    return [section("attribution", "What counts over a lifetime", shown)]


def _checked(record: Record, part: str) -> str:
    """What was forecast and left out of the fit, beside what happened."""
    answer, numbers = record.backtest[part], record.numbers(record.config.data.actions)
    first, *levels = backtest.record_tables(record, part)
    drawn = list(answer["segments"])[:MOST_PANELS]
    panels = plots.forecast_panels(answer, drawn, record.config.data.actions, numbers)
    keys = "".join(key(a, f"var(--c{series(n)})") for a, n in zip(record.config.data.actions, numbers, strict=True))
    keys += key("forecast, and its 95 % interval", "currentColor", dashed=True) + key("observed", "currentColor")
    said = bullets(backtest.sentences(record, part)) + f'<ul class="legend">{keys}</ul>{grid(panels)}'
    shown = as_table(first) + "".join(as_table(t) for t in levels[:2]) + "".join(folded(t) for t in levels[2:])
    return section(part, backtest.TITLES[part], said + shown)


def _truth(record: Record, truth: Truth | str) -> str:
    title = "Against the truth"
    if isinstance(truth, str):
        return section("truth", title, absent(truth))
    panels = plots.truth_panels(truth.estimated, truth.truth, record.paid, record.numbers(record.paid))
    text = "The market is simulated, so its rewards are known. Denser colour: more rows. On the line the two are equal."
    return section("truth", title, f"<p>{escape(text)}</p>{grid(panels)}{as_table(truth_table(truth))}")


def _scenarios(record: Record) -> list[str]:
    if not record.scenarios:
        text = "No scenario has been asked of this run yet: scripts/counterfactual.py answers one."
        return [section("scenarios", "Scenarios", absent(text))]
    return [_scenario(record, scenario, i) for i, scenario in enumerate(record.scenarios, start=1)]


def _scenario(record: Record, scenario: ScenarioRecord, number: int) -> str:
    heading = f"Scenario: {scenario.name}"
    parts = [cautions("Warnings of this scenario", words.scenario_cautions(scenario))]
    parts.append(bullets(changes_in_words(scenario)))
    if not scenario.problem:
        parts.append(f'<p class="quiet">{escape(_how(scenario))}</p>')
        parts.append(bullets(words.anchored(scenario)))
        parts += [_paths(record, scenario, case) for case in scenario.cases[:MOST_CASES]]
        parts += [grid(_gains(record, scenario, case)) for case in scenario.cases[:MOST_CASES]]
        if len(scenario.cases) > MOST_CASES:
            parts.append(absent(f"The other {len(scenario.cases) - MOST_CASES} cases are in the tables."))
        shown = [answers.share_table(record, scenario, period) for period in reversed(answers.last_periods(scenario))]
        shown += [answers.movement_table(record, scenario), answers.whole_table(record, scenario)]
        shown += [answers.welfare_table(record, scenario), answers.elasticity_table(record, scenario)]
        shown += [answers.anchor_band_table(record, scenario)]
        parts += [as_table(table) for table in shown if table is not None]
        more = [answers.use_table(record, scenario), answers.price_coefficient_table(scenario)]
        if scenario.periods:
            more.append(answers.elasticity_table(record, scenario, scenario.periods[-1]))
        more.append(answers.convergence_table(scenario))
        parts += [folded(table) for table in more if table is not None]
    return section(f"scenario-{number}", heading, "".join(parts))


def _how(scenario: ScenarioRecord) -> str:
    members, seconds = at(scenario.metrics, "members"), at(scenario.metrics, "seconds")
    said = [f"{members:,} simulated members"] if members is not None else []
    said += [f"{len(scenario.periods)} choices each"] if scenario.periods else []
    said += [f"answered in {seconds:.0f} s"] if seconds is not None else []
    solved = at(scenario.metrics, "solved", default={})
    if solved:
        done = sum(at(how, "converged") is True for how in solved.values())
        said.append(f"{done} of {len(solved)} policies (baseline and cases) converged")
    return "; ".join(said)[:1].upper() + "; ".join(said)[1:] + "." if said else ""


def _paths(record: Record, scenario: ScenarioRecord, case: str) -> str:
    actions, segments = record.config.data.actions, record.segments
    numbers = record.numbers(actions)
    drawn = segments if len(segments) <= MOST_PANELS else [*segments[: MOST_PANELS - 1], segments[-1]]
    panels = plots.share_panels(scenario, case, drawn, actions, numbers)
    if not panels:
        return absent(f"There are no plan shares of {case}.")
    keys = "".join(key(a, f"var(--c{series(n)})") for a, n in zip(actions, numbers, strict=True))
    keys += key("baseline", "currentColor", dashed=True) + key("scenario", "currentColor")
    left_out = len(segments) - len(drawn)
    note = absent(f"{left_out} more segments are in the tables.") if left_out > 0 else ""
    title = "Plan shares over time" + (f": {case}" if len(scenario.cases) > 1 else "")
    return f'<h3>{escape(title)}</h3><ul class="legend">{keys}</ul>{grid(panels)}{note}'


def _gains(record: Record, scenario: ScenarioRecord, case: str) -> list[Panel]:
    """Revenue and surplus in money of every segment, with intervals."""
    money = answers.currency(scenario)
    shown = {
        "revenue_total": f"Revenue over all periods, {money} per member",
        "surplus_money": f"Members' surplus, {money} per period",
    }
    parts = {name: [scenario.outcome(case=case, segment=s, name=name) for s in record.segments] for name in shown}
    several = f": {case}" if len(scenario.cases) > 1 else ""
    return [
        plots.change_panel(rows, caption + several)
        for (name, caption) in shown.items()
        if not (rows := pd.concat(parts[name])).empty
    ]


def _anchor(record: Record) -> str:
    table = estimates.anchor_table(record)
    if table is None:
        return section("anchor", "The anchor", absent("This run has no counts by segment."))
    shares, support = plots.anchor_panel(estimates.anchor_shares(record), record.anchor), plots.support_panel(record)
    return section("anchor", "The anchor", grid([p for p in (shares, support) if p is not None]) + as_table(table))


def _assumptions(record: Record) -> str:
    title = "What the answers rest on, and how far"
    table, fits = sensitivity.profile_table(record), sensitivity.profile(record)
    rests = "".join(as_table(t) for t in assumptions.rests_table(record))
    rests += "" if record.assumptions else absent(assumptions.HOW_TO)
    if table is None:
        return section("assumptions", title, rests + absent(sensitivity.HOW_TO))
    numbers = record.numbers(record.paid)
    annual, rewards = sensitivity.moves(record)
    by_discount = [plots.profile_panel(fits)]
    by_discount += plots.moves_panels(annual, rewards, numbers, "annual discount factor")
    parts = [rests, bullets(sensitivity.sentences(record)), grid(by_discount), as_table(table)]
    shown = [*sensitivity.tables_by_discount(record).items(), *sensitivity.tables_by_shift(record).items()]
    parts += [as_table(t) if name.startswith("rewards") else folded(t) for name, t in shown]
    return section("assumptions", title, "".join(parts))


def _falsification(record: Record) -> str:
    table = falsification.falsification_table(record)
    shown = absent(falsification.HOW_TO)
    if table is not None:
        shown = bullets(falsification.sentences(record)) + as_table(table)
    return section("tests", "Tests of the assumptions", shown)


def _steps(record: Record) -> str:
    table = estimates.step_table(record)
    if table is None:
        return section("steps", "How the estimation went", absent("This run has no metrics of its steps."))
    steps = [("policy", "P: choice probabilities"), ("anchor_q", "Q: value of the anchor"), ("reward", "R: rewards")]
    panels = plots.loss_panels(record.metrics, [*steps, ("dynamics", "dynamics")])
    losses = f"<details><summary>Held-out loss by epoch</summary>{grid(panels)}</details>" if panels else ""
    calibration = estimates.calibration_table(record)
    calibrated = grid(plots.calibration_panels(record, record.segments[:MOST_PANELS]))
    opened = folded(calibration) if calibration is not None else ""
    if calibrated:
        note = "Dots on the line: as frequent as predicted. Bars: 95 % of the luck of as many choices."
        title = "Are choices as frequent as predicted? Held-out members"
        calibrated = f'<h3>{title}</h3><p class="note">{note}</p>{calibrated}'
    return section("steps", "How the estimation went", as_table(table) + calibrated + opened + losses)


def _footer(record: Record) -> str:
    made = record.provenance
    versions = ", ".join(f"{k} {v}" for k, v in at(made, "versions", default={}).items())
    said = [
        ("trained", at(made, "time")),
        ("on", at(made, "device")),
        ("with", versions),
        ("commit", at(made, "git_commit")),
    ]
    return f"<footer><p>{escape('; '.join(f'{k} {v}' for k, v in said if v))}.</p></footer>\n"
