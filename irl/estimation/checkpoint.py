"""The state of a training that has not ended, in a file, so that a stopped run goes on after the last epoch stored.

What is stored is Lightning's own checkpoint: network, moving average, optimiser, learning rate, loops, and the best
weights so far. It is written whole or not at all, and read back without unpickling anything but tensors and plain
values. Resuming ends bitwise where the training would have ended: epochs are shuffled by their number, and nothing
else is drawn. What came after the last store is done again, as are the parts of a step that are no training by gradient
(the kernel, L-BFGS, the refit): they take minutes where trainings take hours.
"""

from __future__ import annotations

import io
import pickle
import time
import zipfile
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from irl import runs


class AtomicFile(TorchCheckpointIO):
    """Checkpoints written to the disk in one go."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(exist_ok=True)
        runs.atomic_write(path, buffer.getvalue())


class StoreEpochs(Checkpoint):
    """Store the training after an epoch if ``every`` seconds have passed since it began or was last stored.

    ``about`` (plain values) tells one training from another of the same name.
    """

    def __init__(self, path: Path, *, every: float, about: dict[str, int]) -> None:
        self.path, self.every, self.about, self.last = path, every, about, time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        due = not trainer.should_stop and time.monotonic() - self.last >= self.every
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            trainer.save_checkpoint(self.path)
            self.last = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return dict(self.about)

    def stored(self) -> Path | None:
        """The file, if it is of this training; one that cannot be read, or of another, counts as none."""
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile):
            return None
        about = content.get("callbacks", {}).get(self.state_key) if isinstance(content, dict) else None
        return self.path if about == self.about else None
