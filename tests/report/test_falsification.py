"""What the report says of falsification.json."""

from __future__ import annotations

import pytest

from irl import runs
from irl.report import load_record, write_latex
from irl.report.falsification import falsification_table, sentences
from irl.report.html import page
from irl.report.words import cautions


def check(name, p, why=""):
    done = {"statistic": None if p is None else 9.87, "df": 2 if p is not None else 0, "p": p, "why": why}
    return {"name": name, "null": f"no {name}", "sees": f"{name}", "cannot_see": f"other than {name}", **done}


@pytest.fixture
def tested(run):
    def write(*checks):
        runs.write_json(run / "falsification.json", {"panel": "x", "seconds": 1.0, "checks": list(checks)})
        return load_record(run)

    return write


def test_every_test_has_its_row_and_says_what_it_cannot_see(tested):
    record = tested(check("drift", 0.02), check("types", 0.00004), check("anchor", None, "no environment"))
    table = falsification_table(record)
    assert table.rows[0] == ("drift", "no drift", "9.9", "2", "0.020", "other than drift")
    assert table.rows[2][2:] == ("–", "–", "–", "not tested: no environment")
    assert table.flagged == {0, 1}  # two were done: below .025
    assert "Tests of the assumptions" in page(record, "no truth") and "other than drift" in page(record, "no truth")
    assert "falsification" in {path.stem for path in write_latex(record)}


def test_what_is_rejected_is_a_caution(tested):
    record = tested(check("drift", 0.03), check("types", 0.00004))
    said = "The panel contradicts that no types (p < 0.001). The test sees types."
    assert sentences(record) == [said] and said in cautions(record)


def test_nothing_rejected_is_not_approval(tested, run):
    record = tested(check("drift", 0.03), check("types", 0.4))
    assert sentences(record) == [
        "None of 2 tests rejects what the estimate assumes, which does not say that it holds."
    ] and not any("contradicts" in c for c in cautions(record))


def test_a_run_that_was_not_asked_says_how(run):
    record = load_record(run)
    assert falsification_table(record) is None and sentences(record) == []
    assert "scripts/falsify.py" in page(record, "no truth")


def test_of_several_rejections_the_strongest_is_named(tested):
    record = tested(check("drift", 1e-6), check("types", 1e-9), check("iia", 0.4))
    found = sentences(record)
    assert len(found) == 3 and "move several of these 2 tests: look first at the strongest, types" in found[-1]


def test_a_form_that_misses_something_comes_before_the_tests_that_it_moves(tested, run):
    metrics = runs.read_json(run / runs.LAST)
    for gap, said in ((0.06, True), (0.0025, False)):
        refit = metrics.get("refit", {}) | {"form_gap": gap, "form_gap_se": 0.001}
        runs.write_json(run / runs.LAST, metrics | {"refit": refit})
        found = cautions(tested(check("drift", 1e-6), check("types", 1e-9)))
        assert any("The reward's form misses something" in text and "0.0600" in text for text in found) == said
        assert any("look first at the strongest" in text for text in found) != said
