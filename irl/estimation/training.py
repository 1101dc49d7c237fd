"""One network trained on one loss by Lightning: the loop that the four estimation steps share.

Held-out members stop the training; the weights of the best epoch are kept in memory and restored. The learning rate
falls to zero along a half cosine, which averages out the noise of the last steps. Where that is not enough (the P
step), a moving average of the weights is judged beside them after every epoch, and the better one kept.

The networks are small, so what Lightning does around a training step would cost a quarter of the time. A training step
therefore takes many batches and optimises by hand (``BATCHES_PER_STEP``), and losses are summed on the device and read
once an epoch. ``python scripts/benchmark.py loop`` measures what is left.

In a group of processes (``torchrun``) Lightning's DDP strategy averages gradients: every batch has a backward pass of
its own, by ``manual_backward``, which readies the strategy's reducer each time. A batch is a part from each process
(:mod:`irl.data.batches`), its loss the weighted mean over all parts; losses by which weights are kept and training
stops are those of all held-out rows, so that every process decides the same. Weights and their moving average stay
equal, bit by bit.

Mixed precision holds within the losses of a batch, which are added up in float32; ``compile`` compiles them.

A loss that is not finite, or has grown beyond all measure, ends the training with a message: its weights are not kept.
A training that takes long is stored between epochs (:mod:`irl.estimation.checkpoint`).
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from irl import processes
from irl.config import Step
from irl.data.batches import Batches
from irl.estimation.checkpoint import AtomicFile, StoreEpochs

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

Precision = Literal["32", "bf16-mixed", "16-mixed"]

BATCHES_PER_STEP = 32
"""Batches that one call of Lightning's hooks is shared by."""
EXPLODED = 1e3
"""Times the loss of the first batch (and 1) that a held-out loss may come to, if a step does not say otherwise."""


class Fitting(lightning.LightningModule):
    """A network and its loss. Subclasses say what the loss of a batch is; the network knows nothing of Lightning. The
    last tensor of a batch is its rows' weight.

    ``memory`` is how many steps the moving average of the weights remembers; 0: none is kept.
    """

    sums: Tensor
    finite: Tensor
    exploded = EXPLODED

    def __init__(self, network: nn.Module, options: Step, *, memory: int = 0) -> None:
        super().__init__()
        self.network, self.options = network, options
        self.memory = memory
        self.average = AveragedModel(network, multi_avg_fn=_moving_average(memory)) if memory else None
        if self.average is not None:
            self.average.requires_grad_(False)  # else gradients of it would be waited for
        self.automatic_optimization = False
        self.first: Tensor | None = None  # loss of the first batch, before any step
        self.batches = 0  # of the epoch so far
        self.register_buffer("finite", torch.zeros((), dtype=torch.long), persistent=False)  # of these
        # (train, held out, held out by the average) x (loss, weight)
        self.register_buffer("sums", torch.zeros(3, 2), persistent=False)

    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Loss and weight of every row of the batch, both [N]."""
        raise NotImplementedError

    def training_step(self, batches: list[tuple[Tensor, ...]], batch_idx: int) -> None:
        scaled = self.trainer.precision == "16-mixed"  # the scaler of small gradients is Lightning's
        optimizer: Any = self.optimizers(use_pl_optimizer=scaled)
        own, several = [batch[-1].sum() for batch in batches], processes.group()[1]
        masses = own
        if several > 1:  # gradients are averaged over processes, so a process's mass is that of all by their number
            masses = list((processes.summed(torch.stack(own).double()).clamp_min(1e-30) / several).float())
        for batch, mine, mass in zip(batches, own, masses, strict=True):
            total = self.total(batch)
            optimizer.zero_grad()
            if scaled or several > 1:
                self.manual_backward(total / mass)
            else:
                (total / mass).backward()
            optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.network)
            self._add(0, total, mine)
            self.finite += self.sums[0, 0].isfinite()
            self.batches += 1
            if self.first is None:
                self.first = (total / mass).detach()

    def total(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Weighted sum of the losses; float32 whatever the losses are (the product is none that autocast changes)."""
        losses, weight = self.losses(batch)
        return torch.dot(losses.float(), weight)

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers().step()  # type: ignore[union-attr]

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        mass = batch[-1].sum()
        self._add(1, self.total(batch), mass)
        if self.average is not None:
            raw, self.network = self.network, self.average.module
            self._add(2, self.total(batch), mass)
            self.network = raw

    @torch.no_grad()
    def _add(self, side: int, total: Tensor, mass: Tensor) -> None:
        self.sums[side] += torch.stack([total, mass])

    def mean_losses(self) -> tuple[float, float, float]:
        """Weighted mean loss since the last call, over the rows of all processes: while training, on held-out rows,
        there by the average (or nan)."""
        sums = processes.summed(self.sums.double())
        train, held_out, averaged = (sums[:, 0] / sums[:, 1]).tolist()
        self.sums.zero_()
        return train, held_out, averaged

    def first_not_finite(self) -> int | None:
        """The first batch, from 1, whose loss was not finite in any process, of those since the last call; None if all
        were."""
        batches, finite = self.batches, -int(processes.highest(-self.finite))
        self.batches = 0
        self.finite.zero_()
        return finite + 1 if finite < batches else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.average is not None:
            taken = int(checkpoint["state_dict"]["average.n_averaged"])
            self.average.multi_avg_fn = _moving_average(self.memory, taken)

    def configure_optimizers(self) -> Any:
        o = self.options
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.total_epochs())
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def total_epochs(self) -> int:
        return self.options.max_epochs


