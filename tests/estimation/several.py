"""Run by test_dealt.py: what one process does and what two do, in a Python of its own, which imports once and forks.

python several.py JOB FOLDER        leaves FOLDER/NAME.pt of whatever the job keeps
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from irl import command, evaluation, processes
from irl.config import Config, InputError, Step
from irl.data import read_panel
from irl.data.batches import Batches
from irl.data.panel import Panel, panel_from_frame, part_of
from irl.data.prepare import prepare
from irl.estimation import pipeline
from irl.estimation.checkpoint import StoreEpochs
from irl.estimation.logit import Choices, Logit
from irl.estimation.training import Fitting, Workbench, train
from irl.fitted import new_networks

CPU, NUMBER = torch.device("cpu"), 2
TINY = {"hidden": [8], "max_epochs": 3, "batch_size": 128}
STUDY = {
    "data": {
        "path": "panel.parquet", "member": "id", "period": "month", "action": "plan",
        "actions": ["none", "monthly", "annual"], "segment": "region",
        "state": {
            "status": {"kind": "category", "dynamics": "table"},
            "video": {"kind": "ordinal", "levels": 3, "dynamics": "learned"},
            "spend": {"kind": "numeric", "dynamics": "learned"},
            "price": {"kind": "numeric", "dynamics": "static", "assigned": "randomised"},
            "season": {"kind": "ordinal", "levels": 4, "dynamics": "clock"},
        },
    },
    "anchor": {"action": "none", "reward": 0.0},
    "discount": 0.9,
    "reward": {"benefits": ["video"]},
    "estimation": {"policy": TINY, "anchor_q": TINY | {"rounds": 2}, "reward": TINY, "dynamics": TINY},
}  # fmt: skip


def together(work: Callable[[], None], *, limit: float = 300.0, hasty: bool = True) -> list[int | None]:
    """work() in two processes, as torchrun starts them and (``hasty``) ends them: all, once one failed. Exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(rank: int) -> None:
        about = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": NUMBER, "LOCAL_WORLD_SIZE": NUMBER}
        about |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        os.environ.update({name: str(value) for name, value in about.items()})
        with command.user_errors(), processes.joined():
            work()

    context = multiprocessing.get_context("fork")
    started = [context.Process(target=one, args=(rank,)) for rank in range(NUMBER)]
    for process in started:
        process.start()
    until = time.monotonic() + limit
    while any(p.exitcode is None for p in started) and time.monotonic() < until:
        if hasty and any(p.exitcode for p in started):
            break
        time.sleep(0.02)
    for process in started:
        process.kill()
        process.join()
    return [p.exitcode for p in started]


def frame() -> pd.DataFrame:
    """120 members of very different lengths."""
    rng, rows = np.random.default_rng(0), []
    for member in range(120):
        status, video, spend, price = "out", 0, 0.0, float(rng.choice([0.8, 1.0, 1.2]))
        for month in range(3 + 40 * (member % 10 == 0) + member % 5):
            plan = str(rng.choice(["none", "monthly", "annual"], p=[0.4, 0.35, 0.25]))
            weight = 0.5 + (member % 3)
            region = ("north", "south")[member % 2]
            rows.append((member, month, plan, status, video, spend, price, month % 4, region, weight))
            video = int(np.clip(video + (1 if plan != "none" else -1) * rng.integers(0, 2), 0, 2))
            status, spend = ("out" if plan == "none" else plan), float(0.5 * spend + rng.normal() + (plan != "none"))
    names = ["id", "month", "plan", "status", "video", "spend", "price", "season", "region", "w"]
    return pd.DataFrame(rows, columns=names)


def panel() -> Panel:
    return panel_from_frame(frame(), Config.model_validate(STUDY | {"data": STUDY["data"] | {"weight": "w"}}))


def mine(rows: Tensor) -> Tensor:
    """A fifth of the rows for the first process, the rest for the second; all for one alone."""
    process, number = processes.group()
    cut = len(rows) // 5
    return rows if number == 1 else (rows[:cut], rows[cut:])[process]


