"""RUN/model_card.md: the report for those who keep models: what it is, what it rests on, how good it is, its limits.

Markdown as GitHub reads it. What comes from data is escaped, and no member's identifier is shown. Sections after
Mitchell et al. (2019), *Model cards for model reporting*.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from irl import runs
from irl.report import (
    answers,
    attention,
    attribution,
    backtest,
    contracts,
    estimates,
    falsification,
    sensitivity,
    words,
)
from irl.report.changes import changes_in_words
from irl.report.record import Record, ScenarioRecord, at
from irl.report.tables import Table, number, percent
from irl.report.truth import Truth, truth_table
from irl.report.types import number_table, type_table

FOR = (
    "Comparing what the actions are worth to members of a segment, and to which benefits that is due.",
    "Asking what members would choose under another price, menu or programme, with the intervals and warnings given.",
)
NOT_FOR = (
    "Decisions about single members: rewards are those of states, not of persons.",
    "Comparing rewards of different segments in raw units.",
    "Scenarios far from anything in the panel, or prices that never varied for reasons unrelated to taste.",
)


def write_card(record: Record, truth: Truth | str) -> Path:
    """Write ``model_card.md`` into the run's folder, all of it or nothing; the path."""
    path = record.folder / "model_card.md"
    runs.atomic_write(path, card(record, truth))
    return path


def card(record: Record, truth: Truth | str) -> str:
    """The whole card; ``truth`` is the comparison with known rewards, or why there is none."""
    parts = [f"# Model card: {escaped(record.folder.resolve().name)}", escaped(words.estimated(record))]
    for title, body in _sections(record, truth):
        text = "\n\n".join(part for part in body if part)
        if text:
            parts += [f"## {title}", text]
    return "\n\n".join(parts) + "\n"


def _sections(record: Record, truth: Truth | str) -> Iterator[tuple[str, Iterable[str]]]:
    yield "Read this first", [_bullets(words.cautions(record))]
    yield "Intended use", ["For:", _bullets(FOR), "Not for:", _bullets(NOT_FOR)]
    about = Table(title="", header=("what", "value"), rows=tuple(words.facts(record)), labels=2)
    yield "What was estimated, and from what", [markdown(about), _bullets(contracts.sentences(record))]
    known, unknown = words.identified(record), words.not_identified(record)
    said = escaped(words.identification(record))
    yield "Identification", [said, "Identified, given this:", _bullets(known), "Not identified:", _bullets(unknown)]
    yield (
        "Rewards",
        _tables(
            estimates.reward_table(record),
            estimates.contribution_table(record),
            estimates.coefficient_table(record),
            contracts.contract_table(record),
            type_table(record),
            number_table(record),
            attention.attention_table(record),
        ),
    )
    lasting = attribution.attribution_table(record)
    yield "Over a member's lifetime", [_bullets(attribution.sentences(record)), *_tables(lasting)]
    for scenario in record.scenarios:
        yield f"Scenario: {escaped(scenario.name)}", _scenario(record, scenario)
    for part in backtest.parts(record):
        errors = backtest.record_tables(record, part)[:1]
        yield backtest.TITLES[part], [_bullets(backtest.sentences(record, part)), *_tables(*errors)]
    yield "Diagnostics", _diagnostics(record, truth)
    yield "Limits", [_bullets(words.limits(record))]
    yield "Provenance", [_bullets(_provenance(record))]


def _scenario(record: Record, scenario: ScenarioRecord) -> Iterator[str]:
    yield _bullets(changes_in_words(scenario))
    yield _bullets(words.headlines(scenario))
    yield _bullets([*words.anchored(scenario), *(f"Warning: {text}" for text in words.scenario_cautions(scenario))])
    if not scenario.problem:
        shares = [answers.share_table(record, scenario, period) for period in answers.last_periods(scenario)[-1:]]
        yield from _tables(
            *shares, answers.welfare_table(record, scenario), answers.anchor_band_table(record, scenario)
        )


def _diagnostics(record: Record, truth: Truth | str) -> Iterator[str]:
    error = at(record.metrics, "policy", "expected_calibration_error")
    if error is not None:
        yield f"Expected calibration error of the choice probabilities, held-out members: {percent(error, 2)}."
    yield from _tables(estimates.step_table(record), estimates.anchor_table(record))
    if isinstance(truth, Truth):
        yield from _tables(truth_table(truth))
    yield _bullets(sensitivity.sentences(record))
    yield from _tables(falsification.falsification_table(record))


def _provenance(record: Record) -> list[str]:
    made = record.provenance
    found = [(name, at(made, key)) for name, key in (("trained", "time"), ("on", "device"), ("commit", "git_commit"))]
    found += [(name, version) for name, version in at(made, "versions", default={}).items()]
    found += [(f"fingerprint of the {name}", at(made, "about", name)) for name in ("data", "config")]
    seconds = [at(step, "step_seconds", default=0.0) for step in record.metrics.values() if isinstance(step, dict)]
    return [*(f"{name}: {value}" for name, value in found if value), f"seconds of all steps: {number(sum(seconds), 0)}"]


def _tables(*tables: Table | None) -> Iterator[str]:
    for table in tables:
        if table is not None:
            yield f"**{escaped(table.title)}**"
            yield markdown(table)
            yield escaped(table.note)


def markdown(table: Table) -> str:
    """The table in pipes; flagged rows begin with a warning sign. Title and note are left out."""
    sides = ["--:" if table.numeric(i) else ":--" for i in range(len(table.header))]
    lines = [_row(table.header), f"| {' | '.join(sides)} |"]
    for i, row in enumerate(table.rows):
        mark = ("⚠ ",) if i in table.flagged else ("",)
        lines.append(_row((mark[0] + row[0], *row[1:])))
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(escaped(cell) for cell in cells)} |"


def _bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {escaped(text)}" for text in texts)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: no markup, links, tags or table bars; one line."""
    text = re.sub(r"[\\`*<>|$~]", lambda found: f"\\{found[0]}", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # within a word it is no markup
    return " ".join(text.replace("](", "]\\(").split())
