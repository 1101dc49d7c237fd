"""Recovery on the simulated market: rewards against the truth, and plan shares at 1.2 x list against the exact oracle.

Simulates the membership panel, estimates it as scripts/train.py does, and compares with the solved market: rewards over
visited states (R2, and R2 within segment x status), and the effect of the annual price at 1.2 x list against list on
plan shares, averaged over the 36 months and at its worst month. 20,000 simulated members; the Monte Carlo sd of a
segment's share is about 0.7 points.

python scripts/benchmark.py recovery [--members 4000] [--periods 36] [--discount 0.95] [--seeds 0]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from irl import membership
from irl.config import load_config
from irl.counterfactual import simulate
from irl.data import panel_from_frame
from irl.estimation.pipeline import estimate
from irl.estimation.training import Workbench
from irl.membership_scenarios import exact_outcomes, scenario_edit
from irl.report.tables import recovery
from irl.scenario import cases, scenario_from

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "membership.yaml"
PERIODS = 36


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=4000)
    parser.add_argument("--periods", type=int, default=36)
    parser.add_argument("--discount", type=float, default=0.95, help="per month")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark/recovery"), help="folder for the CSV files")
    arguments = parser.parse_args()
    console = Console()
    rewards, shares = [], []
    for seed in arguments.seeds:
        with console.status(f"seed {seed}"):
            found, effects = once(arguments.members, arguments.periods, arguments.discount, seed)
        rewards.append(found.assign(seed=seed))
        shares.append(effects.assign(seed=seed))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, parts in (("rewards", rewards), ("shares", shares)):
        table = pd.concat(parts)
        table.to_csv(arguments.out / f"{name}.csv")
        console.print(name, table.round(3).to_string(), sep="\n", soft_wrap=True)
    console.print(f"{torch.get_num_threads()} threads; CSV files in {arguments.out}")


def once(members: int, periods: int, discount: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reward recovery by action, and errors of the price effect by segment and plan (points), for one seed."""
    config = load_config(CONFIG, [f"seed={seed}", f"discount={discount}"])
    market = membership.Market(discount=discount, temperature=config.temperature)
    solution = membership.solve(market)
    frame = membership.simulate(solution, members=members, periods=periods, seed=seed)
    bench = Workbench(device=torch.device("cpu"), seed=seed)
    model, _ = estimate(config, panel_from_frame(frame, config), bench=bench)
    anchor = config.anchor.action
    found = recovery(
        model.reward(frame).drop(columns=anchor),
        membership.true_reward(solution, frame).drop(columns=anchor),
        frame["segment"].astype(str) + " " + frame["status"].astype(str),
    )
    prices = [market.list_annual, round(1.2 * market.list_annual, 4)]
    change = {"feature": {"name": "price_annual", "set": prices}}
    scenario = scenario_from({"name": "price", "periods": PERIODS, "members": 20000, "changes": [change]})
    keys = ["segment", "period", "outcome"]
    table = simulate(model, scenario, frame)
    table = table[table["outcome"].str.startswith("share_")].set_index(keys)
    start = frame.groupby("member_id").head(1)
    levels = {}
    for label, case in cases(scenario).items():
        edit = scenario_edit(market, case)
        exact = exact_outcomes(
            membership.solve(market, cells=membership.cells_of(start), edit=edit), start, periods=PERIODS
        )
        exact = exact.melt(id_vars=["segment", "period"], var_name="outcome").set_index(keys)["value"]
        levels[label] = pd.DataFrame({"model": table.loc[table["case"] == label, "scenario"], "exact": exact}).dropna()
    low, high = (100 * level for level in levels.values())
    by = ["segment", "outcome"]
    error = (high - low).eval("model - exact")
    return found, pd.DataFrame(
        {
            "exact effect": (high - low)["exact"].groupby(by).mean(),
            "error, mean over months": error.groupby(by).mean(),
            "error, worst month": error.abs().groupby(by).max(),
            "level error at list": low.eval("model - exact").groupby(by).mean(),
            "level error at 1.2": high.eval("model - exact").groupby(by).mean(),
        }
    )


if __name__ == "__main__":
    main()
