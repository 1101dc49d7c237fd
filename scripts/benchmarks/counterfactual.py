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
from counterfactual_parts.tables import KEYS, print_attribution, print_scenarios
from rich.console import Console

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
BARS = {20_000: 1.0, 4_000: 2.0}
"""Members of the panel -> times the bars that follow; other panels are not judged."""
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


if __name__ == "__main__":
    main()
