"""Bus engines: reward error on the benchmark of Kang, Yoganarasimhan, Jain (arXiv 2502.14131), beside GLADIUS.

Mileage 1..20 starts at 1. Keeping pays -mileage, and mileage grows by 1..4 with probability 1/4 each, up to 20;
replacing (the anchor) pays -5, known, and mileage returns to 1. Discount .95, 100 periods, exact soft-optimal choices;
80 % of the trajectories estimate, the rest is scored. K more columns, whole numbers uniform on -10..10 drawn anew every
period, mean nothing, and the estimator is not told.

MAPE is the mean of |found - true| / |true| over the held-out rows (s, a) in per cent; the anchor's rows are free, so
the error on the other rows is given too. `bound` is exact maximum likelihood (nested fixed point, dynamics known, K
columns left out) of the same reward on the same rows: intercept and slope, or the slope alone. Published figures are
GLADIUS's.

python scripts/benchmark.py bus [--cells 50 1000:20 ...] [--repetitions N] [--forms linear slope ...] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from irl import tabular
from irl.config import Config, validated
from irl.data import panel_from_frame
from irl.data.panel import Panel
from irl.estimation.pipeline import estimate, held_out_rows
from irl.estimation.refit import fit_refit
from irl.estimation.training import Workbench
from irl.fitted import FittedModel, new_networks
from irl.runs import atomic_write

LEVELS, PERIODS, DISCOUNT, REPLACING = 20, 100, 0.95, -5.0
CHECK = {"keep": (-52.534, -53.834, -54.977, -56.037, -57.060, -58.069), "replace at 1": -54.815}
"""Published action values, mileage 1 to 6."""
GLADIUS = {
    (50, 0): 3.44, (250, 0): 0.84, (500, 0): 0.55, (1000, 0): 0.52, (2500, 0): 0.13, (5000, 0): 0.12,
    (1000, 2): 1.24, (1000, 5): 2.51, (1000, 20): 6.07, (1000, 50): 9.76, (1000, 100): 11.35,
}  # fmt: skip
FORMS = {
    "linear": {"structure": "linear"},
    "slope": {"structure": "linear", "intercept": False},
    "select": {"structure": "linear", "select": True},
    "full": {"structure": "full"},
}
"""linear: intercept and slopes by maximum likelihood; slope: without intercept; select: shrunk by evidence."""
ALWAYS = (("linear", "slope", "full"), ("linear", "select"))
"""The forms shown by default, without and with K columns."""


Rows = list[dict[str, object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", default=[f"{n}:{k}" for n, k in GLADIUS], help="trajectories[:K]")
    parser.add_argument(
        "--forms", nargs="+", choices=list(FORMS), help="default: linear, slope, full; with K > 0 linear, select"
    )
    parser.add_argument("--repetitions", type=int, help="default 20; 5 from 2,500 trajectories on, 10 with K > 0")
    parser.add_argument("--workers", type=int, default=1, help="seeds at once, processes of one thread each if several")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark/bus"), help="folder for the CSV file")
    arguments = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 130)
    progress = Console(stderr=True)
    check(console)
    found: list[dict[str, object]] = []
    arguments.out.mkdir(parents=True, exist_ok=True)
    for cell in arguments.cells:
        trajectories, _, dummies = cell.partition(":")
        n, k = int(trajectories), int(dummies or 0)
        repetitions = arguments.repetitions or (5 if n >= 2500 else 10 if k else 20)
        title = f"{n} trajectories, K = {k}"
        work = partial(repetition, n, k, forms=arguments.forms or ALWAYS[k > 0])
        for rows in track(spread(work, repetitions, arguments.workers), title, total=repetitions, console=progress):
            found += rows
            atomic_write(arguments.out / "bus.csv", pd.DataFrame(found).to_csv(index=False))
    frame = pd.DataFrame(found)
    print_table(console, frame)
    console.print(
        f"seeds 0 to repetitions - 1; torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{arguments.workers} workers. CSV file in {arguments.out}"
    )


def spread(work: Callable[[int], Rows], repetitions: int, workers: int) -> Iterator[Rows]:
    """What every seed gives, in processes of one thread each if there are several."""
    if workers == 1:
        yield from map(work, range(repetitions))
        return
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(work, range(repetitions))


def engine(reward: Tensor) -> tabular.FiniteMDP:
    """The problem with reward[LEVELS, 2]; actions are replace, keep."""
    transition = torch.zeros(LEVELS, 2, LEVELS, dtype=torch.float64)
    transition[:, 0, 0] = 1
    for x in range(LEVELS):
        for more in (1, 2, 3, 4):
            transition[x, 1, min(x + more, LEVELS - 1)] += 0.25
    available = torch.ones(LEVELS, 2, dtype=torch.bool)
    return tabular.FiniteMDP(reward, available, tabular.dense_expectation(transition), DISCOUNT)


def reward_of(theta: Tensor) -> Tensor:
    """reward[LEVELS, 2] of theta: (intercept, slope), or the slope alone."""
    mileage = torch.arange(1, LEVELS + 1, dtype=torch.float64)
    keep = theta[-1] * mileage + (theta[0] if len(theta) == 2 else 0.0)
    return torch.stack([torch.full_like(mileage, REPLACING), keep], dim=1)


TRUTH = reward_of(torch.tensor([-1.0], dtype=torch.float64))


def check(console: Console) -> None:
    """Compare the action values with the published ones: is it the same problem?"""
    q = tabular.solve(engine(TRUTH)).q
    own = (*q[:6, 1].tolist(), float(q[0, 0]))
    published = (*CHECK["keep"], CHECK["replace at 1"])
    worst = max(abs(a - b) for a, b in zip(own, published, strict=True))
    console.print(f"action values against the published ones: largest difference {worst:.4f}")


def simulated(trajectories: int, dummies: int, seed: int) -> pd.DataFrame:
    """One row per trajectory and period: `bus`, `period`, `mileage` 1..20, `action`, and the dummies."""
    rng = np.random.default_rng(seed)
    keep = tabular.solve(engine(TRUTH)).policy[:, 1].numpy()
    mileage = np.ones(trajectories, dtype=np.int64)
    rows = []
    for period in range(PERIODS):
        kept = rng.random(trajectories) < keep[mileage - 1]
        rows.append(pd.DataFrame({"bus": np.arange(trajectories), "period": period, "mileage": mileage, "kept": kept}))
        mileage = np.where(kept, np.minimum(mileage + rng.integers(1, 5, trajectories), LEVELS), 1)
    frame = pd.concat(rows, ignore_index=True)
    frame["action"] = np.where(frame.pop("kept"), "keep", "replace")
    extra = rng.integers(-10, 11, (len(frame), dummies))
    return pd.concat([frame, pd.DataFrame(extra, columns=[f"dummy_{i}" for i in range(dummies)])], axis=1)


def study(dummies: int, seed: int, form: dict[str, object]) -> Config:
    state: dict[str, dict[str, object]] = {
        "mileage": {"kind": "ordinal", "levels": list(range(1, LEVELS + 1)), "dynamics": "table"}
    }
    state |= {f"dummy_{i}": {"kind": "numeric", "dynamics": "learned"} for i in range(dummies)}
    about = {
        "data": {
            "path": "(simulated)", "member": "bus", "period": "period", "action": "action",
            "actions": ["replace", "keep"], "state": state,
        },
        "anchor": {"action": "replace", "reward": REPLACING},
        "reward": form, "discount": DISCOUNT, "seed": seed,
        "estimation": {"refit": {"rounds": 8}, "dynamics": {"max_epochs": 4}},
    }  # fmt: skip
    return validated(Config, about, "the benchmark")


def repetition(trajectories: int, dummies: int, seed: int, *, forms: Sequence[str]) -> Rows:
    """Errors and seconds of every form, and of the bounds, on one simulated panel."""
    frame = simulated(trajectories, dummies, seed)
    training = frame["bus"] < round(0.8 * trajectories)
    mine, scored = frame[training], frame[~training]
    truth = TRUTH.numpy()
    at, chosen = scored["mileage"].to_numpy() - 1, (scored["action"] == "keep").to_numpy().astype(int)

    def errors(name: str, reward: np.ndarray, seconds: float) -> dict[str, object]:
        relative = 100 * np.abs(reward - truth[at])[np.arange(len(at)), chosen] / np.abs(truth[at, chosen])
        scores = {"mape": relative.mean(), "mape_keep": relative[chosen == 1].mean(), "seconds": seconds}
        return {"trajectories": trajectories, "K": dummies, "seed": seed, "form": name, **scores}

    found = []
    cell = 2 * (mine["mileage"].to_numpy() - 1) + (mine["action"] == "keep").to_numpy()
    counts = torch.from_numpy(np.bincount(cell, minlength=2 * LEVELS).reshape(LEVELS, 2)).double()
    for name, start in (("bound", [0.0, -1.0]), ("slope bound", [-1.0])):
        started = time.perf_counter()
        bound = tabular.nested_fixed_point(lambda theta: engine(reward_of(theta)), counts, torch.tensor(start))
        found.append(errors(name, reward_of(bound.theta).numpy()[at], time.perf_counter() - started))
    bench = Workbench(device=torch.device("cpu"), seed=seed)
    first: FittedModel | None = None
    panel: Panel | None = None
    shared = 0.0  # seconds of P, Q, R and the dynamics, which know nothing of the reward's form
    for form in forms:
        config = study(dummies, seed, FORMS[form])
        started = time.perf_counter()
        panel = panel or panel_from_frame(mine, config)
        if first is None:
            model, metrics = estimate(config, panel, bench=bench)
            first, shared = model, time.perf_counter() - started - metrics["refit"]["step_seconds"]
            seconds = time.perf_counter() - started
        else:
            networks = {n: getattr(first, n) for n in ("policy_network", "anchor_network", "reward_network")}
            model = replace(new_networks(config, panel.schema), **networks, dynamics=first.dynamics)
            held_out = held_out_rows(panel, config.estimation.validation, seed)
            fit_refit(model, panel, held_out, config.estimation.refit, bench=bench)
            seconds = shared + time.perf_counter() - started
        found.append(errors(form, model.reward(scored).to_numpy(), seconds))
    return found


def print_table(console: Console, frame: pd.DataFrame) -> None:
    """Mean (sd over repetitions) of MAPE, and of the keep rows' error, by cell and form."""
    table = Table(
        "trajectories", "K", "form", "MAPE %", "keep rows %", "of its bound", "GLADIUS", "of it", "seconds", "n"
    )
    for (n, k), cell in frame.groupby(["trajectories", "K"]):
        published = GLADIUS.get((n, k))
        means = cell.groupby("form")["mape"].mean()
        for form, rows in cell.groupby("form", sort=False):
            bound = means["slope bound" if form.startswith("slope") else "bound"]
            against = f"{rows['mape'].mean() / published:.2f}" if published else ""
            both = (f"{rows[c].mean():.3f} ({rows[c].std():.3f})" for c in ("mape", "mape_keep"))
            seconds = f"{rows['seconds'].mean():.1f}"
            ratio = f"{rows['mape'].mean() / bound:.2f}"
            table.add_row(str(n), str(k), form, *both, ratio, str(published or ""), against, seconds, str(len(rows)))
        table.add_section()
    console.print(table)


if __name__ == "__main__":
    main()
