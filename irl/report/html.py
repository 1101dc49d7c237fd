"""RUN/report.html: one page that needs nothing else, for a reader who did not run the study.

The page has its style and figures inside, loads nothing and runs nothing (its own content policy forbids both),
follows the reader's light or dark setting, and fits a phone: tables scroll within their frame, figures are small panels
that wrap. Everything that comes from data is escaped, and no member's identifier is shown. A section without data is a
sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
from irl.report.plots import Panel
from irl.report.record import Record, ScenarioRecord, at
from irl.report.style import STYLE
from irl.report.tables import Table
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
        _section("summary", "In short", _bullets(_summary(record, truth))),
        _cautions("Read this first", words.cautions(record)),
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
        _section("limits", "Limits", _bullets(words.limits(record))),
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
    if record.config.market is not None:
        links.append(("truth", "Against the truth"))
    if record.attribution:
        links.append(("attribution", "Over a lifetime"))
    links += [(part, backtest.TITLES[part]) for part in backtest.parts(record)]
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
    found += attention.sentences(record)
    for scenario in record.scenarios:
        found += words.headlines(scenario)
    return found


def _study(record: Record) -> str:
    facts = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in words.facts(record)
    )
    said = f"<p>{escape(words.identification(record))}</p>{_bullets(contracts.sentences(record))}"
    return _section("study", "What was estimated, and from what", f'<dl class="facts">{facts}</dl>\n{said}')


def _rewards(record: Record) -> str:
    table = estimates.reward_table(record)
    if table is None:
        return _section("rewards", "Recovered reward", _absent("This run has no summary of its rewards."))
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
        panels = plots.reward_panels(frame, record.paid, _numbers(record, record.paid))
    known = f"The {words.reward_of_anchor(record)} is given, not estimated."
    bar = "Bar: 10th to 90th percentile over visited states (a spread between states, not a confidence interval)."
    text = f"<p>{escape(f'Dot: mean. {bar} {known}')}</p>"
    more = [estimates.contribution_table(record), estimates.coefficient_table(record)]
    more += [contracts.contract_table(record), types.type_table(record), types.number_table(record)]
    more += [attention.attention_table(record), attention.always_table(record)]
    shown = "".join(_table(t) for t in more if t is not None)
    checks = [estimates.wald_table(record), estimates.bootstrap_table(record)]
    folded = "".join(_folded(t) for t in checks if t is not None)
    return _section("rewards", "Recovered reward", f"{text}{_grid(panels)}{_table(table)}{shown}{folded}")


def _attribution(record: Record) -> list[str]:
    table, shares = attribution.attribution_table(record), attribution.share_table(record)
    if table is None:
        return []
    said = _bullets(attribution.sentences(record))
    shown = said + _table(table) + (_folded(shares) if shares else "")
    return [_section("attribution", "What counts over a lifetime", shown)]


def _checked(record: Record, part: str) -> str:
    """What was forecast and left out of the fit, beside what happened."""
    answer, numbers = record.backtest[part], _numbers(record, record.config.data.actions)
    first, *levels = backtest.record_tables(record, part)
    drawn = list(answer["segments"])[:MOST_PANELS]
    panels = plots.forecast_panels(answer, drawn, record.config.data.actions, numbers)
    keys = "".join(
        _key(a, f"var(--c{plots.series(n)})") for a, n in zip(record.config.data.actions, numbers, strict=True)
    )
    keys += _key("forecast, and its 95 % interval", "currentColor", dashed=True) + _key("observed", "currentColor")
    said = _bullets(backtest.sentences(record, part)) + f'<ul class="legend">{keys}</ul>{_grid(panels)}'
    shown = _table(first) + "".join(_table(t) for t in levels[:2]) + "".join(_folded(t) for t in levels[2:])
    return _section(part, backtest.TITLES[part], said + shown)


def _truth(record: Record, truth: Truth | str) -> str:
    title = "Against the truth"
    if isinstance(truth, str):
        return _section("truth", title, _absent(truth))
    panels = plots.truth_panels(truth.estimated, truth.truth, record.paid, _numbers(record, record.paid))
    text = "The market is simulated, so its rewards are known. Denser colour: more rows. On the line the two are equal."
    return _section("truth", title, f"<p>{escape(text)}</p>{_grid(panels)}{_table(truth_table(truth))}")


def _scenarios(record: Record) -> list[str]:
    if not record.scenarios:
        text = "No scenario has been asked of this run yet: scripts/counterfactual.py answers one."
        return [_section("scenarios", "Scenarios", _absent(text))]
    return [_scenario(record, scenario, i) for i, scenario in enumerate(record.scenarios, start=1)]


def _scenario(record: Record, scenario: ScenarioRecord, number: int) -> str:
    heading = f"Scenario: {scenario.name}"
    parts = [_cautions("Warnings of this scenario", words.scenario_cautions(scenario))]
    parts.append(_bullets(words.changes_in_words(scenario)))
    if not scenario.problem:
        parts.append(f'<p class="quiet">{escape(_how(scenario))}</p>')
        parts.append(_bullets(words.anchored(scenario)))
        parts += [_paths(record, scenario, case) for case in scenario.cases[:MOST_CASES]]
        parts += [_grid(_gains(record, scenario, case)) for case in scenario.cases[:MOST_CASES]]
        if len(scenario.cases) > MOST_CASES:
            parts.append(_absent(f"The other {len(scenario.cases) - MOST_CASES} cases are in the tables."))
        shown = [answers.share_table(record, scenario, period) for period in reversed(answers.last_periods(scenario))]
        shown += [answers.movement_table(record, scenario), answers.whole_table(record, scenario)]
        shown += [answers.welfare_table(record, scenario), answers.elasticity_table(record, scenario)]
        shown += [answers.anchor_band_table(record, scenario)]
        parts += [_table(table) for table in shown if table is not None]
        more = [answers.use_table(record, scenario), answers.price_coefficient_table(scenario)]
        if scenario.periods:
            more.append(answers.elasticity_table(record, scenario, scenario.periods[-1]))
        more.append(answers.convergence_table(scenario))
        parts += [_folded(table) for table in more if table is not None]
    return _section(f"scenario-{number}", heading, "".join(parts))


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
    numbers = _numbers(record, actions)
    drawn = segments if len(segments) <= MOST_PANELS else [*segments[: MOST_PANELS - 1], segments[-1]]
    panels = plots.share_panels(scenario, case, drawn, actions, numbers)
    if not panels:
        return _absent(f"There are no plan shares of {case}.")
    keys = "".join(_key(a, f"var(--c{plots.series(n)})") for a, n in zip(actions, numbers, strict=True))
    keys += _key("baseline", "currentColor", dashed=True) + _key("scenario", "currentColor")
    left_out = len(segments) - len(drawn)
    note = _absent(f"{left_out} more segments are in the tables.") if left_out > 0 else ""
    title = "Plan shares over time" + (f": {case}" if len(scenario.cases) > 1 else "")
    return f'<h3>{escape(title)}</h3><ul class="legend">{keys}</ul>{_grid(panels)}{note}'


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


def _key(label: str, colour: str, *, dashed: bool = False) -> str:
    """An entry of a legend."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    line = f'<svg viewBox="0 0 26 10" aria-hidden="true"><path d="M1 5H25" stroke="{colour}"{dash}/></svg>'
    return f"<li>{line}{escape(label)}</li>"


