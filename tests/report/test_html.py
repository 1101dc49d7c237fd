"""The page: every section is there, nothing from outside is, hostile names are text, missing data are sentences."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

import pandas as pd
import pytest

from irl.config import InputError
from irl.report import load_record, write_report
from irl.report.html import page

VOID = {"meta", "br", "path", "use"}
NO_TRUTH = "not compared"


class Balance(HTMLParser):
    """Fails on a tag that is closed out of order, and collects names, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> out of order"

    def handle_data(self, data):
        self.text += data


def read(html: str) -> Balance:
    parsed = Balance()
    parsed.feed(html)
    assert parsed.open == []
    return parsed


@pytest.fixture
def answered(run, scenario, add_scenario, make_outcomes):
    add_scenario(run, scenario, make_outcomes(("Dearer annual plan",)))
    return run


def test_the_page_has_every_section_and_stands_alone(answered):
    path = write_report(load_record(answered), NO_TRUTH)
    html = path.read_text(encoding="utf-8")
    parsed = read(html)
    sections = [value for name, value in parsed.attributes if name == "id" and "-" not in value]
    assert [s for s in sections if s in {"summary", "study", "rewards", "anchor", "steps", "limits", "truth"}] == [
        "summary", "study", "rewards", "anchor", "steps", "limits",
    ]  # fmt: skip
    assert "Scenario: Dearer annual plan" in html and "“price” is multiplied by 1.2 for everyone, always." in html
    assert "no hidden state" in parsed.text and "24,000" in parsed.text and "0.571" in parsed.text
    assert "members 80.0 % → 75.0 % (−5.0 points) in period 1" in parsed.text
    assert "http://" not in html and "https://" not in html and "@import" not in html
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.tags)
    for name, value in parsed.attributes:
        assert name not in ("src", "srcset") and not name.startswith("on")
        assert name != "href" or value.startswith("#")
    assert all(value.startswith("#") for value in re.findall(r"url\(([^)]*)\)", html))
    assert 'name="viewport"' in html and "prefers-color-scheme: dark" in html
    assert len(html) < 1_000_000
    assert list(answered.glob(".*.tmp")) == []
    assert '<html lang="en">' in html and "Not identified" in parsed.text and "up to 19 δ" in parsed.text
    levels = [int(tag[1]) for tag in parsed.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_figures_speak_and_share_no_names(answered):
    parsed = read(page(load_record(answered), NO_TRUTH))
    labels = [value for name, value in parsed.attributes if name == "aria-label"]
    assert any("segment north" in v and "annual 50.0 % to 43.0 %" in v for v in labels)
    assert any("recovered reward of monthly" in v and "north -0.53" in v for v in labels)
    assert parsed.tags.count("figure") == 2 + 3 + 1 + 3  # rewards, shares by segment, anchor, losses
    anchors = {value[1:] for name, value in parsed.attributes if name == "href"}
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert anchors <= set(ids) and len(ids) == len(set(ids))


def test_colours_are_left_to_the_style_sheet(answered):
    html = page(load_record(answered), NO_TRUTH)
    figures = "".join(re.findall(r"<figure>.*?</figure>", html, flags=re.DOTALL))
    assert not re.findall(r"[ :]#[0-9a-f]{6}", figures)
    assert {"var(--c0)", "var(--c1)", "var(--c2)"} <= set(re.findall(r"var\(--c\d\)", figures))


HOSTILE = '$\\frac{$<script>alert("x")</script>'


def test_hostile_names_are_text(make_run, config, metrics, scenario, add_scenario, make_outcomes):
    config["data"]["actions"][1] = HOSTILE
    panel, summary = metrics["panel"]["segments"], metrics["reward_summary"]
    panel[HOSTILE] = panel.pop("north")
    summary[HOSTILE] = {HOSTILE: summary.pop("monthly")["north"]}
    run = make_run(config, metrics)
    table = make_outcomes((HOSTILE,), (HOSTILE, "all"))
    table["outcome"] = table["outcome"].replace("share_monthly", f"share_{HOSTILE}")
    scenario["name"] = HOSTILE
    scenario["changes"] = [{"remove": {"action": HOSTILE, "where": {"status": [HOSTILE]}}}]
    solved = {HOSTILE: {"converged": False, "rounds": 1, "warnings": [HOSTILE]}}
    add_scenario(run, scenario, table, solved=solved)
    html = page(load_record(run), HOSTILE)
    parsed = read(html)
    assert "<script" not in html and "script" not in parsed.tags
    assert parsed.text.count(HOSTILE) > 10


def test_a_run_with_nothing_but_a_configuration_still_has_a_page(make_run, config):
    html = page(load_record(make_run(config, {})), NO_TRUTH)
    text = read(html).text
    for sentence in (
        "no summary of its rewards",
        "No scenario has been asked",
        "no counts by segment",
        "no metrics of",
    ):
        assert sentence in text
    assert "Read this first" not in text


def test_the_truth_is_a_section_of_the_simulated_market_only(make_run, config, metrics):
    config["market"] = {"members": 10, "periods": 5}
    text = read(page(load_record(make_run(config, metrics)), "The true rewards are gone.")).text
    assert "Against the truth" in text and "The true rewards are gone." in text
    assert "invented" in text


def test_what_to_be_careful_about_comes_first(make_run, config, metrics, scenario, add_scenario, make_outcomes):
    metrics["panel"]["segments"]["south"]["anchor_share"] = 0.01
    metrics["anchor_q"]["converged"] = False
    run = make_run(config, metrics)
    good = {"rounds": 4, "converged": True, "policy_change": 1e-6, "condition": 1e8, "warnings": ["taste, maybe"]}
    bad = {**good, "converged": False, "policy_change": 0.02, "rounds": 30}
    add_scenario(run, scenario, make_outcomes(("Dearer annual plan",)), solved={"baseline": good, "it": bad})
    text = read(page(load_record(run), NO_TRUTH)).text
    warned = text[text.index("Read this first") : text.index("What was estimated, and from what")]
    assert "Segment south: only 1.0 % of decisions" in warned and "110 decisions" in warned
    assert "Q step's equations were not solved" in warned
    assert "policy of it did not converge" in warned and warned.count("taste, maybe") == 1
    assert "Warnings of this scenario" in text


def test_many_segments_and_cases_are_drawn_in_part_and_said_so(run, scenario, add_scenario, make_outcomes):
    segments = (*(f"s{i}" for i in range(30)), "all")
    add_scenario(run, scenario, make_outcomes(tuple(f"case {i}" for i in range(6)), segments))
    html = page(load_record(run), NO_TRUTH)
    text = read(html).text
    assert "The other 2 cases are in the tables." in text and "more segments are in the tables." in text
    assert text.count("case 5") >= 31
    assert len(html) < 5_000_000


def test_an_unreadable_scenario_is_a_sentence(run, scenario, add_scenario, make_outcomes):
    table = make_outcomes(("Dearer annual plan",))
    (add_scenario(run, scenario, table, name="a_unfinished") / "metrics.json").unlink()
    (add_scenario(run, scenario, table, name="b_broken") / "outcomes.parquet").write_bytes(b"not a table")
    add_scenario(run, scenario, table.drop(columns="change"), name="c_lacking")
    add_scenario(run, scenario, table, name="d_good")
    record = load_record(run)
    assert [bool(s.problem) for s in record.scenarios] == [True, True, True, False]
    text = read(page(record, NO_TRUTH)).text
    assert "It is not finished" in text and "outcomes.parquet lacks change" in text and "b_broken" in text


def test_an_unfinished_run_has_no_report(run):
    (run / "metrics.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        load_record(run)


def test_intervals_are_drawn(run, scenario, add_scenario, make_outcomes):
    table = make_outcomes(("Dearer annual plan",))
    without = page_with(run, scenario, add_scenario, table, "without")
    table[["low", "high"]] = [0.01, 0.02]
    assert page_with(run, scenario, add_scenario, table, "with").count("FillBetween") == 9 + without.count(
        "FillBetween"
    )


def page_with(run, scenario, add_scenario, table: pd.DataFrame, name: str) -> str:
    add_scenario(run, scenario, table, name=name)
    return page(load_record(run), NO_TRUTH)
