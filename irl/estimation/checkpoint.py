"""The state of a training that has not ended, in a file, so that a stopped run goes on after the last epoch stored.

What is stored is Lightning's own checkpoint: network, moving average, optimiser, learning rate, loops, and the best
weights so far. It is written whole or not at all, and read back without unpickling anything but tensors and plain
values. Resuming ends bitwise where the training would have ended: epochs are shuffled by their number, and nothing
else is drawn. What came after the last store is done again, as are the parts of a step that are no training by gradient
(the kernel, L-BFGS, the refit): they take minutes where trainings take hours.

Of several processes, whose networks and optimisers are alike, the first writes and reads the file; the others get what
it read. Of two the end is bitwise the same; of more, up to the order in which gradients are added up, which DDP chooses
anew in the first batch of a process.
"""

from __future__ import annotations

import io
import pickle
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from irl import processes, runs


class AtomicFile(TorchCheckpointIO):
    """Checkpoints written to the disk in one go, and read by the first process for all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).parent.mkdir(exist_ok=True)
        runs.atomic_write(path, buffer.getvalue())

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return processes.from_first(lambda: super(AtomicFile, self).load_checkpoint(path, *args, **kwargs))


class StoreEpochs(Checkpoint):
    """Store the training after an epoch if ``every`` seconds have passed since it began or was last stored.

    ``about`` (plain values) tells one training from another of the same name.
    """

    def __init__(self, path: Path, *, every: float, about: Mapping[str, float]) -> None:
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
        return processes.from_first(self._stored)

    def _stored(self) -> Path | None:
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile):
            return None
        about = content.get("callbacks", {}).get(self.state_key) if isinstance(content, dict) else None
        return self.path if about == self.about else None
