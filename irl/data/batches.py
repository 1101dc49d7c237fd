"""Mini-batches as whole slices of tensors: one shuffle an epoch, one index per tensor and batch, nothing row by row.

Where rows are dealt out to processes, a batch is made of a part of each: all have as many batches as one process with
all rows would, each cuts its own rows into as many parts of nearly the same size (with few rows, some of none), and
every row is in one batch of an epoch. So no process waits for a batch that another does not have, however unevenly rows
are dealt out, and none is repeated or left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from irl import processes


class Batches(IterableDataset[tuple[Tensor, ...]]):
    """Batches of equally long tensors, on the device where the tensors are.

    Parameters
    ----------
    tensors : each [N, ...].
    batch_size : rows per batch, of all processes together; the last batch of an epoch may be smaller.
    seed : epoch e is shuffled by a generator seeded with ``seed + e``; None keeps the order (evaluation).
    """

    def __init__(self, tensors: tuple[Tensor, ...], *, batch_size: int, seed: int | None) -> None:
        super().__init__()
        assert tensors and all(len(t) == len(tensors[0]) for t in tensors), "tensors must be equally long"
        self.tensors, self.batch_size, self.seed, self.epoch = tensors, batch_size, seed, 0
        self.batches = -(-int(processes.total(self.n_rows)) // batch_size)

    @property
    def n_rows(self) -> int:
        return len(self.tensors[0])

    def __len__(self) -> int:
        return self.batches

    def bounds(self) -> list[tuple[int, int]]:
        """First row and end of every batch."""
        n = self.n_rows
        if processes.group()[1] == 1:
            return [(start, min(start + self.batch_size, n)) for start in range(0, n, self.batch_size)]
        return [(k * n // self.batches, (k + 1) * n // self.batches) for k in range(self.batches)]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if self.seed is None:
            for start, end in self.bounds():
                yield tuple(t[start:end] for t in self.tensors)
            return
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        self.epoch += 1
        order = torch.randperm(self.n_rows, generator=generator).to(self.tensors[0].device)
        for start, end in self.bounds():
            rows = order[start:end]
            yield tuple(t[rows] for t in self.tensors)
