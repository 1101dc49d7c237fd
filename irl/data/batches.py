"""Mini-batches of the rows of equally long tensors, one index per tensor and batch, nothing row by row.

Up to ``WINDOW`` rows are shuffled as a whole. Of more, blocks of ``BLOCK`` consecutive rows come in a random order, and
the rows of so many blocks that they make a window are shuffled together: memory is that of a window, tensors in files
are read a block at a time, and where the rows come in a random order already (a panel store's members do), what a batch
holds is a random sample all the same.

Where rows are dealt out to processes, a batch is made of a part of each: all have as many batches as one process with
all rows would, each cuts its own rows into as many parts of nearly the same size (with few rows, some of none), and
every row is in one batch of an epoch. So no process waits for a batch that another does not have, however unevenly rows
are dealt out, and none is repeated or left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from irl import processes

BLOCK = 65_536
WINDOW = 64 * BLOCK


class ByRow(Protocol):
    """A tensor, or what gives one's rows."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Through:
    """values[index[rows]]: of other rows, say the next ones."""

    values: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.values[self.index[rows]]


@dataclass(frozen=True)
class Numbered:
    """The rows' own numbers."""

    rows: int
    device: torch.device

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, rows: Tensor) -> Tensor:
        return rows.to(self.device)


class Batches(IterableDataset[tuple[Tensor, ...]]):
    """Batches of rows, on the device where the tensors are.

    Parameters
    ----------
    tensors : each [N, ...].
    batch_size : rows per batch, of all processes together; the last batch of an epoch may be smaller.
    seed : epoch e is shuffled by a generator seeded with ``seed + e``; None keeps the order (evaluation).
    where : bool [N], the rows that are used; None: all.
    """

    def __init__(
        self, tensors: Sequence[ByRow], *, batch_size: int, seed: int | None, where: Tensor | None = None
    ) -> None:
        super().__init__()
        assert tensors and all(len(t) == len(tensors[0]) for t in tensors), "tensors must be equally long"
        self.tensors, self.batch_size, self.seed, self.epoch = tensors, batch_size, seed, 0
        self.where, self.device = where, tensors[0][torch.arange(0)].device
        self.n_rows = len(tensors[0]) if where is None else int(where.sum())
        self.batches = -(-int(processes.total(self.n_rows)) // batch_size)

    def __len__(self) -> int:
        return self.batches

    def bounds(self) -> list[tuple[int, int]]:
        """First row and end of every batch."""
        n = self.n_rows
        if processes.group()[1] == 1:
            return [(start, min(start + self.batch_size, n)) for start in range(0, n, self.batch_size)]
        return [(k * n // self.batches, (k + 1) * n // self.batches) for k in range(self.batches)]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed + self.epoch)
        self.epoch += generator is not None
        windows, left = self._windows(generator), torch.arange(0, device=self.device)
        for start, end in self.bounds():
            parts, missing = [left], end - start - len(left)
            while missing > 0:
                parts.append(next(windows))
                missing -= len(parts[-1])
            rows = torch.cat(parts) if len(parts) > 1 else left
            rows, left = rows[: end - start], rows[end - start :]
            yield tuple(t[rows] for t in self.tensors)

    def _windows(self, generator: torch.Generator | None) -> Iterator[Tensor]:
        """The rows of an epoch in their order, in parts."""
        n = len(self.tensors[0])
        if n <= WINDOW:
            rows = self._rows(0, n)
            yield rows if generator is None else rows[torch.randperm(len(rows), generator=generator).to(self.device)]
            return
        blocks = torch.arange(-(-n // BLOCK))
        if generator is not None:
            blocks = blocks[torch.randperm(len(blocks), generator=generator)]
        for some in blocks.split(WINDOW // BLOCK):
            rows = torch.cat([self._rows(first, min(first + BLOCK, n)) for first in (some * BLOCK).tolist()])
            yield rows if generator is None else rows[torch.randperm(len(rows), generator=generator).to(self.device)]

    def _rows(self, first: int, end: int) -> Tensor:
        if self.where is None:
            return torch.arange(first, end, device=self.device)
        return first + self.where[first:end].nonzero().squeeze(1)