def _moving_average(memory: int, taken: int = 0) -> Callable[[Any, Any, Any], None]:
    """An exponential average over the last ``memory`` steps or so; over fewer at first, to forget the start sooner.
    ``taken``: weights averaged so far, the first of which is a copy."""
    steps = itertools.count(max(1, taken))

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], _: object) -> None:
        share = max(1 / memory, 9 / (10 + next(steps)))
        for mean, value in zip(averaged, current, strict=True):
            mean.lerp_(value, share)

    return update


@dataclass(frozen=True)
class Trained:
    """How a training ended: epochs run, best epoch (from 0), its held-out loss, seconds, the history of losses, and
    whether the weights kept are the moving average."""

    epochs: int
    best_epoch: int
    held_out_loss: float
    seconds: float
    history: list[float] = field(default_factory=list)
    averaged: bool = False


@dataclass(frozen=True)
class Workbench:
    """Where the steps of a run train, and how: device, seed, TensorBoard folder (the first process writes there),
    Lightning's name of the precision, whether losses are compiled, and what to call after every epoch.

    ``tick(step, epoch, of, loss)`` reports progress. Trainings are stored in the folder ``checkpoints``, if there is
    one, every so many seconds.
    """

    device: torch.device
    seed: int
    tensorboard: Path | None = None
    precision: Precision = "32"
    compile: bool = False
    tick: Callable[[str, int, int, float], None] = lambda step, epoch, of, loss: None
    checkpoints: Path | None = None
    every: float = 300.0

    def logger(self, name: str) -> TensorBoardLogger | None:
        """Where the step ``name`` logs: the folder of that name."""
        return TensorBoardLogger(self.tensorboard, name=name, version="") if self.tensorboard else None

    def record(self, name: str, scalars: Mapping[str, float], histograms: Mapping[str, Tensor] | None = None) -> None:
        """Log what the finished step ``name`` found."""
        logger = self.logger(name)
        if logger is None:
            return
        logger.log_metrics(dict(scalars), step=0)
        for tag, values in (histograms or {}).items():
            if len(values):
                logger.experiment.add_histogram(tag, values, global_step=0)
        logger.finalize("success")


