"""Mini-batches as whole slices of tensors: one shuffle an epoch, one index per tensor and batch, nothing row by row."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import IterableDataset


class Batches(IterableDataset[tuple[Tensor, ...]]):
    """Batches of equally long tensors, on the device where the tensors are.

    Parameters
    ----------
    tensors : each [N, ...].
    batch_size : rows per batch; the last batch of an epoch may be smaller.
    seed : epoch e is shuffled by a generator seeded with ``seed + e``; None keeps the order (evaluation).
    """

    def __init__(self, tensors: tuple[Tensor, ...], *, batch_size: int, seed: int | None) -> None:
        super().__init__()
        assert tensors and all(len(t) == len(tensors[0]) for t in tensors), "tensors must be equally long"
        self.tensors, self.batch_size, self.seed, self.epoch = tensors, batch_size, seed, 0

    @property
    def n_rows(self) -> int:
        return len(self.tensors[0])

    def __len__(self) -> int:
        return -(-self.n_rows // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if self.seed is None:
            for start in range(0, self.n_rows, self.batch_size):
                yield tuple(t[start : start + self.batch_size] for t in self.tensors)
            return
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        self.epoch += 1
        order = torch.randperm(self.n_rows, generator=generator).to(self.tensors[0].device)
        for start in range(0, self.n_rows, self.batch_size):
            rows = order[start : start + self.batch_size]
            yield tuple(t[rows] for t in self.tensors)
