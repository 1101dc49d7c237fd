"""CDNOW: purchases of October 1997 to June 1998, forecast from those up to September, beside BG/NBD.

A purchase is a day with one. Ours simulates from the state of October on: ``PATHS`` times from every state that any
customer is in, as each hidden type; a customer's forecast weighs the types by what he chose up to September. A month
with more than one purchase counts as many as such months had on average before. BG/NBD (Fader, Hardie & Lee 2005) is
fitted on each customer's days, and forecasts the same months. Jobs `to June` and `to May` stop there and forecast the
months up to September: on these the study was chosen. `everyone`: all 23,570 customers, else the 1/10 sample of 2,357.

path: mean absolute error of the monthly totals, in per cent of their mean; total: error of the sum; customers: root
mean squared and mean absolute error of each customer's number of purchases in the months forecast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from real_parts.estimated import Clock, estimated, study

from irl.counterfactual.forecast import choice_paths
from irl.data.cdnow import MONTHS, cdnow, transactions
from irl.fitted import FittedModel

TITLE = "CDNOW, months held out"
SHOWN = {"path %": 1, "total %": 1, "customers RMSE": 3, "customers MAE": 3}
SEEDED = False
UNTIL, PATHS = 9, 1000


@dataclass(frozen=True)
class Case:
    """Purchases, and the panel's rows up to month ``last``, of which those after ``until`` are forecast."""

    bought: pd.DataFrame
    frame: pd.DataFrame
    until: int
    last: int


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


def held_out(frame: pd.DataFrame, until: int) -> np.ndarray:
    """Purchases [customers, months after ``until``], customers in order."""
    return frame[frame["month"] > until].pivot(index="customer", columns="month", values="purchases").to_numpy()


def forecast(model: FittedModel, frame: pd.DataFrame, *, seed: int, until: int) -> np.ndarray:
    """Purchases [customers, months after ``until``] that are expected of whom the model was fitted on up to then."""
    fitted, first = (
        frame[rows].sort_values("customer") for rows in (frame["month"] <= until, frame["month"] == until + 1)
    )
    bought = fitted[fitted["choice"] != "none"].groupby("choice")["purchases"].mean()
    size = bought.reindex(list(model.config.data.actions), fill_value=0.0).to_numpy()
    known = model.type_probabilities(fitted).groupby(fitted["customer"].to_numpy()).first().to_numpy()  # by customer
    names, months = list(model.config.data.state), frame["month"].max() - until
    state = first[names].drop_duplicates()
    place = first[names].merge(state.assign(place=range(len(state))), how="left")["place"].to_numpy()
    generator, found = torch.Generator().manual_seed(seed), np.zeros((len(first), months))
    for k in range(known.shape[1]):
        start = model.schema.encode(state.assign(type=k + 1)).repeat_interleave(PATHS, 0)
        path = choice_paths(model.dynamics, model.log_policy_of, start, periods=months, generator=generator)
        found += known[:, [k]] * size[path.numpy()].reshape(len(state), PATHS, months).mean(1)[place]
    return found


def ours(case: Case, seed: int, types: int) -> tuple[np.ndarray, Clock]:
    frame, clock = case.frame, Clock()
    options = f"seed={seed}", f"data.until={case.until}", f"types={types}", "estimation.refit.standard_errors=false"
    model, _, _ = estimated(study("cdnow", *options), frame)
    return forecast(model, frame, seed=seed, until=case.until), clock


def bg_nbd(case: Case, seed: int) -> tuple[np.ndarray, Clock]:
    from lifetimes import BetaGeoFitter

    clock, end = Clock(), pd.Timestamp("1996-12-31") + pd.offsets.MonthEnd(case.until)
    bought = case.bought[case.bought["date"] <= end]
    days = bought.drop_duplicates(["customer", "date"]).groupby("customer")["date"]
    first, last = days.min(), days.max()
    known = [x.to_numpy(float) for x in (days.size() - 1, (last - first).dt.days, (end - first).dt.days)]
    model = BetaGeoFitter()
    model.fit(*known)
    ahead = [(t - end).days for t in pd.date_range(end, periods=case.last - case.until + 1, freq="ME")]
    up_to = [np.asarray(model.conditional_expected_number_of_purchases_up_to_time(t, *known)) for t in ahead[1:]]
    return np.diff(np.stack([np.zeros(len(first)), *up_to], 1), axis=1), clock


def as_before(case: Case, seed: int) -> tuple[np.ndarray, Clock]:
    """Every customer goes on buying at the rate of the months so far."""
    clock, before = Clock(), case.frame[case.frame["month"] <= case.until]
    rate = before.groupby("customer")["purchases"].mean().sort_index().to_numpy()
    return np.repeat(rate[:, None], case.last - case.until, axis=1), clock


def job(
    forecaster: Callable[..., tuple[np.ndarray, Clock]],
    *more: int,
    until: int = UNTIL,
    last: int = MONTHS,
    sample: bool = True,
) -> Callable[[int], dict[str, float]]:
    def work(seed: int) -> dict[str, float]:
        bought = transactions(sample=sample)
        frame = cdnow(bought)
        case = Case(bought, frame[frame["month"] <= last].reset_index(drop=True), until, last)
        expected, clock = forecaster(case, seed, *more)
        took = clock.read()
        return {**scores(expected, held_out(case.frame, until)), **took}

    return work


JOBS = {
    "ours: two types": job(ours, 2),
    "ours: one type": job(ours, 1),
    "ours: three types": job(ours, 3),
    "Lifetimes: BG/NBD": job(bg_nbd),
    "own rate so far": job(as_before),
    **{f"to June, ours: {name}": job(ours, k, until=6, last=9) for k, name in ((1, "one"), (2, "two"), (3, "three"))},
    "to June, BG/NBD": job(bg_nbd, until=6, last=9),
    "to May, ours: two": job(ours, 2, until=5, last=9),
    "to May, BG/NBD": job(bg_nbd, until=5, last=9),
    "everyone, ours: two": job(ours, 2, sample=False),
    "everyone, BG/NBD": job(bg_nbd, sample=False),
}
