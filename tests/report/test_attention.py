"""The tables of attention, from made-up metrics."""

from __future__ import annotations

import pytest

from irl.report import load_record, write_latex
from irl.report.assumptions import rests_table
from irl.report.attention import always_table, attention_table
from irl.report.html import page
from irl.report.words import cautions

CELL = {"choices": 12345, "share_default": 0.9, "lambda": 0.3, "se": 0.01, "low": 0.281, "high": 0.32}
WITHOUT = {"choices": 99, "share_default": 0.5, "lambda": 0.9, "se": None, "low": None, "high": None}
CELLS = [{"levels": {"told": "0"}, **CELL}, {"levels": {"told": "1"}, **WITHOUT}]


@pytest.fixture
def attentive(make_run, config, metrics):
    def make(identified_by: str):
        config["data"]["state"]["told"] = {"kind": "category", "dynamics": "learned"}
        config["attention"] = {"default": {"monthly": {"status": ["monthly"]}}, "shifters": ["told"]}
        always = {"monthly": {"north": {"mean": -4.08}, "all": {"mean": -4.5}}}
        found = {"identified_by": identified_by, "mean": 0.482, "cells": CELLS, "reward_always_decided": always}
        metrics["refit"], metrics["refit_always_decided"] = {"log_likelihood": -0.2156}, {"log_likelihood": -0.2311}
        return load_record(make_run(config, metrics | {"attention": found}))

    return make


def test_lambda_what_identifies_it_and_the_answer_without(attentive):
    record = attentive("shifters")
    table = attention_table(record)
    assert table.header[0] == "told"
    assert table.rows == (("0", "12,345", "90.0", "0.300 [0.281, 0.320]"), ("1", "99", "50.0", "0.900"))
    assert "Mean λ 0.48" in table.note and "ratio of the λ" in table.note and not table.flagged
    always = always_table(record)
    assert always.rows == (("monthly", "north", "−0.53", "−4.08"), ("monthly", "all", "−0.57", "−4.50"))
    assert "−0.2156, with λ = 1 −0.2311" in always.note
    row = next(row for row in rests_table(record)[0].rows if "gets the default" in row[0])
    assert "told moves nothing else" in row[0] and row[3] == "λ = 1" and row[4] == "3.93"  # |−4.50 + 0.57|
    html = page(record, "no truth")
    assert "How often members decide at all" in html and "decide in 48 %" in html and "as the shifters tell" in html
    assert {"attention.tex", "always_decided.tex"} <= {path.name for path in write_latex(record)}
    assert not [text for text in cautions(record) if "Attention" in text]


def test_without_a_shifter_it_is_said_what_is_not_identified(attentive):
    record = attentive("form")
    table = attention_table(record)
    assert table.note.count("Not identified") == 1 and "`attention.shifters`" in table.note
    assert table.flagged == {0, 1}
    assert any("form of the model alone" in text for text in cautions(record))


def test_without_attention_there_are_no_such_tables(run):
    record = load_record(run)
    assert attention_table(record) is always_table(record) is None
    assert "decide at all" not in page(record, "no truth")
