"""The benchmark on real data: its market, its scores and its table; what it takes to run the peers is not tested."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

BENCHMARKS = Path(__file__).parents[1] / "scripts" / "benchmarks"


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield lambda name: importlib.import_module(name)
    for name in [n for n in sys.modules if n.split(".")[0] in ("real", "real_parts")]:
        del sys.modules[name]


def test_the_true_reward_scores_no_error_and_another_one_does(parts):
    market = parts("real_parts.market")
    problem = market.problem(0)
    assert len(problem.frame) == market.MEMBERS * market.MONTHS
    assert np.allclose(problem.transition.sum(2), 1)
    clock = parts("real_parts.estimated").Clock()
    right = market.scores(problem, problem.reward, clock)
    assert right["RMSE"] == right["policy"] == right["points"] == 0
    wrong = market.scores(problem, problem.reward + 0.5 * (np.arange(3) == 1), clock)
    assert wrong["RMSE"] == pytest.approx(0.5 / 3**0.5) and wrong["policy"] > 0.05 and wrong["points"] > 1
    # a constant for all actions changes nothing that is chosen
    level = market.scores(problem, problem.reward + 3, clock)
    assert level["RMSE"] == pytest.approx(3) and level["policy"] < 1e-8


def test_exact_maximum_likelihood_recovers_the_market(parts):
    found = parts("real_parts.market").JOBS["exact: of our linear form"](1)
    assert found["RMSE"] < 0.2 and found["points"] < 2


def test_purchases_are_scored_by_path_and_by_customer(parts):
    expected, seen = np.array([[1.0, 1.0], [0.0, 2.0]]), np.array([[1.0, 0.0], [1.0, 2.0]])
    found = parts("real_parts.cdnow").scores(expected, seen)
    assert found["path %"] == pytest.approx(100 * 1 / 2) and found["total %"] == 0
    assert found["customers MAE"] == 1 and found["customers RMSE"] == 1


def test_purchases_are_forecast_by_state_and_type(parts, monkeypatch):
    """A customer's forecast is the mean of his state's paths, over types by what is known of him."""
    part, known = parts("real_parts.cdnow"), {1: [0.25, 0.75], 2: [1.0, 0.0]}
    schema = SimpleNamespace(encode=lambda states: torch.tensor(states[["away", "type"]].to_numpy()))
    model = SimpleNamespace(
        schema=schema,
        dynamics=None,
        log_policy_of=None,
        config=SimpleNamespace(data=SimpleNamespace(actions=("none", "once", "more"), state={"away": None})),
        type_probabilities=lambda rows: pd.DataFrame([known[c] for c in rows["customer"]]),
    )

    def paths(dynamics, policy, start, *, periods, generator):
        """Away: nothing. Else type 1 buys once a month, type 2 more often."""
        return torch.where(start[:, 0] > 0, 0, start[:, 1]).long().unsqueeze(1).expand(-1, periods)

    monkeypatch.setattr(part, "choice_paths", paths)
    rows = [(1, 1, 0, "more", 3), (1, 2, 0, "once", 1), (2, 1, 0, "more", 2), (2, 2, 1, "none", 0)]
    rows += [(c, month, away, "none", 0) for c, away in ((1, 0), (2, 1)) for month in (3, 4)]
    frame = pd.DataFrame(rows, columns=["customer", "month", "away", "choice", "purchases"])
    found = part.forecast(model, frame, seed=0, until=2)
    assert np.allclose(found, [[0.25 * 1 + 0.75 * 2.5] * 2, [0, 0]])


def test_the_table_has_means_over_seeds_and_says_what_failed(parts):
    module = SimpleNamespace(TITLE="a title", SHOWN={"RMSE": 2}, SEEDED=True, PUBLISHED={"paper": {"RMSE": ".9"}})
    found = pd.DataFrame(
        [
            {"job": "ours", "RMSE": 0.1, "seconds": 2.0, "CPU s": 1.0, "MB": 500.0},
            {"job": "ours", "RMSE": 0.3, "seconds": 4.0, "CPU s": 1.0, "MB": 500.0},
            {"job": "peer", "failed": "error: needs a package"},
        ]
    )
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(parts("real").table_of("bus", module, found))
    text = console.export_text()
    assert "bus: a title" in text and "0.20 (0.14)" in text and "3.0" in text
    assert "error: needs a package" in text and "paper" in text and ".9" in text


def test_a_job_that_cannot_run_says_why(parts, tmp_path):
    real = parts("real")
    found = real.run("econirl", "ours: full", 0, tmp_path)
    assert list(found) == ["failed"] and "panel-0.npz" in found["failed"]
