"""Markets that the model does not describe: what the plain study finds there, and what a study with the remedy finds.

The membership market of `irl/membership/market.py`, solved exactly, with one segment, two benefits, contracts of four
months and no seasons, and one thing unlike the model at a time (a switch of the market, at its default strength here):

    correct       nothing
    types         hidden types: half of the members value benefits .7 times as much, half 1.3; remedy: `types: 2`
    use           the same, and their use rises .7 and 1.3 times as fast; remedy: `types: 2`
    stock         the same types, and only who is a member in the first month is in the panel; remedy: `types: 2`
    shocks        a taste for membership that comes and goes, and is not recorded; remedy: `types: 2` (no true one)
    attention     members decide in every other month; remedy: `attention`, with the default declared
    reminded      a third decides, and nine of ten of the three in ten who are reminded; remedy: the same, and the
                  reminder as what shifts attention
    commitment    annual contracts cannot be left, and the menu says that they can; remedy: the menu as it is
    nest          half of the taste shocks are common to the plans; no remedy
    season        benefits are worth more in some months; remedy: the month in the state

Compared with the truth are rewards over visited states (RMSE; `joining`, the mean of the monthly plan's where out),
benefits' mean contributions to the rewards (mean absolute error, in % of the truth), 95 % intervals of mean rewards
and contributions (how many hold the truth), plan shares 12 months on if the annual price rises by a fifth (largest
error of their level and of the change, in points; the truth starts from the members of the panel); and the tests that
fired (p below .05 divided by their number); and, with inattention, the largest error of lambda. Of hidden types the
model's reward is a mean over the types. Results are kept under the version of the code, so that a run that is stopped
goes on where it was.

python scripts/benchmark.py misspecified [--members 1000] [--periods 24] [--seeds 0] [--cases types ...]
    [--simulated 20000] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

import irl
from irl import membership
from irl.config import Config, InputError, read_yaml, validated
from irl.counterfactual import ask
from irl.data import panel_from_frame
from irl.estimation.pipeline import estimate
from irl.estimation.training import Workbench
from irl.fitted import FittedModel
from irl.membership import ACTIONS, MarketSolution, types
from irl.membership.scenarios import exact_answer
from irl.report.falsification import LEVEL
from irl.runs import atomic_write, fingerprint
from irl.scenario import scenario_from

SEGMENT, BENEFITS, PLANS = "gen_z", ("video", "gaming"), ACTIONS[1:]
TYPES = [0.7, 1.3]
SWITCHES: dict[str, dict[str, Any]] = {
    "correct": {},
    "types": {"types": TYPES},
    "use": {"types": TYPES, "chosen_use": True},
    "stock": {"types": TYPES, "entry": "stock"},
    "shocks": {"shocks": 1.5},
    "attention": {"attention": 0.5},
    "reminded": {"attention": 0.33, "reminded": 0.3, "attention_reminded": 0.9},
    "commitment": {"commitment": True},
    "nest": {"nest": 0.5},
    "season": {},
}
OUT, CONTRACT = ["out", "monthly"], ["annual"]
DEFAULT = {plan: {"status": [status]} for plan, status in zip(ACTIONS, membership.STATUSES, strict=True)}
REMEDIES: dict[str, dict[str, Any]] = {
    "types": {"types": 2},
    "use": {"types": 2},
    "stock": {"types": 2},
    "shocks": {"types": 2},
    "attention": {"attention": {"default": DEFAULT}},
    "reminded": {
        "attention": {"default": DEFAULT, "shifters": ["reminded"]},
        "data": {"state": {"reminded": {"kind": "ordinal", "levels": 2, "dynamics": "table"}}},
    },
    "commitment": {"data": {"available": {"monthly": {"status": OUT}, "none": {"status": OUT}}}},
    "season": {"data": {"state": {"month": {"kind": "ordinal", "levels": 12, "dynamics": "clock"}}}},
}
NETWORK = {"hidden": [16], "max_epochs": 10}
MONTHS, ANNUAL = 4, 30.0
"""Of a contract, and its list price."""
DEARER = {
    "name": "annual plan a fifth dearer",
    "periods": 13,
    "changes": [{"feature": {"name": "price_annual", "scale": 1.2}}],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=1000)
    parser.add_argument("--periods", type=int, default=24)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--cases", nargs="*", choices=SWITCHES, default=list(SWITCHES))
    parser.add_argument("--simulated", type=int, default=20_000, help="members simulated under the scenario")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark/misspecified"), help="folder of the results")
    arguments = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 160)
    folder = arguments.out / version()
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for case, remedied, seed in jobs(arguments.cases, arguments.seeds):
        about = f"{case}-{'remedy' if remedied else 'plain'}-{seed}"
        file = folder / f"{arguments.members}x{arguments.periods}-{arguments.simulated}-{about}.csv"
        if not file.is_file():
            Console(stderr=True).print(about)
            try:
                row = results(case, remedied, seed, arguments.members, arguments.periods, arguments.simulated)
            except InputError as error:
                console.print(f"{about}: not available: {' '.join(str(error).split())}", highlight=False)
                continue
            atomic_write(file, pd.DataFrame([row]).to_csv(index=False).encode())
        row = pd.read_csv(file, dtype={"fired": str}, keep_default_na=True)
        found.append(row.assign(case=case, model="remedy" if remedied else "plain", seed=seed))
    if found:
        print_table(console, pd.concat(found))
    console.print(f"{arguments.members} members x {arguments.periods}, seeds {arguments.seeds}; CSV files in {folder}")


def version() -> str:
    """A fingerprint of the package's source and of this program."""
    sources = [*sorted(Path(irl.__file__).parent.rglob("*.py")), Path(__file__)]
    return fingerprint(*(path.read_text(encoding="utf-8") for path in sources))[:8]


