"""What is computed for every row of a panel: some rows at a time, kept where the panel itself is.

So the memory that a step takes is that of some rows, and of what a network makes of them, not of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from irl.data.panel import Panel

CHUNK = 65_536
"""Rows at once."""


def parts(rows: int, chunk: int = CHUNK) -> Iterator[slice]:
    """All of so many rows, in order."""
    yield from (slice(first, min(first + chunk, rows)) for first in range(0, rows, chunk))


def parts_of(where: Tensor, chunk: int = CHUNK) -> Iterator[Tensor]:
    """The numbers of the rows of where[N], in order, at most so many at once."""
    for part in parts(len(where)):
        rows = part.start + where[part].nonzero().squeeze(1)
        if len(rows):
            yield from rows.split(chunk)


def every(where: Tensor, step: int) -> Tensor:
    """The numbers of every ``step``-th of the rows of where[N]."""
    found, seen = [torch.arange(0, device=where.device)], 0
    for rows in parts_of(where):
        found.append(rows[-seen % step :: step])
        seen += len(rows)
    return torch.cat(found)


@torch.no_grad()
def forward(
    panel: Panel,
    of: Callable[[slice], Tensor],
    *width: int,
    dtype: torch.dtype = torch.float32,
    rows: int | None = None,
) -> Tensor:
    """[N, *width]: of(rows) of all rows of the panel, or of so many ``rows``."""
    rows = panel.n_rows if rows is None else rows
    found = panel.room(rows, *width, dtype=dtype)
    for part in parts(rows):
        found[part] = of(part)
    return found
