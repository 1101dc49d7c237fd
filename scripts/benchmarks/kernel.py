"""What the kernel costs: one pass against the bare matrix products it needs, and the Q step by kernel and by fqi.

Pass: rows of A actions, D features each; the bare products are those that no way of computing the sums can do without
(per action: phi^T phi, phi^T times the next features by action, phi^T times the target), on the same chunks in the same
dtype, alternating with the kernel in one process. The least of the repeats counts.

Q step: the membership market at discount .99. Both solvers get the same exact log-probabilities; the error is the root
mean square difference of Q(s, anchor) from the oracle's over visited states, with its mean and without it (a constant
moves no reward but by 1 - gamma times itself). The seconds of fqi are those until it is as near as the kernel ended.

python scripts/benchmark.py kernel [--rows 1000000] [--features 256] [--actions 4] [--fqi-rounds 300] [--only pass|q]
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from irl import evaluation, membership
from irl.config import AnchorQStep, load_config
from irl.data import panel_from_frame
from irl.data.panel import Panel
from irl.estimation.anchor_q import AnchorQStepModule, fit_anchor_q
from irl.estimation.pipeline import held_out_rows
from irl.estimation.training import Workbench

CONFIG = "configs/membership.yaml"
CHUNK, DEVICE_CHUNK, PASS_BAR, Q_BAR = 16384, 2**28, 1.6, 3.0
"""Rows of a chunk on a CPU; elsewhere, numbers of what follows them."""
LOOKED_AT = 7
"""Errors of the Q step are taken on one row in so many."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, nargs="+", default=[256], help="D, per action")
    parser.add_argument("--actions", type=int, default=4, help="A; basis columns in all: A x D")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--fqi-rounds", type=int, default=300)
    parser.add_argument("--only", choices=("pass", "q"))
    parser.add_argument("--device", default="cpu", help="of the pass")
    arguments = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 130)
    if arguments.only != "q":
        table = Table("D", "basis columns", "dtype", "kernel, s", "bare products, s", "ratio", "bar", title="One pass")
        for d in arguments.features:
            for dtype in (torch.float32, torch.float64):
                ours, bare = passes(arguments.rows, d, arguments.actions, dtype, arguments.repeats, arguments.device)
                met = "met" if ours / bare <= PASS_BAR else "MISSED"
                cells = (f"{ours:.2f}", f"{bare:.2f}", f"{ours / bare:.2f}", f"<= {PASS_BAR}: {met}")
                table.add_row(str(d), str(d * arguments.actions), str(dtype).removeprefix("torch."), *cells)
        console.print(table)
    if arguments.only != "pass":
        q_steps(console, arguments.fqi_rounds)
    console.print(
        f"{arguments.rows:,} rows; torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, pass on {arguments.device}; seed 0"
    )