def jobs(cases: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, bool, int]]:
    """(case, with the remedy, seed)."""
    for case in cases:
        for remedied in (False, True) if case in REMEDIES else (False,):
            yield from ((case, remedied, seed) for seed in seeds)


def study(case: str, remedied: bool, seed: int, members: int, periods: int) -> Config:
    about = read_yaml(Path(__file__).resolve().parents[2] / "configs" / "membership.yaml")
    state = about["data"]["state"]
    for name in ("shipping", "music", "grocery", "month"):
        del state[name]
    del about["money"]["cost"]
    about |= {"reward": {"structure": "additive", "benefits": list(BENEFITS)}, "seed": seed}
    state["months_left"]["levels"] = MONTHS
    about["market"] = {"members": members, "periods": periods, **SWITCHES[case]}
    about["estimation"] = {
        "policy": NETWORK,
        "anchor_q": NETWORK | {"max_epochs": 4},
        "reward": NETWORK,
        "dynamics": NETWORK,
        "refit": {"rows": 1500},
        "falsification": True,
    }
    for section, change in (REMEDIES[case] if remedied else {}).items():
        own = about.setdefault(section, change)
        for name, options in change.items() if section == "data" else ():
            own[name] |= options
        about[section] = own if section == "data" else change
    return validated(Config, about, "the benchmark")


@cache
def solved(case: str) -> tuple[MarketSolution, ...]:
    """The market of each type of members."""
    config = study(case, False, 0, 2, 2)
    assert config.market is not None
    market = membership.market_of(config)
    names = [*BENEFITS, *(name for name in market.seasons if name not in membership.Market().seasons)]
    seasons = {name: market.seasons[name] if case == "season" else (0.0,) * 12 for name in names}
    own = market.segments[SEGMENT]
    segments = {SEGMENT: replace(own, commitment=own.commitment * MONTHS / market.contract_months)}
    market = replace(market, segments=segments, seasons=seasons, contract_months=MONTHS, list_annual=ANNUAL)
    return tuple(types.solve_types(market, config.market.types, chosen_use=config.market.chosen_use))


def results(case: str, remedied: bool, seed: int, members: int, periods: int, simulated: int) -> dict[str, Any]:
    """One row of the table."""
    config, started = study(case, remedied, seed, members, periods), time.perf_counter()
    solutions = solved(case)
    frame, kind = types.simulate_types(solutions, members=members, periods=periods, seed=seed)
    panel = panel_from_frame(frame, config)
    model, metrics = estimate(config, panel, bench=Workbench(device=torch.device("cpu"), seed=seed))
    true = by_type(solutions, frame, kind)
    reward, found = model.reward(frame)[list(PLANS)], {}
    for plan in PLANS:
        found[f"rmse_{plan}"] = float(((reward[plan] - true[plan]) ** 2).mean() ** 0.5)
    out = frame["status"] == "out"
    found |= {
        "joining": float(reward.loc[out, "monthly"].mean()),
        "joining_true": float(true.loc[out, "monthly"].mean()),
    }
    intervals = [(true[plan].mean(), metrics["reward_summary"][plan][SEGMENT]) for plan in PLANS]
    errors = []
    for name in BENEFITS:
        without = by_type(solutions, frame.assign(**{name: 0}), kind)
        for plan in PLANS:
            worth, own = (true[plan] - without[plan]).mean(), metrics["contributions"][plan][SEGMENT][name]
            intervals.append((worth, own))
            errors.append(abs(own["mean"] / worth - 1))
    found |= {
        "lambda": attention_error(config, metrics),
        "attribution": 100 * float(np.mean(errors)),
        "held": sum(own["low"] <= value <= own["high"] for value, own in intervals),
        "intervals": len(intervals),
        **share_errors(model, solutions, frame, kind, simulated),
    }
    checks = [c for c in metrics.get("falsification", {}).get("checks", []) if c["p"] is not None]
    fired = [c["name"] for c in checks if c["p"] < LEVEL / len(checks)]
    found["fired"] = ", ".join(fired) if fired else "none" if checks else "–"
    return found | {"seconds": time.perf_counter() - started}


