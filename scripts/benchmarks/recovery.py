"""Recovery of a known truth on the simulated market: rewards, policy and value, and the answer to a dearer annual plan.

Simulates the membership panel, estimates it as scripts/train.py does, and compares with the market solved exactly. The
scenario sets `price_annual` to 1.2 x list and to list, for every member, over 36 periods from each member's first row;
its effect is the difference of the two. R2 within segment x status is against the truth's own cell means, so errors of
those means count; KL is the mean over visited states of KL(true policy || fitted).

Rewards are those of the three steps alone (P, Q, R), with the Q step's orthogonal correction where held-out members say
that it helps, of the refit, and, as the limit, of maximum likelihood given the true functional form (ten tastes a
segment, seasons and saturation known) and the true dynamics: a step of Fisher scoring from the truth on the same panel,
each problem solved exactly.

The model's shares are simulated for 60,000 members: in one period a segment's share has a Monte Carlo sd of up to 0.4
points, an effect (common random numbers) less, a mean over periods less still. The exact ones have none.

python scripts/benchmark.py recovery [--members 4000] [--periods 36] [--discount 0.95] [--seeds 0 1 2] [--out FOLDER]
    [--workers 1] [--device cpu] [--rewards-only]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from irl import bellman, membership
from irl.config import load_config
from irl.counterfactual import ask
from irl.data import panel_from_frame
from irl.data.panel import Panel
from irl.estimation.anchor_q import fit_anchor_q
from irl.estimation.pipeline import estimate, held_out_rows
from irl.estimation.reward import fit_reward
from irl.estimation.training import Workbench
from irl.fitted import FittedModel
from irl.membership import MarketSolution
from irl.membership.likelihood import likeliest, with_tastes
from irl.membership.scenarios import exact_outcomes, exact_surplus, scenario_edit
from irl.report import recovery
from irl.runs import atomic_write
from irl.scenario import cases, scenario_from

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "membership.yaml"
HORIZON, SIMULATED = 36, 60_000
SHOWN = (11, 35)
"""Periods shown besides the mean over all of them."""
BAR = 2.0
"""Points within which plan shares should come; rewards have the bars below, (members, discount) -> (score, action) ->
at least, for the mean over seeds."""
REWARD_BARS = {
    (4000, 0.95): {
        ("r2", "monthly"): 0.985, ("r2", "annual"): 0.985, ("within", "monthly"): 0.94, ("within", "annual"): 0.75,
    },
    (4000, 0.99): {
        ("r2", "monthly"): 0.96, ("r2", "annual"): 0.96, ("within", "monthly"): 0.80, ("within", "annual"): 0.45,
    },
    (20000, 0.95): {("within", "monthly"): 0.98, ("within", "annual"): 0.92},
}  # fmt: skip
CASES = ("list", "dearer")


@dataclass(frozen=True)
class Found:
    """What one repetition found, as indexed tables of numbers."""

    rewards: pd.DataFrame  # (estimator, action) -> pairs, rmse, sd, r2, within
    fit: pd.DataFrame  # quantity -> value
    shares: pd.DataFrame  # (segment, outcome, period) -> model and exact share at both prices, per cent
    surplus: pd.DataFrame  # segment -> model, exact: reward units per period


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=4000)
    parser.add_argument("--periods", type=int, default=36, help="of the panel")
    parser.add_argument("--discount", type=float, default=0.95, help="per period")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of simulation and estimation")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark/recovery"), help="folder for the CSV files")
    parser.add_argument("--workers", type=int, default=1, help="seeds at once, processes of one thread each if several")
    parser.add_argument("--device", default="cpu", help="where the estimation runs")
    parser.add_argument("--rewards-only", action="store_true", help="leave the scenario out")
    arguments = parser.parse_args()
    found = {}
    with Console(stderr=True).status("") as status:
        done = repetitions(arguments, lambda text: status.update(text))
        for seed, one in done:
            found[seed] = one
            status.console.print(f"seed {seed} done")
    together = Found(*(joined(found, field.name) for field in fields(Found)))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for field in fields(Found):
        atomic_write(arguments.out / f"{field.name}.csv", getattr(together, field.name).to_csv())
    console = Console(width=None if Console().is_terminal else 130)
    print_tables(console, together, REWARD_BARS.get((arguments.members, arguments.discount), {}))
    console.print(
        f"{arguments.members:,} members x {arguments.periods} periods, discount {arguments.discount}, seeds "
        f"{', '.join(map(str, arguments.seeds))}; torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} "
        f"cores, {arguments.workers} workers, {arguments.device}. CSV files in {arguments.out}"
    )


def repetitions(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Iterator[tuple[int, Found]]:
    """(seed, what was found) of every seed, in the order in which they end."""
    about = [f"discount={arguments.discount}", f"market.members={arguments.members}"]
    about += [f"market.periods={arguments.periods}"]
    work = partial(repetition, about=about, device=arguments.device, scenario=not arguments.rewards_only)
    if arguments.workers == 1:
        for seed in arguments.seeds:
            yield seed, work(seed, tell=lambda text, seed=seed: tell(f"seed {seed}: {text}"))
        return
    tell(f"seeds {', '.join(map(str, arguments.seeds))}")
    with multiprocessing.get_context("spawn").Pool(arguments.workers, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(partial(numbered, work), arguments.seeds)


def numbered(work: Callable[[int], Found], seed: int) -> tuple[int, Found]:
    """The seed beside what was found with it."""
    return seed, work(seed)


def joined(found: Mapping[int, Found], name: str) -> pd.DataFrame:
    """One table of all seeds."""
    return pd.concat({seed: getattr(found[seed], name) for seed in sorted(found)}, names=["seed"])


def repetition(
    seed: int, *, about: Sequence[str], device: str, scenario: bool, tell: Callable[[str], None] = lambda text: None
) -> Found:
    """Simulate, estimate and compare, once."""
    config = load_config(CONFIG, [f"seed={seed}", *about])
    assert config.market is not None
    tell("solving the market")
    market = membership.Market(discount=config.discount, temperature=config.temperature)
    solution = membership.solve(market)
    size = config.market
    frame = membership.simulate(solution, members=size.members, periods=size.periods, seed=config.seed)
    bench = Workbench(
        device=torch.device(device), seed=config.seed, tick=lambda step, epoch, of, _: tell(f"{step} {epoch}/{of}")
    )
    panel = panel_from_frame(frame, config)
    model, metrics = estimate(config, panel, bench=bench)
    estimates = {
        "P, Q, R": uncorrected(model, panel.to(bench.device), bench).reward(frame),
        "+ orthogonal, where it helps": replace(model, refit=None).reward(frame),
        "+ refit": model.reward(frame),
    }
    model = model.to("cpu")
    tell("maximum likelihood")
    estimates["bound"] = likeliest_reward(solution, frame)
    rewards = {name: reward_scores(reward, solution, frame) for name, reward in estimates.items()}
    tell("the scenario")
    shares, surplus = scenario_answers(model, solution, frame) if scenario else (pd.DataFrame(), pd.DataFrame())
    return Found(
        rewards=pd.concat(rewards, names=["estimator", "action"]),
        fit=pd.concat([policy_and_value(model, solution, frame), seconds(metrics)]).to_frame("value"),
        shares=shares,
        surplus=surplus,
    )


def uncorrected(model: FittedModel, panel: Panel, bench: Workbench) -> FittedModel:
    """The three steps' reward without the orthogonal correction, from the same policy."""
    e, about = model.config.estimation, {"discount": model.config.discount, "temperature": model.config.temperature}
    held_out = held_out_rows(panel, e.validation, model.config.seed)
    reference = panel.schema.reference(panel.state, panel.menu)
    with torch.no_grad():
        log_pi = model.policy_network(panel.state, panel.menu)
    q, _ = fit_anchor_q(panel, log_pi, held_out, e.anchor_q, **about, bench=bench)
    with torch.no_grad():
        w = q(panel.state, reference, panel.anchor_reward)
    value = bellman.value_from_reference(w, bellman.reference_log_policy(log_pi, reference), about["temperature"])
    reward, _ = fit_reward(panel, log_pi, value, held_out, e.reward, **about, bench=bench)
    return replace(model, anchor_network=q, reward_network=reward.eval(), refit=None)


