"""The tables of hidden types, from made-up metrics."""

from __future__ import annotations

from dataclasses import replace

from irl.report import load_record, write_latex
from irl.report.html import page
from irl.report.types import number_table, type_table
from irl.report.words import cautions

CELL = {"mean": 0.5, "se": 0.1, "low": 0.304, "high": 0.696}
TYPES = {
    "number": 2,
    "share": {"1": 0.25, "2": 0.75},
    "certainty": 0.9,
    "reward": {"monthly": {"1": CELL}, "annual": {"2": {"mean": -2.0}}},
    "contributions": {"annual": {"2": {"price": CELL}}},
}
BY_NUMBER = [
    {"types": k, "log_likelihood": -0.5, "held_out_log_likelihood": -0.6, "parameters": 10 * k, "bic": bic}
    for k, bic in ((1, 120.0), (2, 100.0))
]


def test_types_and_their_number(make_run, config, metrics):
    config["reward"] = {"benefits": ["price"]}
    metrics |= {"types": TYPES, "types_start": {"by_number": BY_NUMBER}}
    record = load_record(make_run(config, metrics))
    table = type_table(record)
    assert table.header[2:] == (
        "reward of monthly",
        "reward of annual",
        "price adds to monthly",
        "price adds to annual",
    )
    assert table.rows[0] == ("1", "25.0", "0.50 [0.30, 0.70]", "–", "–", "–")
    assert table.rows[1] == ("2", "75.0", "–", "−2.00", "–", "0.50 [0.30, 0.70]")
    assert "probability of 90.0 % on average" in table.note
    assert [row[-1] for row in number_table(record).rows] == ["20.0", "0.0"]
    html = page(record, "no truth")
    assert "Hidden types" in html and "How many hidden types" in html
    assert {"types.tex", "number_of_types.tex"} <= {path.name for path in write_latex(record)}


def test_a_report_says_when_fewer_types_would_do(make_run, config, metrics):
    said = "do not call for 2 hidden types: by the BIC 1 will do. Train with `types: 1`."
    record = load_record(make_run(config, metrics))
    for bic, holds in (((120.0, 100.0), False), ((99.0, 100.0), True)):
        table = [row | {"bic": b} for row, b in zip(BY_NUMBER, bic, strict=True)]
        found = replace(record, metrics=metrics | {"types": TYPES, "types_start": {"by_number": table}})
        assert any(said in text for text in cautions(found)) == holds == (said in number_table(found).note)
    found = replace(record, metrics=metrics | {"refit": {"monotone": False}})
    assert any("likelihood of the hidden types fell" in text for text in cautions(found))


def test_without_types_there_are_no_such_tables(run):
    record = load_record(run)
    assert type_table(record) is number_table(record) is None
    assert "idden types" not in page(record, "no truth")
