"""The comparison with known rewards, and the script: on a market whose truth is what the model says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from irl.config import Config
from irl.data.panel import panel_from_frame
from irl.fitted import new_networks
from irl.report import against_truth, load_record, write_report
from irl.report.truth import truth_table

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "report.py"


@pytest.fixture
def market(tmp_path, make_run, config, metrics):
    """A run with an untrained model, its panel, and the model's own rewards as the truth, its rows shuffled."""
    generator = np.random.default_rng(0)
    members, periods = 40, 5
    frame = pd.DataFrame({"member_id": np.repeat([f"person-{i:04d}" for i in range(members)], periods)})
    frame["period"] = np.tile(np.arange(periods), members)
    frame["segment"] = np.repeat(np.where(np.arange(members) % 2, "north", "south"), periods)
    frame["status"] = generator.choice(["in", "out"], len(frame))
    frame["price"] = np.repeat(generator.uniform(0.8, 1.2, members), periods)
    frame["plan"] = generator.choice(["none", "monthly", "annual"], len(frame))
    frame.to_parquet(tmp_path / "panel.parquet")
    config["data"]["path"] = str(tmp_path / "panel.parquet")
    config["market"] = {"members": members, "periods": periods}
    config["estimation"] = {"refit": {"rounds": 0}}  # whose untrained rewards are all alike
    run = make_run(config, metrics)
    study = Config.model_validate(config)
    model = new_networks(study, panel_from_frame(frame, study).schema)
    model.save(run / "model")
    truth = pd.concat([frame[["member_id", "period"]], model.reward(frame).add_prefix("reward_")], axis=1)
    truth.sample(frac=1, random_state=0).to_parquet(tmp_path / "panel_truth.parquet")
    return run


def test_a_model_that_is_the_truth_is_recovered_whatever_the_order_of_rows(market):
    truth = against_truth(load_record(market))
    assert truth.scores["pairs"].to_dict() == {"monthly": 200, "annual": 200, "pooled": 400}
    assert truth.scores["rmse"].max() < 1e-6
    assert truth.cells == "segment × status"
    assert truth_table(truth).header[-1] == "R² within segment × status"


def test_cells_are_segment_and_status(market, tmp_path):
    file = tmp_path / "panel_truth.parquet"
    truth = pd.read_parquet(file)
    panel = pd.read_parquet(tmp_path / "panel.parquet")[["member_id", "period", "segment", "status"]]
    cell = truth[["member_id", "period"]].merge(panel)[["segment", "status"]]
    truth["reward_monthly"] = np.where((cell["segment"] == "north") & (cell["status"] == "in"), 5.0, 1.0)
    truth.to_parquet(file)
    scores = against_truth(load_record(market)).scores.loc["monthly"]
    assert np.isfinite(scores["r2"]) and np.isnan(scores["within"])  # within its cells the truth does not vary


def test_the_page_shows_the_comparison_and_no_member(market):
    record = load_record(market)
    html = write_report(record, against_truth(record)).read_text(encoding="utf-8")
    assert "Recovered against true reward" in html and "correlation 1.000 over 200 rows" in html
    assert "person-" not in html and "panel.parquet" in html and str(market.parent) not in html


def test_there_is_a_sentence_instead_where_the_truth_is_missing_or_does_not_fit(market, tmp_path):
    file = tmp_path / "panel_truth.parquet"
    truth = pd.read_parquet(file)
    truth.drop(columns="reward_annual").to_parquet(file)
    assert "reward_annual" in against_truth(load_record(market))
    truth.assign(member_id="someone else", period=range(len(truth))).to_parquet(file)
    assert "no row in common" in against_truth(load_record(market))
    pd.concat([truth, truth]).to_parquet(file)
    assert "two rows in one period" in against_truth(load_record(market))
    truth.assign(period=truth["period"].astype(str)).to_parquet(file)
    assert "left out" in against_truth(load_record(market))
    file.unlink()
    assert "panel_truth.parquet" in against_truth(load_record(market))


def test_a_study_on_real_data_is_not_compared(run):
    assert "not on the simulated market" in against_truth(load_record(run))


def script(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, encoding="utf-8")


def test_the_script_prints_the_tables_and_the_path(market, scenario, add_scenario, make_outcomes):
    scenario["name"] = "a [red]dear[/red] plan"
    add_scenario(market, scenario, make_outcomes(("price scale 1.2", "price scale 2.0")))
    result = script("--run", market)
    assert result.returncode == 0, result.stderr
    out = result.stdout
    for part in ("Recovered reward by action", "Recovered against true", "a [red]dear[/red] plan", "price scale 2.0",
                 "80.0 → 75.0 (−5.0)", "surplus, reward units per period", "−0.028"):  # fmt: skip
        assert part in out, f"{part} is not in\n{out}"
    assert out.rstrip().endswith(f"report: {market / 'report.html'}")
    assert (market / "report.html").is_file()


def test_the_script_ends_with_a_message_where_there_is_no_run(tmp_path):
    result = script("--run", tmp_path / "nowhere")
    assert result.returncode == 2
    assert "no such run folder" in result.stderr and "Traceback" not in result.stderr