def attention_error(config: Config, metrics: dict[str, Any]) -> float:
    """The largest error of lambda, reminded or not; NaN where it was not asked."""
    market, errors = config.market, []
    assert market is not None
    for cell in metrics.get("attention", {}).get("cells", []):
        reminded = cell["levels"].get("reminded") == "1"
        true = market.attention_reminded if reminded else market.attention
        errors.append(abs(cell["lambda"] - true))
    return max(errors, default=float("nan"))


def by_type(solutions: Sequence[MarketSolution], frame: pd.DataFrame, kind: pd.Series) -> pd.DataFrame:
    """The true rewards of the rows, each by its member's type."""
    parts = [membership.true_reward(s, frame[kind == k]) for k, s in enumerate(solutions)]
    return pd.concat(parts).loc[frame.index, list(PLANS)]


def share_errors(
    model: FittedModel, solutions: Sequence[MarketSolution], frame: pd.DataFrame, kind: pd.Series, simulated: int
) -> dict[str, float]:
    """Largest error of a plan's share 12 months after the change, of its level and of the change, in points."""
    assert model.refit is not None
    model = replace(model, refit=copy.deepcopy(model.refit))
    model.refit.covariance.zero_()  # no intervals are made
    scenario = scenario_from(DEARER | {"members": simulated})
    answer = ask(model, scenario, frame).answer(bands=False).outcomes
    first = frame["period"] == 0
    before, after = 0.0, 0.0
    for k, solution in enumerate(solutions):
        start = frame[first & (kind == k)]
        exact = exact_answer(solution.market, scenario, start)
        shares = [
            table[table["period"] == 12].iloc[0][[f"share_{a}" for a in ACTIONS]].to_numpy(dtype=float)
            for table in (exact.baseline, exact.scenario)
        ]
        weight = len(start) / int(first.sum())
        before, after = before + weight * shares[0], after + weight * shares[1]
    own = answer[(answer["segment"] == SEGMENT) & (answer["period"] == 12)].set_index("outcome")
    own = own.loc[[f"share_{a}" for a in ACTIONS]]
    level = 100 * (own["scenario"].to_numpy(dtype=float) - after)
    change = level - 100 * (own["baseline"].to_numpy(dtype=float) - before)
    return {"share": float(np.abs(level).max()), "change": float(np.abs(change).max())}


def print_table(console: Console, found: pd.DataFrame) -> None:
    """Means over the seeds; the tests that fired, and in how many panels."""
    heads = ("RMSE monthly", "annual", "joining", "(true)", "λ off by", "attribution, %", "held", "share, points")
    table = Table("market", "study", *heads, "change", "tests that fired", title="Markets unlike the model")
    for (case, name), rows in found.groupby(["case", "model"], sort=False):
        mean = rows.mean(numeric_only=True)
        fired = pd.Series([test for tests in rows["fired"] for test in str(tests).split(", ")]).value_counts()
        numbers = [f"{mean[c]:.3f}" for c in ("rmse_monthly", "rmse_annual")]
        numbers += [f"{mean['joining']:.2f}", f"{mean['joining_true']:.2f}"]
        numbers += ["–" if pd.isna(mean["lambda"]) else f"{mean['lambda']:.3f}", f"{mean['attribution']:.0f}"]
        numbers += [f"{rows['held'].sum()}/{rows['intervals'].sum()}", f"{mean['share']:.1f}", f"{mean['change']:.1f}"]
        said = [f"{test} ({n})" if len(rows) > 1 else test for test, n in fired.items()]
        table.add_row(str(case), str(name), *numbers, ", ".join(said))
    console.print(table)


if __name__ == "__main__":
    main()