class _KeepBest(Callback):
    """Remember the weights of the best held-out epoch; stop after ``patience`` epochs without a better one."""

    def __init__(self, patience: int | None, batches: Batches, tick: Callable[[int, float], None]) -> None:
        self.patience, self.batches, self.tick = patience, batches, tick
        self.best, self.best_epoch, self.history = float("inf"), 0, list[float]()
        self.weights: dict[str, Tensor] = {}
        self.averaged = False
        self.first: float | None = None
        self.fault = ""

    def state_dict(self) -> dict[str, Any]:
        named = ("best", "best_epoch", "history", "weights", "averaged", "first")
        return {name: getattr(self, name) for name in named} | {"shuffled": self.batches.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            if name == "shuffled":
                self.batches.epoch = value
            else:
                setattr(self, name, value)

    def _fault(self, epoch: int, loss: float, batch: int | None, exploded: float) -> str:
        """What is wrong with an epoch; empty if nothing is."""
        if batch is not None:
            return f"the training loss is not finite from batch {batch} of epoch {epoch + 1} on"
        if not math.isfinite(loss):
            return f"the held-out loss is not finite after epoch {epoch + 1}"
        if self.first is not None and loss > exploded * (1 + abs(self.first)):
            said = f"the held-out loss is {loss:.3g} after epoch {epoch + 1}"
            return f"{said}, that of the first batch was {self.first:.3g}"
        return ""

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, Fitting)
        train_loss, raw, average = pl_module.mean_losses()
        averaged = average < raw
        loss = average if averaged else raw
        epoch = trainer.current_epoch
        self.history.append(loss)
        if self.first is None and pl_module.first is not None:
            self.first = processes.total(pl_module.first) / processes.group()[1]
        self.fault = self._fault(epoch, loss, pl_module.first_not_finite(), pl_module.exploded)
        if loss < self.best or self.patience is None:
            self.best, self.best_epoch, self.averaged = loss, epoch, averaged
            kept = pl_module.average.module if averaged and pl_module.average is not None else pl_module.network
            self.weights = copy.deepcopy(kept.state_dict())
        elif epoch - self.best_epoch >= self.patience:
            trainer.should_stop = True
        trainer.should_stop |= bool(self.fault)
        if trainer.logger:
            trainer.logger.log_metrics({"train_loss": train_loss, "held_out_loss": loss}, step=epoch)
        self.tick(epoch + 1, loss)


def _place(device: torch.device) -> dict[str, Any]:
    """Lightning's arguments: one device, or the devices of all processes that torchrun started."""
    several = processes.group()[1]
    if several == 1:
        return {"accelerator": device.type, "devices": 1 if device.index is None else [device.index]}
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    # buffers are not sent around: the networks' are equal, the sums of losses each process's own
    strategy = DDPStrategy(broadcast_buffers=False)
    return {"accelerator": device.type, "devices": here, "num_nodes": several // here, "strategy": strategy}


def train(
    fitting: Fitting, batches: Batches, held_out: Batches, *, name: str, bench: Workbench, keep_best: bool = True
) -> Trained:
    """Train ``fitting.network`` in place; with ``keep_best`` its weights are those of the best held-out epoch.

    Raises
    ------
    FloatingPointError
        If a loss is not finite, or exploded; it names the step, epoch and batch.
    """
    started = time.perf_counter()
    total = fitting.total_epochs()
    patience = fitting.options.patience if keep_best else None
    keeper = _KeepBest(patience, batches, lambda epoch, loss: bench.tick(name, epoch, total, loss))
    store = None
    if bench.checkpoints is not None:
        about: dict[str, float] = {"epochs": total, "rows": batches.n_rows, "held_out": held_out.n_rows}
        about |= {"processes": processes.group()[1], "learning_rate": fitting.options.learning_rate}
        store = StoreEpochs(bench.checkpoints / f"{name}.ckpt", every=bench.every, about=about)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")  # logged once an epoch
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")  # Lightning's own affair
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # batches are slices: no workers
        warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
        warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated.*")  # the new name is too new
        trainer = lightning.Trainer(
            max_epochs=total,
            precision=bench.precision,
            **_place(bench.device),
            logger=bench.logger(name) or False,
            callbacks=[keeper] if store is None else [keeper, store],
            plugins=[AtomicFile()],
            enable_checkpointing=store is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=10**9,
        )
        if bench.compile:
            fitting.total = torch.compile(fitting.total)  # type: ignore[method-assign]
        training = DataLoader(batches, batch_size=BATCHES_PER_STEP, collate_fn=list)
        path = None if store is None else store.stored()
        trainer.fit(fitting, training, DataLoader(held_out, batch_size=None), ckpt_path=path, weights_only=True)
    if keeper.fault:
        option = f"estimation.{name.partition('_fold')[0].removesuffix('_one_type')}.learning_rate"
        rate = fitting.options.learning_rate
        raise FloatingPointError(f"{name}: {keeper.fault}; lower {option} (it is {rate:g}), and look for outliers")
    if keep_best:
        fitting.network.load_state_dict(keeper.weights)
    fitting.network.to(bench.device).eval()
    bench.tick(name, total, total, keeper.best)
    seconds = time.perf_counter() - started
    return Trained(len(keeper.history), keeper.best_epoch, keeper.best, seconds, keeper.history, keeper.averaged)
