"""A made-up run folder, small enough to know every number of its report."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from irl import runs

CONFIG: dict[str, Any] = {
    "data": {
        "path": "panel.parquet",
        "member": "member_id",
        "period": "period",
        "action": "plan",
        "actions": ["none", "monthly", "annual"],
        "segment": ["segment"],
        "state": {
            "segment": {"kind": "category", "dynamics": "static"},
            "status": {"kind": "category", "dynamics": "table", "parents": ["status"]},
            "price": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"},
        },
    },
    "anchor": {"action": "none", "reward": 0.0},
    "discount": 0.9,
    "temperature": 1.0,
}
TRAINED = {"epochs": 3, "best_epoch": 1, "held_out_loss": 0.5, "seconds": 2.0, "history": [0.7, 0.5, 0.6]}


def summary(mean: float) -> dict[str, float]:
    return {"mean": mean, "sd": 0.5, "p10": mean - 1, "p50": mean, "p90": mean + 1, "share_available": 0.75}


METRICS: dict[str, Any] = {
    "panel": {
        "rows": 24000,
        "members": 1000,
        "transitions": 23000,
        "gaps": 7,
        "segments": {
            "north": {"decisions": 12000, "anchor_share": 0.3},
            "south": {"decisions": 11000, "anchor_share": 0.25},
        },
    },
    "policy": {**TRAINED, "step_seconds": 2.5},
    "anchor_q": {
        "rows": 9000, "bellman_residual": 0.571, "condition": 1.6e5, "solve_residual": 1e-14, "converged": True,
        "trained": TRAINED, "step_seconds": 3.0,
    },
    "reward": {**TRAINED, "step_seconds": 2.0},
    "dynamics": {"held_out_log_prob": -2.295, "trained": None, "step_seconds": 1.0},
    "reward_summary": {
        "none": {s: summary(0.0) for s in ("north", "south", "all")},
        "monthly": {"north": summary(-0.53), "south": summary(-0.61), "all": summary(-0.57)},
        "annual": {"north": summary(-2.66), "south": summary(-3.31), "all": summary(-2.97)},
    },
}  # fmt: skip
SCENARIO: dict[str, Any] = {
    "name": "Dearer annual plan",
    "periods": 2,
    "changes": [{"feature": {"name": "price", "scale": 1.2}}],
}
SOLVED = {"rounds": 4, "converged": True, "policy_change": 2e-6, "condition": 3e8, "changes_dynamics": False,
          "warnings": []}  # fmt: skip


def outcomes(cases: tuple[str, ...], segments: tuple[str, ...] = ("north", "south", "all")) -> pd.DataFrame:
    """Two periods; at period 1 none 20 % -> 25 %, monthly 30 % -> 32 %, annual 50 % -> 43 % in every segment."""
    levels = {"share_none": (0.2, 0.25), "share_monthly": (0.3, 0.32), "share_annual": (0.5, 0.43),
              "membership": (0.8, 0.75), "join": (0.4, 0.35), "cancel": (0.1, 0.12),
              "renewal": (0.9, 0.88)}  # fmt: skip
    rows: list[tuple[Any, ...]] = []
    for case in cases:
        for segment in segments:
            for name, (before, after) in levels.items():
                rows += [(case, segment, t, name, before + 0.01 * (1 - t), after + 0.01 * (1 - t)) for t in (0, 1)]
            rows += [(case, segment, t, "survival", 0.9**t, 0.8**t) for t in (1, 2)]
            rows += [(case, segment, pd.NA, "surplus", 0.0, -0.028), (case, segment, pd.NA, "gainers", 0.0, 0.006)]
            rows += [(case, segment, pd.NA, "losers", 0.0, 0.4), (case, segment, pd.NA, "tenure", 4.0, 3.5)]
    frame = pd.DataFrame(rows, columns=["case", "segment", "period", "outcome", "baseline", "scenario"])
    frame["period"] = frame["period"].astype("Int64")
    frame["change"] = frame["scenario"] - frame["baseline"]
    return frame.assign(low=float("nan"), high=float("nan"))


@pytest.fixture
def config() -> dict[str, Any]:
    return copy.deepcopy(CONFIG)


@pytest.fixture
def metrics() -> dict[str, Any]:
    return copy.deepcopy(METRICS)


@pytest.fixture
def scenario() -> dict[str, Any]:
    return copy.deepcopy(SCENARIO)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[[dict[str, Any], dict[str, Any]], Path]:
    """``make_run(config, metrics)`` writes a finished run and gives its folder."""

    def make(config: dict[str, Any], metrics: dict[str, Any]) -> Path:
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        about = {"software": runs.SOFTWARE, "kind": "run", "versions": {"torch": "9.9"}, "device": "abacus"}
        runs.write_json(folder / runs.PROVENANCE, about)
        runs.write_json(folder / runs.LAST, metrics)
        return folder

    return make


@pytest.fixture
def run(
    make_run: Callable[[dict[str, Any], dict[str, Any]], Path], config: dict[str, Any], metrics: dict[str, Any]
) -> Path:
    return make_run(config, metrics)


@pytest.fixture
def add_scenario() -> Callable[..., Path]:
    """``add_scenario(run, scenario, table, name=, solved=)`` writes an answered scenario and gives its folder."""

    def add(
        run: Path, scenario: dict[str, Any], table: pd.DataFrame, *, name: str = "dearer", solved: Any = None
    ) -> Path:
        folder = run / "scenarios" / name
        folder.mkdir(parents=True)
        (folder / "scenario.yaml").write_text(yaml.safe_dump(scenario), encoding="utf-8")
        table.to_parquet(folder / "outcomes.parquet")
        labels = ["baseline", *table["case"].unique()]
        solved = {label: SOLVED for label in labels} if solved is None else solved
        runs.write_json(folder / runs.LAST, {"solved": solved, "members": 4000, "seconds": 12.3})
        return folder

    return add


@pytest.fixture
def make_outcomes() -> Callable[..., pd.DataFrame]:
    return outcomes
