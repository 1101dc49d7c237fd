"""One network trained on one loss by Lightning: the loop that the four estimation steps share.

Held-out members stop the training; the weights of the best epoch are kept in memory and restored. The learning rate
falls to zero along a half cosine, which averages out the noise of the last steps much as weight averaging does.
Nothing is logged per step: losses are averaged on the device and read once an epoch.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from irl.config import Step
from irl.data.batches import Batches

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


class Fitting(lightning.LightningModule):
    """A network and its loss. Subclasses say what the loss of a batch is; the network knows nothing of Lightning."""

    def __init__(self, network: nn.Module, options: Step) -> None:
        super().__init__()
        self.network, self.options = network, options
        self.register_buffer("loss_sum", torch.zeros(()), persistent=False)
        self.register_buffer("weight_sum", torch.zeros(()), persistent=False)

    def losses(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Loss and weight of every row of the batch, both [N]."""
        raise NotImplementedError

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        losses, weight = self.losses(batch)
        total, mass = losses @ weight, weight.sum()
        self.loss_sum += total.detach()
        self.weight_sum += mass
        return total / mass

    def on_train_epoch_end(self) -> None:
        self.log("train_loss", self.loss_sum / self.weight_sum)
        self.loss_sum.zero_()
        self.weight_sum.zero_()

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        losses, weight = self.losses(batch)
        self.log("held_out_loss", (losses @ weight) / weight.sum(), batch_size=int(weight.numel()))

    def configure_optimizers(self) -> Any:
        o = self.options
        optimizer = torch.optim.AdamW(self.parameters(), lr=o.learning_rate, weight_decay=o.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.total_epochs())
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def total_epochs(self) -> int:
        return self.options.max_epochs


@dataclass(frozen=True)
class Trained:
    """How a training ended: epochs run, best epoch (from 0), its held-out loss, seconds, and the history of losses."""

    epochs: int
    best_epoch: int
    held_out_loss: float
    seconds: float
    history: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Workbench:
    """Where the steps of a run train: device, seed, TensorBoard folder, and what to call after every epoch.

    ``tick(step, epoch, of, loss)`` reports progress.
    """

    device: torch.device
    seed: int
    tensorboard: Path | None = None
    tick: Callable[[str, int, int, float], None] = lambda step, epoch, of, loss: None


class _KeepBest(Callback):
    """Remember the weights of the best held-out epoch; stop after ``patience`` epochs without a better one."""

    def __init__(self, patience: int | None, tick: Callable[[int, float], None]) -> None:
        self.patience, self.tick = patience, tick
        self.best, self.best_epoch, self.history = float("inf"), 0, list[float]()
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        loss = float(trainer.callback_metrics["held_out_loss"])
        self.history.append(loss)
        if loss < self.best or self.patience is None:
            self.best, self.best_epoch = loss, trainer.current_epoch
            self.weights = copy.deepcopy(pl_module.network.state_dict()) if isinstance(pl_module, Fitting) else {}
        elif trainer.current_epoch - self.best_epoch >= self.patience:
            trainer.should_stop = True
        self.tick(trainer.current_epoch + 1, loss)


def train(
    fitting: Fitting, batches: Batches, held_out: Batches, *, name: str, bench: Workbench, keep_best: bool = True
) -> Trained:
    """Train ``fitting.network`` in place; with ``keep_best`` its weights are those of the best held-out epoch.

    Raises
    ------
    FloatingPointError
        If the held-out loss is not finite after an epoch.
    """
    started = time.perf_counter()
    total = fitting.total_epochs()
    keeper = _KeepBest(
        fitting.options.patience if keep_best else None, lambda epoch, loss: bench.tick(name, epoch, total, loss)
    )
    logger = TensorBoardLogger(bench.tensorboard, name=name, version="") if bench.tensorboard else False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # batches are slices: no workers
        warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
        trainer = lightning.Trainer(
            max_epochs=total,
            accelerator="cpu" if bench.device.type == "cpu" else bench.device.type,
            devices=1 if bench.device.index is None else [bench.device.index],
            logger=logger,
            callbacks=[keeper],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=10**9,
        )
        trainer.fit(fitting, _loader(batches), _loader(held_out))
    if keep_best:
        fitting.network.load_state_dict(keeper.weights)
    fitting.network.to(bench.device).eval()
    bench.tick(name, total, total, keeper.best)
    if not torch.isfinite(torch.tensor(keeper.best)):
        raise FloatingPointError(f"{name}: the held-out loss is {keeper.best}; lower estimation.{name}.learning_rate")
    return Trained(len(keeper.history), keeper.best_epoch, keeper.best, time.perf_counter() - started, keeper.history)


def _loader(batches: Batches) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(batches, batch_size=None)
