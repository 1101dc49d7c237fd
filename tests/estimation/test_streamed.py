"""A panel in files is estimated as one in memory, to the last bit, and a store as its raw files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from irl.config import Config
from irl.counterfactual import ask, population
from irl.data import read_panel
from irl.data.panel import Panel, panel_from_frame, tensors_of
from irl.data.prepare import prepare
from irl.data.scratch import Scratch
from irl.estimation.pipeline import estimate
from irl.estimation.training import Workbench
from irl.fitted import FittedModel

MEMBERS, PERIODS = 120, 6
STEP = {"hidden": [8], "max_epochs": 2, "batch_size": 64}


def study(path: str = "panel.parquet", **data: Any) -> Config:
    """Every kind of column: a table, a learned ordinal, count and number, what never changes, and a calendar."""
    state = {
        "segment": {"kind": "category", "dynamics": "static"},
        "status": {"kind": "category", "dynamics": "table", "parents": ["status"]},
        "level": {"kind": "ordinal", "levels": 3, "dynamics": "learned"},
        "visits": {"kind": "count", "dynamics": "learned"},
        "spend": {"kind": "numeric", "dynamics": "learned"},
        "month": {"kind": "ordinal", "levels": PERIODS, "dynamics": "clock"},
    }
    named = {"path": path, "member": "id", "period": "t", "action": "plan", "actions": ["none", "paid"]}
    steps = {name: STEP for name in ("policy", "reward", "dynamics")}
    steps["anchor_q"] = {**STEP, "rounds": 1, "max_epochs": 1}
    return Config.model_validate(
        {
            "data": {**named, "segment": "segment", "state": state, **data},
            "anchor": {"action": "none"},
            "reward": {"benefits": ["level"]},
            "discount": 0.8,
            "estimation": {**steps, "refit": {"rounds": 1, "rows": 60}},
        }
    )


def rows() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    member, t = np.divmod(np.arange(MEMBERS * PERIODS), PERIODS)
    paid = rng.random(len(t)) < 0.4
    frame = pd.DataFrame(
        {
            "id": [f"m{(7 * i) % MEMBERS:03}" for i in member],
            "t": t,
            "plan": np.where(paid, "paid", "none"),
            "segment": np.where(member % 3, "a", "b"),
            "status": np.where(np.roll(paid, 1) & (t > 0), "in", "out"),
            "level": rng.integers(0, 3, len(t)),
            "visits": rng.poisson(2.0, len(t)),
            "spend": rng.gamma(2.0, 3.0, len(t)),
            "month": t,
        }
    )
    return frame.sample(frac=1.0, random_state=0).reset_index(drop=True)


def in_files(panel: Panel) -> Panel:
    """The same panel with its tensors in a scratch folder."""
    scratch = Scratch()
    parts: dict[str, Any] = {}
    for name, values in tensors_of(panel).items():
        parts[name] = scratch.room(*values.shape, dtype=values.dtype)
        parts[name].copy_(values)
    return replace(panel, **parts, scratch=scratch)


def fitted(config: Config, panel: Panel) -> tuple[FittedModel, dict[str, Any]]:
    model, metrics = estimate(config, panel, bench=Workbench(device=torch.device("cpu"), seed=0))
    return model, untimed(metrics)


def untimed(metrics: Any) -> Any:
    """What was found, without how long it took."""
    if isinstance(metrics, dict):
        return {k: untimed(v) for k, v in metrics.items() if "seconds" not in k}
    return [untimed(v) for v in metrics] if isinstance(metrics, list) else metrics


@pytest.fixture(scope="module")
def in_memory() -> tuple[FittedModel, dict[str, Any]]:
    config = study()
    return fitted(config, panel_from_frame(rows(), config))


def assert_same(one: tuple[FittedModel, dict[str, Any]], other: tuple[FittedModel, dict[str, Any]]) -> None:
    assert one[1] == other[1]
    for network in ("policy_network", "anchor_network", "reward_network", "dynamics", "refit"):
        mine, theirs = (getattr(model, network).state_dict() for model, _ in (one, other))
        assert all(torch.equal(mine[name], theirs[name]) for name in mine), network


def test_a_panel_in_files_is_estimated_as_one_in_memory(in_memory):
    config = study()
    assert_same(in_memory, fitted(config, in_files(panel_from_frame(rows(), config))))


def test_a_store_is_estimated_as_its_raw_files(in_memory, tmp_path):
    pytest.importorskip("duckdb", reason="needs the extra `store`")
    rows().to_csv(tmp_path / "raw.csv", index=False)
    prepare(study(str(tmp_path / "raw.csv")), tmp_path / "store", bucket_rows=150)
    config = study(str(tmp_path / "store"))
    assert_same(in_memory, fitted(config, read_panel(config)))


def test_a_scenario_is_answered_from_a_panel_as_from_its_frame(in_memory):
    model, frame = in_memory[0], rows()
    panel = panel_from_frame(frame, model.config, schema=model.schema)
    scenario = {
        "name": "dearer",
        "periods": 3,
        "members": "all",
        "changes": [{"reward": {"action": "paid", "add": -1}}],
    }
    answers = [ask(model, scenario, each).answer(bands=False).outcomes for each in (frame, panel, in_files(panel))]
    pd.testing.assert_frame_equal(answers[0], answers[1])
    pd.testing.assert_frame_equal(answers[0], answers[2])


@pytest.mark.parametrize("start", ["first", "last"])
def test_starts_are_found_some_rows_at_a_time(in_memory, monkeypatch, start):
    model = in_memory[0]
    panel = panel_from_frame(rows(), model.config, schema=model.schema)
    found = [population.start_rows(model.schema, panel, panel, start=start)]  # type: ignore[arg-type]
    for at_once in (4, 7, PERIODS):
        monkeypatch.setattr(population, "AT_ONCE", at_once)
        found.append(population.start_rows(model.schema, panel, panel, start=start))  # type: ignore[arg-type]
    expected = torch.arange(MEMBERS) * PERIODS + (PERIODS - 1 if start == "last" else 0)
    assert all(torch.equal(each, expected) for each in found)
