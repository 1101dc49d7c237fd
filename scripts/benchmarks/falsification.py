"""Falsification: how often each test rejects, on correct panels (size) and on panels with one thing wrong (power).

A small market solved exactly (one segment, two benefits, two prices of the monthly plan, contracts of four months, no
seasons), whose rewards are linear in the columns that the study's reward has. One thing is wrong at a time:

    correct       nothing
    types         half of the members value all benefits .7 times as much, half 1.3 times
    use           the same, and their use rises .7 and 1.3 times as fast
    shocks        a taste for membership that comes and goes (range 1.5, correlation from month to month .9)
    attention     members decide in every other month; else their plan renews itself
    reminded      in three of ten, and in nine of ten where a reminder came (a column that the reward leaves out)
    commitment    contracts cannot be left, and the study's menu says that they can
    nest          seven tenths of the taste shocks are common to the two plans
    season        benefits are worth more in some months (the full market's seasons, three times as strong)
    drift         half-way, all benefits are worth 1.3 times as much
    discount      the study has .6 a month, members .95
    prices        nothing; the contract's price is tested, too (the reward is `full`, which tells where it is due)
    environments  nothing; two segments, in which use moves at different speed, and nothing else differs
    anchor        the same, and the study's anchor is wrong by a benefit's level (0, 1, 2)

`form` is the comparison of the refit with the policy network on held-out members (z, one-sided).

Panels are independent; every panel's results are kept in the folder, under the version of the code, so that a run that
is stopped goes on where it was.

python scripts/benchmark.py falsification [--panels 500] [--power 50] [--members 500] [--cases types nest ...]
[--workers 2] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import time
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from irl import membership
from irl.config import Config, validated
from irl.data import panel_from_frame
from irl.estimation.falsification import battery
from irl.estimation.pipeline import estimate
from irl.estimation.training import Workbench
from irl.membership import Cell, Market, types
from irl.membership.continued import continued
from irl.runs import atomic_write, fingerprint

PERIODS, LEVEL = 24, 0.05
BENEFITS = ("video", "gaming")
QUICK = {"hidden": [16], "max_epochs": 10, "batch_size": 1024}
TYPES = (0.7, 1.3)
OPTIONS = {
    "attention": {"attention": 0.5},
    "reminded": {"attention": 0.3, "reminded": 0.2, "attention_reminded": 0.9},
    "nest": {"nest": 0.7},
    "commitment": {"commitment": True},
    "prices": {"annual": (16.0, 24.0)},
    "environments": {"environments": True},
    "anchor": {"environments": True},
    "season": {"season": 3.0},
    "shocks": {"shocks": 1.5},
}
CASES = ("correct", "types", "use", "shocks", "attention", "reminded", "commitment", "nest", "season", "drift",
         "discount", "prices", "environments", "anchor")  # fmt: skip
CORRECT = ("correct", "prices", "environments")
MONTHS, COMMITMENT = 4, 1.0
PRICES, ANNUAL = (5.0, 15.0), 20.0
"""Months of a contract and the cost of signing up for them; prices of the monthly plan and of the contract."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panels", type=int, default=500, help="of every correct case")
    parser.add_argument("--power", type=int, default=50, help="panels of every other case")
    parser.add_argument(
        "--members",
        type=int,
        default=500,
        help=f"of every correct panel, {PERIODS} periods each; where something is wrong, twice as many",
    )
    parser.add_argument("--cases", nargs="*", choices=CASES, default=CASES)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark/falsification"), help="folder of the results")
    arguments = parser.parse_args()
    folder = arguments.out / version()
    folder.mkdir(parents=True, exist_ok=True)
    number = {case: arguments.panels if case in CORRECT else arguments.power for case in arguments.cases}
    jobs = [(case, seed) for seed in range(max(number.values())) for case in number if seed < number[case]]
    paths = {job: folder / file(job, arguments.members) for job in jobs}
    todo = [job for job, path in paths.items() if not path.is_file()]
    work = partial(kept, folder=folder, members=arguments.members)
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        done = pool.imap_unordered(work, todo)
        for _ in track(done, "panels", total=len(todo), console=Console(stderr=True), transient=True):
            pass
    seconds = time.perf_counter() - started
    console = Console(width=None if Console().is_terminal else 140)
    print_table(console, pd.concat({job: pd.read_csv(path) for job, path in paths.items()}, names=["case", "seed"]))
    took = f", {seconds * arguments.workers / len(todo):.1f} s a panel" if todo else ""
    console.print(f"{arguments.members} members x {PERIODS}, or twice as many{took}; CSV files in {folder}")


def version() -> str:
    """A fingerprint of the package's source and of this program."""
    sources = [*sorted(Path(membership.__file__).parents[1].rglob("*.py")), Path(__file__)]
    return fingerprint(*(path.read_text(encoding="utf-8") for path in sources))[:8]


def file(job: tuple[str, int], members: int) -> str:
    return f"{members}-{job[0]}-{job[1]}.csv"


def kept(job: tuple[str, int], *, folder: Path, members: int) -> None:
    """One panel's results, written to its file at once when they are there."""
    torch.set_num_threads(1)
    case, seed = job
    found = results(case, seed, members if case in CORRECT else 2 * members)
    atomic_write(folder / file(job, members), found.to_csv(index=False))


