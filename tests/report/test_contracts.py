"""What the report says of contracts, from made-up metrics."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from irl.report import load_record, write_latex
from irl.report.contracts import contract_table, sentences
from irl.report.html import page
from irl.report.terminal import print_report

CELL = {"flow": {"mean": 1.5, "se": 0.1, "low": 1.304, "high": 1.696}, "lump": 8.0, "flows": 10.0, "signing": -2.0}
FOUND = {"annual": {"share": 0.4, "like": None, "segments": {}}}


def test_undeclared_flows_are_not_identified_and_that_is_said(make_run, config, metrics):
    record = load_record(make_run(config, metrics | {"contracts": FOUND}))
    (said,) = sentences(record)
    assert "40 % of the rows" in said and "not identified" in said and "same_flow_as: {annual" in said
    assert contract_table(record) is None
    html = page(record, "no truth")
    assert "not identified, and scenarios" in html and "gives what it gave: the lump stays" in html
    shown = StringIO()
    print_report(record, "no truth", console=Console(file=shown, width=400))
    assert "not identified, and scenarios" in shown.getvalue()


def test_declared_flows(make_run, config, metrics):
    config["reward"] = {"same_flow_as": {"annual": {"action": "monthly", "at": {"status": "in"}, "add": 0.5}}}
    found = {"annual": FOUND["annual"] | {"like": "monthly", "segments": {"north": CELL | {"periods": 12.0}}}}
    record = load_record(make_run(config, metrics | {"contracts": found}))
    assert "(status in, and 0.50 more) is declared, not found" in sentences(record)[0]
    table = contract_table(record)
    assert table.rows == (("annual", "north", "12.0", "1.50 [1.30, 1.70]", "8.00", "10.00", "−2.00"),)
    html = page(record, "no truth")
    assert "Contracts, in reward units" in html and "contract of “annual” gives what “monthly” gives" in html
    assert "contracts.tex" in {path.name for path in write_latex(record)}


def test_without_contracts_there_is_nothing_to_say(make_run, config, metrics):
    config["reward"] = {"same_flow_as": {"annual": "monthly"}}
    record = load_record(make_run(config, metrics | {"contracts": {}}))
    assert "changes nothing" in sentences(record)[0] and contract_table(record) is None