def _anchor(record: Record) -> str:
    table = estimates.anchor_table(record)
    if table is None:
        return _section("anchor", "The anchor", _absent("This run has no counts by segment."))
    panel = plots.anchor_panel(estimates.anchor_shares(record), record.anchor)
    return _section("anchor", "The anchor", _grid([panel]) + _table(table))


def _assumptions(record: Record) -> str:
    title = "What the answers rest on, and how far"
    table, fits = sensitivity.profile_table(record), sensitivity.profile(record)
    rests = "".join(_table(t) for t in assumptions.rests_table(record))
    rests += "" if record.assumptions else _absent(assumptions.HOW_TO)
    if table is None:
        return _section("assumptions", title, rests + _absent(sensitivity.HOW_TO))
    numbers = _numbers(record, record.paid)
    annual, rewards = sensitivity.moves(record)
    by_discount = [plots.profile_panel(fits)]
    by_discount += plots.moves_panels(annual, rewards, numbers, "annual discount factor")
    parts = [rests, _bullets(sensitivity.sentences(record)), _grid(by_discount), _table(table)]
    shown = [*sensitivity.tables_by_discount(record).items(), *sensitivity.tables_by_shift(record).items()]
    parts += [_table(t) if name.startswith("rewards") else _folded(t) for name, t in shown]
    return _section("assumptions", title, "".join(parts))