def likeliest_reward(solution: MarketSolution, frame: pd.DataFrame) -> pd.DataFrame:
    """The rewards of maximum likelihood given the functional form, on the rows of ``frame``."""
    market = with_tastes(solution.market, likeliest(solution, frame))
    fitted = replace(solution, reward=torch.stack([market.reward(c) for c in solution.cells]))
    return membership.true_reward(fitted, frame)


def reward_scores(reward: pd.DataFrame, solution: MarketSolution, frame: pd.DataFrame) -> pd.DataFrame:
    """Recovery of the paid actions' rewards over visited states, by action and pooled."""
    paid = list(membership.ACTIONS[1:])
    cells = frame["segment"].astype(str) + " " + frame["status"].astype(str)
    return recovery(reward[paid], membership.true_reward(solution, frame)[paid], cells)


def policy_and_value(model: FittedModel, solution: MarketSolution, frame: pd.DataFrame) -> pd.Series:
    """How far policy and value are from the truth, over visited states."""
    p, q = (f.to_numpy() for f in (membership.true_policy(solution, frame), model.policy(frame)))
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = np.where(p > 0, p * np.log(p / q), 0.0).sum(1).mean()
        anchor = np.log(q[:, 0] / p[:, 0])
    truth = membership.true_value(solution, frame)
    error = model.value(frame) - truth
    return pd.Series(
        {
            "policy: KL, nats per decision": divergence,
            "policy: rms error of log pi(anchor)": np.sqrt(np.mean(anchor**2)),
            "value: sd of the truth, reward units": truth.std(),
            "value: mean error": error.mean(),
            "value: sd of the error": error.std(),
        }
    ).rename_axis("quantity")


