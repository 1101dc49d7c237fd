"""The shipped study: it loads, and gives the numbers that were recorded when it was made."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import irl
from irl.scenario import load_scenario
from irl.shipping import recorded

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "checkpoints" / "membership"


def test_the_shipped_study_is_small_and_gives_the_recorded_numbers():
    files = [file for file in RUN.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2e6
    before = json.loads((RUN / "recorded.json").read_text("utf-8"))
    sample, model = pd.read_parquet(RUN / "sample.parquet"), irl.load(RUN)
    assert not set(sample.columns) - {*model.schema.names, "member_id", "period", "plan"}
    scenario = load_scenario(ROOT / "configs" / "scenarios" / "annual_dearer.yaml")
    now = recorded(model, sample, scenario)
    for name in ("reward", "policy"):
        assert now[name] == pytest.approx(before[name], abs=1e-4), name
    assert now["standard_error"] == pytest.approx(before["standard_error"], rel=1e-3) and now["standard_error"]
    assert now["value"] == pytest.approx(before["value"], abs=1e-3)
    assert set(now["shares"]) == set(before["shares"])
    for case, outcomes in before["shares"].items():
        for outcome, pair in outcomes.items():
            assert now["shares"][case][outcome] == pytest.approx(pair, abs=0.005), (case, outcome)
