"""What scripts print of a run: the report's segment tables, and what a scenario comes to. Names are shown as they are,
never read as markup."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

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
from irl.report.record import Record, load_answer
from irl.report.tables import Table
from irl.report.truth import Truth, truth_table

WIDTH = 140
"""Columns when the output is not a terminal."""


def printed() -> Console:
    """The standard output."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def print_report(record: Record, truth: Truth | str, *, console: Console | None = None) -> None:
    """Rewards, every scenario's shares and surplus by segment, and what to be careful about."""
    console = console or printed()
    for heading, table in _tables(record, truth):
        if heading:
            console.print(Text(heading, style="bold"))
        if table is not None:
            print_table(table, console=console)
    for caution in words.cautions(record):
        console.print(Text(f"warning: {caution}", style="yellow"))


def print_table(table: Table, *, console: Console | None = None) -> None:
    """One table, its note left out."""
    (console or printed()).print(_rich(table))


def print_answer(folder: Path) -> None:
    """What the scenario answered in ``folder`` comes to: a sentence per case."""
    for sentence in words.headlines(load_answer(folder)):
        print(sentence)


def _tables(record: Record, truth: Truth | str) -> Iterator[tuple[str, Table | None]]:
    """(heading, table) in reading order; either may be empty."""
    yield "", estimates.reward_table(record)
    yield "", estimates.contribution_table(record)
    yield "", estimates.coefficient_table(record)
    for sentence in contracts.sentences(record):
        yield f"  {sentence}", None
    yield "", contracts.contract_table(record)
    yield "", attention.attention_table(record)
    yield "", attention.always_table(record)
    for sentence in attention.sentences(record):
        yield f"  {sentence}", None
    yield "", attribution.attribution_table(record)
    for sentence in attribution.sentences(record):
        yield f"  {sentence}", None
    if record.config.market is not None:
        yield (truth, None) if isinstance(truth, str) else ("", truth_table(truth))
    yield "", sensitivity.profile_table(record)
    for sentence in sensitivity.sentences(record):
        yield f"  {sentence}", None
    yield "", falsification.falsification_table(record)
    for part in backtest.parts(record):
        yield backtest.TITLES[part], None
        for sentence in backtest.sentences(record, part):
            yield f"  {sentence}", None
        for table in backtest.record_tables(record, part)[:3]:
            yield "", table
    for scenario in record.scenarios:
        yield f"Scenario: {scenario.name}", None
        for sentence in changes_in_words(scenario):
            yield f"  {sentence}", None
        for period in answers.last_periods(scenario):
            yield "", answers.share_table(record, scenario, period)
        yield "", answers.whole_table(record, scenario)
        yield "", answers.welfare_table(record, scenario)
        yield "", answers.elasticity_table(record, scenario)
        yield "", answers.anchor_band_table(record, scenario)


def _rich(table: Table) -> RichTable:
    shown = RichTable(title=Text(table.title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(table.header):
        shown.add_column(Text(heading), justify="right" if table.numeric(i) else "left", overflow="fold")
    for i, row in enumerate(table.rows):
        shown.add_row(*(Text(cell) for cell in row), style="red" if i in table.flagged else None)
    return shown
