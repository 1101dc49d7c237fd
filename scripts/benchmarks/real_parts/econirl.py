"""econirl's BenchmarkDGP: an engine in 20 states, discount .95, 200 members x 100 periods; the anchor is replacing.

Simulated with econirl's own routine. Its reward is quadratic in mileage (so are the columns that its NFXP is given; our
linear form is a line); the states from the fifteenth on are hardly
ever visited, and count in the RMSE like all others.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from real_parts.finite import Problem, jobs_of

TITLE = "BenchmarkDGP, 200 x 100, true reward sd .749"
SHOWN = {"RMSE": 3, "visited": 3, "policy": 3}
SEEDED = True
DISCOUNT, STATES = 0.95, 20
FOLDER = Path()
"""Where what was simulated is kept; set by the benchmark."""
PUBLISHED = {
    "aims": {"RMSE": "full .10, linear .06"},
}
FORMS: dict[str, dict[str, object]] = {
    "full": {"structure": "full"},
    "linear": {"structure": "linear"},
    "linear, without intercept": {"structure": "linear", "intercept": False},
}


def prepare(seed: int, file: Path) -> None:
    """Simulate with econirl, which the other jobs then need not import."""
    from econirl.evaluation.benchmark import BenchmarkDGP, _make_env
    from econirl.simulation.synthetic import simulate_panel

    environment = _make_env(BenchmarkDGP(discount_factor=DISCOUNT))
    paths = simulate_panel(environment, n_individuals=200, n_periods=100, seed=seed).trajectories
    moves = {
        n: np.stack([np.asarray(getattr(path, n)) for path in paths]) for n in ("states", "actions", "next_states")
    }
    np.savez(
        file,
        features=np.asarray(environment.feature_matrix),
        theta=np.asarray(environment.get_true_parameter_vector()),
        transitions=np.asarray(environment.transition_matrices),
        **moves,
    )


def problem(seed: int) -> Problem:
    found = np.load(FOLDER / f"panel-{seed}.npz")
    features, transition = found["features"].astype(float), found["transitions"].astype(float).transpose(1, 0, 2)
    members, periods = found["states"].shape
    frame = pd.DataFrame(
        {
            "member": np.arange(members).repeat(periods),
            "period": np.tile(np.arange(periods), members),
            "state": found["states"].ravel(),
            "action": found["actions"].ravel(),
            "mileage": found["states"].ravel(),
        }
    )
    return Problem(
        reward=features @ found["theta"].astype(float),
        transition=transition / transition.sum(2, keepdims=True),
        features=features,
        discount=DISCOUNT,
        anchor=1,
        actions=("keep", "replace"),
        frame=frame,
        columns={"mileage": {"kind": "ordinal", "levels": STATES, "dynamics": "table", "alike": True}},
        states=pd.DataFrame({"mileage": range(STATES)}),
    )


LINE = np.zeros((STATES, 2, 2))
LINE[:, 0] = np.column_stack([np.ones(STATES), np.arange(STATES)])
"""The columns of our linear reward of keeping: an intercept and a slope."""
JOBS = jobs_of(problem, FORMS, LINE)
