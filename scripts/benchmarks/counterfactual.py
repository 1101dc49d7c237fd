"""Scenarios of the gallery, and the benefits' lifetime contributions, answered by a trained study and exactly.

For every discount and seed: simulate the membership market, estimate it as scripts/train.py does, and answer every
scenario in configs/scenarios that fits the study (a sweep's cases one by one). The exact answers start from the very
members that are simulated, so that drawing them counts on neither side; the simulation's own luck is left: a segment's
share in one period has a Monte Carlo sd of up to .5 / sqrt(members simulated in the segment). Judged are

    shares    of every plan in every segment 12 months on (period 12; 0 is the first choice), level under the scenario
              and change that it makes: mean absolute and largest error, in points
    surplus   expected lifetime change of value in reward units, by segment: within 5 % or .05
    benefits  lifetime contribution by segment within 5 %, and the order of any two whose true gap exceeds two of its
              standard errors; of a study trained with `reward: {structure: additive}`. With interactions, as the other
              studies have, what is compared are removal effects

With `--bound` the same is asked of the market that maximum likelihood finds on the same panel, given the truth's form
and dynamics (:mod:`irl.membership.likelihood`): its errors are the luck of the panel, which no estimator avoids.

Answers are points unless `--complete` asks for what users get, with intervals and bands for the anchor's reward.
Studies are kept in the folder and reused; answers too, under the version of the code, so that a run that is stopped
goes on where it was.

python scripts/benchmark.py counterfactual [--members 20000] [--periods 36] [--discounts .95 .99] [--seeds 0]
    [--simulated 60000] [--only scenarios | attribution] [--scenarios NAME ...] [--structure full | additive]
    [--bound] [--complete] [--device cpu] [--out FOLDER] [key.path=value ...]

Overrides make another study, of another market; with contracts that cannot be left:

... market.commitment=true data.available.none='{status: [out, monthly]}' \\
    reward.same_flow_as.annual='{action: monthly, at: {status: monthly, months_left: 0}}'
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

import irl
from irl import membership
from irl.config import Config, InputError, load_config, unknown
from irl.counterfactual import ask
from irl.counterfactual.attribution import attribute
from irl.counterfactual.outcomes import ALL
from irl.data import panel_from_frame
from irl.estimation.pipeline import train
from irl.fitted import FittedModel, Z
from irl.membership import Market, MarketSolution, market_of
from irl.membership.attribution import exact_contributions, exact_removals
from irl.membership.likelihood import likeliest, with_tastes
from irl.membership.scenarios import exact_answer
from irl.runs import LAST, atomic_write
from irl.scenario import Scenario, cases, load_scenario

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MONTHS = 12
"""After so many the shares are judged."""
BARS = {20_000: 1.0, 4_000: 2.0}
"""Members of the panel -> times the bars that follow; other panels are not judged."""
MEAN, WORST, RELATIVE, ABSOLUTE = 0.7, 2.0, 0.05, 0.05
"""Points of a plan share (mean over segments and plans, and largest); parts of a surplus, reward units of it."""
STUDY = ["members", "discount", "seed"]
CASE = [*STUDY, "scenario", "case"]
CELL = [*CASE, "segment", "outcome", "period"]
KEYS = [name for name in CELL if name not in (*STUDY, "scenario")]
NEVER = -1
"""The period of what has none."""
Tell = Callable[[str], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=20_000)
    parser.add_argument("--periods", type=int, default=36, help="of the panel")
    parser.add_argument("--discounts", type=float, nargs="+", default=[0.95, 0.99], help="per period")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of simulation and estimation")
    parser.add_argument("--simulated", type=int, default=60_000, help="members simulated for an answer")
    parser.add_argument("--only", choices=("scenarios", "attribution"), help="leave the other out")
    parser.add_argument(
        "--scenarios", nargs="+", metavar="NAME", help="files of the gallery without .yaml; default: all"
    )
    parser.add_argument("--structure", choices=("full", "additive"), default="full", help="of the studies' reward")
    parser.add_argument("--complete", action="store_true", help="answers with intervals and bands, which take longer")
    parser.add_argument("--bound", action="store_true", help="maximum likelihood of the true form beside it (minutes)")
    parser.add_argument("--device", default="cpu", help="where the estimation runs")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark/counterfactual"), help="folder of all results")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="options of the study to change")
    arguments = parser.parse_intermixed_args()
    console = Console(width=None if Console().is_terminal else 150)
    found: dict[str, list[pd.DataFrame]] = {"scenarios": [], "attribution": []}
    with Console(stderr=True).status("") as status:
        for kind, name, frame in results(arguments, status.update):
            found[kind].append(frame)
            status.console.print(name, highlight=False, markup=False)
    factor = BARS.get(arguments.members)
    for kind, show in (("scenarios", print_scenarios), ("attribution", print_attribution)):
        if any(len(frame) for frame in found[kind]):
            show(console, pd.concat(found[kind]), factor)
    console.print(
        f"{arguments.members:,} members x {arguments.periods} periods, seeds {', '.join(map(str, arguments.seeds))}, "
        f"reward: {arguments.structure}, {' '.join([*arguments.overrides, ''])}"
        f"{arguments.simulated:,} simulated; torch {torch.__version__}, "
        f"{platform.machine()}, {os.cpu_count()} cores. Studies and CSV files in {arguments.out}",
        markup=False,
    )


def results(arguments: argparse.Namespace, tell: Tell) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(kind, what it is, table) of every answer, made now or found in the folder."""
    gallery = {path.stem: path for path in sorted((CONFIGS / "scenarios").glob("*.yaml"))}
    chosen = arguments.scenarios or list(gallery)
    if strange := [text for name in chosen for text in unknown(name, gallery, "--scenarios", "scenario")]:
        raise InputError("; ".join(strange))
    for discount, seed in itertools.product(arguments.discounts, arguments.seeds):
        name = f"{arguments.members}x{arguments.periods}-{discount}-{seed}-{arguments.structure}"
        other = hashlib.sha256(" ".join(arguments.overrides).encode()).hexdigest()[:8]
        name += f"-{other}" if arguments.overrides else ""
        model, frame = study(arguments, discount, seed, arguments.out / name, lambda text, n=name: tell(f"{n}: {text}"))
        folder = arguments.out / name / version(arguments.out / name)
        kind = f"{arguments.simulated}{'-complete' if arguments.complete else ''}"
        about = {"members": arguments.members, "discount": discount, "seed": seed}
        bound = bound_of(model, frame, folder / "bound.csv", tell) if arguments.bound else None
        for stem in chosen if arguments.only != "attribution" else ():
            label = f"{name}: {stem}"
            say = partial(lambda text, label: tell(f"{label}: {text}"), label=label)
            work = partial(answers, model, frame, gallery[stem], arguments.simulated, arguments.complete, say)
            try:
                made = kept(folder / f"{stem}-{kind}.csv", work)
                if bound is not None:
                    work = partial(bounds, model, frame, gallery[stem], arguments.simulated, bound)
                    made = made.merge(kept(folder / f"{stem}-bound.csv", work), how="left", on=KEYS)
                yield "scenarios", label, made.assign(**about, scenario=stem)
            except InputError as error:
                yield "scenarios", f"{label}: left out: {' '.join(str(error).split())}", pd.DataFrame()
        if arguments.only != "scenarios":
            label = f"{name}: attribution"
            tell(label)
            made = kept(folder / "attribution.csv", partial(attributions, model, frame))
            if bound is not None:
                of = partial(exact_attributions, membership.solve(bound), frame, str(made["kind"].iloc[0]))
                own = kept(folder / "attribution-bound.csv", of)
                made = made.merge(own, how="left", on=["segment", "benefit"])
            yield "attribution", label, made.assign(**about)