def seconds(metrics: dict[str, dict[str, float]]) -> pd.Series:
    """Seconds of every step."""
    steps = {name: step["step_seconds"] for name, step in metrics.items() if "step_seconds" in step}
    return pd.Series({f"seconds: {name}": s for name, s in steps.items()}).rename_axis("quantity")


def scenario_answers(
    model: FittedModel, solution: MarketSolution, frame: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Plan shares at both prices and the change of surplus between them, by the model and exactly."""
    market, start = solution.market, frame.groupby("member_id").head(1)
    change = {"feature": {"name": "price_annual", "set": [market.list_annual, round(1.2 * market.list_annual, 4)]}}
    about = {"name": "annual plan dearer", "periods": HORIZON, "members": SIMULATED, "changes": [change]}
    scenario = scenario_from(about)
    answer = ask(model, scenario, frame).answer()
    for text in answer.warnings():
        Console(stderr=True).print(text)
    keys, columns, truths = ["segment", "outcome", "period"], {}, []
    labels = list(cases(scenario))
    for label, name in zip(labels, CASES, strict=True):
        edit = scenario_edit(market, cases(scenario)[label])
        truths.append(membership.solve(market, cells=membership.cells_of(start), edit=edit))
        exact = exact_outcomes(truths[-1], start, periods=HORIZON)
        exact = exact.melt(["segment", "period"], [c for c in exact if c.startswith("share_")], "outcome")
        mine = answer.outcomes[answer.outcomes["case"] == label].dropna(subset="period")
        columns[f"{name} exact"] = 100 * exact.set_index(keys)["value"]
        columns[f"{name} model"] = 100 * mine.astype({"period": int}).set_index(keys)["scenario"]
    surplus = (
        answer.outcomes[answer.outcomes["outcome"] == "surplus"].set_index(["segment", "case"])["scenario"].unstack()
    )
    price = pd.Series({name: segment.price for name, segment in market.segments.items()})
    both = {"exact": exact_surplus(*truths, start) * price, "model": surplus[labels[1]] - surplus[labels[0]]}
    return pd.DataFrame(columns).dropna(), pd.DataFrame(both).dropna().rename_axis("segment")


def effects(shares: pd.DataFrame) -> pd.DataFrame:
    """Effect of the price and errors of effect and levels, in points: the index of ``shares`` and these columns."""
    found = {"effect exact": shares["dearer exact"] - shares["list exact"]}
    found |= {f"error at {name}": shares[f"{name} model"] - shares[f"{name} exact"] for name in CASES}
    return pd.DataFrame(found).assign(error=found["error at dearer"] - found["error at list"])


def print_tables(console: Console, found: Found, bars: Mapping[tuple[str, str], float]) -> None:
    """Means over seeds, with their sd if there are several."""
    table = Table(
        "estimator", "action", "rows", "RMSE", "of bound", "sd of truth", "R2", "R2 within", "bar", title="Rewards"
    )
    means = found.rewards["rmse"].groupby(level=["action", "estimator"]).mean()
    for (estimator, action), scores in found.rewards.groupby(level=["estimator", "action"], sort=False):
        judged = [(score, bar) for (score, of), bar in bars.items() if of == action and estimator == "+ refit"]
        said = [f"{score} >= {bar}: {met(scores[score].mean() >= bar)}" for score, bar in judged]
        cells = [spread(scores[c], 3) for c in ("rmse", "sd", "r2", "within")]
        cells.insert(1, f"{means[action, estimator] / means[action, 'bound']:.2f}")
        table.add_row(str(estimator), str(action), spread(scores["pairs"], 0), *cells, "; ".join(said))
    console.print(table)
    table = Table("quantity", "value", title="Policy, value, time")
    for quantity, values in found.fit.groupby(level="quantity", sort=False):
        table.add_row(str(quantity), spread(values["value"], 1 if str(quantity).startswith("seconds") else 4))
    console.print(table)
    if found.shares.empty:
        return
    print_shares(console, found.shares)
    table = Table("segment", "exact", "model", title="Surplus, 1.2 x list against list, reward units per period")
    for segment, values in found.surplus.groupby(level="segment"):
        table.add_row(str(segment), spread(values["exact"], 4), spread(values["model"], 4))
    console.print(table)


def print_shares(console: Console, shares: pd.DataFrame) -> None:
    """Levels and effect by segment and plan, and the largest errors of every seed."""
    points, groups = effects(shares), ["seed", "segment", "outcome"]
    means = pd.concat([shares, points], axis=1).groupby(level=groups).mean()
    at = {p: points["error"].xs(p, level="period") for p in SHOWN}
    worst = points["error"].abs().groupby(level=groups).max()
    table = Table("segment", "plan", title=f"Plan shares, mean over {HORIZON} periods, % and points (! above {BAR:g})")
    heads = ["exact at list", "model", "exact at 1.2", "model", "effect exact", "its error"]
    for head in (*heads, *(f"error, period {p}" for p in SHOWN), "worst period"):
        table.add_column(head, justify="right")
    for segment, outcome in means.index.droplevel("seed").unique():
        mine = means.xs((segment, outcome), level=["segment", "outcome"])
        errors = [mine["error"], *(e.xs((segment, outcome), level=["segment", "outcome"]) for e in at.values())]
        errors.append(worst.xs((segment, outcome), level=["segment", "outcome"]))
        flags = ["!" if e.abs().max() > BAR else "" for e in errors]
        levels = (
            spread(mine[c], 1) for c in ("list exact", "list model", "dearer exact", "dearer model", "effect exact")
        )
        errors_shown = (spread(e, 1) + flag for e, flag in zip(errors, flags, strict=True))
        table.add_row(segment, outcome.removeprefix("share_"), *levels, *errors_shown)
    console.print(table)
    table = Table("largest error, points", *(f"seed {s}" for s in means.index.unique("seed")), "bar")
    for label, column in (("effect", "error"), ("level at list", "error at list"), ("level at 1.2", "error at dearer")):
        views = {f"mean over {HORIZON} periods": means[column]}
        views |= {f"period {p}": points[column].xs(p, level="period") for p in SHOWN}
        for view, errors in (views | {"worst period": points[column]}).items():
            largest = errors.abs().groupby(level="seed").max()
            table.add_row(f"{label}, {view}", *(f"{e:.2f}" for e in largest), met(largest.max() <= BAR))
    console.print(table)


def met(yes: bool) -> str:
    """Whether a bar is met."""
    return "met" if yes else "MISSED"


def spread(values: pd.Series, digits: int) -> str:
    """The mean, and the sd over seeds if there are several."""
    mean = f"{values.mean():,.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std():,.{digits}f}"


if __name__ == "__main__":
    main()
