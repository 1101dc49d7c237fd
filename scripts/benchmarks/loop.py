"""What the training loop costs: seconds per epoch of the P step under Lightning against a bare PyTorch loop.

Both train the same network from the same weights on the same batches (the membership panel) with the same optimiser,
schedule and number of epochs, and evaluate on the same held-out members after every epoch; the bare loop has nothing
else in it, the other is the one that scripts/train.py runs, TensorBoard included. They alternate in one process, since
the load of a machine changes. That both end at the same held-out loss shows that they did the same work.

python scripts/benchmark.py loop [--members 4000] [--periods 36] [--epochs 10] [--repeats 6] [--seed 0] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import lightning
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from irl import membership
from irl.config import Config, Step, load_config
from irl.data.batches import Batches
from irl.data.panel import Panel, panel_from_frame
from irl.estimation.pipeline import held_out_rows
from irl.estimation.policy import PolicyStep
from irl.estimation.training import Workbench, train
from irl.networks import PolicyNetwork

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "membership.yaml"
BAR = 1.25
HELD_OUT_BATCH = 65536


@dataclass(frozen=True)
class Work:
    """What both loops train on: tensors (state, menu, action, weight) of the two sides, and the options."""

    panel: Panel
    fit: tuple[Tensor, ...]
    check: tuple[Tensor, ...]
    options: Step
    seed: int

    def start(self) -> tuple[PolicyNetwork, Batches, Batches]:
        """An untrained network and the batches, the same at every call."""
        torch.manual_seed(self.seed)
        network = PolicyNetwork(self.panel.schema, self.options.hidden)
        batches = Batches(self.fit, batch_size=self.options.batch_size, seed=self.seed)
        return network, batches, Batches(self.check, batch_size=HELD_OUT_BATCH, seed=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=4000)
    parser.add_argument("--periods", type=int, default=36)
    parser.add_argument("--epochs", type=int, default=10, help="per measurement")
    parser.add_argument("--repeats", type=int, default=6, help="measurements of each loop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    console = Console()
    config = load_config(CONFIG, [f"seed={arguments.seed}"])
    work = prepare(config, arguments.members, arguments.periods, arguments.epochs)
    (
        with_lightning(work),
        averaging(work),
        bare(work),
    )  # each once unmeasured: first calls of torch and Lightning load and compile
    found: dict[str, list[tuple[float, float]]] = {"Lightning": [], "with the average": [], "bare": []}
    for repeat in track(range(arguments.repeats), "measuring", console=Console(stderr=True)):
        loops = [("Lightning", with_lightning), ("with the average", averaging), ("bare", bare)]
        for name, loop in loops if repeat % 2 == 0 else reversed(loops):
            found[name].append(loop(work))
    print_table(console, found, work)


def prepare(config: Config, members: int, periods: int, epochs: int) -> Work:
    """A simulated membership panel, split as the pipeline splits it."""
    market = membership.Market(discount=config.discount, temperature=config.temperature)
    frame = membership.simulate(membership.solve(market), members=members, periods=periods, seed=config.seed)
    panel = panel_from_frame(frame, config)
    held_out = held_out_rows(panel, config.estimation.validation, config.seed)
    columns = (panel.state, panel.menu, panel.action, panel.weight)
    fit, check = (tuple(c[panel.free & rows] for c in columns) for rows in (~held_out, held_out))
    options = config.estimation.policy.model_copy(update={"max_epochs": epochs, "patience": epochs})
    return Work(panel, fit, check, options, config.seed)


def averaging(work: Work) -> tuple[float, float]:
    """The same with the moving average of the weights that the P step keeps: more work than the bare loop does."""
    return with_lightning(work, average=True)


def with_lightning(work: Work, *, average: bool = False) -> tuple[float, float]:
    """Seconds per epoch and the best held-out loss, of the package's loop."""
    network, batches, held_out = work.start()
    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(device=torch.device("cpu"), seed=work.seed, tensorboard=Path(folder))
        step = PolicyStep(network, work.options, memory=len(batches) if average else 0)
        started = time.perf_counter()
        trained = train(step, batches, held_out, name="policy", bench=bench)
        seconds = time.perf_counter() - started
    assert trained.epochs == work.options.max_epochs
    return seconds / trained.epochs, trained.held_out_loss


def bare(work: Work) -> tuple[float, float]:
    """The same, of as little code as trains the same network."""
    network, batches, held_out = work.start()
    o = work.options
    started = time.perf_counter()
    optimizer = torch.optim.AdamW(network.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=o.max_epochs)
    best = float("inf")
    for _ in range(o.max_epochs):
        network.train()
        for batch in batches:
            optimizer.zero_grad()
            loss(network, batch).backward()
            optimizer.step()
        schedule.step()
        network.eval()
        with torch.no_grad():
            best = min(best, statistics.fmean(float(loss(network, batch)) for batch in held_out))
    return (time.perf_counter() - started) / o.max_epochs, best


def loss(network: PolicyNetwork, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean negative log-likelihood of a batch."""
    state, menu, action, weight = batch
    return -(network(state, menu).gather(1, action.unsqueeze(1)).squeeze(1) @ weight) / weight.sum()


def print_table(console: Console, found: dict[str, list[tuple[float, float]]], work: Work) -> None:
    """Seconds per epoch of both, their ratio pair by pair, and the machine."""
    seconds = {name: [s for s, _ in measured] for name, measured in found.items()}
    batches = -(-len(work.fit[0]) // work.options.batch_size)
    table = Table("loop", "s per epoch, median", "least", "most", "held-out loss", title="P step, seconds per epoch")
    for name, measured in seconds.items():
        losses = {f"{held_out:.5f}" for _, held_out in found[name]}
        row = (f"{x:.3f}" for x in (statistics.median(measured), min(measured), max(measured)))
        table.add_row(name, *row, ", ".join(sorted(losses)))
    console.print(table)
    for name in ("Lightning", "with the average"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["bare"], strict=True)]
        ratio = statistics.median(ratios)
        console.print(
            f"{name} / bare: {ratio:.3f} (median of {len(ratios)} pairs, {min(ratios):.3f} to {max(ratios):.3f}); "
            f"bar {BAR}: {'met' if ratio <= BAR else 'MISSED'}"
        )
    console.print(
        f"{len(work.fit[0]):,} rows to fit, {len(work.check[0]):,} held out; {batches} batches of up to "
        f"{work.options.batch_size:,} per epoch, {work.options.max_epochs} epochs per measurement; seed {work.seed}"
    )
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; torch {torch.__version__}, "
        f"lightning {lightning.__version__}, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
