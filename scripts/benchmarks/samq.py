"""The benchmark of Geng et al. (UAI 2023): the error of a linear reward's parameters, beside SAmQ and its peers.

Action 0 (the anchor) pays 0 and resets the first coordinate to 0; action 1 pays 5 - s1 and adds U(1, 2) to it. Two more
coordinates are drawn anew from U(-5, 5) every step and mean nothing. Discount .9, soft-optimal choices (solved on a
grid), one trajectory of N steps, cut into stretches of 100 that are treated as members. The score is the mean over the
three coordinates of (found - true)^2, true = (1, 0, 0), where found are the slopes of the recovered r(s, 1) on (1, -s)
over the visited states. Published: SAmQ .001, NF-MLE .199. (The published score of PQR compares with the wrong sign.)

python scripts/benchmark.py samq [--steps 5000] [--repetitions 20] [--forms linear select full] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from irl.config import Config, validated
from irl.data import panel_from_frame
from irl.estimation.pipeline import estimate
from irl.estimation.training import Workbench
from irl.runs import atomic_write

DISCOUNT, STRETCH, BAR = 0.9, 100, 0.001
GRID = np.linspace(0.0, 40.0, 4001)
"""Where the value of the first coordinate is computed; choices beyond 20 are as good as never."""
FORMS = {
    "linear": {"structure": "linear"},
    "select": {"structure": "linear", "select": True},
    "full": {"structure": "full"},
}
PUBLISHED = {"SAmQ": 0.001, "NF-MLE": 0.199}
COLUMNS = ("s1", "s2", "s3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000, help="of the trajectory")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark/samq"), help="folder for the CSV file")
    arguments = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 130)
    keep = optimal_policy()
    found = []
    for seed in track(range(arguments.repetitions), "trajectories", console=Console(stderr=True), transient=True):
        frame = simulated(arguments.steps, keep, seed)
        for form in arguments.forms:
            started = time.perf_counter()
            slopes = recovered(frame, form, seed)
            score = float(np.mean((slopes - np.array([1.0, 0.0, 0.0])) ** 2))
            seconds = time.perf_counter() - started
            found.append(
                {"seed": seed, "form": form, "mse": score, "seconds": seconds} | dict(zip(COLUMNS, slopes, strict=True))
            )
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(found)
    atomic_write(arguments.out / "samq.csv", table.to_csv(index=False))
    print_table(console, table)
    console.print(
        f"{arguments.steps:,} steps, {arguments.repetitions} trajectories (seeds 0, 1, ...); torch "
        f"{torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads. CSV file in {arguments.out}"
    )


def optimal_policy() -> np.ndarray:
    """P(action 1) on the grid, by value iteration; the mean over U(1, 2) by its midpoints."""
    moves = 1 + (np.arange(50) + 0.5) / 50
    value = np.zeros_like(GRID)
    for _ in range(400):
        ahead = np.mean([np.interp(GRID + move, GRID, value) for move in moves], axis=0)
        q = np.stack([np.full_like(GRID, DISCOUNT * value[0]), 5 - GRID + DISCOUNT * ahead])
        value = np.logaddexp(q[0], q[1])
    return np.exp(q[1] - value)


def simulated(steps: int, keep: np.ndarray, seed: int) -> pd.DataFrame:
    """One trajectory: `stretch`, `step` within it, `s1` to `s3`, `action`."""
    rng = np.random.default_rng(seed)
    first, chosen = np.zeros(steps), np.zeros(steps, dtype=int)
    now = 0.0
    for t in range(steps):
        first[t], chosen[t] = now, rng.random() < np.interp(now, GRID, keep)
        now = now + rng.uniform(1, 2) if chosen[t] else 0.0
    others = rng.uniform(-5, 5, (steps, 2))
    at = np.arange(steps)
    return pd.DataFrame(
        {
            "stretch": at // STRETCH, "step": at % STRETCH, "s1": first, "s2": others[:, 0], "s3": others[:, 1],
            "action": np.array(["reset", "go"])[chosen],
        }
    )  # fmt: skip


def recovered(frame: pd.DataFrame, form: str, seed: int) -> np.ndarray:
    """Slopes [3] of the recovered reward of going on -s, over the visited states."""
    about = {
        "data": {
            "path": "(simulated)", "member": "stretch", "period": "step", "action": "action",
            "actions": ["reset", "go"],
            "state": {name: {"kind": "numeric", "dynamics": "learned"} for name in COLUMNS},
        },
        "anchor": {"action": "reset", "reward": 0.0}, "reward": FORMS[form], "discount": DISCOUNT, "seed": seed,
        "estimation": {"refit": {"rounds": 8, "standard_errors": False}},
    }  # fmt: skip
    config = validated(Config, about, "the benchmark")
    model, _ = estimate(config, panel_from_frame(frame, config), bench=Workbench(device=torch.device("cpu"), seed=seed))
    x = np.column_stack([np.ones(len(frame)), -frame[list(COLUMNS)].to_numpy()])
    slopes: np.ndarray = np.linalg.lstsq(x, model.reward(frame)["go"].to_numpy(), rcond=None)[0][1:]
    return slopes


def print_table(console: Console, found: pd.DataFrame) -> None:
    table = Table("form", "MSE", "sd", "bar", *(f"{c}: mean (sd)" for c in COLUMNS), "seconds", "n")
    for form, rows in found.groupby("form", sort=False):
        mean = rows["mse"].mean()
        bar = f"<= {BAR}: {'met' if mean <= BAR else 'MISSED'}"
        slopes = (f"{rows[c].mean():.4f} ({rows[c].std():.4f})" for c in COLUMNS)
        scores = (f"{mean:.5f}", f"{rows['mse'].std():.5f}", bar)
        table.add_row(str(form), *scores, *slopes, f"{rows['seconds'].mean():.1f}", str(len(rows)))
    for name, score in PUBLISHED.items():
        table.add_row(f"published: {name}", f"{score:.3f}", *[""] * 7)
    console.print(table)


if __name__ == "__main__":
    main()
