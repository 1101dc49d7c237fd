"""Rust's engines, group 4, discount .9999: replacement cost, operating cost per bin of 5,000 miles, log-likelihood.

All estimates take mileage to rise by the same frequencies at all bins, and to be 0 after a replacement. `ours` is the
structured reward of configs/rust_bus.yaml; `exact` is the nested fixed point on our tabular oracle; econirl's is its
own NFXP, on its own reading of the data. Standard errors: clustered by bus (ours), inverse information (the others).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from real_parts.estimated import Clock, estimated, study

from irl import tabular
from irl.data.rust_bus import rust_bus

TITLE = "Rust (1987), group 4, discount .9999"
SHOWN = {"RC": 3, "se RC": 3, "cost": 5, "se cost": 5, "log-likelihood": 3}
SEEDED = False
PUBLISHED = {
    "Rust (1987), table IX": {"RC": "10.075", "se RC": "1.582", "cost": ".00229", "se cost": ".00064",
                              "log-likelihood": "-163.584"},
}  # fmt: skip
BINS, DISCOUNT = 90, 0.9999


def group_4() -> pd.DataFrame:
    frame = rust_bus()
    return frame[frame["group"] == 4].reset_index(drop=True)


def ours(seed: int) -> dict[str, float]:
    model, metrics, took = estimated(study("rust_bus", f"seed={seed}"), rust_bus())
    assert model.refit is not None
    theta, error = model.refit.theta[1].tolist(), model.refit.covariance.diagonal().sqrt().tolist()
    refit = metrics["refit"]
    return {
        "RC": theta[0], "se RC": error[0], "cost": -theta[1], "se cost": error[1],
        "log-likelihood": refit["log_likelihood"] * refit["choices"], **took,
    }  # fmt: skip


def exact(seed: int) -> dict[str, float]:
    frame, clock = group_4(), Clock()
    following = frame.groupby("bus")["mileage"].shift(-1)
    kept = (frame["choice"] == "keep") & following.notna()
    rise = (following - frame["mileage"])[kept].astype(int)
    transition = torch.zeros(BINS, 2, BINS, dtype=torch.float64)  # actions are replace, keep
    transition[:, 0, 0] = 1
    for move, share in rise.value_counts(normalize=True).items():
        for x in range(BINS):
            transition[x, 1, min(x + int(move), BINS - 1)] += share
    cell = 2 * frame["mileage"].to_numpy() + (frame["choice"] == "keep").to_numpy()
    counts = torch.from_numpy(np.bincount(cell, minlength=2 * BINS).reshape(BINS, 2)).double()
    mileage = torch.arange(BINS, dtype=torch.float64)

    def engine(theta: torch.Tensor) -> tabular.FiniteMDP:
        reward = torch.stack([torch.zeros_like(mileage), theta[0] - theta[1] * mileage], 1)
        available = torch.ones(BINS, 2, dtype=torch.bool)
        return tabular.FiniteMDP(reward, available, tabular.dense_expectation(transition), DISCOUNT)

    found = tabular.nested_fixed_point(engine, counts, torch.tensor([8.0, 0.002]))
    error = found.covariance.diagonal().sqrt().tolist()
    return {
        "RC": float(found.theta[0]), "se RC": error[0], "cost": float(found.theta[1]), "se cost": error[1],
        "log-likelihood": found.log_likelihood, **clock.read(),
    }  # fmt: skip


def econirl(seed: int) -> dict[str, float]:
    from econirl.datasets import load_rust_bus, rust_bus_reward_spec
    from econirl.estimators import NFXP

    frame, clock = load_rust_bus(group=4, original=True), Clock()
    found = NFXP(n_states=BINS, discount=DISCOUNT, utility=rust_bus_reward_spec(BINS), se_method="asymptotic")
    found.fit(frame, state="mileage_bin", action="replaced", id="bus_id")
    names = {"RC": "replacement_cost", "cost": "operating_cost"}
    figures = {short: float(found.params_[name]) for short, name in names.items()}
    figures |= {f"se {short}": float(found.se_[name]) for short, name in names.items()}
    return {**figures, "log-likelihood": float(found.log_likelihood_), **clock.read()}


JOBS = {"ours: linear": ours, "exact: our oracle": exact, "econirl: NFXP": econirl}
