"""Coverage: how often 95 % intervals hold the truth, over many simulated panels of a small market solved exactly.

Two regions, a randomised price, two benefits that rise with use; plans none (the anchor, 0), basic and plus, each with
a reward linear in the columns. With `--features true` the estimated reward is linear in the same columns (`structure:
linear`); with `learned` it is `full`, networks, interactions and shrinkage included. Covered or not:

    reward         mean reward of a plan in a region, over the states visited in the panel
    contribution   what a benefit adds to a plan's reward, over the same states
    share          change of a plan's share in a region when the price rises by a fifth, in the last of the periods

Panels are independent, seeds 0, 1, ...; every panel's results are kept in the folder, under the version of the code, so
that a run that is stopped goes on where it was, and results of different code are not mixed. `ratio` is the mean
standard error over the standard deviation of the estimates' errors.

python scripts/benchmark.py coverage [--panels 1000] [--members 500] [--features true|learned] [--workers 2] [--out
FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import irl
from irl import tabular
from irl.config import Config, validated
from irl.counterfactual import ask
from irl.data import panel_from_frame
from irl.estimation.pipeline import estimate
from irl.estimation.training import Workbench
from irl.fitted import FittedModel, Z
from irl.runs import atomic_write

REGIONS, PRICES, LEVELS = ("north", "south"), (8.0, 10.0, 12.0), 3
ACTIONS, BENEFITS, DEAR = ("none", "basic", "plus"), ("video", "shipping"), 1.2
DISCOUNT, PERIODS = 0.9, 12
#        constant, south, per dollar, video, shipping
THETA = {"basic": (0.3, -0.4, -0.12, 0.5, 0.3), "plus": (-0.1, 0.3, -0.15, 0.9, 0.5)}
MOVES = {  # benefit -> P(one level up), P(one level down), without a plan and with one
    "video": ((0.05, 0.30), (0.35, 0.10)),
    "shipping": ((0.10, 0.25), (0.30, 0.15)),
}
QUICK = {"hidden": [16], "max_epochs": 10, "batch_size": 512}
COLUMNS = ["kind", "what", "truth", "estimate", "se"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panels", type=int, default=1000)
    parser.add_argument("--members", type=int, default=500, help=f"of every panel, {PERIODS} periods each")
    parser.add_argument("--features", choices=("true", "learned"), default="true")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument("--out", type=Path, help="folder of the results (default: runs/benchmark/coverage/FEATURES)")
    arguments = parser.parse_args()
    folder = (arguments.out or Path("runs/benchmark/coverage") / arguments.features) / version()
    folder.mkdir(parents=True, exist_ok=True)
    files = {seed: folder / f"{arguments.members}-{seed}.csv" for seed in range(arguments.panels)}
    todo = [seed for seed, file in files.items() if not file.is_file()]
    work = partial(kept, folder=folder, members=arguments.members, features=arguments.features)
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        done = pool.imap_unordered(work, todo)
        for _ in track(done, "panels", total=len(todo), console=Console(stderr=True), transient=True):
            pass
    seconds = time.perf_counter() - started
    frames = {seed: pd.read_csv(file) for seed, file in files.items()}
    console = Console(width=None if Console().is_terminal else 130)
    print_table(console, pd.concat(frames, names=["seed"]).reset_index("seed"))
    took = f", {seconds * arguments.workers / len(todo):.1f} s a panel" if todo else ""
    console.print(
        f"{arguments.panels} panels of {arguments.members} x {PERIODS}, features: {arguments.features}{took}; torch "
        f"{torch.__version__}, {platform.machine()}, {arguments.workers} workers. CSV files in {folder}"
    )


def version() -> str:
    """A fingerprint of the package's source."""
    sources = sorted(Path(irl.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:8]


def kept(seed: int, *, folder: Path, members: int, features: str) -> None:
    """One panel's results, written to its file at once when they are there."""
    torch.set_num_threads(1)
    rows = list(results(seed, members, features))
    atomic_write(folder / f"{members}-{seed}.csv", pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))


