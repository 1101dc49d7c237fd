"""Backtest: forecasts of the simulated market against what happened, after a price change and in an arm held out.

`--part backtest`: the market at its price test up to half of the periods; then everybody's `price_annual` is multiplied
by `--factor`, and members go on under the policy that is optimal at the new prices. Fitted on the first half.
`--part experiment`: the market as it is; all members with `price_annual` 1.2 x list are held out and forecast.

Printed: the report's tables, and the mean absolute error of every forecast against exact shares (what happened is drawn
from these: the luck of the sample is in it). `--out` keeps the result as JSON and the panel.

python scripts/benchmark.py backtest [--part backtest|experiment] [--members 2000] [--periods 24] [--seed 0] [--out DIR]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from irl import command, membership, runs
from irl.config import Config, load_config
from irl.counterfactual.backtest import backtest, experiment
from irl.data import panel_from_frame
from irl.estimation.pipeline import estimate
from irl.estimation.training import Workbench
from irl.membership.continued import continued
from irl.membership.scenarios import exact_outcomes
from irl.report.backtest import tables_of
from irl.report.terminal import print_table

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "membership.yaml"
DEAR = 1.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("backtest", "experiment"), default="backtest")
    parser.add_argument("--members", type=int, default=2000)
    parser.add_argument("--periods", type=int, default=24)
    parser.add_argument("--factor", type=float, default=DEAR, help="of the annual plan's price, from half-way on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 150)
    said, started = Console(stderr=True), time.perf_counter()
    with said.status("simulating"):
        frame, truth, options = (repriced if arguments.part == "backtest" else with_arm)(arguments)
    config = load_config(CONFIG, [f"seed={arguments.seed}", *options])
    device = command.usable_device(arguments.device)
    with said.status("estimating"):
        bench = Workbench(device=device, seed=arguments.seed)
        model, _ = estimate(config, panel_from_frame(frame, config), bench=bench)
    between = time.perf_counter()
    with said.status("forecasting"):
        answer = (backtest if arguments.part == "backtest" else experiment)(model, frame, seed=arguments.seed)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        runs.write_json(arguments.out / f"{arguments.part}.json", answer)
        runs.atomic_write(arguments.out / f"{arguments.part}.parquet", frame.to_parquet(index=False))
    for table in tables_of(arguments.part, answer, config.data.actions, config.anchor.action):
        print_table(table, console=console)
    print_exact(answer, truth, config, console)
    console.print(
        f"{arguments.members:,} members x {arguments.periods} periods, seed {arguments.seed}; estimated in "
        f"{between - started:.0f} s, forecast in {time.perf_counter() - between:.0f} s on {device}; torch "
        f"{torch.__version__}"
    )


def repriced(arguments: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """The panel, exact shares after the change, and the study's options."""
    half = arguments.periods // 2
    market = membership.Market()
    before = membership.simulate(membership.solve(market), members=arguments.members, periods=half, seed=arguments.seed)
    dearer = before.assign(price_annual=(arguments.factor * before["price_annual"]).round(4))
    solution = membership.solve(market, cells=membership.cells_of(dearer))
    after = continued(solution, dearer, periods=arguments.periods - half, seed=arguments.seed + 1)
    start = after[after["period"] == half]
    exact = exact_outcomes(solution, start, periods=arguments.periods - half)
    frame = pd.concat([before, after]).sort_values(["member_id", "period"], ignore_index=True)
    return frame, exact, [f"data.until={half - 1}"]


def with_arm(arguments: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """The panel, exact shares of the arm, and the study's options."""
    market = membership.Market()
    solution = membership.solve(market)
    frame = membership.simulate(solution, members=arguments.members, periods=arguments.periods, seed=arguments.seed)
    dear = DEAR * market.list_annual
    start = frame[(frame["period"] == 0) & np.isclose(frame["price_annual"], dear)]
    exact = exact_outcomes(solution, start, periods=arguments.periods)
    return frame, exact, [f"data.held_out={{price_annual: [{dear:g}]}}"]


def print_exact(answer: dict[str, Any], truth: pd.DataFrame, config: Config, console: Console) -> None:
    """Mean absolute error of the shares against the exact ones, over segments, plans and periods, in points."""
    errors: dict[str, list[float]] = {}
    for segment, rows in truth.groupby("segment"):
        cell = answer["segments"][str(segment)]["share"]
        for action in config.data.actions:
            exact = rows.sort_values("period")[f"share_{action}"].to_numpy()
            for name in ("observed", *answer["forecasts"]):
                errors.setdefault(name, []).append(100 * np.abs(np.array(cell[action][name], float) - exact).mean())
    said = ", ".join(f"{name} {np.mean(e):.2f} (worst segment and plan {np.max(e):.2f})" for name, e in errors.items())
    console.print(f"against exact shares, points: {said}")


if __name__ == "__main__":
    with command.user_errors():
        main()
