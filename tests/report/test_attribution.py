"""What the report says of attribution.json."""

from __future__ import annotations

import pytest

from irl import runs
from irl.report import load_record, write_latex
from irl.report.attribution import attribution_table, sentences, share_table
from irl.report.html import page


def found(mean, half):
    return {"mean": mean, "se": half / 2, "low": mean - half, "high": mean + half}


def cell(gap, **more):
    benefits = {"price": found(3.0, 0.5), "status": found(1.0, 0.4)}
    return {"choices": 9, "benefits": benefits, "gaps": [{"of": "price", "over": "status", **gap}], **more}


@pytest.fixture
def attributed(make_run, config, metrics):
    config["reward"] = {"structure": "additive", "benefits": ["price", "status"]}
    folder = make_run(config, metrics)
    whole = {"total": found(0.5, 0.1), "rest": found(-3.5, 0.2)}
    apart, tied = cell(found(2.0, 0.5), **whole), cell(found(2.0, 2.5), **whole)
    for each in (apart, tied):
        each["benefits"]["price"] |= {"of_benefits": 0.75, "of_total": None}
        each["benefits"]["status"] |= {"of_benefits": 0.25, "of_total": None}
    content = {"kind": "contribution", "start": {"north": apart, "south": tied}, "visited": {"north": apart}}
    runs.write_json(folder / "attribution.json", content)
    return load_record(folder)


def test_contributions_stand_beside_rest_and_total(attributed):
    table = attribution_table(attributed)
    assert table.header == ("mean over", "segment", "price", "status", "rest", "total")
    first, _, last = table.rows
    assert first[1:4] == ("north", "3.00 [2.50, 3.50]", "1.00 [0.60, 1.40]") and last[0] == "all choices"
    assert share_table(attributed).rows[:2] == (
        ("north", "all benefits", "75", "25"), ("north", "the total reward", "–", "–"),
    )  # fmt: skip
    assert "What counts over a lifetime" in page(attributed, "no truth")
    assert {"attribution", "attribution_shares"} <= {path.stem for path in write_latex(attributed)}


def test_the_first_is_named_only_where_it_can_be_told(attributed):
    apart, tied = sentences(attributed)
    assert apart == "north: price counts most (75 % of what all benefits do), 2.00 [1.50, 2.50] more than status."
    assert tied == "south: price and status cannot be told apart as what counts most."


def test_removal_effects_have_no_total(attributed):
    content = {"kind": "removal", "start": {"north": cell(found(2.0, 0.5))}, "visited": {}}
    runs.write_json(attributed.folder / "attribution.json", content)
    record = load_record(attributed.folder)
    table = attribution_table(record)
    assert table.header[2:] == ("price", "status") and "chose anew" in table.note and share_table(record) is None
    assert sentences(record) == ["north: price counts most, 2.00 [1.50, 2.50] more than status."]


def test_a_run_that_was_not_asked_says_nothing(run):
    record = load_record(run)
    assert attribution_table(record) is share_table(record) is None and sentences(record) == []
    assert "over a lifetime" not in page(record, "no truth").lower()
