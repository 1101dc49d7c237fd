"""Rollouts: member-steps per second against the pure network passes they need, and memory by number of members.

A member-step is one choice and one transition of one member: the policy's network and that of the transition model,
once each. The pure passes are those two, on batches of the same size shared between threads in the same way, timed
before and after the rollout in one process. Seconds of a CPU are those of all threads: on a busy machine they say more
than the clock. Memory is the peak of the process less its peak at two periods of 10,000 members, start states included.
Without a run the networks are of the study's size, with random weights and a transition model hardly trained: the time
does not depend on them.

python scripts/benchmark.py rollout [--run RUN] [--members 10000 100000 1000000] [--periods 60] [--threads 2]
    [--device cuda [--compile kernels | graphs]]
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

import irl
from irl import command, membership
from irl.config import load_config
from irl.counterfactual.forward import Compile
from irl.counterfactual.intervention import Intervention
from irl.counterfactual.outcomes import used_columns
from irl.counterfactual.rollout import Starts, batches, rollout
from irl.counterfactual.scenario_policy import ScenarioPolicy
from irl.data import panel_from_frame, read_table
from irl.estimation.dynamics import fit_dynamics
from irl.estimation.pipeline import held_out_rows
from irl.estimation.training import Workbench
from irl.fitted import FittedModel, new_networks
from irl.processes import side_by_side

CONFIG = "configs/membership.yaml"
BAR, RATE_BAR, MEMORY_BAR = 0.7, 520_000, 1.0
"""Of the pure passes' rate; member-steps a second, ten times econirl's simulate_panel_from_policy; GB."""
PASSES = 4
"""Periods for which the pure passes are timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run (default: random weights)")
    parser.add_argument("--members", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--periods", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--compile", choices=("kernels", "graphs"), help="passes: torch.compile, CUDA graphs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=None if Console().is_terminal else 130)
    with console.status("the model"):
        model, frame = of_run(arguments.run) if arguments.run else of_market()
        device = command.usable_device(arguments.device)
        model.to(device)
    policy = estimated(model, arguments.compile)
    measured(model, policy, starts_of(model, frame, 10_000), 2)  # the first calls are slower
    held = peak()
    table = Table(
        "members", "periods", "seconds", "steps/s", "pure passes/s", "ratio", "by CPU: steps/s", "ratio", "memory, GB"
    )
    for members in sorted(arguments.members):
        with console.status(f"{members:,} members"):
            starts = starts_of(model, frame, members)
            (seconds, used), (bare, bare_used) = measured(model, policy, starts, arguments.periods)
        steps, passes, grown = members * arguments.periods, members * PASSES, peak() - held
        rate, pure = steps / seconds, passes / bare
        table.add_row(
            f"{members:,}", str(arguments.periods), f"{seconds:.1f}", f"{rate:,.0f}", f"{pure:,.0f}",
            f"{rate / pure:.2f}", f"{steps / used:,.0f}", f"{steps / used * bare_used / passes:.2f}", f"{grown:.2f}",
        )  # fmt: skip
    console.print(table)
    for what, bar, met in (
        ("ratio", f">= {BAR}", rate / pure >= BAR),
        ("member-steps/s", f">= {RATE_BAR:,}", rate >= RATE_BAR),
        ("peak memory", f"< {MEMORY_BAR} GB", grown < MEMORY_BAR),
    ):
        console.print(f"{what} of the last row {bar}: {'met' if met else 'MISSED'}")
    console.print(
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, {arguments.threads} threads, "
        f"{device_name(device)}, passes {arguments.compile or 'as they are'}, load {os.getloadavg()[0]:.1f}; seed 0"
    )


def of_run(run: Path) -> tuple[FittedModel, pd.DataFrame]:
    """A run's model and panel."""
    model = irl.load(run)
    return model, read_table(model.config.data.path)


def of_market() -> tuple[FittedModel, pd.DataFrame]:
    """The membership study's networks with random weights, and a small panel."""
    config = load_config(CONFIG)
    market = membership.Market(discount=config.discount, temperature=config.temperature)
    frame = membership.simulate(membership.solve(market), members=300, periods=18, seed=0)
    panel = panel_from_frame(frame, config)
    torch.manual_seed(0)
    model = new_networks(config, panel.schema)
    options = config.estimation.dynamics.model_copy(update={"max_epochs": 1})
    bench = Workbench(device=torch.device("cpu"), seed=0)
    dynamics, _ = fit_dynamics(panel, held_out_rows(panel, 0.2, 0), options, bench=bench)
    assert model.refit is not None
    model.refit.theta.normal_(std=0.03)
    model.refit.weights.normal_(std=0.03)
    return replace(model, dynamics=dynamics), frame


def estimated(model: FittedModel, compile: Compile | None) -> ScenarioPolicy:
    """The model's own policy."""
    assert model.refit is not None, "a run with a refit"
    weights = model.refit.weights.expand(len(model.schema.segments), -1, -1)
    return ScenarioPolicy(model, Intervention(model.schema, ()), weights, 0, 0.0, 1.0, True, compile=compile)


def starts_of(model: FittedModel, frame: pd.DataFrame, members: int) -> Starts:
    """Rows drawn with replacement."""
    state, segment = model.schema.encode(frame), model.schema.segment_codes(frame)
    rows = torch.randint(len(state), (members,), generator=torch.Generator().manual_seed(0))
    return Starts(state[rows].to(model.device), segment[rows].to(model.device))


Times = tuple[float, float]
"""Seconds by the clock, and of a CPU."""


def measured(model: FittedModel, policy: ScenarioPolicy, starts: Starts, periods: int) -> tuple[Times, Times]:
    """Of the rollout, and of the pure passes of ``PASSES`` periods: half before it, half after it."""
    device = starts.state.device

    @torch.no_grad()
    def passes(rows: slice) -> None:
        state = starts.state[rows].T.contiguous().T
        action = torch.zeros(len(state), dtype=torch.long, device=state.device)
        for _ in range(PASSES // 2):
            policy.forward(state)
            model.dynamics.head_parameters(state, action)

    def bare() -> None:
        for _ in side_by_side(passes, batches(len(starts.state), device), device):
            pass

    def whole() -> None:
        rollout(model, {"baseline": policy}, starts, periods=periods, seed=0, used=used_columns(model))

    bare()  # compiled, where it is to be
    before, rolled, after = (timed(work, device) for work in (bare, whole, bare))
    return rolled, (before[0] + after[0], before[1] + after[1])


def timed(work: Callable[[], None], device: torch.device) -> Times:
    started, used = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, time.process_time() - used


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def peak() -> float:
    """The most memory that this process has held, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024) / 1e9


if __name__ == "__main__":
    main()