def market(
    *, taste: float = 1.0, use: float = 1.0, environments: bool = False, season: float = 0.0, shocks: float = 0.0,
    **options: Any,
) -> Market:  # fmt: skip
    """No diminishing returns, so that the reward is linear in the columns; members count dollars twice as much as in
    the full market, whose prices are twice as high."""
    full = Market(contract_months=MONTHS, **options)
    own = full.segments["gen_z"].of_type(taste, use)
    own = replace(own, saturation=1e4, price=2 * own.price, base=own.base + own.price * 10.0, commitment=COMMITMENT)
    keeping = {b: replace(own.benefits[b], drop_out=0.6, rise_out=0.01) for b in BENEFITS}
    segments = {"slow": own, "fast": replace(own, benefits=own.benefits | keeping)} if environments else {"gen_z": own}
    seasons = {b: tuple(season * x for x in full.seasons[b]) for b in BENEFITS}
    found = replace(full, segments=segments, seasons=seasons)
    return found.moody(shocks) if shocks else found


@cache
def solved(*, annual: tuple[float, ...] = (ANNUAL,), **options: Any) -> membership.MarketSolution:
    """The market at every price of the monthly plan, and at these of the contract."""
    found = market(**options)
    return membership.solve(found, cells=[Cell(s, m, a) for s in found.segments for m in PRICES for a in annual])


def simulated(case: str, seed: int, members: int) -> pd.DataFrame:
    about = {"members": members, "periods": PERIODS, "seed": seed}
    if case in ("types", "use"):
        kinds = [solved(taste=t, use=t if case == "use" else 1.0) for t in TYPES]
        return types.simulate_types(kinds, **about)[0]
    if case == "drift":
        first = membership.simulate(solved(), **(about | {"periods": PERIODS // 2}))
        later = solved(taste=1.3)
        return pd.concat([first, continued(later, first, periods=PERIODS // 2, seed=seed + 1)])
    return membership.simulate(solved(**OPTIONS.get(case, {})), **about)


def study(case: str, seed: int) -> Config:
    environments = bool(OPTIONS.get(case, {}).get("environments"))
    state = {
        "status": {"kind": "category", "dynamics": "table", "parents": ["status", "months_left"]},
        "months_left": {"kind": "ordinal", "levels": MONTHS, "dynamics": "table", "parents": ["status", "months_left"]},
        "price_monthly": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"},
    }
    if case == "reminded":
        state["reminded"] = {"kind": "ordinal", "levels": 2, "dynamics": "table"}
    reward = {"structure": "linear", "columns": ["status", "price_monthly", *BENEFITS]}
    price: dict[str, Any] = {"monthly": "price_monthly"}
    if case == "prices":
        state["price_annual"] = state["price_monthly"]
        reward = {"columns": [*reward["columns"], "price_annual"]}
        price["annual"] = {"amount": "price_annual", "where": {"status": ["out", "monthly"]}}
    static = ["segment"] if environments else []
    state |= {b: {"kind": "ordinal", "levels": 3, "dynamics": "table", "parents": [b, *static]} for b in BENEFITS}
    state |= {name: {"kind": "category", "dynamics": "static"} for name in static}
    about = {
        "data": {
            "path": "(simulated)", "member": "member_id", "period": "period", "action": "plan",
            "actions": list(membership.ACTIONS), "available": {"monthly": {"status": ["out", "monthly"]}},
            "state": state,
        },
        "anchor": {"action": "none", "reward": "video" if case == "anchor" else 0.0},
        "reward": reward,
        "money": {"currency": "USD", "price": price},
        "discount": 0.6 if case == "discount" else 0.95,
        "seed": seed,
        "estimation": {
            "policy": QUICK, "anchor_q": QUICK | {"rounds": 1}, "reward": QUICK, "folds": 1,
            "refit": {"rows": 2000, "rounds": 2, "standard_errors": False},
        },
    }  # fmt: skip
    return validated(Config, about, "the benchmark")


def results(case: str, seed: int, members: int) -> pd.DataFrame:
    """name, statistic, df, p of every test on the panel of this seed."""
    config = study(case, seed)
    frame = simulated(case, seed, members)
    panel = panel_from_frame(frame, config)
    model, metrics = estimate(config, panel, bench=Workbench(device=torch.device("cpu"), seed=seed))
    checks = battery(model, panel, metrics["refit"]["precisions"])
    found = pd.DataFrame([asdict(check) for check in checks])[["name", "statistic", "df", "p", "why"]]
    z = metrics["refit"]["form_gap"] / metrics["refit"]["form_gap_se"]
    return pd.concat([found, pd.DataFrame([{"name": "form", "statistic": z, "df": 1, "p": math.erfc(z / 2**0.5) / 2}])])


def print_table(console: Console, found: pd.DataFrame) -> None:
    """Shares of panels in which each test has p below the level, of those in which it was done."""
    done = found[found["p"].notna()].reset_index()
    tests = list(dict.fromkeys(done["name"]))
    table = Table("case", "panels", *(f"{t}, %" for t in tests), title=f"p below {LEVEL} (+/- its standard error)")
    for case, rows in done.groupby("case", sort=False):
        cells = []
        for test in tests:
            p = rows.loc[rows["name"] == test, "p"]
            share = (p < LEVEL).mean()
            cells.append(f"{100 * share:.1f} ± {100 * (share * (1 - share) / len(p)) ** 0.5:.1f}" if len(p) else "–")
        table.add_row(str(case), str(rows["seed"].nunique()), *cells)
    console.print(table)


if __name__ == "__main__":
    main()