def _falsification(record: Record) -> str:
    table = falsification.falsification_table(record)
    shown = _absent(falsification.HOW_TO)
    if table is not None:
        shown = _bullets(falsification.sentences(record)) + _table(table)
    return _section("tests", "Tests of the assumptions", shown)


def _steps(record: Record) -> str:
    table = estimates.step_table(record)
    if table is None:
        return _section("steps", "How the estimation went", _absent("This run has no metrics of its steps."))
    steps = [("policy", "P: choice probabilities"), ("anchor_q", "Q: value of the anchor"), ("reward", "R: rewards")]
    panels = plots.loss_panels(record.metrics, [*steps, ("dynamics", "dynamics")])
    losses = f"<details><summary>Held-out loss by epoch</summary>{_grid(panels)}</details>" if panels else ""
    calibration = estimates.calibration_table(record)
    folded = _folded(calibration) if calibration is not None else ""
    return _section("steps", "How the estimation went", _table(table) + folded + losses)


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


def _numbers(record: Record, actions: Sequence[str]) -> list[int]:
    """The colour of each action: 0 for the anchor, the others in the order of the menu."""
    return [record.paid.index(a) + 1 if a in record.paid else 0 for a in actions]


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}">\n<h2>{escape(title)}</h2>\n{body}</section>\n'


def _cautions(title: str, found: Sequence[str]) -> str:
    if not found:
        return ""
    return f'<aside class="warn"><h3>{escape(title)}</h3>{_bullets(found)}</aside>\n'


def _bullets(texts: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def _absent(text: str) -> str:
    return f'<p class="quiet">{escape(text)}</p>\n'


def _grid(panels: Sequence[Panel]) -> str:
    figures = "".join(
        f"<figure>{f'<figcaption>{escape(p.caption)}</figcaption>' if p.caption else ''}"
        f'<div role="img" aria-label="{escape(p.description)}">{p.svg}</div></figure>\n'
        for p in panels
    )
    return f'<div class="grid">{figures}</div>\n' if panels else ""


def _folded(table: Table) -> str:
    return f"<details><summary>{escape(table.title)}</summary>{_table(table, caption=False)}</details>\n"


def _table(table: Table, *, caption: bool = True) -> str:
    head = "".join(f'<th scope="col"{_side(table, i)}>{escape(text)}</th>' for i, text in enumerate(table.header))
    rows = "".join(
        f"<tr{' class=flag' if i in table.flagged else ''}>"
        + "".join(
            f'<th scope="row">{escape(cell)}</th>' if k < table.labels else f"<td{_side(table, k)}>{escape(cell)}</td>"
            for k, cell in enumerate(row)
        )
        + "</tr>\n"
        for i, row in enumerate(table.rows)
    )
    title = f"<h3>{escape(table.title)}</h3>" if caption else ""
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'{title}<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>{note}\n"
    )


def _side(table: Table, column: int) -> str:
    """Numbers stand to the right, words to the left."""
    wordy = any(any(c.isalpha() for c in row[column].replace("e+", "").replace("e−", "")) for row in table.rows)
    return "" if column < table.labels or wordy else ' class="n"'
