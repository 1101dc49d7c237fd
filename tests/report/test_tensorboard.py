"""TensorBoard, read back from its files: options beside final figures, pictures, the same tags in every run."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from irl.report import load_record, log_run, log_scenario, recovery
from irl.report.tensorboard import final_figures, options
from irl.report.truth import Truth


def read(folder):
    return EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


@pytest.fixture
def logged(make_run, config, metrics):
    metrics["policy"] |= {
        "expected_calibration_error": 0.0123,
        "calibration": {"north": [{"predicted": 0.2, "observed": 0.25, "choices": 80.0}]},
    }
    config["estimation"] = {"policy": {"hidden": [8]}}
    metrics["refit"] = {"held_out_log_likelihood": -0.61}
    metrics["support"] = {"north": {"probabilities": [0.1, 0.2, 0.3, 0.2, 0.2]}}
    falling = {"mean": [1.0, 0.5], "se": [None, None]}
    metrics["curves"] = {"price": {"values": [1.0, 2.0], "rewards": {"annual": {"north": falling}}}}
    record = load_record(make_run(config, metrics))
    log_run(record, "not compared")
    return record


def test_options_stand_beside_the_final_figures(logged):
    events = read(logged.folder / "tb" / "summary")
    plugin = {tag: HParamsPluginData.FromString(data) for tag, data in events.PluginTagToContent("hparams").items()}
    started = plugin["_hparams_/session_start_info"].session_start_info.hparams
    assert started["discount"].number_value == 0.9 and started["anchor.action"].string_value == "none"
    assert started["panel.members"].number_value == 1000
    assert started["estimation.policy.hidden"].string_value == "[8]" and "estimation.reward.hidden" not in started
    assert not [name for name in started if name.startswith("data")]  # nothing of the columns
    compared = [m.name.tag for m in plugin["_hparams_/experiment"].experiment.metric_infos]
    assert "final/expected_calibration_error" in compared
    assert events.Scalars("final/held_out_log_likelihood")[0].value == pytest.approx(-0.61)
    assert events.Scalars("final/bellman_residual")[0].value == pytest.approx(0.571)
    assert set(compared) == set(events.Tags()["scalars"])


def test_pictures_are_of_the_run(logged):
    events = read(logged.folder / "tb" / "summary")
    assert set(events.Tags()["images"]) == {"reward curves/annual", "calibration", "anchor support"}
    assert all(events.Images(tag)[0].encoded_image_string[:4] == b"\x89PNG" for tag in events.Tags()["images"])
    assert "model card/text_summary" in events.Tags()["tensors"]


def test_logging_again_replaces(logged):
    log_run(logged, "not compared")
    assert len(list((logged.folder / "tb" / "summary").iterdir())) == 1
    assert [p.name for p in (logged.folder / "tb").iterdir()] == ["summary"]


def test_a_scenario_has_the_paths_of_its_cases(run, scenario, add_scenario, make_outcomes):
    folder = add_scenario(run, scenario, make_outcomes(("dear", "dearer")))
    log_scenario(load_record(run), folder)
    tags = read(folder / "tb").Tags()["images"]
    assert tags == ["plan shares, baseline dashed/dear", "plan shares, baseline dashed/dearer"]


def test_recovery_is_a_figure_where_the_truth_is_known(run):
    estimated = pd.DataFrame({"monthly": [1.0, 2.0], "annual": [0.0, 1.0]})
    truth = estimated + pd.DataFrame({"monthly": [0.0, 0.0], "annual": [0.3, 0.4]})
    scores = recovery(estimated, truth, [0, 0])
    found = final_figures(load_record(run), Truth(scores, estimated, truth, "cells"))
    assert found["recovery/rmse_annual"] == pytest.approx((0.125) ** 0.5) and found["recovery/r2_monthly"] == 1
    assert all(isinstance(v, float) for v in found.values()) and json.dumps(options(load_record(run)))
