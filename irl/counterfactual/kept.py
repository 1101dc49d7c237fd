"""The sums of a simulation that has not ended, in a file.

A simulation of very many members takes hours, and its sums are all that there is of it: they are stored now and then,
so that an answer that was stopped goes on there. Sums are exact (:mod:`irl.counterfactual.counts`), so that it is then
bitwise the same. Limits: policies are solved again, in seconds or minutes; several processes begin their simulation
again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from irl import runs
from irl.counterfactual.support import Tally
from irl.processes import group

FILE = "simulation.safetensors"
TOGETHER = 64
"""Batches after which sums may be stored."""


class KeptSums:
    """Sums, and how often states outside the data were visited, stored in a folder every so many seconds (0: after
    every batch)."""

    def __init__(self, folder: Path, tally: Tally, *, every: float) -> None:
        self.path, self.tally, self.every = folder / FILE, tally, every
        self.together = TOGETHER if every else 1
        self.last = time.monotonic()

    def load(self, sums: Mapping[str, Tensor]) -> int:
        """Put what is stored into ``sums`` and the tally, in place; how many batches that are, 0 if nothing is."""
        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads(file.metadata()["about"])
                stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return 0
        if {f"sum {name}" for name in sums} != {key for key in stored if key.startswith("sum ")}:
            return 0
        for name, tensor in sums.items():
            tensor.copy_(stored[f"sum {name}"])
        self.tally.visited, self.tally.left = about["visited"], about["left"]
        self.tally.by_pair = {case: stored[f"pairs {case}"].to(tensor.device) for case in about["visited"]}
        return int(about["done"])

    def save(self, sums: Mapping[str, Tensor], done: int) -> None:
        """Store the sums of so many batches, if it is time."""
        if group()[1] > 1 or time.monotonic() - self.last < self.every:
            return
        tally = self.tally
        about = json.dumps({"done": done, "visited": tally.visited, "left": tally.left})
        content = {f"sum {name}": tensor.cpu() for name, tensor in sums.items()}
        content |= {f"pairs {case}": counts.cpu().contiguous() for case, counts in tally.by_pair.items()}
        runs.atomic_write(self.path, save_tensors(content, metadata={"about": about}))
        self.last = time.monotonic()
