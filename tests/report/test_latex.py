"""Tables of estimates in the report and as LaTeX."""

from __future__ import annotations

from irl.report import load_record, write_latex
from irl.report.estimates import coefficient_table, contribution_table, reward_table, wald_table
from irl.report.latex import latex
from irl.report.tables import Table, estimate, probability

FOUND = {"mean": 0.5, "se": 0.1, "low": 0.304, "high": 0.696}


def with_findings(config, metrics):
    config["reward"] = {"structure": "linear", "benefits": ["price"]}
    metrics["reward_summary"]["monthly"]["north"] |= FOUND
    metrics["contributions"] = {"annual": {"south": {"price": FOUND}}}
    metrics["coefficients"] = [
        {"action": "annual", "name": "price", "estimate": -0.25, "se": 0.0625, "z": -4.0, "p": 6e-5},
        {"action": "annual", "name": "constant", "estimate": 1.0, "se": None, "z": None, "p": None},
    ]
    metrics["wald"] = [{"action": "annual", "column": "price", "chi2": 16.0, "df": 1, "p": 6e-5}]
    return config, metrics


def test_estimates_carry_their_interval(make_run, config, metrics):
    record = load_record(make_run(*with_findings(config, metrics)))
    assert reward_table(record).rows[0][2] == "0.50 [0.30, 0.70]"
    assert reward_table(record).rows[1][2] == "−0.61"  # no standard error there
    assert "95 % interval" in reward_table(record).note
    assert contribution_table(record).rows == (("annual", "south", "0.50 [0.30, 0.70]"),)
    coefficients = coefficient_table(record)
    assert coefficients.rows[0] == ("annual", "price", "−0.2500", "0.0625", "−4.00", "< 0.001")
    assert coefficients.rows[1][3:] == ("–", "–", "–")
    assert wald_table(record).rows == (("annual", "price", "16.0", "1", "< 0.001"),)
    assert "only indicative" not in wald_table(record).note


def test_without_findings_there_are_no_such_tables(run):
    record = load_record(run)
    assert contribution_table(record) is coefficient_table(record) is wald_table(record) is None
    assert [p.name for p in write_latex(record)] == ["rewards.tex"]


def test_shrunk_tests_say_so(make_run, config, metrics):
    config, metrics = with_findings(config, metrics)
    config["reward"] = {"benefits": ["price"]}
    assert "only indicative" in wald_table(load_record(make_run(config, metrics))).note


def test_latex_is_escaped_and_complete(make_run, config, metrics):
    record = load_record(make_run(*with_findings(config, metrics)))
    paths = write_latex(record)
    assert [p.stem for p in paths] == ["rewards", "contributions", "coefficients", "wald"]
    text = (record.folder / "tables" / "coefficients.tex").read_text(encoding="utf-8")
    assert r"annual & price & $-$0.2500 & 0.0625 & $-$4.00 & $<$ 0.001 \\" in text
    assert text.count(r"\begin{tabular}{llrrrr}") == text.count(r"\end{tabular}") == 1
    table = Table(title="x", header=("a_b", "50 %"), rows=(("c & d", r"\e"),))
    assert latex(table).splitlines()[3:6] == [r"a\_b & 50 \% \\", r"\midrule", r"c \& d & \textbackslash{}e \\"]


def test_small_things():
    assert estimate(None) == "–" and estimate({"mean": 1.0}) == "1.00"
    assert probability(None) == "–" and probability(0.0004) == "< 0.001" and probability(0.25) == "0.250"
