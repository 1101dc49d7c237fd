"""What a study costs as its panel grows: generated panels, each stage in a process of its own.

generate: the membership market's exact policy, 20,000 members at a time, rows in no order, as Parquet files. prepare:
the store. Then, on the store read through a scratch folder (never in memory): opening it, one epoch of P, Q, R and of
the transition model with their usual batches (Q with its solutions, P with all that reports on it), one pass of the
kernel over all transitions (256 features per action, float32), and a rollout of all members over 12 months under a
random policy. Seconds are those of the stage alone, without opening; those of a CPU are the whole process's, with
opening and some five of starting; peak memory is its high-water mark of resident memory (mapped files included, as far
as they were resident).

Every finished stage is a file in FOLDER, and is not run again: the benchmark goes on where it stopped. With ``--train``
the whole estimation of panels of so many rows is run, too, in a run folder, and resumed there.

python scripts/benchmark.py scale [--rows 1000000 10000000 50000000] [--folder scale] [--stages prepare policy ...]
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from irl import command, evaluation, membership, runs
from irl.config import Config, load_config
from irl.counterfactual.intervention import Intervention
from irl.counterfactual.outcomes import used_columns
from irl.counterfactual.rollout import Starts, rollout
from irl.counterfactual.scenario_policy import ScenarioPolicy
from irl.data import read_panel
from irl.data.panel import Panel, first_rows
from irl.data.prepare import prepare
from irl.estimation.anchor_q import fit_anchor_q
from irl.estimation.dynamics import fit_dynamics
from irl.estimation.pipeline import held_out_rows, train
from irl.estimation.policy import fit_policy
from irl.estimation.reward import fit_reward
from irl.estimation.rowwise import forward
from irl.estimation.training import Workbench
from irl.fitted import new_networks
from irl.networks import Encoder, PolicyNetwork

CONFIG = "configs/membership.yaml"
PERIODS, AT_ONCE = 36, 20_000
FEATURES, CHUNK, MONTHS = 256, 16_384, 12
BENCH = Workbench(device=torch.device("cpu"), seed=0)
RSS_BAR = 1.5
"""GB that the largest panel's peak may lie above the smallest's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000, 50_000_000])
    parser.add_argument("--folder", type=Path, default=Path("scale"), help="for panels, stores and results")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=[s for s in STAGES if s != "train"])
    parser.add_argument("--train", type=int, nargs="*", default=[], help="rows of panels to estimate a study on")
    parser.add_argument("--memory", default="1GB", help="of prepare's sort")
    parser.add_argument("--alone", help=argparse.SUPPRESS)  # this process is that stage
    arguments = parser.parse_args()
    if arguments.alone:
        alone(arguments.alone, arguments.rows[0], arguments.folder / str(arguments.rows[0]), arguments.memory)
        return
    console = Console(width=None if Console().is_terminal else 130)
    for rows in sorted(arguments.rows):
        folder = arguments.folder / str(rows)
        folder.mkdir(parents=True, exist_ok=True)
        for stage in [*arguments.stages, *(["train"] if rows in arguments.train else [])]:
            if (folder / f"{stage}.json").is_file():
                continue
            options = ["--rows", str(rows), "--folder", str(arguments.folder), "--memory", arguments.memory]
            with console.status(f"{rows:,} rows: {stage}"):
                subprocess.run([sys.executable, __file__, "--alone", stage, *options], check=True)
    report(console, arguments.folder, sorted(arguments.rows))


def alone(stage: str, rows: int, folder: Path, memory: str) -> None:
    """Run one stage and write what it took."""
    config = load_config(CONFIG, [f"data.path={folder / 'raw'}", "data.memory_rows=0", f"market.periods={PERIODS}"])
    seconds, opening, done = STAGES[stage](config, rows, folder, memory)
    written = {
        "seconds": seconds,
        "opening": opening,
        "rows": done,
        "peak_gb": peak(),
        "cpu": time.process_time(),
        "threads": torch.get_num_threads(),
    }
    runs.write_json(folder / f"{stage}.json", written)