def study(
    arguments: argparse.Namespace, discount: float, seed: int, folder: Path, tell: Tell
) -> tuple[FittedModel, pd.DataFrame]:
    """The trained study in ``folder``, made if it is not there, and its panel."""
    options = [f"discount={discount}", f"seed={seed}", f"reward.structure={arguments.structure}"]
    options += [f"market.members={arguments.members}", f"market.periods={arguments.periods}"]
    config = load_config(CONFIGS / "membership.yaml", [*arguments.overrides, *options])
    if config.market is None or config.market.types != (1.0,):
        raise InputError("the exact answers are those of members of one type: leave `market.types` as it is")
    panel = folder / "membership.parquet"
    if not panel.is_file():
        tell("simulating")
        frame = membership.simulate(
            oracle(config.model_dump_json()), members=arguments.members, periods=arguments.periods, seed=config.seed
        )
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(panel, frame.to_parquet(index=False))
    frame = pd.read_parquet(panel)
    if not (folder / "run" / LAST).is_file():
        train(
            config,
            panel_from_frame(frame, config),
            folder / "run",
            device=torch.device(arguments.device),
            resume=(folder / "run").exists(),
            tick=lambda step, epoch, of, _: tell(f"{step} {epoch}/{of}"),
        )
    return irl.load(folder / "run"), frame


