"""Reward curves in panels: what is drawn, what is said, what is left out."""

from __future__ import annotations

import pytest

from irl import runs
from irl.report import load_record
from irl.report.curves import curve_panels, shown_segments
from irl.report.html import page


def line(*mean):
    return {"mean": list(mean), "se": [0.1] * len(mean)}


@pytest.fixture
def curved(metrics):
    metrics["curves"] = {
        "status": {
            "values": ["in", "out"],
            "rewards": {"annual": {"north": line(1.0, -2.0), "south": line(None, 3.0)}},
        },
        "price": {
            "values": [8.0, 10.0, 12.0],
            "rewards": {"annual": {"north": line(0.5, 0.5, 0.5)}, "monthly": {"north": line(0.5, 0.25, 0.0)}},
        },
    }
    return metrics


def test_a_panel_for_every_feature_that_moves_the_reward(make_run, config, curved):
    record = load_record(make_run(config, curved))
    (status,) = curve_panels(record, "annual")  # the price does not move it
    assert status.caption == "status"
    said = "Mean reward of annual along status: north 1.00 at in to −2.00 at out; south 3.00 at out."
    assert status.description == said
    (price,) = curve_panels(record, "monthly")
    assert "north 0.50 at 8.0 to 0.00 at 12.0" in price.description and price.svg.count("FillBetween") == 1
    html = page(record, "not compared")
    assert html.count("along each feature of the state") == 2 and said in html


def test_lines_that_could_not_be_told_apart_are_not_drawn(make_run, config, metrics):
    names = [f"s{i}" for i in range(9)]
    metrics["panel"]["segments"] = {name: {"decisions": 1000, "anchor_share": 0.3} for name in names}
    metrics["reward_summary"] = {}
    record = load_record(make_run(config, metrics))
    assert shown_segments(record) == names[:5]
    metrics["reward_summary"] = {"annual": {"all": {"mean": 1.0}}}
    (record.folder / "metrics.json").unlink()
    runs.write_json(record.folder / "metrics.json", metrics)
    assert shown_segments(load_record(record.folder)) == [*names[:5], "all"]
