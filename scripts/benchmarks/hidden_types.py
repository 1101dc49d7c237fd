"""Hidden types on the simulated market: what a study with one type gets wrong, and what types put right.

Members differ in tastes that no column shows (`--tastes`: how many times as much each type values every benefit). For
every number of types asked for, the same panel is estimated as scripts/train.py does, and judged against the market of
each type solved exactly:

    rewards   root mean square error over visited states, of the paid plans, each member by the type that it is of
    shares    of every plan in every segment 12 months on: largest error, in points, as things are, with the annual plan
              at 1.2 times its list price, and of the change; from the very members that are simulated
    benefits  lifetime contribution (`--structure additive`) or removal effect (full) by segment: errors in % of the
              truth, largest and mean, and how many are within 10 %
    AUC       how often a member of the type that values benefits most has the higher posterior of the last type than
              one of the type that values them least

Everything is kept in the folder (answers under the version of the code), so that a run that is stopped goes on where
it was.

python scripts/benchmark.py hidden_types [--members 20000] [--periods 36] [--tastes .7 1.3] [--types 1 2] [--seeds 0]
    [--structure full | additive] [--simulated 60000] [--options KEY=VALUE ...] [--device cpu] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import platform
import time
from collections.abc import Callable
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
from irl import command, runs
from irl.config import Config, load_config
from irl.counterfactual import ask
from irl.counterfactual.attribution import attribute
from irl.counterfactual.outcomes import ALL
from irl.counterfactual.rollout import Starts
from irl.data import panel_from_frame
from irl.estimation.pipeline import train
from irl.fitted import FittedModel
from irl.membership import ACTIONS, Market, MarketSolution, types
from irl.membership.attribution import exact_contributions, exact_removals
from irl.membership.scenarios import exact_answer
from irl.scenario import cases, load_scenario

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DISCOUNT = load_config(CONFIGS / "membership.yaml").discount
MONTHS = 12
"""After so many the shares are judged."""
NEAR = 10.0
"""Per cent within which a benefit's part is right."""
Tell = Callable[[str], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=20_000)
    parser.add_argument("--periods", type=int, default=36)
    parser.add_argument("--tastes", type=float, nargs="+", default=[0.7, 1.3], help="of each type; 1: all are alike")
    parser.add_argument("--types", type=int, nargs="+", default=[1, 2], help="numbers of types that are estimated")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of simulation and estimation")
    parser.add_argument("--structure", choices=("full", "additive"), default="full", help="of the studies' reward")
    parser.add_argument("--simulated", type=int, default=60_000, help="members simulated for an answer, at least")
    parser.add_argument(
        "--options", nargs="*", default=[], metavar="KEY=VALUE", help="options of the studies to change"
    )
    parser.add_argument("--device", default="cpu", help="where the estimation runs")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark/hidden_types"), help="folder of all results")
    arguments = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 150)
    rows = []
    with Console(stderr=True).status("") as status:
        for seed in arguments.seeds:
            for number in arguments.types:
                name = f"seed {seed}, {number} types"
                row = judged(arguments, seed, number, lambda text, name=name: status.update(f"{name}: {text}"))
                rows.append({"seed": seed, "types": number, **row})
                status.console.print(name, highlight=False)
    print_rows(console, rows)
    console.print(
        f"{arguments.members:,} members x {arguments.periods} periods, tastes x {arguments.tastes}, reward: "
        f"{arguments.structure} {' '.join(arguments.options)}, {arguments.simulated:,} simulated; torch "
        f"{torch.__version__}, {platform.machine()}, {os.cpu_count()} cores. Everything in {arguments.out}"
    )


def judged(arguments: argparse.Namespace, seed: int, number: int, tell: Tell) -> dict[str, Any]:
    """What one study finds, against the truth; kept in the folder."""
    tastes = tuple(arguments.tastes)
    folder = arguments.out / f"{arguments.members}x{arguments.periods}-{'-'.join(map(str, tastes))}-{seed}"
    tell("simulating")
    frame, truth = simulated(arguments, tastes, seed, folder)
    own = "-".join([arguments.structure, str(number), *(text.replace("/", "_") for text in arguments.options)])
    options = [f"seed={seed}", f"types={number}", f"reward.structure={arguments.structure}", *arguments.options]
    run = folder / own
    model = study(load_config(CONFIGS / "membership.yaml", options), frame, run, arguments.device, tell)
    metrics = runs.read_json(run / runs.LAST)
    steps = {name: step["step_seconds"] for name, step in metrics.items() if "step_seconds" in (step or {})}
    found = {
        "train_seconds": sum(steps.values()),
        "refit_seconds": steps["refit"],
        "log_likelihood": metrics["refit"]["log_likelihood"],
        "held_out": metrics["refit"]["held_out_log_likelihood"],
    }
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "rewards": lambda: rewards(model, frame, truth) | likeness(model, frame, truth, tastes),
        "benefits": lambda: benefits(model, frame, truth, tastes, folder),
        f"shares-{arguments.simulated}": lambda: shares(model, frame, truth, tastes, arguments.simulated, tell),
    }
    for stage, judge in stages.items():
        file = run / f"{stage}-{version(run)}.json"
        if not file.is_file():
            tell(stage)
            started = time.perf_counter()
            runs.write_json(file, judge() | {f"{stage.partition('-')[0]}_seconds": time.perf_counter() - started})
        found |= runs.read_json(file)
    return found