def states() -> pd.DataFrame:
    """Every state of the market, in the order of the oracle: region, price, video, shipping."""
    index = pd.MultiIndex.from_product(
        [REGIONS, PRICES, range(LEVELS), range(LEVELS)], names=["region", "price", *BENEFITS]
    )
    return index.to_frame(index=False)


def rewards(frame: pd.DataFrame) -> np.ndarray:
    """True reward [N, A] of every row."""
    columns = [np.ones(len(frame)), frame["region"] == "south", frame["price"], frame["video"], frame["shipping"]]
    x = np.stack([np.asarray(c, dtype=float) for c in columns], axis=1)
    return np.stack([np.zeros(len(frame)), *(x @ np.array(THETA[a]) for a in ACTIONS[1:])], axis=1)


def market(price: float = 1.0) -> tabular.FiniteMDP:
    """The market with every price multiplied by ``price``."""

    def moves(benefit: str, member: bool) -> Tensor:
        up, down = MOVES[benefit][member]
        ones = torch.ones(LEVELS - 1, dtype=torch.float64)
        matrix = torch.diag(up * ones, 1) + torch.diag(down * ones, -1)
        return matrix + torch.diag(1 - matrix.sum(1))

    stays = [torch.eye(len(values), dtype=torch.float64) for values in (REGIONS, PRICES)]
    kernels = [[*stays, *(moves(b, a != "none") for b in BENEFITS)] for a in ACTIONS]
    reward = torch.from_numpy(rewards(states().assign(price=lambda frame: frame["price"] * price)))
    available = torch.ones(len(reward), len(ACTIONS), dtype=torch.bool)
    return tabular.FiniteMDP(reward, available, tabular.factored_expectation(kernels), DISCOUNT)


def simulated(members: int, seed: int) -> pd.DataFrame:
    """One row per member and period, chosen by the exact policy."""
    rng = np.random.default_rng(seed)
    policy, table, mdp = tabular.solve(market()).policy.numpy(), states(), market()
    probability = torch.stack([mdp.expectation(column) for column in torch.eye(len(table), dtype=torch.float64)])
    cumulated = probability.permute(1, 2, 0).cumsum(-1).numpy()  # [S, A, S']
    at = rng.integers(0, len(table), members)
    rows = []
    for period in range(PERIODS):
        action = (rng.random((members, 1)) > policy[at].cumsum(1)).sum(1).clip(0, len(ACTIONS) - 1)
        row = table.iloc[at].reset_index(drop=True)
        rows.append(row.assign(member=np.arange(members), period=period, plan=np.array(ACTIONS)[action]))
        at = (rng.random((members, 1)) > cumulated[at, action]).sum(1).clip(0, len(table) - 1)
    return pd.concat(rows, ignore_index=True)


def study(features: str, seed: int) -> Config:
    level = {"kind": "ordinal", "levels": LEVELS, "dynamics": "table"}
    about = {
        "data": {
            "path": "(simulated)", "member": "member", "period": "period", "action": "plan", "actions": list(ACTIONS),
            "segment": "region",
            "state": {
                "region": {"kind": "category", "dynamics": "static"},
                "price": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"},
                **{b: level for b in BENEFITS},
            },
        },
        "anchor": {"action": "none", "reward": 0.0},
        "reward": {"structure": "linear" if features == "true" else "full", "benefits": list(BENEFITS)},
        "discount": DISCOUNT,
        "seed": seed,
        "estimation": {"policy": QUICK, "anchor_q": QUICK | {"rounds": 2}, "reward": QUICK, "refit": {"rows": 4000}},
    }  # fmt: skip
    return validated(Config, about, "the benchmark")


