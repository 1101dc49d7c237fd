"""CDNOW: purchases of October 1997 to June 1998, forecast from those up to September, beside BG/NBD.

A purchase is a day with one. Ours simulates every customer from the state of October on, 40 times; a month in which
something is bought counts as many purchases as such months had on average before. BG/NBD (Fader, Hardie & Lee 2005) is
fitted on each customer's days, and forecasts the same months.

path: mean absolute error of the monthly totals, in per cent of their mean; total: error of the sum; customers: root
mean squared and mean absolute error of each customer's number of purchases in the nine months.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from real_parts.estimated import Clock, estimated, study

from irl.counterfactual.forecast import choice_paths
from irl.data.cdnow import MONTHS, cdnow, transactions

TITLE = "CDNOW 1/10 sample, 2,357 customers, nine months held out"
SHOWN = {"path %": 1, "total %": 1, "customers RMSE": 3, "customers MAE": 3}
SEEDED = False
UNTIL, PATHS = 9, 40
END = pd.Timestamp("1997-09-30")


def scores(expected: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """Of purchases [customers, months]."""
    path, error = expected.sum(0) - seen.sum(0), expected.sum(1) - seen.sum(1)
    return {
        "path %": 100 * float(np.abs(path).mean() / seen.sum(0).mean()),
        "total %": 100 * float(path.sum() / seen.sum()),
        "customers RMSE": float(np.sqrt((error**2).mean())),
        "customers MAE": float(np.abs(error).mean()),
        "path": expected.sum(0).tolist(),
        "seen": seen.sum(0).tolist(),
    }


def held_out(frame: pd.DataFrame) -> np.ndarray:
    """Purchases [customers, months after ``UNTIL``], customers in order."""
    return frame[frame["month"] > UNTIL].pivot(index="customer", columns="month", values="purchases").to_numpy()


def ours(seed: int, types: int = 1) -> dict[str, float]:
    frame, clock = cdnow(transactions()), Clock()
    config = study("cdnow", f"seed={seed}", f"types={types}", "estimation.refit.standard_errors=false")
    model, _, _ = estimated(config, frame)
    fitted = frame[frame["month"] <= UNTIL]
    before = fitted[fitted["choice"] != "none"]
    size = before.groupby("choice")["purchases"].mean().reindex(list(config.data.actions), fill_value=0.0).to_numpy()
    known = model.type_probabilities(fitted).groupby(fitted["customer"].to_numpy()).first().to_numpy()  # by customer
    first = frame[frame["month"] == UNTIL + 1].sort_values("customer")
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    total = np.zeros((len(first), MONTHS - UNTIL))
    for _ in range(PATHS):
        kind = 1 + (rng.random((len(first), 1)) > known.cumsum(1)[:, :-1]).sum(1)
        start = model.schema.encode(first.assign(type=kind))
        path = choice_paths(model.dynamics, model.log_policy_of, start, periods=MONTHS - UNTIL, generator=generator)
        total += size[path.numpy()]
    return {**scores(total / PATHS, held_out(frame)), **clock.read()}


def bg_nbd(seed: int) -> dict[str, float]:
    from lifetimes import BetaGeoFitter

    bought = transactions()
    seen, clock = held_out(cdnow(bought)), Clock()
    days = bought[bought["date"] <= END].drop_duplicates(["customer", "date"]).groupby("customer")["date"]
    first, last = days.min(), days.max()
    frequency, recency, age = days.size() - 1, (last - first).dt.days, (END - first).dt.days
    model = BetaGeoFitter()
    model.fit(frequency.to_numpy(float), recency.to_numpy(float), age.to_numpy(float))
    ends = pd.date_range(END, periods=MONTHS - UNTIL + 1, freq="ME")
    up_to = [
        np.zeros(len(age))
        if t == END
        else np.asarray(
            model.conditional_expected_number_of_purchases_up_to_time(
                (t - END).days, frequency.to_numpy(float), recency.to_numpy(float), age.to_numpy(float)
            )
        )
        for t in ends
    ]
    return {**scores(np.diff(np.stack(up_to, 1), axis=1), seen), **clock.read()}


def as_before(seed: int) -> dict[str, float]:
    """Every customer goes on buying at the rate of the months so far."""
    frame = cdnow(transactions())
    clock, before = Clock(), frame[frame["month"] <= UNTIL]
    rate = before.groupby("customer")["purchases"].mean().sort_index().to_numpy()
    return {**scores(np.repeat(rate[:, None], MONTHS - UNTIL, axis=1), held_out(frame)), **clock.read()}


JOBS = {
    "ours": ours,
    "ours: two types": lambda seed: ours(seed, 2),
    "Lifetimes: BG/NBD": bg_nbd,
    "own rate so far": as_before,
}