class Line(Fitting):
    """Weighted least squares; a batch is (x, y, weight). ``seen``: gradients after every batch."""

    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        x, y, weight = batch
        return (self.network(x).squeeze(1) - y).square(), weight

    def configure_optimizers(self) -> object:
        found = super().configure_optimizers()
        self.seen: list[Tensor] = []
        grads = lambda *_: self.seen.append(torch.cat([p.grad.flatten() for p in self.network.parameters()]))  # noqa: E731
        found["optimizer"].register_step_pre_hook(grads)
        return found


def sums() -> dict[str, object]:
    """The kernel's sums, what held-out folds choose, and the logit's likelihood, gradient and curvature."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n, d, actions = 400, 5, 3
    phi, following = (torch.cat([torch.ones(n, 1), noise(n, d - 1)], 1) for _ in range(2))
    columns = (phi, following, torch.full((n,), 0.9).double(), noise(n, 2), noise(n).abs())
    block, nu = torch.randint(actions, (n,), generator=generator), noise(n, actions).softmax(1)

    def rows(keep: Tensor) -> evaluation.Rows:
        return evaluation.Rows(*(c[keep] for c in columns), action=block[keep], next_policy=nu[keep])

    own = mine(torch.arange(n))
    late = own[own >= 100]  # of which the first process has none
    folds = [lambda k=k: [rows(own[own % 3 == k])] for k in range(3)]
    choice = evaluation.chosen(folds, actions=actions, dealt=True)
    found = evaluation.accumulate((rows(part) for part in own.split(64)), actions=actions, dealt=True)
    fewer = evaluation.accumulate([rows(late)], actions=actions, dealt=True)
    part = panel()
    part = part if processes.group()[1] == 1 else part_of(part, *processes.group())
    torch.manual_seed(3)
    model = new_networks(Config.model_validate(STUDY), part.schema)
    width, terms = model.basis(part.state[:1]).shape[1], 4
    logit = Logit(noise(actions, width, terms) / 10, noise(actions, width) / 10, 0, 1.0)
    choices, theta = Choices(model, part, part.free.nonzero().squeeze(1), {}), noise(terms)
    return {
        "kernel": [found.matrix, found.rhs, found.gram, found.lowest, found.highest, torch.tensor(found.rows)],
        "fewer": [fewer.matrix, fewer.lowest, fewer.highest],
        "choice": torch.tensor([choice.ridge, choice.target, choice.unexplained], dtype=torch.float64),
        "logit": [
            torch.tensor(logit.log_likelihood(theta, choices)),
            logit.gradient(theta, choices),
            logit.curvature(theta, choices),
        ],
    }


def gradients(weighted: Tensor, columns: tuple[Tensor, ...], batch_size: int, epochs: int) -> dict[str, object]:
    """A small network trained on own rows; gradients of every batch, weights and moving average at the end."""
    torch.manual_seed(5)
    network = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))
    own = mine(torch.arange(len(weighted)))
    fit = Batches(tuple(c[own] for c in (*columns, weighted)), batch_size=batch_size, seed=1)
    check = Batches(tuple(c[mine(torch.arange(20))] for c in (*columns, weighted)), batch_size=100, seed=None)
    fitting = Line(network, Step(learning_rate=0.01, max_epochs=epochs, patience=epochs), memory=5)
    trained = train(fitting, fit, check, name="line", bench=Workbench(device=CPU, seed=0), keep_best=False)
    assert fitting.average is not None
    weights = [p.detach() for p in (*network.parameters(), *fitting.average.module.parameters())]
    return {"gradients": torch.stack(fitting.seen), "weights": weights, "history": trained.history}


def numbers(folder: Path) -> None:
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(1))
    y, weight = x.sum(1).sin(), 0.1 + x[:, 0].abs()
    found = {"sums": sums()}
    found["one batch"] = gradients(weight, (x, y), 1000, 1)
    found["uneven"] = gradients(weight[:23], (x[:23], y[:23]), 4, 20)  # 4 rows and 19, 6 batches each
    found["many"] = gradients(weight, (x, y), 16, 2)  # 63 batches: two calls of Lightning's hooks an epoch
    torch.save(found, folder / f"numbers-{processes.group()[1]}-{processes.group()[0]}.pt")


def study(folder: Path, run: str, resume: bool = False) -> None:
    options = STUDY["estimation"] | {"checkpoint_seconds": 0.0}
    config = Config.model_validate(STUDY | {"data": STUDY["data"] | {"weight": "w"}, "estimation": options})
    ticks: list[str] = []
    told = lambda step, epoch, of, loss: ticks.append(f"{step} {epoch}")  # noqa: E731
    model = pipeline.train(config, panel(), folder / run, device=CPU, resume=resume, tick=told)
    (folder / f"{run}-{processes.group()[0]}.txt").write_text("\n".join(ticks), encoding="utf-8")
    weights = {f"{a}.{b}": t for a, n in model._networks().items() for b, t in n.state_dict().items()}
    torch.save(weights, folder / f"{run}-{processes.group()[0]}.pt")


def stored(folder: Path) -> None:
    """The study on a panel store of which each process reads its own buckets; one alone makes the store."""
    data = STUDY["data"] | {"weight": "w", "path": str(folder / "frame.parquet")}
    store = folder / "store"
    if processes.group()[1] == 1:
        frame().to_parquet(folder / "frame.parquet")
        prepare(Config.model_validate(STUDY | {"data": data}), store, bucket_rows=100)
        return
    config = Config.model_validate(STUDY | {"data": data | {"path": str(store), "memory_rows": 0}})
    part = read_panel(config, share=processes.group())
    assert part.origin is not None
    pipeline.train(config, part, folder / "stored", device=CPU)


def killed_after(name: str) -> None:
    """The first process ends as by `kill -9` once the step is stored; the second is in the midst of the next one."""
    save = pipeline.FolderStore.save

    def stop(self: pipeline.FolderStore, step: str, *rest: object) -> None:
        save(self, step, *rest)  # type: ignore[arg-type]
        if step == name and processes.group()[0] == 0:
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)

    pipeline.FolderStore.save = stop  # type: ignore[method-assign, assignment]


def killed_within(name: str, epoch: int) -> None:
    """The first process ends as by `kill -9` once this epoch of the step's training is stored."""
    save = StoreEpochs.on_train_epoch_end

    def stop(self: StoreEpochs, trainer: Trainer, module: LightningModule) -> None:
        save(self, trainer, module)
        if self.path.stem == name and trainer.current_epoch + 1 == epoch and processes.group()[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    StoreEpochs.on_train_epoch_end = stop  # type: ignore[method-assign]


def wrong(everywhere: bool) -> None:
    """What a user has to change, found out by both processes or by the second, while the first waits for it."""
    if everywhere or processes.group()[0]:
        raise InputError("this cannot be")
    processes.total(1)


def main(job: str, folder: Path) -> None:
    if job == "numbers":
        numbers(folder)
        assert together(lambda: numbers(folder)) == [0, 0]
    if job == "wrong":
        for everywhere in (True, False):
            assert together(lambda e=everywhere: wrong(e), hasty=False) == [2, 2]
    if job == "study":
        study(folder, "one")
        assert together(lambda: study(folder, "two")) == [0, 0]
        if find_spec("duckdb"):
            stored(folder)
            assert together(lambda: stored(folder)) == [0, 0]
    if job == "killed":

        def until_killed() -> None:
            killed_after("anchor_q")
            study(folder, "again")

        assert together(lambda: study(folder, "two")) == [0, 0]
        assert -signal.SIGKILL in together(until_killed)
        assert sorted(p.stem for p in (folder / "again/steps").glob("*.json"))[0] == "anchor_q"
        assert not (folder / "again/metrics.json").exists()
        assert together(lambda: study(folder, "again", resume=True)) == [0, 0]
    if job == "within":

        def until_killed() -> None:
            killed_within("dynamics", 2)
            study(folder, "again")

        assert together(lambda: study(folder, "two")) == [0, 0]
        assert -signal.SIGKILL in together(until_killed)
        assert (folder / "again/steps/dynamics.ckpt").is_file()
        assert together(lambda: study(folder, "again", resume=True)) == [0, 0]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