def results(seed: int, members: int, features: str) -> Iterator[dict[str, Any]]:
    """Truth, estimate and standard error of every quantity, on the panel of this seed."""
    frame, config = simulated(members, seed), study(features, seed)
    panel = panel_from_frame(frame, config)
    model, metrics = estimate(config, panel, bench=Workbench(device=torch.device("cpu"), seed=seed))
    truth = rewards(frame)
    for region in REGIONS:
        mine = (frame["region"] == region).to_numpy()
        for a, action in enumerate(ACTIONS[1:], start=1):
            found = metrics["reward_summary"][action][region]
            yield row("reward", f"{region} {action}", truth[mine, a].mean(), found["mean"], found["se"])
            for i, benefit in enumerate(BENEFITS):
                added = THETA[action][3 + i] * frame.loc[mine, benefit].mean()
                found = metrics["contributions"][action][region][benefit]
                yield row("contribution", f"{region} {action} {benefit}", added, found["mean"], found["se"])
    yield from share_changes(model, frame)


def share_changes(model: FittedModel, frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The change of every plan's share in the last period when the price rises, exactly and as the model answers."""
    start, table = frame.groupby("member").head(1), states()
    exact: dict[float, dict[str, np.ndarray]] = {}
    for price in (1.0, DEAR):
        mdp = market(price)
        policy = tabular.solve(mdp).policy
        exact[price] = {}
        for region in REGIONS:
            counts = start[start["region"] == region].groupby(list(table.columns)).size()
            mass = counts.reindex(pd.MultiIndex.from_frame(table), fill_value=0).to_numpy().astype(float)
            *_, last = tabular.propagate(mdp, policy, torch.from_numpy(mass / mass.sum()), periods=PERIODS)
            exact[price][region] = (last @ policy).numpy()
    scenario = {
        "name": "dearer", "periods": PERIODS, "members": 20_000, "seed": 1,
        "changes": [{"feature": {"name": "price", "scale": DEAR}}],
    }  # fmt: skip
    outcomes = ask(model, scenario, frame).answer().outcomes
    last_rows = outcomes[outcomes["period"] == PERIODS - 1].set_index(["segment", "outcome"])
    for region in REGIONS:
        for a, action in enumerate(ACTIONS):
            found = last_rows.loc[(region, f"share_{action}")]
            se = (found["high"] - found["low"]) / (2 * Z)
            yield row("share", f"{region} {action}", (exact[DEAR][region] - exact[1.0][region])[a], found["change"], se)


def row(kind: str, what: str, truth: float, estimate: float, se: float) -> dict[str, Any]:
    return dict(zip(COLUMNS, (kind, what, truth, estimate, se), strict=True))


def print_table(console: Console, found: pd.DataFrame) -> None:
    """Coverage by quantity and pooled by kind."""
    found = found.assign(error=found["estimate"] - found["truth"])
    found["covered"] = found["error"].abs() <= Z * found["se"]
    table = Table("kind", "quantity", "truth", "bias", "sd of errors", "mean se", "ratio", "covered, %", "panels")
    for kind, of_kind in found.groupby("kind", sort=False):
        for what, rows in of_kind.groupby("what", sort=False):
            ratio = rows["se"].mean() / rows["error"].std()
            numbers = (rows["truth"].mean(), rows["error"].mean(), rows["error"].std(), rows["se"].mean())
            cells = [*(f"{x:.4f}" for x in numbers), f"{ratio:.3f}", f"{100 * rows['covered'].mean():.1f}"]
            table.add_row(str(kind), str(what), *cells, str(len(rows)))
        ratios = of_kind.groupby("what").apply(lambda rows: rows["se"].mean() / rows["error"].std())
        pooled = f"{100 * of_kind['covered'].mean():.2f}"
        table.add_row(str(kind), "pooled", "", "", "", "", f"{ratios.mean():.3f}", pooled, "", style="bold")
        table.add_section()
    console.print(table)


if __name__ == "__main__":
    main()