@cache
def oracle(study: str) -> MarketSolution:
    """The market of a study (its options as JSON) as it is, solved exactly."""
    return membership.solve(market_of(Config.model_validate_json(study)))


def version(folder: Path) -> str:
    """A fingerprint of the package's source and of the study's weights."""
    files = [*sorted(Path(irl.__file__).parent.rglob("*.py")), folder / "run" / "model" / "weights.safetensors"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


def kept(file: Path, work: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table in the file, written to it at once when it is there."""
    if not file.is_file():
        frame = work()
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, frame.to_csv(index=False).encode())
    return pd.read_csv(file)


def answers(
    model: FittedModel, frame: pd.DataFrame, path: Path, simulated: int, complete: bool, tell: Tell
) -> pd.DataFrame:
    """Columns case, segment, outcome, period; exact and found, before and after the changes; se of these, if complete.

    Outcomes: shares, ``surplus`` (lifetime, reward units), and ``seconds`` by stage (in place of the segment).
    """
    if not complete and model.refit is not None:
        model = replace(model, refit=copy.deepcopy(model.refit))
        model.refit.covariance.zero_()  # no intervals are made
    scenario = load_scenario(path).model_copy(update={"members": simulated})
    question, taken = ask(model, scenario, frame), {"start": time.perf_counter()}
    start = model.schema.decode(question.starts.state)
    exact = {label: truth(market_of(model.config), case, start) for label, case in cases(scenario).items()}

    def tick(stage: str, done: int, of: int) -> None:
        tell(f"{stage} {done}/{of}")
        taken[stage] = time.perf_counter()

    taken["start"] = time.perf_counter()
    answer = question.answer(tick=tick, bands=complete)
    outcomes = answer.outcomes[answer.outcomes["segment"] != ALL].copy()
    lifetime = np.where(outcomes["outcome"] == "surplus", 1 / (1 - model.config.discount), 1.0)
    outcomes["period"] = outcomes["period"].fillna(NEVER).astype(int)
    outcomes = outcomes.assign(
        found_before=outcomes["baseline"], found_after=outcomes["scenario"] * lifetime,
        se=(outcomes["high"] - outcomes["low"]) / (2 * Z) * lifetime,
    )  # fmt: skip
    both = outcomes[[*KEYS, "found_before", "found_after", "se"]].merge(
        pd.concat(exact, names=["case"]).reset_index("case"), on=KEYS, validate="one_to_one"
    )
    stages = list(itertools.pairwise(taken.items()))
    spent = [
        {"case": "", "segment": s, "outcome": "seconds", "period": NEVER, "found_after": t - b}
        for (_, b), (s, t) in stages
    ]
    return pd.concat([both, pd.DataFrame(spent)], ignore_index=True)


def truth(market: Market, scenario: Scenario, start: pd.DataFrame) -> pd.DataFrame:
    """Columns segment, outcome, period, exact_before, exact_after of members who start in the rows of ``start``."""
    exact, keys = exact_answer(market, scenario, start), ["segment", "outcome", "period"]
    columns = {}
    for name, table in (("exact_before", exact.baseline), ("exact_after", exact.scenario)):
        shares = [column for column in table if column.startswith("share_")]
        columns[name] = table.melt(["segment", "period"], shares, "outcome").set_index(keys)["value"]
    worth = (exact.surplus / (1 - market.discount)).rename("exact_after").rename_axis("segment").reset_index()
    worth = worth.assign(exact_before=0.0, outcome="surplus", period=NEVER)
    return pd.concat([pd.DataFrame(columns).reset_index(), worth], ignore_index=True)


def bound_of(model: FittedModel, frame: pd.DataFrame, file: Path, tell: Tell) -> Market:
    """The market that the panel makes likeliest, kept in the file."""

    def found() -> pd.DataFrame:
        solution = oracle(model.config.model_dump_json())
        tell("maximum likelihood of the true form")
        return pd.DataFrame({name: theta.numpy() for name, theta in likeliest(solution, frame).items()})

    theta = {str(name): torch.tensor(values.to_numpy()) for name, values in kept(file, found).items()}
    return with_tastes(market_of(model.config), theta)


def bounds(model: FittedModel, frame: pd.DataFrame, path: Path, simulated: int, bound: Market) -> pd.DataFrame:
    """Columns of ``KEYS``, bound_before and bound_after: what the likeliest market says of a scenario's cases."""
    scenario = load_scenario(path).model_copy(update={"members": simulated})
    start = model.schema.decode(ask(model, scenario, frame).starts.state)
    found = {label: truth(bound, case, start) for label, case in cases(scenario).items()}
    renamed = {f"exact_{when}": f"bound_{when}" for when in ("before", "after")}
    return pd.concat(found, names=["case"]).reset_index("case").rename(columns=renamed)[[*KEYS, *renamed.values()]]


def exact_attributions(solution: MarketSolution, frame: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Columns segment, benefit, bound."""
    first = frame.groupby("member_id").head(1)
    exact = exact_contributions(solution, first) if kind == "contribution" else exact_removals(solution, first)
    return exact.rename_axis("segment").reset_index().melt("segment", var_name="benefit", value_name="bound")


def attributions(model: FittedModel, frame: pd.DataFrame) -> pd.DataFrame:
    """Columns segment, benefit, exact, found, se; with ``over``, the gap between that benefit and another."""
    found = attribute(model, panel_from_frame(frame, model.config, schema=model.schema))
    exact_of = exact_contributions if found["kind"] == "contribution" else exact_removals
    exact = exact_of(oracle(model.config.model_dump_json()), frame.groupby(model.config.data.member).head(1))
    rows = []
    for segment, cell in found["start"].items():
        if segment == ALL:
            continue
        true = exact.loc[segment]
        rows += [
            {"segment": segment, "benefit": b, "over": "", "exact": true[b], "found": own["mean"], "se": own["se"]}
            for b, own in cell["benefits"].items()
        ]
        rows += [
            {
                "segment": segment,
                "benefit": gap["of"],
                "over": gap["over"],
                "exact": true[gap["of"]] - true[gap["over"]],
                "found": gap["mean"],
                "se": gap["se"],
            }
            for gap in cell["gaps"]
        ]
    return pd.DataFrame(rows).assign(kind=found["kind"])


def print_scenarios(console: Console, found: pd.DataFrame, factor: float | None) -> None:
    """Errors of shares, by case; of the surplus, by segment; and how long the answers took."""
    shares = found[found["outcome"].str.startswith("share_")].set_index(CELL)
    errors = pd.DataFrame({"level": shares["found_after"] - shares["exact_after"]})
    errors["change"] = errors["level"] - (shares["found_before"] - shares["exact_before"])
    errors = errors[(shares["exact_after"] > 0) | (shares["found_after"] > 0)]  # who is not offered a plan has no error
    errors *= 100
    bounded = "bound_after" in shares
    if bounded:
        errors["bound"] = 100 * (shares["bound_after"] - shares["exact_after"])
    bar = "" if factor is None else f", bars {factor * MEAN:g} and {factor * WORST:g}"
    table = Table("discount", "scenario", "case", title=f"Plan shares: mean absolute and largest error, points{bar}")
    for view in ("level, 12", "change, 12", "level, 11", "change, 11", "level, mean of all", "change, mean of all"):
        table.add_column(view, justify="right")
    if bounded:
        table.add_column("bound's level, 12", justify="right")
    table.add_column("largest at 12")
    table.add_column("bar")
    periods = errors.index.get_level_values("period")
    by_period = {"12": errors[periods == MONTHS], "11": errors[periods == MONTHS - 1]}
    by_period["mean of all"] = errors.groupby([k for k in CELL if k != "period"]).mean()
    for key, judged in by_period["12"].groupby(["discount", "scenario", "case"]):
        views = {
            f"{what}, {name}": frame.xs(key, level=["discount", "scenario", "case"])[what].abs()
            for name, frame in by_period.items()
            for what in ("level", "change")
        }
        columns = [*views.values(), *([judged["bound"].abs()] if bounded else [])]
        where = judged["level"].abs().idxmax()
        met = all(
            e.mean() <= MEAN * (factor or 1) and e.max() <= WORST * (factor or 1)
            for name, e in views.items()
            if name.endswith(", 12")
        )
        place = dict(zip(CELL, where, strict=True))
        largest = f"{place['segment']} {place['outcome'].removeprefix('share_')} {judged.loc[where, 'level']:+.2f}"
        table.add_row(
            f"{key[0]:g}",
            *map(str, key[1:]),
            *(f"{e.mean():.2f} {e.max():.2f}" for e in columns),
            largest,
            said(met, factor),
        )
    console.print(table)
    table = Table("discount", "scenario", "case", "segment", title="Surplus, lifetime, reward units")
    heads = ("exact", "found", "error", "se", "error, %", "error per period", "bar")
    for head in (*heads, *(("bound's error", "bar") if bounded else ())):
        table.add_column(head, justify="right")
    for _, row in found[found["outcome"] == "surplus"].iterrows():
        exact, error = row["exact_after"], row["found_after"] - row["exact_after"]
        near = (factor or 1) * max(RELATIVE * abs(exact), ABSOLUTE)
        bound = row["bound_after"] - exact if bounded else math.nan
        share = f"{100 * error / exact:+.1f}" if abs(exact) > 1e-6 else ""
        numbers = (
            f"{exact:.3f}",
            f"{row['found_after']:.3f}",
            f"{error:+.3f}",
            f"{row['se']:.3f}" if row["se"] > 0 else "",
            share,
            f"{(1 - row['discount']) * error:+.4f}",
        )
        table.add_row(f"{row['discount']:g}", row["scenario"], row["case"], row["segment"], *numbers,
            said(abs(error) <= near, factor), *([f"{bound:+.3f}", said(abs(bound) <= near, factor)] if bounded else []),
        )  # fmt: skip
    console.print(table)
    spent = (
        found[found["outcome"] == "seconds"]
        .groupby(["discount", "scenario", "segment"], sort=False)["found_after"]
        .mean()
        .unstack()
    )
    table = Table("discount", "scenario", *map(str, spent), title="Seconds")
    for (discount, scenario), row in spent.iterrows():
        table.add_row(f"{discount:g}", str(scenario), *(f"{x:.0f}" for x in row))
    console.print(table)


def print_attribution(console: Console, found: pd.DataFrame, factor: float | None) -> None:
    """Errors of the benefits' contributions (or removal effects), and gaps of the wrong sign."""
    one = found[found["over"].isna()]
    table = Table("discount", "segment", "benefit", title=f"Lifetime, reward units: {', '.join(one['kind'].unique())}")
    bounded, near = "bound" in one, RELATIVE * (factor or 1)
    heads = ("exact", "found", "se", "error, %", "bar")
    for head in (*heads, *(("bound's error, %", "bar") if bounded else ())):
        table.add_column(head, justify="right")
    for _, row in one.sort_values(
        ["discount", "segment", "exact"], ascending=[True, True, False], kind="stable"
    ).iterrows():
        error, bound = row["found"] / row["exact"] - 1, (row["bound"] / row["exact"] if bounded else math.nan) - 1
        numbers = (f"{row['exact']:.3f}", f"{row['found']:.3f}", f"{row['se']:.3f}", f"{100 * error:+.1f}")
        table.add_row(
            f"{row['discount']:g}",
            row["segment"],
            row["benefit"],
            *numbers,
            said(abs(error) <= near, factor),
            *([f"{100 * bound:+.1f}", said(abs(bound) <= near, factor)] if bounded else []),
        )
    console.print(table)
    gaps = found[found["over"].notna()]
    clear = gaps[gaps["exact"].abs() > 2 * gaps["se"]]
    wrong = clear[clear["exact"] * clear["found"] <= 0]
    about = f"order of two benefits: {len(clear)} of {len(gaps)} gaps exceed two standard errors"
    console.print(f"{about}, {len(wrong)} of them found the wrong way: {said(wrong.empty, factor)}")
    for _, row in wrong.iterrows():
        which = f"{row['discount']:g} {row['segment']}: {row['benefit']} over {row['over']}"
        console.print(f"  {which}: exact {row['exact']:+.3f}, found {row['found']:+.3f}, se {row['se']:.3f}")


def said(met: bool, factor: float | None) -> str:
    """Whether a bar is met; nothing for panels that are not judged."""
    return "" if factor is None else "met" if met else "MISSED"


if __name__ == "__main__":
    main()