@cache
def solved(tastes: tuple[float, ...]) -> list[MarketSolution]:
    """The market of every type."""
    return types.solve_types(Market(discount=DISCOUNT), tastes)


def simulated(
    arguments: argparse.Namespace, tastes: tuple[float, ...], seed: int, folder: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The panel, and its truth (rewards, and the type of every row)."""
    panel, truth = folder / "membership.parquet", folder / "membership_truth.parquet"
    if not truth.is_file():
        frame, kind = types.simulate_types(
            solved(tastes), members=arguments.members, periods=arguments.periods, seed=seed
        )
        known = types.truth(solved(tastes), frame, kind).assign(type=kind)
        folder.mkdir(parents=True, exist_ok=True)
        runs.atomic_write(panel, frame.to_parquet(index=False))
        runs.atomic_write(truth, known.to_parquet(index=False))
    return pd.read_parquet(panel), pd.read_parquet(truth)


def study(config: Config, frame: pd.DataFrame, run: Path, device: str, tell: Tell) -> FittedModel:
    """The trained study in the folder, made if it is not there."""
    if not (run / runs.LAST).is_file():
        train(
            config, panel_from_frame(frame, config), run, device=torch.device(device), resume=run.exists(),
            tick=lambda step, epoch, of, _: tell(f"{step} {epoch}/{of}"),
        )  # fmt: skip
    return irl.load(run)


def version(run: Path) -> str:
    """A fingerprint of the package's source and of the study's weights."""
    files = [Path(__file__), *sorted(Path(irl.__file__).parent.rglob("*.py")), run / "model" / "weights.safetensors"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


def rewards(model: FittedModel, frame: pd.DataFrame, truth: pd.DataFrame) -> dict[str, float]:
    """Errors of the reward of the paid plans, over visited states; with types, those of the type nearest in order."""
    last = max(int(truth["type"].max()), 1)
    errors, worth = {}, []
    for k, rows in frame.groupby(truth["type"]):
        kind = 1 + round(int(k) / last * (model.schema.types - 1))
        found = model.reward(rows if model.shares is None else rows.assign(type=kind))
        for plan in ACTIONS[1:]:
            true = truth.loc[rows.index, f"reward_{plan}"]
            errors[f"{plan} {k}"] = (found[plan] - true).dropna()
            worth.append(true.dropna())
    every = {"rmse": errors.values()} | {
        f"rmse_{plan}": [errors[n] for n in errors if plan in n] for plan in ACTIONS[1:]
    }
    found_errors = {name: float(np.sqrt(np.mean(np.concatenate(list(e)) ** 2))) for name, e in every.items()}
    return found_errors | {"sd": float(np.std(np.concatenate(worth)))}


def likeness(
    model: FittedModel, frame: pd.DataFrame, truth: pd.DataFrame, tastes: tuple[float, ...]
) -> dict[str, float | None]:
    """How well the posterior tells the types apart, and how many members it takes to be of the last."""
    if model.shares is None:
        return {"auc": None, "last_share": None}
    own = model.type_probabilities(frame).iloc[:, -1].groupby(frame["member_id"]).first()
    kind = truth["type"].groupby(frame["member_id"]).first()
    high, low = (own[kind == pick(range(len(tastes)), key=tastes.__getitem__)] for pick in (max, min))
    rank = pd.concat([low, high]).rank().iloc[len(low) :].sum() - len(high) * (len(high) + 1) / 2
    return {"auc": rank / len(low) / len(high) if len(tastes) > 1 else None, "last_share": float(own.mean())}


def benefits(
    model: FittedModel, frame: pd.DataFrame, truth: pd.DataFrame, tastes: tuple[float, ...], folder: Path
) -> dict[str, Any]:
    """Each benefit's part of lifetime reward by segment, in % of the truth."""
    found = attribute(model, panel_from_frame(frame, model.config, schema=model.schema.without_types))
    file = folder / f"exact_{found['kind']}.csv"
    if not file.is_file():  # that of removals takes minutes
        exact_of = exact_contributions if found["kind"] == "contribution" else exact_removals
        members = of_each_type(frame, truth)
        tables = [exact_of(one, rows) for one, rows in zip(solved(tastes), members, strict=True)]
        runs.atomic_write(file, over_types(tables, members).to_csv().encode())
    exact = pd.read_csv(file, index_col=0)
    cells = {segment: cell["benefits"] for segment, cell in found["start"].items() if segment != ALL}
    off = [100 * (own["mean"] / exact.at[s, b] - 1) for s, cell in cells.items() for b, own in cell.items()]
    near = f"{int((np.abs(off) <= NEAR).sum())}/{len(off)}"
    size = np.abs(off)
    return {
        "benefits": found["kind"], "benefit_worst": float(size.max()), "benefit_mean": float(size.mean()),
        "benefit_near": near,
    }  # fmt: skip


def of_each_type(frame: pd.DataFrame, truth: pd.DataFrame) -> list[pd.DataFrame]:
    """The first rows of the members of every type."""
    first = frame.groupby("member_id").head(1)
    return [rows for _, rows in first.groupby(truth["type"].loc[first.index])]


def over_types(values: list[pd.DataFrame], members: list[pd.DataFrame]) -> pd.DataFrame:
    """Means by segment of members of all types."""
    counts = [one["segment"].astype(str).value_counts() for one in members]
    total = pd.concat([v.mul(n, axis=0) for v, n in zip(values, counts, strict=True)]).groupby(level=0).sum()
    return total.div(pd.concat(counts).groupby(level=0).sum(), axis=0)


def shares(
    model: FittedModel, frame: pd.DataFrame, truth: pd.DataFrame, tastes: tuple[float, ...], number: int, tell: Tell
) -> dict[str, float]:
    """Largest errors of plan shares with the annual plan dearer, in points."""
    label, scenario = list(cases(load_scenario(CONFIGS / "scenarios" / "annual_dearer.yaml")).items())[-1]
    question = ask(certain(model), scenario, frame)
    first = frame.groupby("member_id").head(1)
    copies = range(-(-number // len(first)))
    start = pd.concat([model.with_types(frame, seed=i).loc[first.index] for i in copies], ignore_index=True)
    state, segment = model.schema.encode(start), model.schema.segment_codes(start)
    question = replace(question, starts=Starts(state, segment))
    tell(f"annual_dearer ({label})")
    outcomes = question.answer(tick=lambda stage, done, of: tell(f"{stage} {done}/{of}"), bands=False).outcomes
    outcomes = outcomes[(outcomes["period"] == MONTHS) & (outcomes["segment"] != ALL)]
    tell("exact answers")
    by_type = of_each_type(frame, truth)
    exact = []
    for taste, rows in zip(tastes, by_type, strict=True):
        market = Market(discount=DISCOUNT)
        segments = {name: segment.of_type(taste) for name, segment in market.segments.items()}
        exact.append(exact_answer(replace(market, segments=segments), scenario, rows))
    errors = {}
    for name in ("baseline", "scenario"):
        tables = [getattr(one, name) for one in exact]
        tables = [t[t["period"] == MONTHS].set_index("segment").filter(like="share_") for t in tables]
        true = over_types(tables, by_type)
        found = outcomes[outcomes["outcome"].isin(true.columns)].pivot(index="segment", columns="outcome", values=name)
        errors[name] = 100 * (found - true)
    errors["change"] = errors["scenario"] - errors["baseline"]
    largest = {f"share_{name}": float(e.abs().max().max()) for name, e in errors.items()}
    return largest | {"share_mean": float(errors["scenario"].abs().mean().mean())}


def certain(model: FittedModel) -> FittedModel:
    """The same model without standard errors, so that no intervals are made."""
    model = replace(model, refit=copy.deepcopy(model.refit))
    assert model.refit is not None
    model.refit.covariance.zero_()
    return model


def print_rows(console: Console, rows: list[dict[str, Any]]) -> None:
    """A table with a column for every study."""
    table = Table("", *(f"seed {row['seed']}, types: {row['types']}" for row in rows))
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("seed", "types")))
    for name in names:
        table.add_row(name, *(_said(row.get(name)) for row in rows))
    console.print(table)


def _said(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.4g}"


if __name__ == "__main__":
    with command.user_errors():
        main()