def passes(rows: int, d: int, actions: int, dtype: torch.dtype, repeats: int, device: str) -> tuple[float, float]:
    """Seconds of the kernel's pass and of the bare products."""
    generator = torch.Generator().manual_seed(0)
    size = CHUNK if device == "cpu" else min(rows, DEVICE_CHUNK // (actions * d))
    phi, phi_next = (torch.randn(size, d, generator=generator).to(dtype) for _ in range(2))
    phi[:, 0] = phi_next[:, 0] = 1
    action = torch.randint(0, actions, (size,), generator=generator)
    policy = torch.rand(size, actions, generator=generator).to(dtype)
    policy = policy / policy.sum(1, keepdim=True)
    weight, discount = torch.ones(size, dtype=dtype), torch.full((size,), 0.99, dtype=dtype)
    target = torch.randn(size, 1, generator=generator).to(dtype)
    parts = (phi, phi_next, discount, target, weight, action, policy)
    phi, phi_next, discount, target, weight, action, policy = (part.to(device) for part in parts)
    chunk = evaluation.Rows(phi, phi_next, discount, target, weight, action, policy)
    groups = [(action == a).nonzero().squeeze(1) for a in range(actions)]
    left = [phi[g].T.contiguous() for g in groups]
    own, following = [phi[g] for g in groups], [phi_next[g].repeat(1, actions) for g in groups]
    targets = [target[g] for g in groups]
    chunks = max(1, rows // size)

    def kernel() -> None:
        evaluation.accumulate((chunk for _ in range(chunks)), actions=actions)

    def bare() -> None:
        for _ in range(chunks):
            for a in range(actions):
                left[a] @ own[a], left[a] @ following[a], left[a] @ targets[a]

    return best(kernel, bare, repeats)


def best(first: Callable[[], None], second: Callable[[], None], repeats: int) -> tuple[float, float]:
    """The least seconds of each, alternating."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for call, into in zip((first, second), seconds, strict=True):
            started = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            into.append(time.perf_counter() - started)
    return min(seconds[0]), min(seconds[1])


def q_steps(console: Console, rounds: int) -> None:
    """The Q step by both solvers, at equal error."""
    config = load_config(CONFIG, ["discount=0.99"])
    assert config.market is not None
    with console.status("solving and simulating the market"):
        solution = membership.solve(membership.Market(discount=config.discount, temperature=config.temperature))
        frame = membership.simulate(solution, members=config.market.members, periods=config.market.periods, seed=0)
        frame = frame.sort_values(["member_id", "period"], ignore_index=True)
    panel = panel_from_frame(frame, config)
    log_pi = torch.tensor(membership.true_policy(solution, frame).to_numpy()).log().float()
    value = torch.tensor(membership.true_value(solution, frame).to_numpy())
    truth = (value + log_pi[:, 0].double() * config.temperature)[panel.free]
    table = Table("solver", "rounds", "seconds", "rms error", "less its mean", title="Q step, discount .99")
    trace: dict[str, list[tuple[int, float, float, float]]] = {}
    for solver in ("lstd", "fqi"):
        update = {"solver": solver} if solver == "lstd" else {"solver": solver, "rounds": rounds, "max_epochs": 1}
        options = config.estimation.anchor_q.model_copy(update=update)
        trace[solver] = traced(panel, log_pi, truth, options, config.discount, config.temperature)
        for done, seconds, error, centred in trace[solver][:: max(1, len(trace[solver]) // 8)] + trace[solver][-1:]:
            table.add_row(solver, str(done), f"{seconds:.1f}", f"{error:.3f}", f"{centred:.3f}")
    console.print(table)
    _, kernel_seconds, error, centred = trace["lstd"][-1]
    for name, at, goal in (("error", 2, error), ("error less its mean", 3, centred)):
        near = [row[1] for row in trace["fqi"] if row[at] <= goal]
        seconds = near[0] if near else trace["fqi"][-1][1]
        said = "reached" if near else f"not reached in {rounds} rounds: at least"
        met = "met" if seconds / kernel_seconds >= Q_BAR else "MISSED"
        ratio = f"{seconds / kernel_seconds:.1f}"
        console.print(f"fqi at the kernel's {name} ({goal:.3f}): {said} {ratio} x its time (bar {Q_BAR:g}: {met})")


def traced(
    panel: Panel, log_pi: Tensor, truth: Tensor, options: AnchorQStep, discount: float, temperature: float
) -> list[tuple[int, float, float, float]]:
    """(epochs, seconds, error, error less its mean) as the fit goes on, the seconds without those of looking."""
    found: list[tuple[int, float, float, float]] = []
    looked, started = 0.0, time.perf_counter()
    held_out = held_out_rows(panel, 0.2, 0)
    some = panel.free.nonzero().squeeze(1)[::LOOKED_AT]
    state, menu, known = panel.state[some], panel.menu[some], panel.anchor_reward[some]
    given = (state, panel.schema.reference(state, menu), known)

    def look(network: nn.Module, done: int) -> None:
        nonlocal looked
        now = time.perf_counter()
        with torch.no_grad():
            error = network(*given).double() - truth[::LOOKED_AT]
        found.append((done, now - started - looked, float(error.square().mean().sqrt()), float(error.std())))
        looked += time.perf_counter() - now

    step = AnchorQStepModule.on_validation_epoch_end

    def watching(module: AnchorQStepModule) -> None:
        step(module)
        look(module.network, module.current_epoch + 1)

    AnchorQStepModule.on_validation_epoch_end = watching  # type: ignore[method-assign]
    try:
        network, _ = fit_anchor_q(
            panel, log_pi, held_out, options, discount=discount, temperature=temperature,
            bench=Workbench(device=torch.device("cpu"), seed=0),
        )  # fmt: skip
    finally:
        AnchorQStepModule.on_validation_epoch_end = step  # type: ignore[method-assign]
    look(network, options.rounds * options.max_epochs)
    return found


if __name__ == "__main__":
    main()