def report(console: Console, folder: Path, sizes: list[int]) -> None:
    """The table, and whether the largest panel's memory is near the smallest's."""
    table = Table("stage", "rows", "seconds", "by CPU", "rows/s", "of linear", "peak, GB", "above the smallest")
    worst = 0.0
    for stage in STAGES:
        first: dict[str, float] | None = None
        for rows in sizes:
            file = folder / str(rows) / f"{stage}.json"
            if not file.is_file():
                continue
            found = runs.read_json(file)
            first = first or found
            linear = found["seconds"] / first["seconds"] / (found["rows"] / first["rows"])
            more = found["peak_gb"] - first["peak_gb"]
            worst = max(worst, more)
            table.add_row(
                stage, f"{found['rows']:,}", f"{found['seconds']:.1f}", f"{found['cpu']:.0f}",
                f"{found['rows'] / found['seconds']:,.0f}", f"{linear:.2f}", f"{found['peak_gb']:.2f}", f"{more:+.2f}",
            )  # fmt: skip
    console.print(table)
    console.print(
        f"peak of any stage at most {RSS_BAR} GB above the smallest panel's: {'met' if worst <= RSS_BAR else 'MISSED'}"
    )
    console.print(
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


def peak() -> float:
    """The most that was resident in this process since it began, GB (a parent's peak, which getrusage keeps, apart)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM"))


Took = tuple[float, float, int]
"""Seconds, those of opening the store, and rows worked on."""


def generate(config: Config, rows: int, folder: Path, memory: str) -> Took:
    """Raw files of the market."""
    started, members = time.perf_counter(), -(-rows // PERIODS)
    (folder / "raw").mkdir(exist_ok=True)
    solution = membership.solve(membership.Market(discount=config.discount, temperature=config.temperature))
    for k, first in enumerate(range(0, members, AT_ONCE)):
        number = min(AT_ONCE, members - first)
        frame = membership.simulate(solution, members=number, periods=PERIODS, seed=k, burn_in_years=1)
        frame["member_id"] = f"{k:04}-" + frame["member_id"]
        content = frame.sample(frac=1.0, random_state=k).to_parquet(index=False)
        runs.atomic_write(folder / "raw" / f"{k:04}.parquet", content)
    return time.perf_counter() - started, 0.0, members * PERIODS


def prepared(config: Config, rows: int, folder: Path, memory: str) -> Took:
    started = time.perf_counter()
    store = prepare(config, folder / "store", memory=memory, overwrite=True)
    return time.perf_counter() - started, 0.0, store.n_rows


def on_panel(work: Callable[[Config, Panel], int]) -> Callable[[Config, int, Path, str], Took]:
    """A stage that works on the store's panel."""

    def stage(config: Config, rows: int, folder: Path, memory: str) -> Took:
        config = config.model_copy(update={"data": config.data.model_copy(update={"path": str(folder / "store")})})
        started = time.perf_counter()
        panel = read_panel(config)
        opened = time.perf_counter()
        done = work(config, panel)
        return (time.perf_counter() - opened) if done else opened - started, opened - started, done or panel.n_rows

    return stage


def opened(config: Config, panel: Panel) -> int:
    return 0


def policy_epoch(config: Config, panel: Panel) -> int:
    held_out = held_out_rows(panel, config.estimation.validation, 0)
    fit_policy(panel, held_out, config.estimation.policy.model_copy(update={"max_epochs": 1}), bench=BENCH)
    return panel.n_rows


def log_policy(config: Config, panel: Panel) -> Tensor:
    """log pi[N, A] of a random policy."""
    torch.manual_seed(0)
    network = PolicyNetwork(panel.schema, config.estimation.policy.hidden)
    return forward(panel, lambda i: network(panel.state[i], panel.menu[i]), panel.n_actions)


def anchor_epoch(config: Config, panel: Panel) -> int:
    options = config.estimation.anchor_q.model_copy(update={"max_epochs": 1, "rounds": 1})
    held_out, log_pi = held_out_rows(panel, config.estimation.validation, 0), log_policy(config, panel)
    given = {"discount": config.discount, "temperature": config.temperature, "bench": BENCH}
    fit_anchor_q(panel, log_pi, held_out, options, **given)
    return panel.n_rows


def reward_epoch(config: Config, panel: Panel) -> int:
    options = config.estimation.reward.model_copy(update={"max_epochs": 1})
    held_out, log_pi = held_out_rows(panel, config.estimation.validation, 0), log_policy(config, panel)
    given = {"discount": config.discount, "temperature": config.temperature, "bench": BENCH}
    fit_reward(panel, log_pi, panel.room(panel.n_rows), held_out, options, **given)
    return panel.n_rows


def dynamics_epoch(config: Config, panel: Panel) -> int:
    options = config.estimation.dynamics.model_copy(update={"max_epochs": 1})
    fit_dynamics(panel, held_out_rows(panel, config.estimation.validation, 0), options, bench=BENCH)
    return panel.n_rows


def kernel_pass(config: Config, panel: Panel) -> int:
    """The kernel's sums over all transitions, next policy uniform over the menu."""
    torch.manual_seed(0)
    encoder, actions = Encoder(panel.schema), panel.n_actions
    mixed = torch.randn(encoder.width, FEATURES - 1) / encoder.width**0.5

    def features(state: Tensor) -> Tensor:
        return torch.cat([torch.ones(len(state), 1), (encoder(state) @ mixed).tanh()], 1)

    def chunks() -> Iterator[evaluation.Rows]:
        for first in range(0, panel.n_rows, CHUNK):
            part = slice(first, first + CHUNK)
            rows = first + (panel.free[part] & (panel.next_choice[part] >= 0)).nonzero().squeeze(1)
            if not len(rows):
                continue
            following = panel.next_choice[rows]
            menu = panel.menu[following].float()
            yield evaluation.Rows(
                phi=features(panel.state[rows]),
                phi_next=features(panel.state[following]),
                discount=config.discount ** panel.steps[rows] * ~panel.ends[rows],
                target=panel.anchor_reward[rows].unsqueeze(1),
                weight=panel.weight[rows],
                action=panel.action[rows],
                next_policy=menu / menu.sum(1, keepdim=True).clamp_min(1),
            )

    with torch.no_grad():
        return evaluation.accumulate(chunks(), actions=actions).rows


def rolled_out(config: Config, panel: Panel) -> int:
    """Member-steps of all members from their first rows."""
    torch.manual_seed(0)
    model = new_networks(config, panel.schema)
    assert model.refit is not None
    model.refit.theta.normal_(std=0.03)
    model.refit.weights.normal_(std=0.03)
    some = panel.take_members(torch.arange(panel.n_members) < 300)
    options = config.estimation.dynamics.model_copy(update={"max_epochs": 1})
    model = replace(model, dynamics=fit_dynamics(some, held_out_rows(some, 0.2, 0), options, bench=BENCH)[0])
    rows = first_rows(panel.member).nonzero().squeeze(1)
    weights = model.refit.weights.expand(len(model.schema.segments), -1, -1)
    policy = ScenarioPolicy(model, Intervention(model.schema, ()), weights, 0, 0.0, 1.0, True)
    starts = Starts(panel.state[rows], panel.segment[rows])
    rollout(model, {"baseline": policy}, starts, periods=MONTHS, seed=0, used=used_columns(model))
    return len(rows) * MONTHS


def trained(config: Config, rows: int, folder: Path, memory: str) -> Took:
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": str(folder / "store")})})
    started = time.perf_counter()
    panel, run = read_panel(config), folder / "run"
    opening = time.perf_counter() - started
    train(config, panel, run, device=torch.device("cpu"), resume=run.exists())
    return time.perf_counter() - started - opening, opening, panel.n_rows


STAGES: dict[str, Callable[[Config, int, Path, str], Took]] = {
    "generate": generate,
    "prepare": prepared,
    "open": on_panel(opened),
    "policy": on_panel(policy_epoch),
    "anchor_q": on_panel(anchor_epoch),
    "reward": on_panel(reward_epoch),
    "dynamics": on_panel(dynamics_epoch),
    "kernel": on_panel(kernel_pass),
    "rollout": on_panel(rolled_out),
    "train": trained,
}


if __name__ == "__main__":
    with command.user_errors():
        main()
