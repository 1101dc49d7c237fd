"""The model card: its sections, and that names from data cannot be markup."""

from __future__ import annotations

from irl.report import load_record, write_card
from irl.report.card import card, escaped, markdown
from irl.report.tables import Table

HOSTILE = "a|b <script>x</script> [go](http://x) *_bold_* `c` $d$"


def test_the_card_says_what_it_is_what_it_rests_on_and_what_it_is_not_for(run, scenario, add_scenario, make_outcomes):
    add_scenario(run, scenario, make_outcomes(("Dearer annual plan",)))
    path = write_card(load_record(run), "not compared")
    assert path == run / "model_card.md" and list(run.glob(".*.tmp")) == []
    text = path.read_text(encoding="utf-8")
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "Intended use", "What was estimated, and from what", "Identification", "Rewards",
        "Scenario: Dearer annual plan", "Diagnostics", "Limits", "Provenance",
    ]  # fmt: skip
    assert text.startswith("# Model card: run\n") and text.count("\n# ") == 0
    assert "| discount γ, per period | 0.9 |" in text and "up to 19 δ" in text  # (1 + γ) / (1 − γ)
    assert "members 80.0 % → 75.0 % (−5.0 points) in period 1" in text
    assert "- torch: 9.9" in text


def test_warnings_come_first(make_run, config, metrics):
    metrics["panel"]["segments"]["south"]["anchor_share"] = 0.01
    text = card(load_record(make_run(config, metrics)), "not compared")
    assert text.index("## Read this first") < text.index("## Intended use")
    assert "| ⚠ south |" in text and "|  north" not in text


def test_names_are_text():
    said = escaped(HOSTILE)
    assert said == r"a\|b \<script\>x\</script\> [go]\(http://x) \*\_bold\_\* \`c\` \$d\$"
    assert escaped("price_annual\nis up") == "price_annual is up"
    row = markdown(Table(title="t", header=("x", "y"), rows=((HOSTILE, "1"),))).splitlines()[-1]
    assert row.replace(r"\|", "").count("|") == 3


def test_a_run_with_nothing_but_a_configuration_has_a_card(make_run, config):
    text = card(load_record(make_run(config, {})), "not compared")
    assert "## Identification" in text and "## Rewards" not in text
